"""Bits per dimension: one scale for tokens, densities and bounds, and never a codec's bits as the data's."""

import dataclasses
import math

import pytest
import torch

from gencli.bundle import Run
from gencli.codecs._base import BaseCodec
from gencli.codecs.pixels import Pixels
from gencli.codecs.tokens import Tokens
from gencli.core import Field, Model, Rng, Spec
from gencli.data._base import Split
from gencli.data.digits import Digits
from gencli.errors import GencliError
from gencli.metrics.bpd import Bpd

LN2 = math.log(2)


class Toy(Model):
    """A likelihood given as a function of x and rng."""

    likelihood = "exact"

    def __init__(self, spec, log_prob, **facts):
        super().__init__(None, spec)
        self.dummy = torch.nn.Parameter(torch.zeros(1))
        self._log_prob = log_prob
        for key, value in facts.items():
            setattr(self, key, value)

    def loss(self, batch, turn):
        raise NotImplementedError

    def log_prob(self, x, rng, samples=1, **cond):
        return self._log_prob(x, rng)


def run_of(codecs, data_spec, log_prob, **facts):
    spec = data_spec
    for codec in codecs:
        spec = codec.spec(spec)
    return Run(Toy(spec, log_prob, **facts), codecs, spec, data_spec)


def images(n=40, seed=0, shape=(1, 4, 4), high=256):
    drawn = torch.randint(high, (n, *shape), generator=torch.Generator().manual_seed(seed))
    return Split(drawn.to(torch.uint8).numpy())


def grey(vocab=256, shape=(1, 4, 4)):
    return Spec(Field("image", shape, vocab=vocab))


def evaluate(run, data, **kwargs):
    return Bpd.make()(run, data, Rng.batch("test", total=1), **kwargs)


def even(vocab):
    return lambda x, rng: torch.full((len(x),), -math.log(vocab) * x[0].numel(), dtype=torch.float64)


def test_a_uniform_model_of_eight_bit_tokens_scores_exactly_eight():
    value = evaluate(run_of([Tokens.make()], grey(), even(256)), images())
    assert value.value == pytest.approx(8, abs=1e-12) and value.name == "bpd" and value.kind == "exact"
    assert value.interval[0] <= value.value <= value.interval[1] and value.n == 40


def test_a_uniform_density_over_the_grey_levels_scores_exactly_eight_in_either_range():
    for low in ("-1,1", "0,1"):
        width = (2 if low == "-1,1" else 1) * 256 / 255  # 256 bins around 256 grid points
        run = run_of([Pixels.make({"range": low})], grey(), even(width))
        value = evaluate(run, images())
        assert value.value == pytest.approx(8, abs=1e-12)
        assert value.facts["mass"] is False and value.kind == "bound"


def test_small_digits_are_counted_by_their_seventeen_levels():
    data = Digits.make({"image_size": 8, "unconditional": True})
    value = evaluate(run_of([Tokens.make()], data.spec, even(17)), data.split("test"))
    assert value.value == pytest.approx(math.log2(17), abs=1e-12) and value.name == "bpd"


def test_fewer_grey_levels_than_the_data_s_are_typed_as_codes():
    value = evaluate(run_of([Tokens.make({"levels": 32})], grey(), even(32)), images())
    assert value.value == pytest.approx(5, abs=1e-12)
    assert value.name == "bpd[codes]" and value.kind == "codes" and value.facts["lossy"]
    assert value.note == "bits of the codes, not of the data"


