"""Families side by side: what is trained once, what is kept, what is marked, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from planning import planned
from saved import saved
from shell import Shell, copied
from tiny import DIGITS, TABLES, opened, table, toml, trained

from gencli.errors import GencliError
from gencli.evaluation import budget, controls, families
from gencli.training.plan import Plan
from gencli.training.session import Session

STEP = 1.0
ARGS = ["--data", "digits", "--image-size", "8", "--budget", "6s", "-n", "40", "--out", "mine"]


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recipes that were probed; every step takes a second."""
    seen: list[str] = []

    def probe(recipe: Any, data: Any, codec_run: Any, progress: Any) -> Plan:
        assert (codec_run is not None) == (recipe["recipe"] == "gated-pixelcnn"), "a prior is probed over its codec"
        seen.append(recipe["recipe"])
        progress("probing", 1, 1)
        return planned(STEP)

    monkeypatch.setattr(budget, "probe", probe)
    monkeypatch.setattr(budget, "LEAST", 3)
    return seen


@pytest.fixture
def recipes(shell: Shell, tmp_path: Path) -> dict[str, str]:
    """Recipes in miniature, as files."""
    return {name: str(toml(tmp_path / f"{name}.toml", table(name)).name) for name in TABLES}


def rows(text: str) -> list[dict[str, str]]:
    header, *lines = [line.split("\t") for line in text.splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def models(recipes: dict[str, str], *names: str) -> str:
    return ",".join("+".join(recipes[part] for part in name.split("+")) for name in names)


SOME = ("vqvae+gated-pixelcnn", "vae", "wgan-gp")


def test_families_are_trained_once_and_stand_in_one_table(
    shell: Shell, recipes: dict[str, str], probes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["compare", "--models", models(recipes, *SOME), *ARGS]
    done = shell.fine(*command)
    found = {row["model"]: row for row in rows(done.out)}
    assert not [line for line in done.err.splitlines() if "failed" in line]
    assert set(found) == {*SOME, "real data", "gaussian", "uniform noise"}
    assert list(found)[3:] == ["real data", "gaussian", "uniform noise"]
    quality = [float(found[name]["fid"].split(" ")[0]) for name in list(found)[:3]]
    assert quality == sorted(quality), "the best comes first"
    for name in SOME:
        row = found[name]
        assert row["parameters"] and row["training"] and row["ms a sample"] and row["precision"] and row["recall"]
        assert row["steps"] == "6", "a chain's two stages share what one model has"
    assert [found[name]["bits/dim"].split(" ")[-1] for name in SOME] == ["codes", "bound", ""]
    assert found[SOME[0]]["evaluations"] == "16" and found["vae"]["evaluations"] == "1"
    assert found["real data"]["note"].startswith("floor") and found["real data"]["parameters"] == ""
    assert float(found["uniform noise"]["fid"].split(" ")[0]) > float(found["real data"]["fid"].split(" ")[0])
    assert sorted(probes) == sorted(["vqvae", "gated-pixelcnn", "vae", "wgan-gp"])
    folder = Path("mine")
    slugs = ["vqvae-gated-pixelcnn", "vae", "wgan-gp", "real-data", "gaussian", "uniform-noise"]
    assert {p.name for p in folder.iterdir()} == {
        *("compare.json", "pareto.png", "grid.png", "runs"),
        *(f"{slug}.png" for slug in slugs),
    }
    prior = json.loads((folder / "runs/vqvae-gated-pixelcnn/gated-pixelcnn-digits/config.json").read_text())
    assert prior["step"] == 3 and prior["recipe"]["train"]["steps"] == 3 and prior["codec"] == "vqvae-digits"
    document = json.loads((folder / "compare.json").read_text())
    assert [stage["steps"] for stage in document["budgets"][SOME[0]]] == [3, 3] and document["rows"][0]["values"][0][
        "receipt"
    ]["data_hash"]
    assert all(Image.open(folder / name).width > 100 for name in ("pareto.png", "grid.png"))

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("everything is there")

    for owner, name in ((Session, "__init__"), (families.Contest, "measured"), (budget, "probe")):
        monkeypatch.setattr(owner, name, never)
    monkeypatch.setattr(families.evaluate, "reference_of", never)
    again = shell.fine(*command)
    assert again.out == done.out and json.loads((folder / "compare.json").read_text()) == document


def test_what_is_missing_is_added_and_other_settings_are_refused(
    shell: Shell, recipes: dict[str, str], probes: list[str]
) -> None:
    first = rows(shell.fine("compare", "--models", models(recipes, "vae"), *ARGS).out)
    shell.fine("compare", "--models", models(recipes, "vae", "realnvp"), *ARGS)
    assert probes == ["vae", "realnvp"]
    kept = json.loads(Path("mine/compare.json").read_text())
    line = ["compare", "--models", models(recipes, "vae"), *ARGS]
    for other in (["-n", "41"], ["--seed", "1"], ["--budget", "9s"], ["--batch-size", "32"], ["--image-size", "16"]):
        shell(*line, *other).fails("mine compares with", "--out")
    toml(Path(recipes["pixelcnn"]), table("pixelcnn"))
    shell.fine("compare", "--models", models(recipes, "vae"), *ARGS)
    assert json.loads(Path("mine/compare.json").read_text()) == kept
    assert rows(shell.fine(*line).out) == first
    toml(Path(recipes["realnvp"]), table("realnvp", lr=0.5))
    Path("mine/compare.json").write_text(
        json.dumps({**kept, "rows": [row for row in kept["rows"] if row["name"] != "realnvp"]})
    )
    row = rows(shell.fine("compare", "--models", models(recipes, "realnvp"), *ARGS).out)[0]
    assert row["model"] == "realnvp" and "another recipe" in row["note"], "a changed recipe is not the run of before"


def test_a_killed_training_goes_on_from_its_last_save(
    shell: Shell, recipes: dict[str, str], probes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Session.events

    def dying(self: Session) -> Any:
        for event in events(self):
            yield event
            if event.kind == "saved" and event.step >= 3:
                raise KeyboardInterrupt

    line = ["compare", "--models", models(recipes, "vae"), *ARGS]
    with monkeypatch.context() as patch:
        patch.setattr(Session, "events", dying)
        stopped = shell(*line)
    assert stopped.code == 130 and stopped.err.splitlines()[-1].endswith(" ".join(["gencli", *line]))
    done = shell.fine(*line)
    assert "resumed at step 3" in done.err and probes == ["vae"]
    assert rows(done.out)[0]["steps"] == "6"
    (log,) = Path("mine/runs").glob("*/*/metrics.jsonl")
    assert [json.loads(row)["step"] for row in log.read_text().splitlines()] == list(range(1, 7))


def test_a_row_that_fails_says_why_and_the_rest_go_on(
    shell: Shell, recipes: dict[str, str], probes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Session.events

    def failing(self: Session) -> Any:
        if self.recipe["recipe"] == "vae":
            raise GencliError("it blew up", "")
        return events(self)

    line = ["compare", "--models", models(recipes, "vae", "realnvp"), *ARGS]
    with monkeypatch.context() as patch:
        patch.setattr(Session, "events", failing)
        found = rows(shell.fine(*line).out)
    assert [row["model"] for row in found[:2]] == ["realnvp", "vae"]
    assert found[1]["note"] == "failed: it blew up" and found[1]["fid"] == ""
    again = rows(shell.fine(*line).out)
    assert {row["model"]: row["note"].startswith("failed") for row in again[:2]} == {"realnvp": False, "vae": False}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--models", "ddmp", "--data", "digits"], ["'ddmp'", "ddpm"]),
        (["--models", ",", "--data", "digits"], ["--models names none"]),
        (["--models", "ddpm"], ["--models needs --data"]),
        (["--models", "pixelcnn,ddpm", "--data", "toy2d"], ["pixelcnn", "does not fit the data"]),
        (["--models", "vqvae", "--data", "digits"], ["vqvae", "draws no samples", "vqvae+gated-pixelcnn"]),
        (["--models", "noisy-classifier", "--data", "digits"], ["noisy-classifier", "draws no samples"]),
        (["--models", "ddpm+gated-pixelcnn", "--data", "digits"], ["'ddpm'", "does not encode"]),
        (["--models", "ddpm", "--data", "nowhere"], ["'nowhere'"]),
        (["--models", "ddpm", "--data", "digits", "--budget", "ten"], ["'ten'", "10m"]),
        (["--models", "ddpm", "--data", "digits", "--budget", "0s"], ["'0s'"]),
        (["--models", "ddpm", "--data", "digits", "--budget", "1e15flap"], ["1e15flap"]),
        (["--models", "ddpm", "--data", "digits", "--budget", "0FLOP"], ["'0FLOP'"]),
        (
            ["--models", "vae", "--data", "digits", "--image-size", "8", "--budget", "1e3FLOP"],
            ["1000 FLOP holds 0 steps of vae", "10 are the least", "FLOP or more"],
        ),
        (["--models", "ddpm", "--data", "digits", "-n", "0"], ["-n is 0"]),
        (["--models", "ddpm", "--data", "digits", "--steps", "3"], ["--steps"]),
        (["--models", "ddpm", "--data", "digits", "--guidance", "3"], ["--guidance"]),
        (["some", "--models", "ddpm", "--data", "digits"], ["some", "--models"]),
        (["some", "other", "--budget", "3m"], ["--budget"]),
        (["some", "--budget", "3m"], ["--budget"]),
        (["some", "other"], ["'some'"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_what_cannot_be_compared_is_refused(shell: Shell, args: list[str], words: list[str]) -> None:
    shell("compare", *args).fails(*words)
    assert not Path("comparisons").exists(), "nothing is begun"


def test_a_budget_of_fewer_than_ten_steps_is_refused_before_anything_is_trained(
    shell: Shell, recipes: dict[str, str], probes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "LEAST", 10)
    done = shell("compare", "--models", models(recipes, "vqvae+gated-pixelcnn", "vae"), *ARGS)
    done.fails("a budget of 6s holds 3 steps of vqvae", "10 are the least", "--budget 21s")
    assert not Path("mine/runs").exists()


# --------------------------------------------------------------------------------------------------------- runs that are there


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stock") / "checkpoints"
    trained(place, table("vae", {"data": {"unconditional": True}})).rename(place / "bare")
    saved(place, table("realnvp")).rename(place / "shaken")
    saved(place, table("vae", {"data": {"image_size": 16}})).rename(place / "large")
    return place.parent


def test_runs_are_compared_with_or_without_classes(shell: Shell, stock: Path, tmp_path: Path) -> None:
    copied(stock, tmp_path)
    done = shell.fine("compare", "bare", "shaken", "-n", "40")
    found = {row["model"]: row for row in rows(done.out)}
    assert found["bare"]["steps"] == "6" and found["bare"]["training"] and not found["shaken"]["training"]
    assert done.err.splitlines()[-1].startswith("next: gencli sample checkpoints/")
    folder = Path("comparisons/digits-runs")
    assert (folder / "pareto.png").is_file()
    quiet = shell.fine("compare", "bare", "shaken", "-n", "40", "-q")
    assert quiet.out.strip() == str(folder) and quiet.err == ""
    document = shell.fine("compare", "bare", "shaken", "-n", "40", "--json").document
    assert {row["name"] for row in document["rows"]} == {"bare", "shaken", "real data", "gaussian", "uniform noise"}
    weights = Path("checkpoints/bare/model.safetensors")
    weights.write_bytes(Path("checkpoints/bare/model.safetensors").read_bytes()[:-4] + b"\0\0\0\1")
    shell("compare", "bare", "shaken", "-n", "40").fails("bare has other weights", "--out")
    shell("compare", "bare", "large").fails("bare and large were trained on different data", "1×8×8", "1×16×16")
    config = json.loads(Path("checkpoints/shaken/config.json").read_text())
    config["data"]["hash"] = "0123456789abcdef"
    Path("checkpoints/shaken/config.json").write_text(json.dumps(config))
    shell("compare", "bare", "shaken").fails("run shaken was trained on other data", "0123456789abcdef")


# ------------------------------------------------------------------------------------------------------------------ arithmetic


def test_a_budget_is_a_number_of_steps() -> None:
    assert [budget.seconds_of(text) for text in ("600s", "10m", "1h", "1.5h")] == [600, 600, 3600, 5400]
    found = planned(step=2.0, start=5.0, save=1.5, picture=4.0)
    assert budget.steps_within(found, 100.0, "it") == (100 - 5 - 15 - 4) // 2
    with pytest.raises(GencliError, match="a budget of 30s holds 3 steps of it"):
        budget.steps_within(found, 30.0, "it")
    assert budget.time_of(found, 100, 30) == 5 + 200 + 4 * 1.5 + 4 * 4.0
    made = budget.with_steps({"train": {"steps": 900, "warmup": 100, "save_every": 500, "sample_every": 0}}, 250)
    assert made["train"] == {"steps": 250, "warmup": 25, "save_every": 25, "sample_every": 250}


def test_a_budget_of_work_is_the_same_steps_on_every_machine() -> None:
    assert budget.budget_of("10m") == budget.Budget(600.0)
    assert budget.budget_of("2.5 PFLOP") == budget.budget_of("2.5e15flops") == budget.Budget(2.5e15, "FLOP")
    assert str(budget.budget_of("2e15FLOP") / 2) == "1e+15 FLOP"
    assert budget.steps_of_work(3e9, 1e12, "it") == 333
    with pytest.raises(GencliError, match=r"a budget of 6e\+09 FLOP holds 1 steps of it"):
        budget.steps_of_work(3e9, 3e9, "it", 2)


def test_a_probe_does_not_hold_what_the_process_did_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(*args: Any, **kwargs: Any) -> Plan:
        return planned(STEP, start=1003.0, total=1010.0)

    monkeypatch.setattr(budget.plan, "plan", plan)
    monkeypatch.setattr(budget.time, "process_time", lambda: 1000.0)
    found = budget.probe({}, opened(DIGITS), None, lambda what, now, total: None)
    assert (found.time.start, found.time.total) == (3.0, 10.0)


def log(loss: Any, steps: int = 1000) -> list[dict[str, Any]]:
    noisy = np.random.default_rng(0).normal(0, 0.05, steps)
    return [{"step": i + 1, "loss": loss(i / steps) * (1 + e), "seconds": i * 0.1} for i, e in enumerate(noisy)]


def test_a_loss_that_still_falls_is_seen_and_one_that_is_level_is_not() -> None:
    assert budget.still_falling(log(lambda t: 2 - t)) == pytest.approx(0.1 / 1.15, rel=0.15)
    assert budget.still_falling(log(lambda t: -100 - 20 * t)) == pytest.approx(2 / 117, rel=0.4)
    assert budget.still_falling(log(lambda t: 1.0)) < 0.01
    assert budget.still_falling(log(lambda t: 1 + t)) == 0
    assert budget.still_falling(log(lambda t: 1.0, 20)) is None, "too few lines"
    assert budget.still_falling([{"step": 1, "critic/loss": 2.0}]) is None


def test_the_time_of_a_resumed_run_is_that_of_its_sessions() -> None:
    clock = [1.0, 2.0, 3.0, 0.5, 1.5, 0.25]
    assert budget.spent_by([{"step": i, "seconds": s} for i, s in enumerate(clock)]) == 3.0 + 1.5 + 0.25
    assert budget.spent_by([]) is None


def test_the_gaussian_has_the_mean_and_covariance_of_the_data() -> None:
    data = opened({"name": "toy2d", "shape": "moons", "size": 2000})
    real = data.split("train").x
    made = controls.gaussian(data, 20_000, 0).numpy()
    assert np.allclose(made.mean(0), real.mean(0), atol=0.03)
    assert np.allclose(np.cov(made.T), np.cov(real.T), atol=0.03)
    images = controls.gaussian(opened(DIGITS), 50, 0)
    assert images.dtype == torch.uint8 and images.shape == (50, 1, 8, 8)
    assert torch.equal(images, controls.gaussian(opened(DIGITS), 50, 0))
    assert not torch.equal(images, controls.gaussian(opened(DIGITS), 50, 1))
    assert controls.noise(opened(DIGITS), 500, 0).float().mean() == pytest.approx(127.5, abs=3)


def test_a_probe_of_a_real_run_plans_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget.plan, "CYCLES", (1, 2))
    tables = budget.tables_for(str(toml(tmp_path / "vae.toml", table("vae"))), "digits", {"data": {"image_size": 8}})
    found = budget.probe(tables, opened(tables["data"]), None, lambda what, now, total: None)
    assert found.time.step > 0 and found.time.total < 30
