"""`gencli eval`: a second call draws nothing, files join, receipts are shown, and what must not be compared is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shell import Shell
from tiny import table, trained
from torch import nn

from gencli.metrics import _inception
from gencli.metrics._protocols import PROTOCOLS

FAST = ("--features", "pixels", "-n", "60", "--steps", "2")
A, B = ("-c", "ddpm-digits"), ("-c", "other-digits")


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """The name of every network that is called."""
    made: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: made.append(type(module).__name__.lower())
    )
    yield made
    handle.remove()


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another training of the same recipe."""
    return trained(tmp_path_factory.mktemp("seeded"), table("ddpm", steps=2, save_every=1, lr=0.05, seed=7))


@pytest.fixture
def two(runs: Path, seeded: Path) -> Path:
    shutil.copytree(seeded, runs / "other-digits")
    return runs


def rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_a_second_evaluation_comes_from_the_cache(shell: Shell, runs: Path, calls: list[str]) -> None:
    first = shell.fine("eval", "fid", *FAST, *A)
    assert calls.count("unet") == 2 and "2 network evaluations ·" in first.err and "cache" not in first.err
    calls.clear()
    second = shell.fine("eval", "fid", "kid", *FAST, *A)
    assert calls.count("unet") == 0
    assert "60 samples · 0 network evaluations · features of all from the cache" in second.err
    assert rows(second.out)[1] == rows(first.out)[1], "and another metric needs none either"
    more = shell.fine("eval", "fid", *FAST, "--seed", "1", *A)
    assert calls.count("unet") == 2 and "cache" not in more.err


def test_the_cache_lists_them(shell: Shell, runs: Path) -> None:
    shell.fine("eval", "fid", *FAST, *A)
    row = next(row for row in shell.fine("cache", "--json").document["caches"] if row["cache"] == "features")
    assert row["size"] > 2 * 60 * 64 * 8 and "samples" in row["what"]
    shell.fine("cache", "--clear", "features", "--yes")
    assert "cache" not in shell.fine("eval", "fid", *FAST, *A).err.split("receipts")[0]


# -------------------------------------------------------------------------------------------------------------------- files


def test_two_parts_of_one_set_equal_the_run_itself(shell: Shell, runs: Path) -> None:
    for seeds, folder in (("0-31", "a"), ("32-59", "b")):
        shell.fine("sample", "ddpm-digits", "--seeds", seeds, "--steps", "2", "--exact", "--out", folder)
    asked = ["eval", "fid", "--features", "random"]
    (files,) = shell.fine(*asked, "--samples", "b", "--samples", "a", "--data", "digits", "--json").document["results"]
    both = shell.fine(*asked, "-n", "60", "--steps", "2", *A, "--samples", "a", "--samples", "b", "--json").document
    own = {row["receipt"].get("samples", "run"): row for row in both["results"]}
    assert own["a, b"]["value"] == own["run"]["value"] and own["a, b"]["n"] == 60
    receipt = files["receipt"]
    assert receipt["seeds"] == "0-59" and receipt["run"] == "ddpm-digits" and receipt["file_codec"] == "PNG"
    assert receipt["rounding"] == "to the nearest grey level" and receipt["sampler"]["steps"] == 2
    assert both["comparison"][0]["probability_a_better"] == 0.5
    shell(*asked, "--samples", "a", "--samples", "a", "--data", "digits").fails("overlap", "0-31")
    shutil.rmtree("b")
    shell.fine("sample", "ddpm-digits", "--seeds", "34-59", "--steps", "2", "--exact", "--out", "b")
    shell(*asked, "--samples", "a", "--samples", "b", "--data", "digits").fails("gap", "32-33")


def test_arrays_serve_as_samples_and_as_reference_and_jpeg_is_warned_about(shell: Shell, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8) for _ in range(2)]
    np.savez("fake.npz", arr_0=arrays[0])
    np.savez("real.npz", arr_0=arrays[1])
    done = shell.fine("eval", "fid", "--features", "pixels", "--samples", "fake.npz", "--data", "real.npz")
    assert rows(done.out)[1][3] == "60" and "lossy" not in done.err
    Path("jpg").mkdir()
    for i, array in enumerate(arrays[0]):
        Image.fromarray(array[..., 0]).save(f"jpg/{i}.jpg", quality=75)
    warned = shell.fine("eval", "fid", "--features", "pixels", "--samples", "jpg", "--data", "real.npz")
    assert "note: the samples are JPEG, the reference is uint8 array" in warned.err
    shell("eval", "fid", "--samples", "fake.npz", "--data", "nowhere.npz").fails("nowhere.npz")
    shell("eval", "fid", "--samples", "fake.npz", "-c", "x", "--data", "real.npz").fails("no run 'x'")


