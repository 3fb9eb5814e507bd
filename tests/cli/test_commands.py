"""From training to numbers with tiny runs: what every command prints and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shell import Shell, copied
from tiny import table, toml

from gencli import __version__


def pixels(folder: Path | str) -> dict[str, np.ndarray]:
    """The numbered images of a folder."""
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted(Path(folder).glob("0*.png"))}


def rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


# --------------------------------------------------------------------------------------------------- the main job, end to end


def test_train_sample_evaluate_inform_and_list_follow_each_other(shell: Shell, tmp_path: Path) -> None:
    recipe = toml(tmp_path / "mine.toml", table("ddpm", steps=2))
    trained = shell.fine("train", str(recipe))
    assert trained.out == f"{Path('checkpoints/ddpm-digits')}\n"
    assert trained.err.splitlines()[0].startswith("run checkpoints/ddpm-digits · mine · ")
    assert trained.err.splitlines()[-1] == "next: gencli sample ddpm-digits"
    run = Path("checkpoints/ddpm-digits")
    kept = {"config.json", "model.safetensors", "metrics.jsonl", "README.md", "loss.png", "samples", "train"}
    assert {p.name for p in run.iterdir()} == kept and (run / "samples" / "step-00000002.png").is_file()
    sampled = shell.fine("sample", "ddpm-digits", "-n", "3", "--steps", "2")
    folder = Path(sampled.out.strip())
    assert sampled.err.splitlines()[-1] == "next: gencli eval fid -c ddpm-digits"
    assert {p.name for p in folder.iterdir()} == {"grid.png", "samples.json", *(f"0000{i}.png" for i in range(3))}
    measured = shell.fine("eval", "fid", "--features", "pixels", "-n", "40", "--steps", "1", "-c", "ddpm-digits")
    header, row = rows(measured.out)
    assert (
        header[:4] == ["metric", "value", "95 % interval", "n"] and row[0].startswith("fid[pixels") and row[3] == "40"
    )
    informed = shell.fine("info", "ddpm-digits")
    assert "step\t2" in informed.out and "fid[pixels" in informed.out
    listed = shell.fine("list", "runs")
    assert rows(listed.out)[1][:4] == ["ddpm-digits", "ddpm", "digits", "2"]


def test_a_codec_and_its_prior_draw_images_under_the_codecs_name(shell: Shell, tmp_path: Path) -> None:
    codec = toml(tmp_path / "codec.toml", table("vqvae", steps=2))
    prior = toml(tmp_path / "prior.toml", table("gated-pixelcnn", steps=2))
    done = shell.fine("train", str(codec))
    assert done.err.splitlines()[-1] == "next: gencli train gated-pixelcnn --codec vqvae-digits"
    done = shell.fine("train", str(prior), "--codec", "vqvae")
    assert done.err.splitlines()[-1] == "next: gencli sample gated-pixelcnn-digits"
    nested = json.loads(Path("checkpoints/gated-pixelcnn-digits/config.json").read_text())
    assert nested["codec"] == "vqvae-digits" and nested["spec"]["x"]["kind"] == "codes"
    sampled = shell.fine("sample", "vqvae", "-n", "2")
    assert "checkpoint gated-pixelcnn-digits" in sampled.err
    assert [image.shape for image in pixels(sampled.out.strip()).values()] == [(8, 8)] * 2
    again = shell.fine("train", str(prior), "--codec", "vqvae")
    assert json.loads((Path(again.out.strip()) / "config.json").read_text())["codec"] == "vqvae-digits"
    measured = shell.fine("eval", "reconstruction", "-c", "vqvae-digits", "-n", "20")
    assert "psnr" in measured.out.lower()


def test_a_bundle_with_a_codec_works_without_the_codecs_own_run(shell: Shell, runs: Path) -> None:
    before = pixels(shell.fine("sample", "gated-pixelcnn-digits", "-n", "2").out.strip())
    (runs / "vqvae-digits").rename(runs.parent / "away")
    after = pixels(shell.fine("sample", "gated-pixelcnn-digits", "-n", "2").out.strip())
    assert all(np.array_equal(after[name], image) for name, image in before.items())


@pytest.mark.parametrize("model", ["gated-pixelcnn", "pixelcnn", "vqvae", "ddpm"])
def test_the_laptop_recipes_smoke_trains_without_classes_too(shell: Shell, model: str) -> None:
    done = shell.fine("train", model, "--smoke", "--unconditional", "--quiet")
    config = json.loads((Path(done.out.strip()) / "config.json").read_text())
    assert config["data"]["spec"]["cond"] == {} and config["recipe"]["data"]["unconditional"] is True
    if model != "vqvae":
        shell.fine("sample", model, "-n", "2")


# -------------------------------------------------------------------------------------------------------------- what is printed

EVERY = [
    ["train", "TOML"],
    ["sample", "ddim", "--steps", "1", "-n", "1"],
    ["eval", "fid", "--features", "pixels", "-n", "30", "--steps", "1", "-c", "ddpm-digits"],
    ["eval", "bpd", "-n", "4", "-c", "pixelcnn-digits"],
    ["list"],
    ["list", "models"],
    ["list", "runs"],
    ["info", "ddpm"],
    ["info", "ddpm-digits"],
    ["info", "ddim"],
    ["report", "ddpm-digits", "--overwrite"],
    ["data", "check", "photos"],
    ["runs"],
    ["runs", "slim", "ddpm-digits", "--yes"],
    ["runs", "rm", "ddpm-digits", "--yes"],
    ["cache"],
    ["cache", "--clear", "--yes"],
    ["env"],
]


@pytest.fixture
def ready(runs: Path, tmp_path: Path) -> Path:
    toml(tmp_path / "t.toml", table("pixelcnn", steps=1))
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.new("L", (40, 40), i * 60).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


def filled(args: list[str], folder: Path) -> list[str]:
    return [str(folder / "t.toml") if arg == "TOML" else arg for arg in args]


@pytest.mark.parametrize("args", EVERY, ids=" ".join)
def test_json_is_exactly_one_document_with_a_schema(shell: Shell, ready: Path, args: list[str]) -> None:
    done = shell.fine(*filled(args, ready), "--json")
    assert done.document["schema"] == 1 and len(done.document) > 1
    assert done.out.count("\n") == 1 and done.err == ""


@pytest.mark.parametrize("args", EVERY, ids=" ".join)
def test_every_command_ends_with_the_next_one(shell: Shell, ready: Path, args: list[str]) -> None:
    done = shell.fine(*filled(args, ready))
    assert done.err.splitlines()[-1].startswith("next: gencli ")


@pytest.mark.parametrize("args", [EVERY[0], EVERY[1]], ids=" ".join)
def test_quiet_leaves_the_final_path_only(shell: Shell, ready: Path, args: list[str]) -> None:
    done = shell.fine(*filled(args, ready), "-q")
    assert done.err == "" and done.out.count("\n") == 1 and Path(done.out.strip()).is_dir()


def test_a_table_for_a_pipe_is_tab_separated_and_untruncated(shell: Shell, runs: Path) -> None:
    for kind in ("models", "samplers", "metrics", "data", "networks", "runs"):
        lines = rows(shell.fine("list", kind).out)
        assert len(lines) > 1 and len({len(line) for line in lines}) == 1, kind
        assert not any("…" in cell or "\x1b" in cell for line in lines for cell in line), kind
    models = {line[0]: line for line in rows(shell.fine("list", "models").out)}
    assert models["ddpm"][2:6] == [
        "Denoising Diffusion Probabilistic Models",
        "Ho, Jain & Abbeel",
        "2020",
        "2006.11239",
    ]


def test_evaluate_is_eval(shell: Shell, runs: Path) -> None:
    args = ["bpd", "-n", "4", "-c", "pixelcnn-digits"]
    assert shell.fine("evaluate", *args).out == shell.fine("eval", *args).out


def test_the_version_is_printed(shell: Shell) -> None:
    assert shell.fine("--version").out == f"gencli {__version__}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(runs: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gencli", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=runs.parent
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # before the first line: what `| head -0` does
    assert process.wait(timeout=15) in (0, 1, 141)
    text = process.stderr.read().decode()
    assert "Traceback" not in text and "Error" not in text and "Broken" not in text, text


# ----------------------------------------------------------------------------------------------------------------- resolution


def resolved(shell: Shell, *args: str) -> str:
    """The line that says what a name was taken for."""
    done = shell.fine("sample", *args, "-n", "1")
    return next(line for line in done.err.splitlines() if line.startswith("sampler "))


def test_a_name_is_a_sampler_then_a_run_then_a_model(shell: Shell, runs: Path) -> None:
    assert resolved(shell, "ddim", "--steps", "3").startswith("sampler ddim · checkpoint ddpm-digits · 3 steps")
    assert resolved(shell, "ddpm-digits", "--steps", "2").startswith("sampler ddim · checkpoint ddpm-digits · 2 steps")
    assert resolved(shell, "ddpm", "--steps", "2").startswith("sampler ddim · checkpoint ddpm-digits · 2 steps")
    assert resolved(shell, "ancestral").startswith("sampler ancestral · checkpoint ddpm-digits · 20 steps")
    assert resolved(shell, "checkpoints/ddpm-digits", "--sampler", "ancestral").startswith("sampler ancestral · ")
    assert resolved(shell, "gated_pixelcnn").startswith(
        "sampler next-token · checkpoint gated-pixelcnn-digits · 16 steps"
    )
    (runs / "ddpm-digits").rename(runs / "ddim")  # a run may not take a sampler's place
    assert resolved(shell, "ddim", "--steps", "3").startswith("sampler ddim · ")


def test_newest_is_by_the_date_inside_and_runs_without_weights_are_passed_over(shell: Shell, runs: Path) -> None:
    old = copied(runs / "ddpm-digits", runs / "older")
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "created": "2001-01-01T00:00:00+00:00"}))
    os.utime(runs / "ddpm-digits" / "config.json", (0, 0))
    assert "checkpoint ddpm-digits " in resolved(shell, "ddim", "--steps", "1")
    young = copied(runs / "ddpm-digits", runs / "younger")
    (young / "config.json").write_text(json.dumps({**config, "created": "2999-01-01T00:00:00+00:00"}))
    assert "checkpoint younger " in resolved(shell, "ddim", "--steps", "1")
    (young / "model.safetensors").unlink()
    assert "checkpoint ddpm-digits " in resolved(shell, "ddim", "--steps", "1")


def test_the_home_folder_is_searched_after_this_one_and_shipped_models_last_and_never_written(
    shell: Shell, made: Path, tmp_path: Path
) -> None:
    shipped = copied(made / "checkpoints" / "ddpm-digits", tmp_path / "no-shipped" / "tiny-ddpm")
    before = {p: p.stat().st_mtime_ns for p in shipped.rglob("*")}
    assert "checkpoint tiny-ddpm " in resolved(shell, "ddim", "--steps", "1")
    done = shell.fine("eval", "fid", "--features", "pixels", "-n", "30", "--steps", "1")
    assert "tiny-ddpm" in done.err and Path("samples/tiny-ddpm/evaluations.jsonl").is_file()
    assert {p: p.stat().st_mtime_ns for p in shipped.rglob("*")} == before
    shell("train", "ddpm", "--resume").fails("no run of 'ddpm'")
    shell("train", "ddpm", "--resume", "tiny-ddpm").fails("tiny-ddpm", "read-only")
    copied(made / "checkpoints" / "ddpm-digits", Path(os.environ["GENCLI_HOME"]) / "checkpoints" / "at-home")
    assert "checkpoint at-home " in resolved(shell, "ddim", "--steps", "1")


def test_of_shipped_models_those_of_a_methods_own_recipe_come_first_though_older(
    shell: Shell, made: Path, tmp_path: Path
) -> None:
    config = json.loads(
        (
            copied(made / "checkpoints" / "ddpm-digits", tmp_path / "no-shipped" / "of-digits") / "config.json"
        ).read_text()
    )
    for name, recipe, created in (("of-digits", "ddpm", "2001"), ("of-clothes", "ddpm-fashion-mnist", "2999")):
        run = tmp_path / "no-shipped" / name
        if not run.exists():
            copied(made / "checkpoints" / "ddpm-digits", run)
        table = {
            **config,
            "created": f"{created}-01-01T00:00:00+00:00",
            "recipe": {**config["recipe"], "recipe": recipe},
        }
        (run / "config.json").write_text(json.dumps(table))
    assert "checkpoint of-digits " in resolved(shell, "ddim", "--steps", "1")
    assert "checkpoint of-clothes " in resolved(shell, "of-clothes", "--steps", "1")


# -------------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("run", ["ddpm-digits", "pixelcnn-digits", "gated-pixelcnn-digits"])
def test_image_i_is_the_same_whatever_the_number_and_the_batch(shell: Shell, runs: Path, run: str) -> None:
    steps = ["--steps", "3"] if run == "ddpm-digits" else []
    made = {n: pixels(shell.fine("sample", run, "-n", str(n), *steps, "-q").out.strip()) for n in (1, 7, 64)}
    made[0] = pixels(shell.fine("sample", run, "-n", "7", "--batch-size", "3", *steps, "-q").out.strip())
    for n in (0, 1, 7):
        for name, image in made[n].items():
            assert np.abs(image - made[64][name]).max() <= 1, (n, name)
    assert len({image.tobytes() for image in made[64].values()}) > 32, "different seeds differ"


@pytest.mark.parametrize("run", ["ddpm-digits", "pixelcnn-digits", "gated-pixelcnn-digits"])
def test_exact_images_are_bit_equal(shell: Shell, runs: Path, run: str) -> None:
    steps = ["--steps", "3"] if run == "ddpm-digits" else []
    made = {}
    for n in (1, 7, 64):
        folder = Path(shell.fine("sample", run, "-n", str(n), "--exact", *steps, "-q").out.strip())
        made[n] = {p.name: p.read_bytes() for p in folder.glob("0*.png")}
        receipt = json.loads((folder / "samples.json").read_text())
        assert receipt["exact"] is True and receipt["batch"] == 64 and len(receipt["items"]) == n
    for n in (1, 7):
        assert len(made[n]) == n and all(made[64][name] == data for name, data in made[n].items())


def test_seeds_one_by_one_give_the_images_of_each_seed(shell: Shell, runs: Path) -> None:
    both = pixels(shell.fine("sample", "ddpm-digits", "--seeds", "3,5", "--steps", "2", "--exact", "-q").out.strip())
    assert len(both) == 2
    for name, seed in (("00000.png", "3"), ("00001.png", "5")):
        args = ["-n", "1", "--seed", seed, "--steps", "2", "--exact", "-q"]
        (one,) = pixels(shell.fine("sample", "ddpm-digits", *args).out.strip()).values()
        assert np.array_equal(one, both[name])
    ranged = pixels(shell.fine("sample", "ddpm-digits", "--seeds", "3-5", "--steps", "2", "--exact", "-q").out.strip())
    assert np.array_equal(ranged["00002.png"], both["00001.png"])


def test_classes_are_names_or_ids_used_in_turn_and_written_down(shell: Shell, runs: Path) -> None:
    folder = Path(shell.fine("sample", "ddpm-digits", "-n", "4", "--steps", "1", "--class", "3,7", "-q").out.strip())
    receipt = json.loads((folder / "samples.json").read_text())
    assert [item["label"] for item in receipt["items"]] == [3, 7, 3, 7]
    folder = Path(shell.fine("sample", "ddpm-digits", "-n", "12", "--steps", "1", "-q").out.strip())
    receipt = json.loads((folder / "samples.json").read_text())
    assert [item["label"] for item in receipt["items"]] == [*range(10), 0, 1]


def test_classes_of_a_folder_are_asked_for_by_name(shell: Shell, tmp_path: Path) -> None:
    for i, name in enumerate(("cats", "dogs")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for j in range(12):
            Image.new("L", (8, 8), i * 90 + j).save(tmp_path / "pets" / name / f"{j}.png")
    data = {"name": "folder", "path": str(tmp_path / "pets"), "image_size": "8"}
    shell.fine("train", str(toml(tmp_path / "t.toml", {**table("ddpm", steps=1), "data": data})), "--name", "pets")
    folder = Path(shell.fine("sample", "pets", "-n", "2", "--steps", "1", "--class", "Dogs", "-q").out.strip())
    assert [item["label"] for item in json.loads((folder / "samples.json").read_text())["items"]] == [1, 1]
    shell("sample", "pets", "--class", "dgos").fails("'dgos'", "dogs")


def test_the_receipt_says_what_made_the_images(shell: Shell, runs: Path) -> None:
    folder = Path(shell.fine("sample", "ddpm-digits", "-n", "2", "--steps", "2", "--guidance", "2", "-q").out.strip())
    receipt = json.loads((folder / "samples.json").read_text())
    facts = {"schema": 1, "gencli": __version__, "run": "ddpm-digits", "step": 2, "guidance": 2.0, "averaged": True}
    assert {key: receipt[key] for key in facts} == facts
    assert receipt["sampler"]["name"] == "ddim" and receipt["sampler"]["steps"] == 2 and len(receipt["weights"]) == 16
    assert receipt["network_evaluations"] == 4, "guidance calls the network twice a step"
    assert receipt["items"] == [{"file": f"0000{i}.png", "seed": i, "label": i} for i in range(2)]


def test_a_trajectory_is_animated(shell: Shell, runs: Path) -> None:
    for run, args in (("ddpm-digits", ["--steps", "5"]), ("gated-pixelcnn-digits", [])):
        folder = Path(shell.fine("sample", run, "-n", "2", "--trajectory", *args, "-q").out.strip())
        with Image.open(folder / "trajectory.webp") as image:
            assert image.n_frames >= 4 and image.is_animated, run
    assert (folder / "entropy.webp").is_file()


def test_the_grid_is_drawn_in_the_terminal_when_asked_for(shell: Shell, runs: Path) -> None:
    assert "▀" in shell.fine("sample", "ddpm-digits", "-n", "2", "--steps", "1", "--show").out
    assert "▀" not in shell.fine("sample", "ddpm-digits", "-n", "2", "--steps", "1", "--show", "-q").out


# -------------------------------------------------------------------------------------------------------------------- folders


def test_nothing_is_overwritten(shell: Shell, runs: Path) -> None:
    args = ["sample", "ddpm-digits", "-n", "1", "--steps", "2", "-q"]
    first = shell.fine(*args).out.strip()
    assert Path(first) == Path("samples/ddpm-digits/ddim-2-0")
    assert Path(shell.fine(*args).out.strip()) == Path("samples/ddpm-digits/ddim-2-0-2")
    assert Path(shell.fine(*args, "--seed", "4").out.strip()) == Path("samples/ddpm-digits/ddim-2-4")
    assert shell.fine(*args, "--out", "mine").out.strip() == "mine"
    shell(*args, "--out", "mine").fails("mine is not empty")
    assert shell.fine(*args, "--out", "mine", "--overwrite").out.strip() == "mine"


def test_a_repeated_train_command_makes_a_new_run_in_the_asked_place(shell: Shell, tmp_path: Path) -> None:
    recipe = str(toml(tmp_path / "t.toml", table("pixelcnn", steps=1)))
    assert [shell.fine("train", recipe, "-q").out.strip() for _ in range(2)] == [
        str(Path("checkpoints") / name) for name in ("pixelcnn-digits", "pixelcnn-digits-2")
    ]
    done = shell.fine("train", recipe, "--name", "My Run", "--out", "else where")
    assert done.out.strip() == str(Path("else where/my-run"))
    following = done.err.splitlines()[-1].removeprefix("next: gencli ")
    assert following == "sample 'else where/my-run'"
    shell.fine("sample", "else where/my-run", "-n", "1")


def test_flags_reach_the_run_and_a_recipe_is_only_their_default(shell: Shell, tmp_path: Path) -> None:
    recipe = str(toml(tmp_path / "t.toml", table("ddpm", steps=1)))
    flags = [
        "--steps",
        "2",
        "--lr",
        "0.01",
        "--net.width",
        "16",
        "--prediction",
        "v",
        "--seed",
        "3",
        "--no-flip",
        "--shift",
        "1",
    ]
    folder = Path(shell.fine("train", recipe, *flags, "-q").out.strip())
    stored = json.loads((folder / "config.json").read_text())["recipe"]
    train = stored["train"]
    assert (train["steps"], train["lr"], train["seed"], train["flip"], train["shift"]) == (2, 0.01, 3, False, 1)
    assert stored["model"]["net"]["width"] == 16 and stored["model"]["prediction"] == "v"
    assert stored["model"]["net"]["mults"] == [1, 2] and stored["data"]["image_size"] == 8


# ----------------------------------------------------------------------------------------------------------------- evaluations


def test_every_number_is_kept_with_its_receipt(shell: Shell, runs: Path) -> None:
    args = ["eval", "fid", "kid", "--features", "pixels", "-n", "60", "--steps", "2", "-c", "ddpm-digits"]
    document: dict[str, Any] = shell.fine(*args, "--json").document
    shell.fine(*args)
    stored = [json.loads(line) for line in (runs / "ddpm-digits" / "evaluations.jsonl").read_text().splitlines()]
    assert [row["metric"].split("[")[0] for row in stored] == ["fid", "kid"] * 2
    assert [row["value"] for row in stored[:2]] == [row["value"] for row in stored[2:]], (
        "the same command, the same number"
    )
    assert [row["value"] for row in document["results"]] == [row["value"] for row in stored[:2]]
    for row in stored:
        receipt = row["receipt"]
        assert receipt["run"] == "ddpm-digits" and receipt["sampler"]["steps"] == 2 and receipt["seeds"] == "0-59"
        assert receipt["split"] == "test" and receipt["exact"] is True and receipt["features_fingerprint"]
        low, high = row["interval"]
        assert low <= row["value"] <= high and row["n"] == 60


def test_a_folder_of_samples_can_be_measured_alone(shell: Shell, runs: Path) -> None:
    shell.fine("sample", "ddpm-digits", "-n", "30", "--steps", "2", "--out", "mine", "--npz")
    measured = ("eval", "fid", "--features", "random", "--data", "digits", "--samples")
    done = shell.fine(*measured, "mine")
    assert rows(done.out)[1][3] == "30"
    assert rows(shell.fine(*measured, "mine/samples.npz").out) == rows(done.out), "one array holds the same samples"


def test_a_training_reference_is_warned_about(shell: Shell, runs: Path) -> None:
    args = ["eval", "fid", "--features", "pixels", "-n", "30", "--steps", "1", "-c", "ddpm-digits"]
    assert "training split" in shell.fine(*args, "--split", "train").err
    assert "training split" not in shell.fine(*args).err


# ----------------------------------------------------------------------------------------------------------------- beginning


def test_a_run_begins_from_another_with_its_settings_data_and_codec(shell: Shell, runs: Path) -> None:
    wide = Path(shell.fine("train", "ddpm", "--smoke", "--net.width", "16", "--name", "wide", "-q").out.strip())
    done = shell.fine("train", "ddpm", "--from", "wide", "--steps", "2", "--name", "tuned")
    assert "begun from wide: " in done.err
    config = json.loads(Path(done.out.strip(), "config.json").read_text())
    theirs = json.loads((wide / "config.json").read_text())
    assert (
        config["recipe"]["model"] == theirs["recipe"]["model"] and config["recipe"]["data"] == theirs["recipe"]["data"]
    )
    assert config["from"]["run"] == "wide" and config["recipe"]["train"]["steps"] == 2
    prior = Path(
        shell.fine("train", "gated-pixelcnn", "--from", "gated-pixelcnn-digits", "--steps", "1", "-q").out.strip()
    )
    assert (prior / "codec" / "config.json").is_file()
    shell("train", "edm", "--from", "wide").fails(
        "run wide is of model ddpm, not of edm", "gencli train ddpm --from wide"
    )
    shell("train", "ddpm", "--from", "wide", "--resume", "tuned").fails("--from begins a new run")
    shell("train", "ddpm", "--from", "none-such").fails("no run 'none-such'")


@pytest.mark.parametrize(("more", "side"), [((), 8), (("--image-size", "16"), 16)])
def test_a_run_that_begins_from_another_takes_its_sides_unless_others_are_asked_for(
    shell: Shell, runs: Path, more: tuple[str, ...], side: int
) -> None:
    Path("mine").mkdir()
    for i in range(12):
        Image.fromarray(np.full((40, 40), 20 * i, np.uint8)).save(f"mine/{i}.png")
    args = ["--from", "ddpm-digits", "--data", "./mine", "--steps", "1", "-q", *more]
    config = json.loads(Path(shell.fine("train", "ddpm", *args).out.strip(), "config.json").read_text())
    assert config["spec"]["x"]["shape"] == [1, side, side]


def test_an_adapter_is_trained_beside_a_run(shell: Shell, runs: Path) -> None:
    args = ["--from", "ddpm-digits", "--adapter", "lora", "--adapter.rank", "2", "--steps", "2", "--name", "thin", "-q"]
    thin = Path(shell.fine("train", "ddpm", *args).out.strip())
    config = json.loads((thin / "config.json").read_text())
    assert config["recipe"]["adapters"] == [{"name": "lora", "rank": 2, "scale": 1.0, "layers": ""}]
    shell.fine("sample", "thin", "-n", "1", "--steps", "2")
    shell("train", "ddpm", "--adapter", "lora").fails("--adapter lora leaves the weights as they are", "--from RUN")
    shell("train", "ddpm", "--from", "thin", "--adapter", "lora").fails("has the adapter lora already")
    shell.fine("train", "ddpm", "--from", "thin", "--steps", "1", "-q")
