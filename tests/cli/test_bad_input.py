"""What a user may get wrong: exit code 2, one line that names it, one next step, nothing lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from shell import Shell
from tiny import hashes, table, toml


def photos(folder: Path, count: int = 3, size: int = 16) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (size, size), (i * 40 % 256, 90, 200 - i)).save(folder / f"{i}.png")
    return folder


# ------------------------------------------------------------------------------------------------------------ unknown names


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "ddpn"], ["unknown model or recipe 'ddpn'", "ddpm"]),
        (["train", "ddpm", "--data", "digitz"], ["'digitz'", "digits"]),
        (["train", "ddpm", "--net", "unett"], ["'unett'", "unet"]),
        (["train", "ddpm", "--steps", "many"], ["--steps is 'many'", "integer"]),
        (["train", "ddpm", "--steps", "0"], ["steps", "0"]),
        (["train", "ddpm", "--step", "10"], ["--step", "--steps"]),
        (["train", "ddpm", "--precision", "fp8"], ["precision", "'fp8'"]),
        (["train", "missing.toml"], ["missing.toml"]),
        (["sample", "dddim"], ["'dddim'", "ddim"]),
        (["eval", "fidd"], ["unknown metric 'fidd'", "fid"]),
        (["eval"], ["metric"]),
        (["info", "vqvaee"], ["'vqvaee'", "vqvae"]),
        (["info"], ["name"]),
        (["list", "modles"], ["'modles'", "models"]),
        (["trian", "ddpm"], ["'trian'", "train"]),
        (["data", "check"], ["path"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_an_unknown_name_is_answered_with_a_near_one(
    shell: Shell, tmp_path: Path, args: list[str], words: list[str]
) -> None:
    shell(*args).fails(*words)
    assert not (tmp_path / "checkpoints").exists(), "no run is begun"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["sample", "ddim"], ["no checkpoint", "ddim", "checkpoints", "gencli train ddpm"]),
        (["sample", "ddpm"], ["ddpm", "checkpoints", "gencli train ddpm"]),
        (["sample", "vqvae"], ["vqvae", "gencli train vqvae"]),
        (["eval", "fid"], ["no checkpoint", "checkpoints", "gencli train ddpm"]),
        (["eval", "fid", "-c", "ddpm-digits"], ["ddpm-digits", "checkpoints"]),
        (["train", "ddpm", "--resume"], ["ddpm", "checkpoints", "gencli train ddpm"]),
        (["train", "ddpm", "--resume", "nothing"], ["nothing", "checkpoints"]),
        (["train", "gated-pixelcnn", "--codec", "vqvae"], ["vqvae", "checkpoints"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_without_a_checkpoint_every_place_looked_in_is_named(shell: Shell, args: list[str], words: list[str]) -> None:
    shell(*args).fails(*words)


# ------------------------------------------------------------------------------------------------------ things that do not fit


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["sample", "ddim", "-c", "pixelcnn-digits"], ["Ddim", "PixelCNN", "Denoiser"]),
        (["sample", "next-token", "-c", "ddpm-digits"], ["NextToken", "Ddpm"]),
        (["sample", "ddpm-digits", "--sampler", "next-token"], ["NextToken", "Ddpm"]),
        (["sample", "vqvae-digits"], ["vqvae-digits", "prior", "gencli train gated-pixelcnn --codec vqvae-digits"]),
        (["eval", "fid", "-c", "vqvae-digits"], ["vqvae-digits"]),
        (["eval", "reconstruction", "-c", "ddpm-digits"], ["reconstruction", "Ddpm"]),
        (["train", "ddpm", "--codec", "vqvae-digits"], ["codes of shape (4, 4)"]),
        (["train", "gated-pixelcnn", "--codec", "ddpm-digits"], ["ddpm-digits", "codec"]),
        (["train", "ddpm", "--resume", "vqvae-digits"], ["vqvae-digits", "vqvae", "ddpm"]),
        (["sample", "ddim", "--steps", "0"], ["steps is 0", "20", "--steps 1 to 20"]),
        (["sample", "ddim", "--steps", "21"], ["steps is 21", "20"]),
        (["sample", "ddim", "--eta", "2"], ["eta", "2"]),
        (["sample", "ddim", "-n", "0"], ["-n is 0"]),
        (["sample", "ddim", "--seed", "-1"], ["--seed is -1"]),
        (["sample", "ddim", "--seeds", "9-3"], ["'9-3'"]),
        (["sample", "ddim", "--seeds", "a"], ["'a'"]),
        (["sample", "ddim", "--batch-size", "0"], ["--batch-size is 0"]),
        (["sample", "ddim", "--class", "10"], ["class 10", "0 to 9"]),
        (["sample", "ddim", "--class", "-1"], ["class -1", "0 to 9"]),
        (["sample", "ddim", "--class", "cat"], ["'cat'"]),
        (["sample", "pixelcnn-digits", "--class", "3"], ["pixelcnn-digits", "without classes"]),
        (["sample", "pixelcnn-digits", "--guidance", "2"], ["guidance 2"]),
        (["eval", "fid", "-n", "0", "-c", "ddpm-digits"], ["-n is 0"]),
        (["eval", "fid", "--split", "valid", "-c", "ddpm-digits"], ["'valid'"]),
        (["eval", "fid", "--features", "incepton", "-c", "ddpm-digits"], ["incepton"]),
        (["eval", "fid", "--features", "inception", "-c", "ddpm-digits"], ["inception"]),
        (["eval", "fid", "--samples", "nowhere"], ["--data"]),
        (["eval", "fid", "--samples", "nowhere", "--data", "digits"], ["nowhere"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_what_does_not_fit_is_refused_with_the_reason(
    shell: Shell, runs: Path, args: list[str], words: list[str]
) -> None:
    before = sorted(runs.rglob("*"))
    shell(*args).fails(*words)
    assert sorted(runs.rglob("*")) == before, "nothing is begun, nothing is lost"
    assert not Path("samples").exists() or not list(Path("samples").rglob("*.png"))


def test_a_size_that_the_networks_stride_does_not_divide_is_refused_with_valid_ones(
    shell: Shell, tmp_path: Path
) -> None:
    recipe = toml(tmp_path / "t.toml", table("ddpm"))
    done = shell("train", str(recipe), "--image-size", "9")
    done.fails("9", "8", "10")
    assert "stride" in done.err and not list((tmp_path / "checkpoints").glob("*/config.json"))


# ----------------------------------------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("damage", ["truncated", "flipped header", "empty", "missing"])
def test_damaged_weights_are_named_and_nothing_is_drawn(shell: Shell, runs: Path, damage: str) -> None:
    path = runs / "ddpm-digits" / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        broken = {"truncated": data[: len(data) // 2], "flipped header": b"\xff" + data[1:], "empty": b""}
        path.write_bytes(broken[damage])
    shell("sample", "ddpm-digits", "-n", "1").fails("model.safetensors" if damage != "missing" else "ddpm-digits")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": "x"}', "\x00\x01"])
@pytest.mark.parametrize(
    "verb", [["sample", "ddpm-digits"], ["info", "ddpm-digits"], ["train", "ddpm", "--resume", "ddpm-digits"]]
)
def test_a_damaged_config_is_named(shell: Shell, runs: Path, text: str, verb: list[str]) -> None:
    (runs / "ddpm-digits" / "config.json").write_text(text)
    shell(*verb).fails("config.json", "damaged")
    assert shell.fine("list", "runs").out.count("\n") == 4, "the other runs are listed"


@pytest.mark.parametrize(
    "args",
    [
        ["sample", "ddpm-digits"],
        ["sample", "checkpoints/ddpm-digits"],
        ["sample", "ddim"],
        ["info", "ddpm-digits"],
        ["eval", "fid", "-c", "ddpm-digits"],
        ["train", "ddpm", "--resume"],
    ],
    ids=" ".join,
)
def test_a_run_of_a_newer_version_is_one_clear_line(shell: Shell, runs: Path, args: list[str]) -> None:
    path = runs / "ddpm-digits" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "format": 99, "gencli": "9.9"}))
    shell(*args).fails("ddpm-digits", "format 99", "gencli 9.9", "upgrade")


def test_a_damaged_state_is_passed_over_when_resuming_and_said(shell: Shell, runs: Path) -> None:
    recipe = toml(Path("ddpm.toml"), table("ddpm", steps=2, save_every=1))
    folder = runs / "ddpm-digits"
    whole = hashes(folder)
    path = folder / "train" / "step-00000002" / "raw.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    done = shell.fine("train", str(recipe), "--resume", "ddpm-digits")
    assert "raw.safetensors is damaged" in done.err and "falling back" in done.err
    assert "resumed at step 1" in done.err and hashes(folder) == whole


def test_weights_of_other_settings_are_refused_by_name(shell: Shell, runs: Path) -> None:
    path = runs / "ddpm-digits" / "config.json"
    config = json.loads(path.read_text())
    config["recipe"]["model"]["net"]["width"] = 16
    path.write_text(json.dumps(config))
    shell("sample", "ddpm-digits", "-n", "1").fails("model.safetensors", "does not fit", "net.")


def test_a_damaged_cache_of_codes_is_made_again(shell: Shell, runs: Path) -> None:
    recipe = toml(Path("prior.toml"), table("gated-pixelcnn", steps=1))
    shell.fine("train", str(recipe), "--codec", "vqvae-digits", "--name", "first")
    (cached,) = (Path(os.environ["GENCLI_HOME"]) / "cache" / "codes").glob("*.safetensors")
    cached.write_bytes(b"junk")
    shell.fine("train", str(recipe), "--codec", "vqvae-digits", "--name", "second")
    assert hashes(runs / "first") == hashes(runs / "second")


# ------------------------------------------------------------------------------------------------------------- data folders


def test_a_folder_of_images_that_is_missing_or_empty_or_has_none_is_named(shell: Shell, tmp_path: Path) -> None:
    shell("train", "ddpm", "--data", "./no-photos").fails("no-photos")
    (tmp_path / "photos").mkdir()
    shell("train", "ddpm", "--data", "./photos").fails("photos")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    shell("data", "check", "./photos").fails("photos")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04nothing")
    shell("data", "check", "./broken.zip").fails("broken.zip")
    assert not list((tmp_path / "checkpoints").glob("*")) if (tmp_path / "checkpoints").exists() else True


def test_a_corrupt_image_is_reported_by_name_and_the_rest_are_used(shell: Shell, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 12)
    (folder / "torn.png").write_bytes((folder / "3.png").read_bytes()[:40])
    done = shell.fine("data", "check", "./photos", "--image-size", "8")
    assert "torn.png" in done.out + done.err
    recipe = toml(
        tmp_path / "t.toml",
        {**table("ddpm", steps=1), "data": {"name": "folder", "path": str(folder), "image_size": "8"}},
    )
    done = shell.fine("train", str(recipe))
    assert "torn.png" in done.err and Path(done.out.strip()).is_dir()


def test_resuming_on_changed_data_is_refused_with_both_hashes(shell: Shell, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 12)
    recipe = toml(
        tmp_path / "t.toml",
        {**table("ddpm", steps=1), "data": {"name": "folder", "path": str(folder), "image_size": "8"}},
    )
    path = Path(shell.fine("train", str(recipe)).out.strip())
    then = json.loads((path / "config.json").read_text())["data"]["hash"]
    before = hashes(path)
    Image.new("RGB", (16, 16), (255, 0, 0)).save(folder / "new.png")
    shell("train", str(recipe), "--resume", path.name, "--steps", "2").fails(path.name, then, "other data")
    assert hashes(path) == before
    (folder / "new.png").unlink()
    moved = folder.rename(tmp_path / "moved")
    done = shell.fine("train", str(recipe), "--resume", path.name, "--steps", "2", "--data", str(moved))
    assert "resumed at step 1" in done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lr", "0.5"], ["--lr 0.05", "0.5"]),
        (["--batch-size", "16"], ["--batch-size 8", "16"]),
        (["--seed", "7"], ["--seed 0", "7"]),
        (["--precision", "bf16"], ["--precision auto", "bf16"]),
        (["--net.width", "16"], ["--net.width 8", "16"]),
        (["--timesteps", "10"], ["--timesteps 20", "10"]),
        (["--image-size", "16"], ["--image-size 8", "16"]),
        (["--data", "fashion-mnist"], ["digits", "fashion-mnist"]),
        (["--unconditional"], ["--unconditional", "True"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_a_resumed_run_refuses_changes_with_the_old_and_the_new_value(
    shell: Shell, runs: Path, flags: list[str], words: list[str]
) -> None:
    before = hashes(runs / "ddpm-digits")
    shell("train", "ddpm", "--resume", "ddpm-digits", *flags).fails("ddpm-digits", *words)
    assert hashes(runs / "ddpm-digits") == before


# --------------------------------------------------------------------------------------------------------------- the machine


def test_a_folder_that_cannot_be_written_is_one_line_with_code_1(shell: Shell, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    recipe = toml(tmp_path / "t.toml", table("pixelcnn", steps=1))
    blocked = str(tmp_path / "file" / "sub")
    shell("train", str(recipe), "--out", blocked).fails("cannot write", blocked, code=1)
    shell("sample", "ddim", "-n", "1", "--steps", "1", "--out", blocked).fails("cannot write", blocked, code=1)
    shell("sample", "ddim", "-n", "1", "--steps", "1", "--out", str(tmp_path / "file")).fails(str(tmp_path / "file"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line_with_code_1(shell: Shell, runs: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    recipe = toml(tmp_path / "t.toml", table("pixelcnn", steps=1))
    shell("train", str(recipe), "--out", str(closed)).fails("cannot write", "closed", code=1)
    shell("sample", "ddim", "-n", "1", "--steps", "1", "--out", str(closed / "in")).fails(
        "cannot write", "closed", code=1
    )


def test_a_full_folder_is_not_written_over(shell: Shell, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "00000.png").write_text("precious")
    shell("sample", "ddim", "-n", "1", "--steps", "1", "--out", "mine").fails("mine is not empty", "--overwrite")
    assert (tmp_path / "mine" / "00000.png").read_text() == "precious"


# ---------------------------------------------------------------------------------------------------------------------- form


@pytest.mark.parametrize(
    "args",
    [
        ["train", "ddpn"],
        ["sample", "ddim"],
        ["eval", "fidd"],
        ["list", "modles"],
        ["info", "nothing"],
        ["train", "ddpm", "--step", "1"],
    ],
    ids=" ".join,
)
def test_errors_as_json_are_one_document(shell: Shell, args: list[str]) -> None:
    done = shell("--json", *args)
    assert done.code == 2 and done.err == ""
    assert done.document["schema"] == 1 and done.document["error"] and done.document["hint"]


def test_a_traceback_is_shown_when_asked_for(shell: Shell) -> None:
    from gencli.errors import GencliError

    with pytest.raises(GencliError, match="ddpn"):
        shell("train", "ddpn", "--debug")


def test_an_unforeseen_error_is_one_line_with_code_1(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from gencli.cli import list_

    monkeypatch.setattr(list_, "_rows", lambda kind: 1 / 0)
    done = shell("list", "models")
    assert done.code == 1 and done.err.startswith("error: ZeroDivisionError: division by zero\n")
    assert "--debug" in done.err and "Traceback" not in done.err


def test_a_metric_of_another_kind_of_data_is_refused_before_sampling(shell: Shell, runs: Path) -> None:
    shell("eval", "kl", "-c", "ddpm-digits").fails("kl", "points", "digits", "fid")