def test_points_in_a_folder_are_measured_as_the_run_is(shell: Shell, tmp_path: Path) -> None:
    points = np.random.default_rng(0).standard_normal((80, 2)).astype(np.float32)
    Path("p").mkdir()
    np.save("p/points.npy", points)
    done = shell.fine("eval", "wasserstein", "--samples", "p", "--data", "toy2d", "--json").document
    assert done["results"][0]["n"] == 80 and done["results"][0]["receipt"]["file_codec"] == "float array"


# ------------------------------------------------------------------------------------------------------------------- trust


def test_explain_prints_all_that_made_the_number(shell: Shell, runs: Path) -> None:
    done = shell.fine("eval", "fid", "--features", "gencli", *FAST[2:], *A, "--explain")
    words = dict(row for row in rows(done.out) if len(row) == 2)
    for name in (
        *("sha256 of the extractor's file", "preprocessing", "file codec of the samples", "rounding of the samples"),
        *("hash of the reference", "split of the reference", "hash of the weights", "weights", "sampler", "guidance"),
        *("seeds", "precision", "versions", "reference", "file codec of the reference"),
    ):
        assert words.get(name) not in (None, ""), name
    weights = Path(_inception.__file__).parent / "weights" / "gencli-features-v1.safetensors"
    assert words["sha256 of the extractor's file"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert words["seeds"] == "0-59" and f"torch {torch.__version__}" in words["versions"]
    assert "(EMA)" in words["weights"] or "(raw)" in words["weights"]
    assert len(shell.fine("eval", "fid", *FAST, *A, "--explain", "--json").document["receipts"][0]["rows"]) > 20
    shell.fine("sample", "ddpm-digits", "-n", "30", "--steps", "2", "--out", "mine")
    files = shell.fine("eval", "fid", "--features", "random", "--samples", "mine", "--data", "digits", "--explain")
    shown = dict(row for row in rows(files.out) if len(row) == 2)
    assert (
        shown["run"] == "ddpm-digits" and shown["file codec of the samples"] == "PNG" and "steps 2" in shown["sampler"]
    )


def test_two_runs_get_a_probability_and_training_seeds_a_mean(shell: Shell, two: Path) -> None:
    done = shell.fine("eval", "fid", *FAST, *A, *B, "--json").document
    a, b = done["results"]
    assert a["receipt"]["run"] == "ddpm-digits" and b["receipt"]["run"] == "other-digits" and a["value"] != b["value"]
    (compared,) = done["comparison"]
    assert (compared["probability_a_better"] > 0.5) == (a["value"] < b["value"])
    (spread,) = done["training_seeds"]
    assert spread["runs"] == 2 and spread["mean"] == pytest.approx((a["value"] + b["value"]) / 2)
    text = shell.fine("eval", "fid", *FAST, *A, *B)
    assert "normal approximation" in text.err and "over 2 training seeds" in text.out
    assert [row[0] for row in rows(text.out)[:3]] == ["of", "ddpm-digits", "other-digits"]
    alone = shell.fine("eval", "fid", *FAST, *A, "--json").document
    assert "comparison" not in alone and "training_seeds" not in alone


def test_different_references_are_refused_before_anything_is_drawn(shell: Shell, two: Path, calls: list[str]) -> None:
    path = two / "other-digits" / "config.json"
    config = json.loads(path.read_text())
    config["recipe"]["data"]["image_size"] = 16
    path.write_text(json.dumps(config))
    shell("eval", "fid", *FAST, *A, *B).fails("different references", "--anyway")
    assert not calls
    done = shell.fine("eval", "fid", "--features", "random", *FAST[2:], *A, *B, "--anyway")
    assert "note: ddpm-digits and other-digits were measured differently: reference" in done.err


@pytest.mark.parametrize(
    ("metric", "words"),
    [("inception-score", "needs class probabilities"), ("fid-infinity", "the samples hold 60 items, at least 256")],
)
def test_what_a_metric_cannot_measure_is_refused_before_anything_is_drawn(
    shell: Shell, runs: Path, calls: list[str], metric: str, words: str
) -> None:
    shell("eval", metric, *FAST, *A, "--split", "train").fails(words)
    assert not calls


def test_a_lossy_folder_against_a_run_is_refused_unless_anyway(shell: Shell, runs: Path) -> None:
    Path("jpg").mkdir()
    for i, x in enumerate(np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)):
        Image.fromarray(x).save(f"jpg/{i}.jpg")
    shell("eval", "fid", *FAST, *A, "--samples", "jpg").fails("file codec", "rounding", "--anyway")
    shell.fine("eval", "fid", *FAST, *A, "--samples", "jpg", "--anyway")


