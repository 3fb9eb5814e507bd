"""Which model for which data: the first answer for eight folders, commands that plan, times that are the plan's."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from planning import planned
from shell import Shell

from gencli import recipe as recipes
from gencli import registry
from gencli.evaluation import budget, choose
from gencli.training import plan

# images, side, channels, classes, captions · budget, need, seconds of a step of a model · the first answer
FOLDERS: dict[str, tuple[tuple[int, int, int, int, bool], str, str, dict[str, float], str]] = {
    "scarce": ((40, 8, 1, 0, False), "30m", "quality", {}, "vae"),
    "classes": ((110, 8, 1, 2, False), "30m", "quality", {}, "ddpm"),
    "slow": ((110, 16, 3, 0, False), "2m", "quality", {"ddpm": 9.0, "flow-matching": 9.0}, "vae"),
    "exact": ((110, 8, 1, 0, False), "30m", "likelihood", {}, "gated-pixelcnn"),
    "density": ((110, 40, 3, 0, False), "1h", "likelihood", {}, "realnvp"),
    "quick": ((110, 16, 3, 0, False), "1h", "speed", {}, "wgan-gp"),
    "few-quick": ((40, 16, 3, 0, False), "30m", "speed", {}, "vae"),
    "captioned": ((110, 16, 3, 0, True), "30m", "latent", {}, "vae"),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than eighty images are little data: a test has no time for thousands."""
    monkeypatch.setattr(choose, "LITTLE", 80)


def folder(name: str, count: int, side: int, channels: int, classes: int, captions: bool) -> str:
    """Images of random pixels."""
    values = np.random.default_rng(3).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for i, pixels in enumerate(values):
        place = Path(name, f"kind-{i % classes}") if classes else Path(name)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(place / f"{i:03d}.png")
        if captions:
            (place / f"{i:03d}.txt").write_text("words", encoding="utf-8")
    return name


def measured(monkeypatch: pytest.MonkeyPatch, steps: dict[str, float]) -> dict[str, Any]:
    """Plans without a probe, by recipe: a step takes 10 ms where `steps` says nothing else."""
    seen: dict[str, Any] = {}

    def fake(session: Any, root: Path, began: float, done: int, progress: Any) -> Any:
        name, train = session.recipe["model"]["name"], session.train
        step = steps.get(name, 0.01)
        found = planned(step=step, start=3.0, save=0.5, picture=1.0)
        total = budget.time_of(found, train.steps, train.save_every, train.sample_every)
        seen[name] = replace(found, steps=train.steps, time=replace(found.time, total=total))
        return seen[name]

    monkeypatch.setattr(plan, "_measured", fake)
    monkeypatch.setattr(budget.time, "process_time", lambda: 0.0)
    return seen


def rows(text: str) -> list[dict[str, str]]:
    header, *lines = [line.split("\t") for line in text.splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_first_answer_is_the_expected_one_and_every_command_plans(
    name: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, time, need, steps, expected = FOLDERS[name]
    path = folder(name, *what)
    plans = measured(monkeypatch, steps)
    done = shell.fine("choose", "--data", path, "--budget", time, "--need", need, "--json")
    answers = done.document["answers"]
    assert answers[0]["model"] == expected and len(answers) == 3 == len({one["model"] for one in answers})
    assert done.document["next"] == answers[0]["command"]
    assert [one["points"] for one in answers] == sorted((one["points"] for one in answers), reverse=True)
    for one in answers:
        assert one["why"] and one["seconds"] <= budget.seconds_of(time)
        train = plans[one["model"]]
        if one["part"] == 1:
            assert one["seconds"] == train.time.total, "the estimate is the plan's"
    side = what[1]
    assert all(("--image-size" in one["command"]) == (side < 32) for one in answers), "no small image is enlarged"
    assert bool(done.document["data"]["captions"]) == what[4]
    for one in answers if name in ("slow", "classes") else answers[:1]:
        command = shlex.split(one["command"])
        assert command[:2] == ["gencli", "train"]
        made = shell.fine(*command[1:], "--plan", "--json").document["plan"]
        assert made["steps"] == one["steps"] and made["time"]["total"] == pytest.approx(one["seconds"])
    assert sorted(p.name for p in Path.cwd().iterdir()) == [name], "nothing is made"


def test_a_budget_that_holds_part_of_a_recipe_shortens_it_and_says_so(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder("mine", *FOLDERS["classes"][0])
    measured(monkeypatch, {"ddpm": 0.1})
    done = shell.fine("choose", "--data", path, "--budget", "100s")
    (short,) = [row for row in rows(done.out) if row["model"] == "ddpm"]
    assert "the budget holds 78% of its steps" in short["why"] and "--steps 940 --warmup 94" in short["command"]
    assert short["time"] == "1:40" and done.err.splitlines()[-1] == f"next: {rows(done.out)[0]['command']}"
    quiet = shell.fine("choose", "--data", path, "--budget", "100s", "-q")
    assert quiet.err == "" and quiet.out == rows(done.out)[0]["command"] + "\n"


def test_what_a_person_should_know_is_said(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("mine", *FOLDERS["captioned"][0])
    measured(monkeypatch, {})
    done = shell.fine("choose", "--data", path, "--need", "editing")
    assert "the 110 captions are not used" in done.err and "no command that edits yet" in done.err
    assert rows(done.out)[0]["model"] == "ddpm"
    assert re.search(
        r"mine: \d+ colour images to train on, \d+ held out · 3×16×16 · no classes · 110 captions", done.err
    )


def test_points_have_rules_of_their_own(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, {})
    answers = shell.fine("choose", "--data", "toy2d", "--json").document["answers"]
    assert answers[0]["model"] == "ddpm" and {one["model"] for one in answers} <= set(recipes.names())
    assert all("real points" in one["why"] for one in answers)


def test_the_rules_name_only_what_there_is() -> None:
    for rule in choose.RULES:
        assert rule.model in registry.entries("models") and rule.model in recipes.names()
        assert rule.when in choose.WHEN and rule.points and rule.why
    assert {f"need {need}" for need in choose.NEEDS} <= set(choose.WHEN)
    from gencli.cli.choose import NEEDS

    assert choose.NEEDS == NEEDS, "the command line knows them without torch"


def test_a_model_that_cannot_be_built_or_planned_is_left_out(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("mine", *FOLDERS["exact"][0])
    measured(monkeypatch, {})
    asked = [("vdm", 9), ("noisy-classifier", 1), ("nobody", 5)]
    monkeypatch.setattr(choose, "RULES", [choose.Rule(name, "images", points, "so") for name, points in asked])
    done = shell.fine("choose", "--data", path)
    assert "noisy-classifier left out" in done.err and [row["model"] for row in rows(done.out)] == ["vdm"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["needs data"]),
        (["--data", "digits", "--budget", "soon"], ["'soon'", "10m"]),
        (["--data", "digits", "--need", "spede"], ["'spede'", "speed"]),
        (["--data", "./nowhere"], ["nowhere"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_what_cannot_be_chosen_for_is_refused(shell: Shell, args: list[str], words: list[str]) -> None:
    shell("choose", *args).fails(*words)


def test_a_budget_that_holds_nothing_is_refused(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, dict.fromkeys(registry.entries("models"), 50.0))
    shell("choose", "--data", "digits", "--budget", "60s").fails("a budget of 60s holds none", "larger --budget")
