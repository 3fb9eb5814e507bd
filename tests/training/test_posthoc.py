"""Averages chosen after training: the profiles' mathematics, against an average that was tracked, on disk and by command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import Shell, copied, empty
from tiny import POINTS, Points, bare, hashes, of_run, opened, resumed, table, trained
from torch import Tensor, nn

from gencli import files
from gencli.bundle import Run, read_tensors
from gencli.config import NoSettings
from gencli.core import Batch, Losses, Model, Turn
from gencli.errors import GencliError
from gencli.training import memory, optim, plan, posthoc
from gencli.training.ema import Average, gamma_of
from gencli.training.session import Session, refuse_changes, resolve
from gencli.training.settings import TrainConfig

WIDTHS = (0.05, 0.1)


class Walk(Model):
    """Noisy regression: weights that first travel, then shake."""

    def __init__(self) -> None:
        super().__init__(NoSettings(), POINTS)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        noise = turn.rng.at("noise").normal(batch["x"].shape)
        return {"loss": (self.net(batch["x"] + noise) - batch["x"]).square().mean()}


def apart(state: dict[str, Tensor], wanted: dict[str, Tensor], raw: dict[str, Tensor]) -> float:
    """The difference of two averages, as a share of how far the wanted one is from the last weights."""
    names = [name for name, value in wanted.items() if value.is_floating_point()]
    off, way = (
        sum(float((a[n].double() - wanted[n].double()).square().sum()) for n in names) ** 0.5 for a in (state, raw)
    )
    return off / way


# -------------------------------------------------------------------------------------------------------------- mathematics


def profile(width: float, step: float, tau: np.ndarray) -> np.ndarray:
    """p(τ) as in the paper."""
    g = gamma_of(width)
    return np.where(tau <= step, (g + 1) * tau**g / step ** (g + 1), 0.0)


@pytest.mark.parametrize(
    ("p", "q"), [((0.05, 40), (0.1, 40)), ((0.05, 30), (0.2, 47)), ((0.2, 30), (0.05, 47)), ((0.1, 5), (0.1, 90))]
)
def test_inner_products_are_those_of_numerical_integration(p: tuple[float, int], q: tuple[float, int]) -> None:
    last = min(p[1], q[1])
    nodes, weights = np.polynomial.legendre.leggauss(400)
    tau = last * (nodes + 1) / 2
    numeric = float((profile(*p, tau) * profile(*q, tau) * weights).sum() * last / 2)
    closed = float(posthoc.inner(gamma_of(p[0]), float(p[1]), gamma_of(q[0]), float(q[1])))
    assert closed == pytest.approx(numeric, rel=1e-6)


def test_the_trainers_averages_weigh_each_step_by_the_integral_of_the_profile() -> None:
    average, steps = Average(Walk(), 0.07, 0.0), 40
    shares = np.zeros(steps)
    for t in range(1, steps + 1):
        beta = average.beta(t)
        shares *= beta
        shares[t - 1] += 1 - beta
    g = gamma_of(0.07)
    for i in range(1, steps + 1):
        share = (i / steps) ** (g + 1) - ((i - 1) / steps) ** (g + 1)
        assert shares[i - 1] == pytest.approx(share, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_width_that_was_kept_at_the_last_step_is_that_average_alone(width: float) -> None:
    kept = [(step, each) for step in range(100, 10_001, 100) for each in WIDTHS]
    found = posthoc.fit(kept, 10_000, width)
    alone = np.array([pair == (10_000, width) for pair in kept], dtype=float)
    assert np.abs(found.weights - alone).max() < 1e-8 and found.error < 1e-6


def test_more_steps_fit_better_and_far_widths_worse_and_all_are_averages() -> None:
    errors: dict[float, list[float]] = {0.03: [], 0.08: [], 0.2: []}
    for width, found in errors.items():
        for steps in (4, 16, 64):
            kept = [(step, each) for step in range(6400 // steps, 6401, 6400 // steps) for each in WIDTHS]
            made = posthoc.fit(kept, 6400, width)
            assert made.weights.sum() == pytest.approx(1)
            found.append(made.error)
        assert found == sorted(found, reverse=True)
    assert errors[0.08][1] < 5e-3 and errors[0.08][2] < 5e-4 and errors[0.03][1] > 5 * errors[0.08][1]


# ------------------------------------------------------------------------------------------------------- against a tracked one


def test_an_average_made_afterwards_is_the_one_that_was_tracked(tmp_path: Path) -> None:
    train = TrainConfig(steps=200, batch_size=8, lr=0.01, ema=0.08, ema_profiles=WIDTHS)
    one = of_run(bare(Walk()), Points(), train)
    for _ in range(200):
        one.take_step()
        if one.step % 8 == 0:
            posthoc.keep(tmp_path, one.step, one.profiles)
    raw = {name: value.clone() for name, value in one.model.state_dict().items()}
    made = posthoc.reconstruct(tmp_path, one.model, 0.08)
    assert made.step == 200 and made.fit.error < 2e-3
    assert apart(made.state, one.average.state, raw) < 2e-3
    assert apart(posthoc.reconstruct(tmp_path, one.model, 0.09).state, one.average.state, raw) > 2e-2, "another width"
    for width, kept in one.profiles.averages.items():
        exact = posthoc.reconstruct(tmp_path, one.model, width)
        assert max(float((exact.state[n] - v).abs().max()) for n, v in kept.state.items()) < 1e-6
    for path in posthoc.snapshots(tmp_path)[:-2]:
        path.unlink()
    assert apart(posthoc.reconstruct(tmp_path, one.model, 0.08).state, one.average.state, raw) > 2e-2, "two steps"


def test_large_models_are_kept_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = of_run(bare(Walk()), Points(), TrainConfig(steps=6, batch_size=8, ema=0.08, ema_profiles=WIDTHS))
    for step in range(1, 7):
        one.take_step()
        posthoc.keep(tmp_path / "whole", step, one.profiles)
    monkeypatch.setattr(posthoc, "HALF_ABOVE", 10)
    posthoc.rewind(tmp_path / "half", 6, one.profiles)
    for path in posthoc.snapshots(tmp_path / "whole")[:-1]:
        shutil.copy2(path, tmp_path / "half" / "train" / "ema")
    whole, half = (posthoc.snapshots(tmp_path / name)[-1] for name in ("whole", "half"))
    assert half.stat().st_size < 0.75 * whole.stat().st_size, "the header is as large"
    made = [posthoc.reconstruct(tmp_path / name, one.model, 0.08).state for name in ("whole", "half")]
    for name, value in made[0].items():
        assert made[1][name].dtype == value.dtype
        torch.testing.assert_close(made[1][name], value, rtol=2e-3, atol=2e-3 * float(value.abs().max()))
    assert any(not torch.equal(made[1][name], value) for name, value in made[0].items())


# ------------------------------------------------------------------------------------------------------------------ on disk


def tables(**train: Any) -> dict[str, Any]:
    """A run that keeps averages every second step."""
    return table("vqvae", **{"steps": 8, "save_every": 2, "ema_profiles": WIDTHS, "keep": 1, **train})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), tables())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in posthoc.snapshots(folder)}


def test_every_save_leaves_its_averages_and_resuming_keeps_them_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    whole = contents(finished)
    assert [*whole] == [f"step-0000000{step}.safetensors" for step in (2, 4, 6, 8)]
    tensors, facts = read_tensors(posthoc.snapshots(finished)[-1])
    stored, _ = read_tensors(finished / "train" / "step-00000008" / "profiles.safetensors")
    assert facts == {"step": "8"} and tensors.keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in tensors.items())
    folder = trained(tmp_path, tables(steps=4))
    resumed(folder, steps=8)
    assert contents(folder) == whole and hashes(folder) == hashes(finished)
    damaged = folder / "train" / "step-00000008" / "profiles.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    notes = [event.text for event in resumed(folder) if event.kind == "note"]
    assert "profiles.safetensors is damaged" in notes[0] and notes[1] == "no saved state: started at 0"
    assert contents(folder) == whole and hashes(folder) == hashes(finished)


class Power(Exception):
    """The machine goes off."""


def test_a_save_interrupted_anywhere_loses_no_average(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "draw", lambda self, trainer, step: iter(()))
    start, real = trained(tmp_path / "start", tables(steps=6, keep=2)), files.replace
    count = at = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if at and count >= at:
            raise Power
        real(source, target)

    monkeypatch.setattr(files, "replace", replace)
    resumed(Path(shutil.copytree(start, tmp_path / "count")), steps=8)
    total, lost = count, 0
    assert total > 6
    for at in range(total - 4, total + 1):  # before these the state itself is not there
        folder, count = Path(shutil.copytree(start, tmp_path / str(at))), 0
        with pytest.raises(Power):
            resumed(folder, steps=8)
        lost += len(contents(folder)) < 4
        count = at = 0
        resumed(folder, steps=8)
        assert contents(folder) == contents(finished)
        shutil.rmtree(folder)
    assert lost > 1


def test_averages_of_steps_that_are_taken_again_differently_are_not_mixed_in(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / finished.name))
    for raw in (folder / "train").glob("step-*/raw.safetensors"):
        raw.unlink()
    resumed(folder, steps=3, save_every=3)
    assert [*contents(folder)] == ["step-00000003.safetensors"]


def test_a_run_cannot_begin_to_keep_averages_half_way(finished: Path) -> None:
    old = resolve(tables(ema_profiles=()))
    with pytest.raises(GencliError, match=r"--ema-profiles \[\], a resumed run cannot"):
        refuse_changes(old, resolve(tables()), "x")
    refuse_changes(resolve(tables()), resolve(tables()), "x")


def test_a_plan_counts_them_in_memory_and_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CYCLES", (1, 2))
    made, data = resolve(tables(keep=2)), opened(tables()["data"])
    found = plan.plan(made, data, tmp_path)
    folder = trained(tmp_path, tables(keep=2))
    taken = {p.stat().st_ino: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    assert found.disk.total == pytest.approx(sum(taken.values()), rel=0.06)
    assert found.disk.profiles == pytest.approx(posthoc.snapshots(folder)[0].stat().st_size, rel=0.01)
    model = memory.blueprint(made, data.spec, None)
    plain, three = (memory.held(model, TrainConfig(ema_profiles=widths)).averages for widths in ((), WIDTHS))
    assert three == 3 * plain == found.memory.averages


@pytest.mark.parametrize(("widths", "says"), [((0.3,), "0.3"), ((0.0,), "0"), ((-1.0,), "-1"), ((0.1, 0.1), "twice")])
def test_widths_that_no_power_function_has_are_refused(widths: tuple[float, ...], says: str) -> None:
    with pytest.raises(GencliError, match="ema_profiles") as caught:
        TrainConfig(ema_profiles=widths)
    assert says in caught.value.message


# -------------------------------------------------------------------------------------------------------------- by command


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    trained(folder / "checkpoints", table("ddpm", steps=6, save_every=1, lr=0.01, ema_profiles=WIDTHS, ema=0.0))
    trained(folder / "checkpoints", table("pixelcnn", steps=2))
    return folder


@pytest.fixture
def shell(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    copied(runs, tmp_path)
    with empty(tmp_path, capsys) as made:
        yield made


def test_another_average_is_a_run_that_samples_and_converts(shell: Shell, tmp_path: Path) -> None:
    done = shell.fine("convert", "ddpm-digits", "--ema", "0.08")
    assert done.out == "checkpoints/ddpm-digits-ema-0.08\n"
    assert "note: the average of width 0.08 at step 6, from those of 0.05 and 0.1 at 6 steps" in done.err
    assert done.err.endswith("next: gencli sample ddpm-digits-ema-0.08\n")
    made, old = (Run.load(tmp_path / "checkpoints" / name) for name in ("ddpm-digits-ema-0.08", "ddpm-digits"))
    assert made.step == 6 and made.averaged and not old.averaged
    assert made.config["recipe"]["train"]["ema"] == 0.08 and not (made.path / "train").exists()
    assert made.config["converted"]["from"] == "ema" and "running average" in (made.path / "README.md").read_text()
    before = old.model.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    shell.fine("sample", "ddpm-digits-ema-0.08", "-n", "1", "--steps", "2")
    shell("train", "ddpm", "--resume", "ddpm-digits-ema-0.08").fails("was converted from", "no state to resume")
    file = shell.fine("convert", "ddpm-digits", "--ema", "0.08", "--to", "safetensors")
    assert file.out == "converted/ddpm-digits-ema-0.08.safetensors\n" and "bit-equal" in file.err
    back = shell.fine("convert", file.out.strip(), "--from", "safetensors", "--name", "back")
    again = Run.load(tmp_path / back.out.strip()).model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in made.model.state_dict().items())
    named = shell.fine("convert", "ddpm-digits", "--ema", "0.1", "--name", "Wide!", "--out", "runs", "--json")
    assert named.document["run"] == "wide" and named.document["path"] == str(Path("runs") / "wide")
    stored, _ = read_tensors(tmp_path / "checkpoints/ddpm-digits/train/ema/step-00000006.safetensors")
    exact = Run.load(tmp_path / "runs" / "wide").model.state_dict()
    assert max(float((stored[f"0.1/{n}"].double() - v.double()).abs().max()) for n, v in exact.items()) < 1e-6


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["pixelcnn-digits", "--ema", "0.1"], ["pixelcnn-digits", "kept no averages", "--ema-profiles"]),
        (["ddpm-digits", "--ema", "0"], ["--ema is 0", "0.28"]),
        (["ddpm-digits", "--ema", "0.3"], ["--ema is 0.3", "0.28"]),
        (["ddpm-digits", "--ema", "-0.1"], ["--ema is -0.1"]),
        (["ddpm-digits", "--ema", "nan"], ["--ema is nan"]),
        (["ddpm-digits", "--ema", "wide"], ["'wide'"]),
        (["x.pt", "--from", "pt", "--ema", "0.1"], ["--ema goes with a run"]),
        (["ddpm-digits", "--to", "pt", "--ema", "0.1", "--name", "x"], ["--name goes with --from"]),
        (["ddpm-digits", "--ema", "0.1", "--overwrite"], ["--overwrite goes with --to"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_mistakes_are_one_line(shell: Shell, tmp_path: Path, args: list[str], words: list[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    shell("convert", *args).fails(*words)
    assert sorted(tmp_path.rglob("*")) == before


def test_slimming_removes_what_was_kept_and_a_damaged_file_is_named(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints/ddpm-digits/train/ema/step-00000005.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    shell("convert", "ddpm-digits", "--ema", "0.08").fails("step-00000005.safetensors is damaged", "delete this file")
    path.unlink()
    assert "at 5 steps" in shell.fine("convert", "ddpm-digits", "--ema", "0.08").err
    shell.fine("runs", "slim", "ddpm-digits", "--yes")
    shell("convert", "ddpm-digits", "--ema", "0.08").fails("kept no averages", "slim")


# -------------------------------------------------------------------------------------------------------- the learning rate


def test_the_rate_falls_as_one_over_the_root_after_its_reference_step() -> None:
    train = TrainConfig(lr=0.01, warmup=100, schedule="rsqrt", decay_after=400)
    assert [optim.rate(train, turn, 1000) for turn in (0, 99, 400, 1600, 3600)] == pytest.approx(
        [0.0001, 0.01, 0.01, 0.005, 0.01 / 3]
    )
    assert optim.rate(train, 1600, 10**6) == optim.rate(train, 1600, 1601), "the length of the run does not count"
    notes = refuse_changes(*(resolve(tables(schedule="rsqrt", steps=steps)) for steps in (8, 9)), "x")
    assert notes == ["steps is now 9, was 8"]


def test_the_rate_is_that_of_the_paper_for_its_small_model() -> None:
    train = TrainConfig(lr=0.01, warmup=4883, schedule="rsqrt", decay_after=70_000)
    official = {1e6: 0.001, 1e7: 0.01, 1e8: 0.01, 1e9: 0.003786291061183754, 2**31: 0.0025837415147115144}
    for images, rate in official.items():
        assert optim.rate(train, round(images / 2048), 524_288) == pytest.approx(rate, rel=2e-3)


def test_old_configs_without_the_new_settings_mean_what_they_meant() -> None:
    old = resolve(table("ddpm"))
    for key in ("ema_profiles", "decay_after"):
        del old["train"][key]
    assert resolve(old) == resolve(table("ddpm")) and json.dumps(resolve(old))