def test_the_floor_is_a_row(shell: Shell, two: Path) -> None:
    done = shell.fine("eval", "fid", *FAST, *A, *B, "--floor")
    found = [row for row in rows(done.out) if row[0] == "real data"]
    assert len(found) == 1 and found[0][1] == "fid[pixels] floor" and "two halves" in found[0][-1]
    values = [float(row[2]) for row in rows(done.out)[1:4]]
    assert values[2] < min(values[:2])
    stored = (two / "ddpm-digits" / "evaluations.jsonl").read_text()
    assert "floor" not in stored, "it is no number of the run"


def test_few_samples_are_said_once(shell: Shell, runs: Path) -> None:
    done = shell.fine("eval", "fid", "--features", "random", "-n", "60", "--steps", "1", *A)
    assert done.err.count("are asked for") == 1 and "60 items for 64 features" in done.err


# --------------------------------------------------------------------------------------------------------------- protocols


class Published(nn.Module):
    """Stands in for the published file, with 8 features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(23), nn.Conv2d(3, 8, 13))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / _inception.FILE
    torch.manual_seed(1)
    torch.jit.script(Published()).save(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(_inception.Inception.__init__, "__defaults__", (None, False, "cpu", digest, PROTOCOLS["clean"]))
    return str(path)


def test_a_protocol_names_itself_and_where_its_rules_were_left(shell: Shell, runs: Path, weights: str) -> None:
    np.savez("real.npz", arr_0=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    asked = ["eval", "fid", "-n", "30", "--steps", "1", "--weights", weights, "--data", "real.npz", *A, "--json"]
    shell(*asked[:-1], "--protocol", "edm").fails("30 samples are too few for inception-edm", "2,048", "--force")
    files = ("--samples", "real.npz", "--data", "real.npz", "--weights", weights)
    shell("eval", "fid", "--protocol", "clean", *files).fails("40 items of the reference are too few", "2,048")
    found = {}
    for name in PROTOCOLS:
        (row,) = shell.fine(*asked, "--protocol", name, "--force").document["results"]
        found[name] = row
        assert row["receipt"]["protocol"] == name and row["receipt"]["preprocessing"] == PROTOCOLS[name].words
    assert found["clean"]["metric"] == "fid[inception-clean]"
    assert (
        found["edm"]["metric"] == "fid[inception-edm; N 30, not 50,000]" and found["edm"]["receipt"]["split"] == "train"
    )
    assert "rounded to the nearest" in found["adm"]["metric"] and found["clean"]["receipt"]["split"] == "test"
    assert found["edm"]["value"] == pytest.approx(found["legacy-tf"]["value"], rel=1e-9)
    assert found["legacy-pytorch"]["value"] != pytest.approx(found["edm"]["value"], rel=1e-3)
    shell(*asked[:-1], "--protocol", "edm", "--features", "pixels").fails("--protocol edm", "pixels")
    shell(*asked[:-1], "--protocol", "emd").fails("unknown protocol 'emd'", "edm")
    test = shell.fine(*asked, "--protocol", "edm", "--force", "--split", "test").document["results"][0]
    assert test["metric"].endswith("test split, not train]")


def test_missing_weights_are_one_line_with_name_hash_and_folder(shell: Shell, runs: Path) -> None:
    for name in PROTOCOLS:
        shell("eval", "fid", *A, "--protocol", name).fails(_inception.FILE, _inception.SHA256, "weights")


def test_flags_name_the_protocols_there_are() -> None:
    from gencli.cli import eval as command

    assert tuple(PROTOCOLS) == command.PROTOCOLS


def test_a_metric_of_a_model_is_compared_too(shell: Shell, two: Path) -> None:
    done: dict[str, Any] = shell.fine("eval", "bpd", "-n", "4", *A, *B, "--json").document
    assert len(done["results"]) == 2 and done["comparison"][0]["metric"] == done["results"][0]["metric"]
