"""Translation: scores by their definitions, controls, the same at any batch size, and who can be measured."""

import pytest
import torch
from tiny import opened, shaken, smoke

from gencli.bundle import Run
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.metrics.reconstruction import psnr
from gencli.metrics.translation import Translation


def built(name):
    tables = smoke(name)
    torch.manual_seed(0)
    run = Run.build(tables, opened(tables["data"]).spec)
    shaken(run.model)
    run.model.eval()
    return run, opened(tables["data"]).split("test")


def test_paintings_copies_and_the_mean_are_scored_by_their_definitions():
    run, items = built("pix2pix")
    metric = Translation.make({})
    values = {value.name: value for value in metric(run, items, Rng.batch("t", total=1), 20, 64)}
    again = {value.name: value.value for value in metric(run, items, Rng.batch("t", total=1), 20, 7)}
    assert {name: pytest.approx(value.value, abs=1e-3) for name, value in values.items()} == again
    raw = items.batch(torch.arange(20) * len(items) // 20)
    assert values["psnr of copies"].value == pytest.approx(float(psnr(raw["x"], raw["image"]).mean()))
    mean = raw["x"].double().mean(0).round().to(torch.uint8).expand_as(raw["x"])
    assert values["psnr of the mean"].value == pytest.approx(float(psnr(raw["x"], mean).mean()))
    assert values["mse"].better == "lower" and values["psnr"].n == 20
    run.model.decode = lambda z, image: 2 * raw["x"].float() / 255 - 1
    perfect = {value.name: value.value for value in metric(run, items, Rng.batch("t", total=1), 20, 64)}
    assert (perfect["mse"], perfect["psnr"], perfect["ssim"]) == (0, 100, pytest.approx(1))


def test_who_paints_from_nothing_is_refused():
    run, items = built("gan")
    with pytest.raises(GencliError, match="needs a model that paints from images, Gan is given none"):
        Translation.make({})(run, items, Rng.batch("t", total=1), 4, 4)
