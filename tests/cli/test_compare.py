"""Samplers side by side: pictures, costs and numbers, what does not apply, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from saved import saved
from shell import Shell, copied
from tiny import table

from gencli.bundle import Run
from gencli.config import choose
from gencli.core import Rng
from gencli.data import open_table
from gencli.evaluation import compare
from gencli.evaluation.evaluate import split_metrics
from gencli.evaluation.generate import labels_for
from gencli.metrics._features import extractor
from gencli.report.kinds import image, points

POINTS = {"name": "toy2d"}
MLP = {"name": "denoising-mlp", "width": 16, "layers": 1}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with random weights: of images, of points, of tokens, and a transport that takes no noise."""
    place = tmp_path_factory.mktemp("stock") / "checkpoints"
    net = table("ddpm")["model"]["net"]
    made: dict[str, Any] = {
        "tokens": table("pixelcnn"),
        "flow": {**table("ddpm"), "model": {"name": "flow-matching", "coupling": "optimal", "net": net}},
        "plane": {**table("ddpm"), "data": POINTS, "model": {"name": "edm", "net": MLP, "label_dropout": 0.1}},
        "quiet": {**table("ddpm"), "model": {"name": "ncsn", "noise_levels": 4, "net": net}},
        "strong": table("ddpm"),
    }
    for name, tables in made.items():
        saved(place, tables).rename(place / name)
    return place.parent


@pytest.fixture
def folder(stock: Path, shell: Shell, tmp_path: Path) -> Path:
    return copied(stock, tmp_path)


