"""Images of zeros and ones."""

import pytest
import torch

from gencli.codecs.binarise import Binarise
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError

GREY = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)


def codec(by="chance"):
    made = Binarise.make({"by": by})
    return made, made.spec(Spec(Field("image", (1, 1, 256), vocab=256), {"label": Field("label", (), vocab=3)}))


@pytest.mark.parametrize("by", ["chance", "threshold"])
def test_data_become_zeros_and_ones_and_say_so(by):
    made, spec = codec(by)
    assert spec.x.vocab == 2 and spec.x.range == (0.0, 1.0) and spec.x.shape == (1, 1, 256) and "label" in spec.cond
    batch = {"x": GREY.expand(4, -1, -1, -1), "label": torch.tensor([0, 1, 2, 0])}
    drawn = made.draw(made.encode(batch), Rng.batch("b", total=4))
    assert drawn["x"].dtype == torch.float32 and set(drawn["x"].unique().tolist()) == {0.0, 1.0}
    assert drawn["label"].tolist() == [0, 1, 2, 0]
    assert made.log_det(batch).tolist() == [0, 0, 0, 0]


def test_a_one_has_the_grey_levels_probability_and_the_ends_are_certain():
    made, _ = codec()
    n = 4000
    x = made.draw(made.encode({"x": GREY.expand(n, -1, -1, -1)}), Rng.batch("b", total=n))["x"]
    share, p = x.mean(0).flatten().double(), torch.arange(256).double() / 255
    assert share[0] == 0 and share[255] == 1
    z = (share - p)[1:-1] / (p * (1 - p) / n)[1:-1].sqrt()
    assert z.abs().max() < 4.5 and 0.8 < z.square().mean() < 1.25


def test_it_is_drawn_anew_from_the_rng_that_was_given():
    made, _ = codec()
    batch = made.encode({"x": GREY})
    one, same, other = (made.draw(batch, Rng.rows([seed]))["x"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_the_threshold_is_one_half_and_draws_nothing():
    made, _ = codec("threshold")
    x = made.encode({"x": GREY})
    assert x["x"].flatten().tolist() == [0.0] * 128 + [1.0] * 128
    assert torch.equal(made.draw(x, Rng.rows([0]))["x"], x["x"])


def test_bits_are_black_and_white_and_probabilities_grey():
    made, _ = codec()
    assert made.decode({"x": torch.tensor([0.0, 0.5, 1.0, 1.5])})["x"].tolist() == [0, 128, 255, 255]
    bits = made.draw(made.encode({"x": GREY}), Rng.rows([0]))
    assert torch.equal(made.decode(bits)["x"], (bits["x"] * 255).to(torch.uint8))


def test_points_are_refused():
    with pytest.raises(GencliError, match="black and white, the data are points"):
        Binarise.make().spec(Spec(Field("points", (2,))))
