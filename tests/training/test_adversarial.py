"""The look at a game at every save: what it writes, and when it says that the game is lost."""

import json
import math

import pytest
import torch
from tiny import opened, resumed, session, smoke, trainer

from gencli import recipe
from gencli.config import merge
from gencli.models.gan.gan import Gan
from gencli.training.adversarial import FILE, Classes, Modes, Watch, apart, found, read, remedies

MLP = {"name": "mlp", "width": 64, "layers": 2, "activation": "relu"}
DIGITS = {"name": "digits", "image_size": 8}


def tables(steps=280, smooth="r1", **model):
    game = {"name": "gan", "latent": 2, "smooth": smooth, "smooth_weight": 0.1, "generator": MLP, "critic": MLP}
    train = {"steps": steps, "batch_size": 96, "lr": 2e-3, "betas": [0.0, 0.9], "schedule": "cosine"}
    shown = {"save_every": steps // 2, "sample_every": 10**6}
    return {"model": {**game, **model}, "data": {"name": "toy2d", "size": 3000}, "train": {**train, **shown}}


def watched(root, made):
    one = session(root, made)
    events = list(one.events())
    return one.folder, [e.text for e in events if e.kind == "note"], [e.values for e in events if e.kind == "saved"]


def test_a_game_that_goes_well_is_shown_in_silence(tmp_path):
    folder, told, shown = watched(tmp_path, tables())
    assert not told
    rows = read(folder / FILE)
    assert [row["step"] for row in rows] == [140, 280]
    last = rows[-1]
    assert last["modes"] == last["of"] == 8 and last["good"] > 0.8 and 0.5 < last["diversity"] < 2
    assert sum(last["histogram"]) == pytest.approx(2500 * last["good"], abs=1)
    assert shown[-1] == {f"samples/{key}": pytest.approx(last[key], abs=1e-4) for key in ("diversity", "modes", "good")}
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    half = [row["critic/real"] for row in logged if 140 < row["step"] <= 280]
    assert last["real"] == pytest.approx(sum(half) / len(half), abs=1e-4), "since the save before"


def test_a_generator_frozen_to_a_point_is_told_once_with_what_to_do(tmp_path, monkeypatch):
    real = Gan.decode
    monkeypatch.setattr(Gan, "decode", lambda self, z, **cond: 0 * real(self, z, **cond) + 3.0)
    folder, told, _ = watched(tmp_path, tables(smooth="none", objective="minimax", critic_turns=2))
    last = read(folder / FILE)[-1]
    assert (last["diversity"], last["modes"], last["good"]) == (0, 0, 0) and min(last["real"], last["fake"]) > 0.98
    assert len(told) == 3 and all("; add --smooth r1, " in text for text in told)
    assert [
        text for text in told if "the discriminator has won: it knows 100.0% of data" in text and "--critic-lr" in text
    ]
    (alike,) = [text for text in told if "samples have collapsed: they lie 0.00 times as far apart as data" in text]
    assert "--objective non-saturating, raise --critic-turns" in alike
    assert [text for text in told if "samples miss modes of the data: 0 of 8 are made" in text]


def test_what_is_not_so_again_is_not_told_before_the_end_nor_early(tmp_path):
    one = session(tmp_path, tables(steps=4))
    watch = Watch(one.run, tmp_path, one.data)
    average = one.trainer(one.train)
    average.prepare()
    bad, good = ({"diversity": 1.0, "modes": modes, "of": 8} for modes in (5, 8))
    rows = iter([bad, bad, good, bad, good, bad, bad, bad])
    watch.row = lambda: dict(next(rows))
    steps = (50, 90, 200, 300, 400, 500, 600, 700)
    told = {step: watch.look(average.average, step, last=False)[1] for step in steps}
    assert [step for step, said in told.items() if said] == [600]
    assert "5 of 8" in told[600][0]


def test_a_resumed_run_repeats_no_line_and_models_without_a_generator_write_none(tmp_path):
    folder, told, _ = watched(tmp_path, tables(steps=4))
    assert not told, "after four steps"
    (folder / FILE).write_text((folder / FILE).read_text() + '{"step": 9, "diversity": 1}\n{"step": "x"}\nno\n')
    resumed(folder, save_every=3, steps=6)
    assert [row["step"] for row in read(folder / FILE)] == [2, 4, 6]
    made = {"model": {"name": "realnvp", "couplings": 1, "net": {"name": "coupling-resnet", "width": 4, "blocks": 1}}}
    other, told, shown = watched(tmp_path, {**made, "data": DIGITS, "train": tables(steps=2)["train"]})
    assert not (other / FILE).exists() and not told and not any(shown)


def test_every_side_of_a_game_logs_the_norm_of_its_gradients():
    one = trainer(smoke("gan-toy2d"))
    losses = one.take_step().losses
    for phase in ("critic", "generator"):
        grads = [p.grad.flatten() for p in getattr(one.model, phase).parameters()]
        torch.testing.assert_close(losses[f"{phase}/grad_norm"], torch.cat(grads).norm())
    alone = trainer(merge(smoke("ddpm"), {"train": {"clip": 0.0}}))
    assert "grad_norm" not in alone.take_step().losses, "where there is no game nothing is added"


# ------------------------------------------------------------------------------------------------------------------ judges


def test_modes_are_counted_by_their_share_of_good_samples():
    g = torch.Generator().manual_seed(0)
    label = torch.arange(4).repeat(500)
    middles = 10 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    x = middles[label] + torch.randn(2000, 2, generator=g)
    judge = Modes.of(x, label, 4)
    torch.testing.assert_close(judge.middles, middles, rtol=0, atol=0.2)
    torch.testing.assert_close(judge.deviations, torch.ones(4), rtol=0.05, atol=0)
    whole = judge(x)
    assert (whole["modes"], whole["of"]) == (4, 4) and whole["good"] == pytest.approx(1 - math.exp(-4.5), abs=0.01)
    few = torch.cat([x[label == 0], x[label == 1], x[label == 2][:20], torch.full((980, 2), 5.0)])
    made = judge(few)
    assert made["modes"] == 2 and made["good"] == pytest.approx(1020 / 2000, abs=0.02)
    assert made["histogram"][2] <= 20 and made["histogram"][3] == 0


def test_a_linear_classifier_tells_classes_of_digits_and_their_entropy():
    part = opened(DIGITS).split("train")
    batch = part.batch(torch.arange(len(part)))
    x, label = batch["x"].float(), batch["label"]
    judge = Classes.of(x, label, 10)
    assert judge.accuracy > 0.85 and judge.entropy == pytest.approx(math.log(10), abs=0.05)
    whole = judge(x)
    assert whole["entropy"] == pytest.approx(math.log(10), abs=0.02) and sum(whole["histogram"]) == len(x)
    ones = {"diversity": 1.0, **judge(x[(label == 1) | (label == 7)])}
    assert "they look like 2.5 classes, data like 9.7" in found(ones)["alike"]
    assert not found({"diversity": 1.0, **whole})


def test_copies_lie_together():
    x = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert apart(x[:32].repeat(2, 1, 1, 1)) == 0 < apart(x)
    assert apart(torch.tensor([[0.0], [1.0], [3.0]])) == pytest.approx(4 / 3)


def test_the_rule_on_figures_of_recipes():
    """Recipes on digits and eight or 25 Gaussians after training; dcgan's discriminator knew everything, f-gan had begun."""
    ten = {"entropy_of_data": 2.274}
    well = [
        {"diversity": 0.655, "modes": 8, "of": 8, "real": 0.363, "fake": 0.672},
        {"diversity": 1.891, "modes": 25, "of": 25, "real": 0.677, "fake": 0.497},
        {"diversity": 0.983, "entropy": 2.302, "real": 0.724, "fake": 0.696, **ten},
        {"diversity": 0.889, "real": 0.853, "fake": 0.887},
        {"diversity": 0.6},
    ]
    badly = [
        ({"diversity": 0.988, "real": 1.0, "fake": 1.0}, {"won"}),
        ({"diversity": 0.474, "modes": 3, "of": 8, "real": 0.777, "fake": 0.974}, {"missing"}),
        ({"diversity": 0.9, "entropy": 1.2, **ten}, {"alike"}),
        ({"diversity": 0.1, "modes": 1, "of": 8, "real": 0.999, "fake": 1.0}, {"won", "alike", "missing"}),
    ]
    assert not any(map(found, well)) and all(set(found(row)) == troubles for row, troubles in badly)


def test_remedies_are_settings_that_the_model_has():
    smooth = Gan.make(
        {"smooth": "r1", "smooth_weight": 2.0, "generator": MLP, "critic": MLP}, opened({"name": "toy2d"}).spec
    )
    assert remedies("won", smooth.config)[0] == "raise --smooth-weight 2"
    assert remedies("won", object()) == ["give the discriminator less width"]
    assert remedies("alike", smooth.config) == ["raise --critic-turns", "lower --lr, or raise --batch-size"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["8-gaussians", "25-gaussians"])
def test_the_recipe_on_gaussians_makes_all_modes_or_says_that_it_does_not(tmp_path, shape):
    table = merge(
        recipe.load("gan-toy2d"), {"data": {"name": "toy2d", "shape": shape}, "train": {"sample_every": 10**6}}
    )
    folder, told, _ = watched(tmp_path, table)
    last = read(folder / FILE)[-1]
    missing = [text for text in told if text.startswith("samples miss modes")]
    assert bool(missing) == (last["modes"] < last["of"]), (last, told)
    assert last["modes"] > 0.7 * last["of"] and last["good"] > 0.5
