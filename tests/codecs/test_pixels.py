"""The only place where pixel values are scaled."""

import math

import pytest
import torch

from gencli.codecs.pixels import Pixels
from gencli.core import Field, Spec


def codec(vocab=256, span="-1,1"):
    made = Pixels.make({"range": span})
    return made, made.spec(Spec(Field("image", (1, 1, 256), vocab=vocab)))


@pytest.mark.parametrize(("span", "low"), [("-1,1", -1.0), ("0,1", 0.0)])
def test_every_byte_survives_and_the_ends_are_the_range(span, low):
    made, spec = codec(span=span)
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
    scaled = made.encode({"x": x})["x"]
    assert scaled.dtype == torch.float32 and spec.x.range == (low, 1.0)
    assert scaled.min() == low and scaled.max() == 1
    assert torch.equal(made.decode({"x": scaled})["x"], x)


def test_decoding_rounds_to_the_nearest_and_clamps():
    made, _ = codec(span="0,1")
    x = torch.tensor([-3.0, 0.49 / 255, 0.51 / 255, 254.49 / 255, 254.51 / 255, 9.0])
    assert made.decode({"x": x})["x"].tolist() == [0, 0, 1, 254, 255, 255]


def test_few_grey_levels_lie_on_their_own_grid():
    made, _ = codec(vocab=17, span="0,1")
    grey = (torch.arange(17) * (255 / 16)).round().to(torch.uint8)
    torch.testing.assert_close(made.encode({"x": grey})["x"], torch.arange(17) / 16)


@pytest.mark.parametrize("span", ["-1,1", "0,1"])
def test_log_det_makes_a_density_over_bins_a_probability_of_bytes(span):
    made, spec = codec(span=span)
    low, high = spec.x.range
    density = -math.log(high - low) * 256  # uniform in model space, per item
    bits = -(density + made.log_det({"x": torch.zeros(1, 1, 1, 256)})) / math.log(2) / 256
    assert bits.item() == pytest.approx(math.log2(255), abs=1e-9)


def test_points_pass_as_they_are():
    made, data = Pixels.make(), Spec(Field("points", (2,)))
    batch = {"x": torch.randn(5, 2, generator=torch.Generator().manual_seed(0))}
    assert made.spec(data) == data and made.log_det(batch).tolist() == [0] * 5
    assert torch.equal(made.encode(batch)["x"], batch["x"]) and torch.equal(made.decode(batch)["x"], batch["x"])