def rows(text: str) -> list[dict[str, str]]:
    header, *lines = [line.split("\t") for line in text.splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


FID = "fid[gencli-features-v1]"
ARGS = ["compare", "strong", "--steps", "2,4", "-n", "20"]


def test_each_sampler_has_its_cost_and_its_number_and_the_rest_a_reason(shell: Shell, folder: Path) -> None:
    done = shell.fine(*ARGS, "--samplers", "ddim,heun,next-token,ddim")
    table_ = rows(done.out)
    assert [(row["sampler"], row["steps"]) for row in table_] == [
        *[("ddim", "2"), ("ddim", "4"), ("heun", "2"), ("heun", "4")],
        ("next-token", ""),
    ]
    assert [row["evaluations"] for row in table_[:4]] == ["2", "4", "3", "7"]
    assert all(float(row[FID]) > 0 and float(row["seconds"]) > 0 and not row["note"] for row in table_[:4])
    assert table_[4]["note"].startswith("does not apply: ") and "NextToken" in table_[4]["note"]
    best = min(table_[:4], key=lambda row: float(row[FID]))
    assert done.err.splitlines()[-1] == f"next: gencli sample {best['sampler']} -c strong --steps {best['steps']}"
    made = Path("samples/strong/compare-2-4-0")
    assert {p.name for p in made.iterdir()} == {
        *("grid.png", "compare.json", "ddim-2.png", "ddim-4.png", "heun-2.png", "heun-4.png")
    }


def test_a_start_that_is_no_noise_is_said_but_for_chains_which_forget_it(shell: Shell, folder: Path) -> None:
    done = shell.fine("compare", "quiet", "--steps", "2", "-n", "20", "--samplers", "heun,langevin,annealed-langevin")
    heun, single, annealed = rows(done.out)
    assert heun["note"].startswith("off-distribution start: it starts at σ = ") and not heun[FID]
    assert not single["note"] and not annealed["note"], (single, annealed)
    assert float(single[FID]) > 0 and float(annealed[FID]) > 0


def test_the_numbers_are_those_of_eval_and_the_pictures_those_of_sample(shell: Shell, folder: Path) -> None:
    (cell, *_) = shell.fine(*ARGS, "--samplers", "heun", "--guidance", "2", "--json").document["cells"]
    args = ["-c", "strong", "--steps", "2", "--guidance", "2"]
    measured = shell.fine(
        "eval", "fid", "-n", "20", "--sampler", "heun", "--batch-size", "64", *args, "--json"
    ).document
    assert cell["values"][0]["value"] == measured["results"][0]["value"]
    ours, theirs = cell["values"][0]["receipt"], measured["results"][0]["receipt"]
    assert {key: ours[key] for key in theirs} == theirs and cell["evaluations"] == 6
    shell.fine("sample", "heun", *args, "-n", "20", "--exact", "--batch-size", "20", "--out", "mine")
    pictures = [np.asarray(Image.open(f"mine/{i:05d}.png")) for i in range(16)]
    shown = np.asarray(Image.open("samples/strong/compare-2-4-0/heun-2.png").convert("L"))
    wanted = np.asarray(image.grid(torch.from_numpy(np.stack(pictures))[:, None], columns=4).convert("L"))
    assert np.array_equal(shown, wanted), "the same seeds for every sampler"


def test_json_and_quiet(shell: Shell, folder: Path) -> None:
    done = shell.fine(*ARGS, "--samplers", "ddim", "--json")
    assert done.err == "" and done.document["schema"] == 1 and done.document["n"] == 20
    assert [cell["steps"] for cell in done.document["cells"]] == [2, 4]
    assert Path(done.document["path"]) == Path("samples/strong/compare-2-4-0")
    done = shell.fine(*ARGS, "--samplers", "ddim", "-q")
    assert done.err == "" and done.out.strip() == str(Path("samples/strong/compare-2-4-0-2")), "nothing is overwritten"


def test_what_is_there_is_not_computed_again(shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = compare.Bench.measured

    def watched(self: Any, planned: Any, watch: Any = None) -> Any:
        seen.append(planned.cell.label)
        return real(self, planned, watch)

    monkeypatch.setattr(compare.Bench, "measured", watched)
    args = [*ARGS, "--out", "mine"]
    first = rows(shell.fine(*args, "--samplers", "ddim").out)
    more = shell.fine(*args, "--samplers", "ddim,euler")
    assert seen == ["ddim-2", "ddim-4", "euler-2", "euler-4"] and "2 are there" in more.err
    assert rows(more.out)[:2] == first
    kept = json.loads(Path("mine/compare.json").read_text())
    assert [cell["sampler"] for cell in kept["cells"]] == ["ddim", "ddim", "euler", "euler"] and kept["run"] == "strong"
    for other in (["-n", "21"], ["--seed", "1"], ["--guidance", "3"], ["--metric", "kid"]):
        shell(*args, "--samplers", "ddim", *other).fails("mine compares with")
    assert json.loads(Path("mine/compare.json").read_text()) == kept


def test_an_interrupted_comparison_keeps_what_is_done_and_says_how_to_go_on(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compare.Bench.measured

    def stopping(self: Any, planned: Any, watch: Any = None) -> Any:
        if planned.cell.label == "euler-2":
            raise KeyboardInterrupt
        return real(self, planned, watch)

    with monkeypatch.context() as patch:
        patch.setattr(compare.Bench, "measured", stopping)
        done = shell(*ARGS, "--samplers", "ddim,euler")
    assert done.code == 130 and done.out == ""
    command = done.err.splitlines()[-1].split("gencli ")[1].split()
    assert command[-2:] == ["--out", str(Path("samples/strong/compare-2-4-0"))]
    again = shell.fine(*command)
    assert "2 cells · 2 are there" in again.err and len(rows(again.out)) == 4


def test_points_are_compared_by_their_own_distance_and_solvers_by_themselves(shell: Shell, folder: Path) -> None:
    done = shell.fine("compare", "plane", "--samplers", "ddim,pf-ode", "--steps", "2,3", "-n", "40", "--out", "mine")
    table_ = rows(done.out)
    assert [(row["sampler"], row["steps"]) for row in table_] == [("ddim", "2"), ("ddim", "3"), ("pf-ode", "")]
    assert all(float(row["sliced-w2[points]"]) > 0 for row in table_)
    assert float(table_[2]["evaluations"]) > 10
    assert {p.name for p in Path("mine").glob("*.png")} == {"grid.png", "ddim-2.png", "ddim-3.png", "pf-ode.png"}


def test_a_solver_says_afterwards_what_it_took(shell: Shell, folder: Path) -> None:
    done = shell.fine("sample", "pf-ode", "-c", "plane", "-n", "5", "--out", "mine")
    taken = json.loads(Path("mine/samples.json").read_text())["evaluations"]
    assert 5 < taken["least"] <= taken["mean"] <= taken["most"]
    assert f"an image took {taken['mean']:g} evaluations, from {taken['least']} to {taken['most']}" in done.err
    shell.fine("sample", "ddim", "-c", "plane", "-n", "1", "--steps", "2", "--out", "yours")
    assert "evaluations" not in json.loads(Path("yours/samples.json").read_text()), "known beforehand"


def test_without_names_the_usual_samplers_that_fit_are_taken(shell: Shell, folder: Path) -> None:
    names = {row["sampler"] for row in rows(shell.fine("compare", "flow", "--steps", "1", "-n", "8").out)}
    assert names == {"ddim", "heun", "dpmpp-2m", "ancestral"}
    document = json.loads(Path("samples/flow/compare-1-0/compare.json").read_text())
    (refused,) = [cell for cell in document["cells"] if cell["sampler"] == "ancestral"]
    assert refused["reason"] == "does not apply" and "transport" in refused["why"]
    tokens = rows(shell.fine("compare", "tokens", "--steps", "1", "-n", "4").out)
    assert [(row["sampler"], row["steps"], row["evaluations"]) for row in tokens] == [("next-token", "", "64")]
    everything = {
        row["sampler"] for row in rows(shell.fine(*ARGS[:2], "--samplers", "all", "--steps", "30", "-n", "4").out)
    }
    assert {"ddim", "pf-ode", "annealed-langevin"} < everything and "next-token" not in everything


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compare", "nobody"], ["'nobody'", "checkpoints"]),
        (["compare", "strong", "flow", "--samplers", "ddim"], ["strong, flow", "one run"]),
        (["compare", "strong", "--samplers", "ddin"], ["'ddin'", "ddim"]),
        (["compare", "strong", "--samplers", ","], ["--samplers"]),
        (["compare", "strong", "--samplers", "next-token"], ["next-token", "does not apply", "all"]),
        (["compare", "strong", "--samplers", "ddim", "--steps", "50"], ["ddim", "steps is 50", "20"]),
        (["compare", "strong", "--steps", "ten"], ["'ten'", "10,20,50"]),
        (["compare", "strong", "--steps", "0"], ["'0'"]),
        (["compare", "strong", "-n", "0"], ["-n is 0"]),
        (["compare", "strong", "--batch-size", "0"], ["--batch-size is 0"]),
        (["compare", "strong", "--seed", "-1"], ["--seed is -1"]),
        (["compare", "strong", "--metric", "bpd"], ["bpd", "fid"]),
        (["compare", "strong", "--metric", "kl"], ["kl", "points"]),
        (["compare", "strong", "--metric", "fib"], ["'fib'"]),
        (["compare", "strong", "--guidance", "2", "--guidance-interval", "2,1"], ["2,1", "empty"]),
        ([*ARGS, "--samplers", "ddim", "--out", "checkpoints"], ["checkpoints is not empty"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_what_cannot_be_compared_is_refused(shell: Shell, folder: Path, args: list[str], words: list[str]) -> None:
    shell(*args).fails(*words)
    assert not Path("samples").exists(), "nothing is begun"


def test_without_a_checkpoint_every_place_looked_in_is_named(shell: Shell) -> None:
    shell("compare").fails("no checkpoint", "checkpoints", "gencli train ddpm")


# ---------------------------------------------------------------------------------------------------------- from a script


@pytest.fixture
def bench(folder: Path) -> compare.Bench:
    run = Run.load(folder / "checkpoints" / "strong")
    of_samples, _ = split_metrics([choose("metrics", "fid")])
    return compare.Bench(run, open_table(run.config["recipe"]["data"]), of_samples, extractor("pixels"), 12)


def test_a_script_may_ask_for_cells_one_by_one(bench: compare.Bench, tmp_path: Path) -> None:
    ledger = compare.Ledger(tmp_path / "out", bench.facts())
    plan = [bench.cell("ddim", 3), bench.cell("ddim", 3, {"eta": 1.0}), bench.cell("heun", 2)]
    assert [cell.sampler for cell in compare.compare(bench, [plan[0], plan[2]], ledger)] == ["ddim", "heun"]
    assert ledger.find(plan[0].cell) is not None and ledger.find(plan[1].cell) is None, "other settings, another cell"
    again = compare.Ledger(tmp_path / "out", bench.facts())
    assert [cell.value for cell in again.cells] == [cell.value for cell in ledger.cells]
    assert compare.sheet(again, "title").width > 100


def test_the_most_steps_within_a_budget(bench: compare.Bench) -> None:
    assert [bench.most_steps("heun", most) for most in (1, 2, 3, 9)] == [1, 1, 2, 5]
    assert bench.most_steps("ddim", 1000) == 20, "no more than the model has levels"


def test_a_sampler_that_fails_says_why_and_the_rest_go_on(
    bench: compare.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gencli.errors import GencliError
    from gencli.samplers.euler import Euler

    def fail(*args: Any) -> Any:
        raise GencliError("it blew up", "")

    monkeypatch.setattr(Euler, "step", fail)
    bench._warm_up(bench.request(bench.cell("ddim", 2).sampler))
    ledger = compare.Ledger(tmp_path / "out", bench.facts())
    failed, fine = compare.compare(bench, [bench.cell("euler", 2), bench.cell("ddim", 2)], ledger)
    assert (failed.reason, failed.why, failed.value) == ("failed", "it blew up", None) and fine.value is not None
    assert ledger.find(failed) is None, "it is tried again"


def test_panels_of_points_share_the_view_of_the_data() -> None:
    real = np.random.default_rng(0).normal(size=(500, 2))
    near, far = points.panel(real, real), points.panel(real * 0.2, real)
    assert near.size == far.size == (200, 200)
    ink = [np.argwhere(np.asarray(page.convert("L"))[5:180, 5:195] < 200).std(0).mean() for page in (near, far)]
    assert ink[1] < 0.4 * ink[0]


def test_cells_of_a_run_that_takes_a_class_are_balanced(bench: compare.Bench) -> None:
    request = bench.request(bench.cell("ddim", 2).sampler)
    assert torch.equal(request.cond["label"], labels_for(bench.run, range(12), None)["label"])
    assert request.exact and len(Rng.rows(request.seeds)) == 12
