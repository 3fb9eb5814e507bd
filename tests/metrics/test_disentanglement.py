"""Disentanglement scores on codes that are known: the factors themselves, noise, a factor twice, factors mixed."""

import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group

from gencli import registry
from gencli.bundle import Run
from gencli.core import Field, Model, Rng, Spec
from gencli.data import open_data
from gencli.errors import GencliError
from gencli.metrics._factors import Alike
from gencli.metrics.dci import concentrated
from gencli.metrics.mig import gaps, in_bins, information

SIZES = {"scale": 6, "orientation": 40, "x": 32, "y": 32}
N = 2000
FEWER = {
    "beta-vae-score": {"train": 1000, "test": 1000},
    "factor-vae-score": {"train": 1000, "test": 1000},
    "dci": {"trees": 2},
}
SCORES = (
    "beta-vae-score[above chance]",
    "factor-vae-score[above chance]",
    "mig",
    "dci-disentanglement",
    "dci-completeness",
)


class Known:
    """Items whose x is their factors and as many numbers of noise."""

    def __init__(self, n=N, sizes=SIZES, seed=0):
        rng = np.random.default_rng(seed)
        table = np.stack([rng.integers(size, size=n) for size in sizes.values()], 1)
        self.factors = {name: torch.from_numpy(column) for name, column in zip(sizes, table.T, strict=True)}
        self.x = torch.from_numpy(np.concatenate([table, rng.standard_normal((n, 6))], 1)).float()

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return {"x": self.x[indices]}


class Coder(Model):
    """Its code is a matrix times x."""

    latent = Field("latent", (4,))

    def __init__(self, spec, matrix):
        super().__init__(None, spec)
        self.matrix = torch.nn.Parameter(torch.as_tensor(matrix, dtype=torch.float32))

    def loss(self, batch, turn):
        raise NotImplementedError

    def encode(self, x):
        return x @ self.matrix.T

    def decode(self, z):
        return z


def scores(matrix, data=None, names=("beta-vae-score", "factor-vae-score", "mig", "dci"), batch_size=64):
    data = data or Known()
    spec = Spec(Field("points", (data.x.shape[1],)))
    run = Run(Coder(spec, matrix), [], spec, spec)
    made = {}
    for name in names:
        values = registry.load("metrics", name).make(FEWER.get(name, {}))(
            run, data, Rng.batch("t", total=1), None, batch_size
        )
        made |= {v.name: v for v in (values if isinstance(values, list) else [values])}
    return made


F, EYE = len(SIZES), np.eye(len(SIZES) + 6)


def test_the_factors_themselves_score_one_and_noise_scores_nothing():
    true, noise = scores(EYE[[2, 0, 3, 1]] * np.array([[2.0], [-0.1], [1.0], [30.0]])), scores(EYE[F:])
    for name in SCORES:
        assert true[name].value >= 0.9, name
        assert noise[name].value <= 0.05, name
    many = scores(EYE[:F], Known(8_000), ("mig",), 1000)["mig"]
    assert many.value == pytest.approx(1, abs=0.01) and many.interval[0] <= many.value <= many.interval[1]
    assert true["dci-informativeness"].value > 0.9 and noise["dci-informativeness[above chance]"].value < 0.05
    for name in ("beta-vae-score", "factor-vae-score"):
        low, high = noise[name].interval
        assert low <= noise[name].value <= high and abs(noise[name].value - 1 / F) < 0.04
        assert noise[name].facts["chance"] == 1 / F and noise[name].n == N


def test_a_factor_twice_has_no_gap_and_is_not_complete():
    twice = scores(np.concatenate([EYE[:F], EYE[:F]]), names=("mig", "dci", "factor-vae-score"))
    assert twice["mig"].value == pytest.approx(0, abs=1e-9)
    assert twice["dci-disentanglement"].value > 0.9 and twice["factor-vae-score"].value > 0.9
    mixed = scores(
        np.pad(special_ortho_group.rvs(F, random_state=0) * np.array([1 / s for s in SIZES.values()]), ((0, 0), (0, 6)))
    )
    assert mixed["mig"].value < 0.4 and mixed["dci-disentanglement"].value < 0.6
    assert (
        mixed["factor-vae-score[above chance]"].value < mixed["beta-vae-score[above chance]"].value
    )  # what the latter is for


def test_a_collapsed_number_never_wins_the_vote():
    matrix = np.concatenate([EYE[:F], 1e-4 * EYE[F : F + 1]])
    assert scores(matrix, names=("factor-vae-score",))["factor-vae-score"].value > 0.9
    nothing = scores(1e-4 * EYE[:F], names=("factor-vae-score",))["factor-vae-score"]
    assert abs(nothing.value - 1 / F) < 0.04 and nothing.note.startswith("0 of 4 numbers vary")


def test_the_batch_size_changes_nothing():
    one, two = (scores(EYE[:F], Known(400), ("mig", "factor-vae-score"), size) for size in (64, 7))
    assert {name: v.value for name, v in one.items()} == {name: v.value for name, v in two.items()}


def test_mutual_information_and_concentration_by_hand():
    from sklearn.metrics import mutual_info_score

    rng = np.random.default_rng(0)
    a, b = rng.integers(7, size=500), rng.integers(3, size=500)
    assert information(a, (a + b) % 5) - (7 + 5 - 21 - 1) / 1000 == pytest.approx(
        mutual_info_score(a, (a + b) % 5), abs=1e-12
    )
    assert information(b, b) - 2 / 1000 == pytest.approx(-sum(p * np.log(p) for p in np.bincount(b) / 500), abs=1e-12)
    values = np.tile(np.arange(40), 100)
    assert np.array_equal(in_bins(values[:, None] * 1.0, 40)[:, 0], values)
    assert gaps(np.stack([values, values // 2], 1), values[:, None]) == pytest.approx(np.log(2) / np.log(40), abs=2e-3)
    assert concentrated(np.array([[3.0, 0, 0], [0, 1, 1]])) == pytest.approx(0.6 + 0.4 * (1 - np.log(2) / np.log(3)))
    assert concentrated(np.zeros((2, 3))) == 0


def test_pairs_share_the_value_of_the_factor_and_nothing_else():
    data = Known()
    table = np.stack([column.numpy() for column in data.factors.values()], 1)
    rng = np.random.default_rng(0)
    first = rng.integers(N, size=5000)
    second = Alike(table).draw(first, 1, rng)
    same = table[first] == table[second]
    assert same[:, 1].all() and np.abs(same[:, [0, 2, 3]].mean(0) - [1 / 6, 1 / 32, 1 / 32]).max() < 0.03


def test_data_without_factors_and_codes_without_numbers_are_refused():
    digits = open_data("digits").split("test")
    digits_spec = Spec(Field("points", (10,)))
    run = Run(Coder(digits_spec, EYE[:F]), [], digits_spec, digits_spec)
    with pytest.raises(GencliError, match="these have none"):
        registry.load("metrics", "mig").make()(run, digits, Rng.batch("t", total=1))
    with pytest.raises(GencliError, match="this one has 1"):
        scores(EYE[:1], names=("mig",))
    discrete = Run(Coder(digits_spec, EYE[:F]), [], digits_spec, digits_spec)
    discrete.model.latent = Field("codes", (4,), vocab=16)
    with pytest.raises(GencliError, match="of 16 values"):
        registry.load("metrics", "dci").make()(discrete, Known(), Rng.batch("t", total=1))
    still = open_data("sprites", {"vary": "x"}).split("test")
    with pytest.raises(GencliError, match="these have 1"):
        registry.load("metrics", "mig").make()(run, still, Rng.batch("t", total=1))