class Halved(BaseCodec):
    """Keeps the first of every two columns, as 16 codes."""

    def spec(self, data):
        shape = (*data.x.shape[:-1], data.x.shape[-1] // 2)
        return dataclasses.replace(data, x=Field("codes", shape, vocab=16))

    def encode(self, batch):
        return {**batch, "x": batch["x"][..., ::2].long() // 16}

    def decode(self, batch):
        return {**batch, "x": (batch["x"] * 16).repeat_interleave(2, -1).to(torch.uint8)}


def test_a_learned_codec_s_bits_are_spread_over_the_data_and_typed_as_codes():
    value = evaluate(run_of([Halved(None)], grey(), even(16)), images())
    assert value.value == pytest.approx(4 * 8 / 16, abs=1e-12) and value.name == "bpd[codes]"
    assert value.facts["dimensions"] == 16 and value.facts["mass"] is True
    assert value.kind == "codes" and value.unit == "bits of codes/dim"
    assert "8 codes take 32.0 bits, 4.00 each" in value.note and value.facts["bits_of_codes"] == pytest.approx(32)


def test_codes_are_no_data_even_where_the_codec_happens_to_lose_nothing():
    """Constant images pass through the codec unharmed: a measured loss of nothing must not turn codes into pixels."""
    flat = Split(torch.full((6, 1, 4, 4), 32, dtype=torch.uint8).numpy())
    value = evaluate(run_of([Halved(None)], grey(), even(16)), flat)
    assert torch.equal(Halved(None).decode(Halved(None).encode(flat.batch(torch.arange(6))))["x"], torch.tensor(flat.x))
    assert value.name == "bpd[codes]" and value.kind == "codes" and "not of the data" in value.note
    assert evaluate(run_of([Tokens.make()], grey(), even(256)), flat).kind == "exact", "pixels stay pixels"


def test_a_density_of_latents_is_no_density_of_the_data():
    class Averaged(Halved):
        def spec(self, data):
            return dataclasses.replace(data, x=Field("latent", data.x.shape))

        encode = decode = lambda self, batch: batch

    value = evaluate(run_of([Averaged(None)], grey(), even(2)), images())
    assert value.name == "bpd[codes]" and value.kind == "codes" and "16 numbers of a latent" in value.note


def test_a_model_that_says_its_log_prob_is_a_probability_gets_no_volume_added():
    run = run_of([Pixels.make()], grey(), even(256), mass=True, likelihood="bound")
    value = evaluate(run, images())
    assert value.value == pytest.approx(8, abs=1e-12) and value.kind == "bound"


def test_probabilities_and_densities_of_one_gaussian_agree():
    spread, g = 0.3, torch.Generator().manual_seed(0)
    drawn = (spread * torch.randn(500, 1, 4, 4, generator=g, dtype=torch.float64)).clamp(-1, 1)
    data = Split(((drawn + 1) * 127.5).round().to(torch.uint8).numpy())
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), spread)

    def mass(x, rng):
        return (normal.cdf(x.double() + 1 / 255) - normal.cdf(x.double() - 1 / 255)).log().flatten(1).sum(1)

    by_mass = evaluate(run_of([Pixels.make()], grey(), mass, mass=True), data)
    by_density = evaluate(
        run_of([Pixels.make()], grey(), lambda x, rng: normal.log_prob(x.double()).flatten(1).sum(1)), data
    )
    assert by_density.value == pytest.approx(by_mass.value, abs=0.02)
    assert by_mass.value == pytest.approx(math.log2(spread * 127.5 * math.sqrt(2 * math.pi * math.e)), abs=0.05)


class Dequantise(BaseCodec):
    """Grey level k of 4 to k + u."""

    def spec(self, data):
        return dataclasses.replace(data, x=dataclasses.replace(data.x, range=(0.0, 4.0)))

    def encode(self, batch):
        return {**batch, "x": (batch["x"].double() / 85).round()}

    def draw(self, batch, rng):
        return {**batch, "x": batch["x"] + rng.uniform(batch["x"].shape, torch.float64)}

    def decode(self, batch):
        return {**batch, "x": (batch["x"].floor() * 85).to(torch.uint8)}


def test_a_dequantised_density_scores_no_better_than_the_probabilities_it_implies():
    normal = torch.distributions.Normal(torch.tensor(1.5, dtype=torch.float64), 0.6)
    levels = torch.arange(4, dtype=torch.float64)
    implied = normal.cdf(levels + 1) - normal.cdf(levels)
    drawn = torch.multinomial(implied, 2000, True, generator=torch.Generator().manual_seed(0))
    data = Split((drawn * 85).to(torch.uint8).view(-1, 1, 1, 1).numpy())
    exact = float(-implied[drawn].log2().mean())
    run = run_of([Dequantise(None)], grey(4, (1, 1, 1)), lambda x, rng: normal.log_prob(x).flatten(1).sum(1))
    value = evaluate(run, data)
    assert value.kind == "bound" and value.name == "bpd"
    assert exact + 0.05 < value.value < exact + 0.5


def test_the_batch_size_changes_no_draw():
    def noisy(x, rng):
        return -8 * LN2 * 16 + rng.normal((len(x),), torch.float64)

    run = run_of([Tokens.make()], grey(), noisy, likelihood="bound")
    values = [evaluate(run, images(), batch_size=size) for size in (1, 7, 64)]
    assert values[0].value == pytest.approx(values[1].value, abs=1e-12)
    assert values[0].value == pytest.approx(values[2].value, abs=1e-12)
    assert values[0].value != pytest.approx(8, abs=1e-6)


def test_a_part_of_the_items_is_spread_over_the_split():
    data = Split(torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1).numpy())
    seen = []

    def spy(x, rng):
        seen.extend(x.flatten().tolist())
        return torch.zeros(len(x))

    assert evaluate(run_of([Tokens.make()], grey(shape=(1, 1, 1)), spy), data, n=4).n == 4
    assert seen == [0, 25, 50, 75]


def test_only_conditions_that_the_model_knows_are_given():
    data = Digits.make({"image_size": 8})
    spec = dataclasses.replace(data.spec, cond={})
    value = evaluate(run_of([Tokens.make()], spec, even(17)), data.split("test"), n=5)
    assert value.n == 5


def test_a_model_without_likelihood_and_a_likelihood_that_is_no_number_are_refused():
    run = run_of([Tokens.make()], grey(), lambda x, rng: torch.full((len(x),), float("nan")))
    with pytest.raises(GencliError, match="40 of 40 items is not finite"):
        evaluate(run, images())

    class Mute(Model):
        def loss(self, batch, turn):
            raise NotImplementedError

    with pytest.raises(GencliError, match="metric 'bpd' needs a model that offers Likelihood"):
        evaluate(Run(Mute(None, grey()), [], grey(), grey()), images())
