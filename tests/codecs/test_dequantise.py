"""Noise that makes grey levels a continuum, and what a density of it says about the levels."""

import math

import pytest
import torch

from gencli.bundle import Run
from gencli.codecs.dequantise import Dequantise
from gencli.core import Field, Model, Rng, Spec
from gencli.data._base import Split
from gencli.data.digits import Digits
from gencli.metrics.bpd import Bpd


def codec(vocab=256, shape=(1, 1, 256)):
    made = Dequantise.make()
    return made, made.spec(Spec(Field("image", shape, vocab=vocab)))


class Always:
    """An Rng whose uniform numbers are all one value."""

    def __init__(self, value):
        self.value = value

    def at(self, *keys):
        return self

    def uniform(self, shape):
        return torch.full(shape, self.value)


def grey(vocab):
    return (torch.arange(vocab) * (255 / (vocab - 1))).round().to(torch.uint8).view(1, 1, 1, -1)


@pytest.mark.parametrize("vocab", [2, 17, 256])
@pytest.mark.parametrize("u", [0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
def test_every_level_comes_back_whatever_is_drawn(vocab, u):
    made, spec = codec(vocab)
    drawn = made.draw(made.encode({"x": grey(vocab)}), Always(u))["x"]
    assert drawn.dtype == torch.float32 and spec.x.range == (0.0, 1.0) and spec.x.vocab == vocab
    assert drawn.min() > 0 and drawn.max() < 1
    assert torch.equal(made.decode({"x": drawn})["x"], grey(vocab))


def test_the_noise_fills_each_bin_evenly_and_is_new_for_every_key():
    made, _ = codec(17, (1, 1, 17))
    batch = made.encode({"x": grey(17).expand(4000, -1, -1, -1)})
    first, second = (made.draw(batch, Rng.batch("noise", i, total=4000))["x"] for i in range(2))
    assert not torch.equal(first, second)
    inside = (first * 17 - torch.arange(17)).double()
    assert inside.min() >= 0 and inside.max() <= 1
    assert abs(inside.mean() - 1 / 2) < 0.005 and abs(inside.var() - 1 / 12) < 0.001


def test_values_outside_the_range_become_the_ends():
    made, _ = codec()
    assert made.decode({"x": torch.tensor([-0.04, 0.0, 0.9999, 1.0, 1.05])})["x"].tolist() == [0, 0, 255, 255, 255]


def test_points_pass_as_they_are():
    made, _ = codec()
    spec = Spec(Field("points", (2,)))
    batch = {"x": torch.tensor([[-3.0, 700.5]])}
    assert made.spec(spec) == spec
    drawn = made.draw(made.encode(batch), Always(0.5))
    assert torch.equal(drawn["x"], batch["x"]) and torch.equal(made.decode(drawn)["x"], batch["x"])
    assert made.log_det(batch).tolist() == [0.0]


class Density(Model):
    likelihood, mass = "exact", False

    def __init__(self, spec, log_prob):
        super().__init__(None, spec)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._log_prob = log_prob

    def loss(self, batch, turn):
        raise NotImplementedError

    def log_prob(self, x, rng, samples=1, **cond):
        return self._log_prob(x.double())


def evaluate(log_prob, data, spec, draws=1):
    made = Dequantise.make()
    run = Run(Density(made.spec(spec), log_prob), [made], made.spec(spec), spec)
    return Bpd.make({"draws": draws})(run, data, Rng.batch("test", total=1))


def flat(x):
    return torch.zeros(len(x), dtype=torch.float64)


def test_an_even_density_has_eight_bits_a_byte_and_says_what_it_is():
    images = torch.randint(256, (30, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    value = evaluate(flat, Split(images.numpy()), Spec(Field("image", (1, 4, 4), vocab=256)), draws=3)
    assert value.value == pytest.approx(8, abs=1e-12) and value.kind == "bound" and value.name == "bpd"
    assert value.note == "dequantised bound, 3 draws" and not value.facts["lossy"]


def test_real_digits_are_kept_exactly_and_counted_by_their_seventeen_levels():
    data = Digits.make({"image_size": 8, "unconditional": True})
    value = evaluate(flat, data.split("test"), data.spec)
    assert value.value == pytest.approx(math.log2(17), abs=1e-12) and value.name == "bpd"


def test_the_dequantised_density_is_a_lower_bound_of_the_enumerated_probability():
    """log p(x) = Σ log(a tilted density on [0, 1]), whose mass in every bin is known in closed form."""
    vocab, tilt = 4, 6.0

    def log_prob(x):
        return (math.log(tilt / math.expm1(tilt)) + tilt * x).flatten(1).sum(1)

    edges = torch.expm1(tilt * torch.arange(vocab + 1, dtype=torch.float64) / vocab) / math.expm1(tilt)
    exact = edges.diff().log()  # log P(k)
    assert exact.exp().sum() == pytest.approx(1)
    pairs = torch.cartesian_prod(torch.arange(vocab), torch.arange(vocab))
    raw = {"x": (pairs * 85).to(torch.uint8).view(-1, 1, 1, 2)}
    truth = exact[pairs].sum(1)
    made, _ = codec(vocab, (1, 1, 2))
    levels, draws = made.encode(raw), 4000
    scores = [log_prob(made.draw(levels, Rng.batch("draw", i, total=16))["x"].double()) for i in range(draws)]
    bound = torch.stack(scores) + made.log_det(raw)
    mean, error = bound.mean(0), bound.std(0) / draws**0.5
    assert (mean < truth - 3 * error).all(), "strictly below, the density is not flat inside a bin"
    gap = 2 * (math.log(math.expm1(tilt / vocab) / (tilt / vocab)) - tilt / vocab / 2)  # Jensen's, in closed form
    torch.testing.assert_close(mean, truth - gap, rtol=0, atol=5 * float(error.max()))
    noiseless = log_prob((levels["x"].double() + 1) / vocab) + made.log_det(raw)
    assert (noiseless > truth).all(), "a density at a point of the bin is no bound"
