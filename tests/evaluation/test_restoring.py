"""Restoration: what is measured of inputs, what is said of results, and that the truth explains its measurement."""

import pytest
import torch
from tiny import smoke, trained

from gencli.bundle import Run
from gencli.evaluation.inputs import read_inputs
from gencli.evaluation.restoring import Restoration
from gencli.metrics.reconstruction import psnr
from gencli.samplers.ddrm import Ddrm


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.load(trained(tmp_path_factory.mktemp("runs"), smoke("ddpm")))


def restored(run, each=2, taken=False, **settings):
    return Restoration.of(run, Ddrm.make(settings), read_inputs(run, ["test:0-5"]), each, taken)


def test_noise_is_that_which_was_asked_for_and_the_same_for_all_restorations_of_an_input(run):
    table = {"name": "compressed-sensing", "share": 1.0}
    clean, noisy = (restored(run, noise=noise, operator=table) for noise in (0.0, 0.3))
    assert float((noisy.y - clean.y).std()) == pytest.approx(0.3, rel=0.1)
    rows = noisy.rows({})
    assert rows["measured"].shape[0] == 12 and torch.equal(rows["measured"][0], rows["measured"][1])
    assert torch.equal(noisy.y, restored(run, noise=0.3, operator=table).y), "a function of the input's place"
    assert rows["label"].tolist() == [int(label) for label in noisy.inputs.cond["label"] for _ in range(2)]


def test_the_truth_explains_its_measurement_and_another_image_does_not(run):
    made = restored(run, noise=0.1, operator={"name": "inpaint", "mask": "top-half"})
    truth = made.inputs.x.repeat_interleave(2, 0)
    assert made.residual(run, truth) == pytest.approx(1, abs=0.15)
    assert made.residual(run, truth.roll(2, 0)) > 2
    found = made.scores(run, truth)
    assert found["psnr"] == found["mean_psnr"] == 100 and found["ssim"] == pytest.approx(1)
    assert found["baseline_psnr"] < 30


def test_the_mean_of_restorations_is_scored_by_itself(run):
    made = restored(run)
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randint(256, (12, *run.data_spec.x.shape), generator=rng, dtype=torch.uint8)
    mean = ((drawn[0::2].float() + drawn[1::2].float()) / 2).round().to(torch.uint8)
    found = made.scores(run, drawn)
    assert found["mean_psnr"] == pytest.approx(float(psnr(made.inputs.x, mean).mean()))
    assert found["mean_psnr"] > found["psnr"], "averaging two draws of noise halves its variance"


def test_a_picture_of_a_measurement_is_taken_as_it_is(run):
    made = restored(run, taken=True, operator={"name": "deblur"})
    assert torch.allclose(made.y.float(), run.encode({"x": made.inputs.x, **made.inputs.cond}, None)["x"])
    assert set(made.scores(run, made.inputs.x.repeat_interleave(2, 0))) == {"residual"}, "there is no original"
    assert made.facts["noise"] == 0 and made.facts["taken"]
    assert len(made.sheet(run, made.inputs.x.repeat_interleave(2, 0))) == 6 * 3


def test_the_sheet_shows_the_original_the_measurement_and_the_restorations(run):
    made = restored(run, operator={"name": "inpaint", "mask": "left-half"}, noise=0.0)
    drawn = torch.zeros(12, *run.data_spec.x.shape, dtype=torch.uint8)
    sheet = made.sheet(run, drawn).unflatten(0, (6, 4))
    assert torch.equal(sheet[:, 0], made.inputs.x) and not sheet[:, 2:].any()
    side = sheet.shape[-1] // 2
    assert torch.equal(sheet[:, 1, :, :, :side], made.inputs.x[..., :side]), "what was measured is seen as it is"
