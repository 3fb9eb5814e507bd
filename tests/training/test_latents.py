"""The look at a latent at every save: what it writes, and when it speaks of collapse."""

import pytest
import torch
from tiny import resumed, session

from gencli.bundle import Run
from gencli.core import Field, Rng, Spec
from gencli.metrics._posterior import inferred
from gencli.models.vae._bound import Bounded
from gencli.models.vae.vae import VAE
from gencli.training.latents import FILE, collapsed, nats_of, read, warning

MLP = {"name": "mlp", "width": 64, "layers": 1}
DIGITS = {"name": "digits", "image_size": 8}


def tables(model="beta-vae", beta=None, steps=240, **settings):
    weight = {} if beta is None else {"beta": beta}
    table = {"name": model, "dim": 6, "likelihood": "logistic", "scale": 0.15, "encoder": MLP, "decoder": MLP}
    train = {"steps": steps, "batch_size": 64, "lr": 3e-3, "save_every": steps // 2, "sample_every": 10**6}
    return {"model": {**table, **weight, **settings}, "data": DIGITS, "train": train}


def notes(root, made):
    one = session(root, made)
    said = [event.text for event in one.events() if event.kind == "note"]
    return one.folder, [text for text in said if text.startswith("posterior collapse")]


def test_a_line_is_written_at_every_save(tmp_path):
    folder, said = notes(tmp_path, tables("vae"))
    rows = read(folder / FILE)
    assert not said and [row["step"] for row in rows] == [120, 240] and len(rows[-1]["kl"]) == 6
    assert sum(rows[-1]["kl"]) > 8


@pytest.mark.parametrize("settings", [{}, {"prior": "mixture", "components": 2}])
def test_a_weight_of_twenty_is_told_once_with_what_to_do(tmp_path, settings):
    folder, said = notes(tmp_path, tables(beta=20.0, **settings))
    assert len(said) == 1 and "lower --beta 20" in said[0] and "--kl-warmup" in said[0] and "of 6 numbers" in said[0]
    assert sum(read(folder / FILE)[-1]["kl"]) < 6


FAMILY = {
    "vae": {},
    "beta-vae": {"beta": 1.0},
    "beta-tcvae": {"beta": 1.0},
    "cvae": {"prior_net": MLP},
    "nf-vae": {"flow": "iaf", "length": 1, "context": 8, "flow_width": 16},
}
NVAE = {"groups": [1, 1], "channels": 2, "width": 8, "blocks": 0, "cells": 1, "enc_cells": 1, "dec_cells": 1}
LAYERS = {"ladder-vae": {"latents": [6, 4], "widths": [64, 32], "layers": 1}, "nvae": NVAE}
EVERY = [*FAMILY, "ladder-vae", pytest.param("nvae", marks=pytest.mark.slow)]


@pytest.mark.parametrize("model", EVERY)
def test_of_the_whole_family_those_whose_kl_weighs_twenty_are_told_and_no_other(tmp_path, monkeypatch, model):
    made = tables(model, **FAMILY.get(model, {}))
    if model in LAYERS:
        made["model"] = {"name": model, "likelihood": "logistic", "scale": 0.07, **LAYERS[model]}
        made["train"]["lr"] = 8e-3
    assert not notes(tmp_path / "one", made)[1]
    monkeypatch.setattr(Bounded, "kl_weight", lambda self, turn: 20.0)
    folder, said = notes(tmp_path / "twenty", made)
    assert len(said) == 1 and f"of {len(read(folder / FILE)[-1]['kl'])} numbers" in said[0]


def test_the_rule_on_figures_of_the_laptop_recipes():
    """KL of every number at β = 1 and at β = 20: vae on digits, vae-fashion-mnist, both after 300 to 600 steps."""
    plain = [
        [3.166, 2.995, 2.931, 2.732, 2.594, 2.459, 2.04, 1.925],
        [3.561, 3.397, 3.043, 2.67, 2.637, 2.412, 2.41, 2.357, 2.333, 2.213, 1.801, 1.409, 1.26, 1.26, 1.191, 1.129],
        [1.0] * 22 + [0.0] * 28,  # a latent of 50 of which MNIST takes half
    ]
    heavy = [
        [1.258, 1.204, 0.967, 0.872, 0.038, 0.025, 0.01, 0.006],
        [2.113, 1.427, 1.258, 1.118, 0.671, 0.471, 0.459, 0.133, 0.04, 0.022, 0.021, 0.017, 0.016, 0.014, 0.014, 0.011],
        [4.0] * 5 + [0.0] * 20,
        [0.0],
    ]
    assert not any(map(collapsed, plain)) and all(map(collapsed, heavy))
    assert "carry more than 0.1 nats, 4.4 together" in warning(heavy[0], object())


def test_a_resumed_run_repeats_no_line(tmp_path):
    one = session(tmp_path, tables("vae", steps=4))
    assert not [event for event in one.events() if event.text.startswith("posterior collapse")], "after four steps"
    (one.folder / FILE).write_text((one.folder / FILE).read_text() + '{"step": 9, "kl": [0.1]}\n{"step": "x"}\nno\n')
    resumed(one.folder, steps=6, save_every=2)
    assert [row["step"] for row in read(one.folder / FILE)] == [2, 4, 6]


def test_models_without_a_posterior_write_nothing(tmp_path):
    made = {"model": {"name": "realnvp", "couplings": 1, "net": {"name": "coupling-resnet", "width": 4, "blocks": 1}}}
    folder, said = notes(tmp_path, {**made, "data": DIGITS, "train": tables(steps=2)["train"]})
    assert not said and not (folder / FILE).exists()


def test_under_another_prior_a_number_that_is_always_the_same_carries_nothing():
    spec = Spec(Field("points", (2,)))
    torch.manual_seed(0)
    settings = {"dim": 3, "likelihood": "gaussian", "prior": "mixture", "components": 3, "encoder": MLP, "decoder": MLP}
    model = VAE.make(settings, spec).double()
    with torch.no_grad():
        model.encoder.body[-1].weight[[1, 4]] = 0.0  # mean and variance of the second number
        model.encoder.body[-1].weight[0] *= 5

    class Items:
        def __len__(self):
            return 300

        def batch(self, indices):
            return {"x": torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[indices]}

    run = Run(model.eval(), [], spec, spec)
    nats = nats_of(inferred(run, Items(), Rng.batch("t", total=1), None, 64, bounds=False))
    assert float(nats[1]) == pytest.approx(0, abs=1e-9) and float(nats[0]) > 0.02 and float(nats.min()) > -1e-9
