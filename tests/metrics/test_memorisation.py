"""Memorisation: calibrated on real digits, monotone in the size of the training set, and right about copies."""

import numpy as np
import pytest
import torch
from damage import blur, noise
from evidence import beside_digits, digits, images, rows, seen, split

from gencli.bundle import Run
from gencli.core import Field, Rng, Spec, Turn
from gencli.data._base import Split
from gencli.errors import GencliError
from gencli.metrics._base import Evidence
from gencli.metrics._neighbours import in_blocks, nearest, pixels
from gencli.metrics.data_replication import DataReplication
from gencli.metrics.memorisation import Memorisation, Space, between, excess, share_below
from gencli.registry import load


def draws(n, seed, d=5):
    return np.random.default_rng(seed).standard_normal((n, d))


def measured(evidence, **settings):
    return {value.name.replace("gencli-features-v1", "f"): value for value in Memorisation.make(settings)(evidence)}


def alarm(found):
    return next(iter(found.values())).facts["alarm"]


# ------------------------------------------------------------------------------------------------------------------ the search


def test_the_search_is_brute_force_whatever_the_blocks():
    x, y = draws(130, 0), draws(300, 1)
    every = np.linalg.norm(x[:, None] - y[None], axis=2)
    for blocks in (in_blocks(y), [y[:7], y[7:250], y[250:]]):
        distance, index = nearest(x, blocks)
        assert np.array_equal(index, every.argmin(1)) and np.allclose(distance, every.min(1), rtol=1e-12)
    within = np.linalg.norm(y[:, None] - y[None], axis=2) + np.diag(np.full(300, np.inf))
    distance, index = nearest(y, [y[:7], y[7:]], skip=np.arange(300))
    assert np.array_equal(index, within.argmin(1)) and np.allclose(distance, within.min(1), rtol=1e-12)


def test_a_copy_is_at_distance_zero_exactly():
    y = 100 + draws(500, 2, 64)  # far from the origin, where squares lose digits
    distance, index = nearest(y[[3, 99, 400]], in_blocks(y))
    assert index.tolist() == [3, 99, 400] and not distance.any()
    train = digits().split("train")
    assert not nearest(train.x[:50].reshape(50, -1).astype(float), pixels(train))[0].any()


# --------------------------------------------------------------------------------------------------------------- the statistics


def value(train, held, made):
    return excess(between(made, held, lambda: in_blocks(train), len(train)))


def copies(rng, train, share, noise, n=300):
    """Of a generator that copies a share of its training items, with noise, and draws new items else."""
    old = train[rng.integers(0, len(train), n)] + noise * rng.standard_normal((n, train.shape[1]))
    return np.where(rng.random(n)[:, None] < share, old, rng.standard_normal(old.shape))


def test_the_interval_of_a_share_holds_what_it_estimates():
    below, inside = 0.1857, 0  # of N(−0.3, 0.4²) under the 5 % quantile of N(0, 0.4²)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        held, made = np.exp(0.4 * rng.standard_normal(170)), np.exp(0.4 * rng.standard_normal(200) - 0.3)
        part, (least, most) = share_below(made, held, 0.05)
        assert least <= part <= most
        inside += least <= below <= most
    assert 184 <= inside <= 199, inside


@pytest.mark.parametrize(
    ("n", "share"), [(64, 0.0), (300, 0.0), (900, 0.0), (300, 0.3), pytest.param(900, 0.3, marks=pytest.mark.slow)]
)
def test_the_interval_of_memorisation_holds_its_mean_over_draws(n, share):
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        train, held = rng.standard_normal((n, 4)), rng.standard_normal((300, 4))
        centre, (low, high) = value(train, held, copies(rng, train, share, 0.0, 150))
        assert low <= centre <= high
        found.append((centre, low, high))
    centre, low, high = np.array(found).T
    assert abs(centre.mean() - share) < 3 * centre.std() / np.sqrt(200)
    assert 0.92 <= ((low <= centre.mean()) & (centre.mean() <= high)).mean() <= 0.995


def test_a_sample_counts_as_the_probability_that_no_other_item_is_as_near():
    rng, n, k, away = np.random.default_rng(0), 150, 200, 0.001
    found = []
    for _ in range(60):
        train, held = rng.random((n, 1)), rng.random((k, 1))
        made = train[rng.integers(0, n, 100)] + away * rng.choice([-1, 1], (100, 1))
        found.append(value(train, held, made)[0])
    expected = np.exp(-2 * n * 2 * away)  # as many held-out as training items, in a ball of 2 · away
    assert abs(np.mean(found) - expected) < 3 * np.std(found) / np.sqrt(60) < 0.03


@pytest.mark.parametrize("shift, spread", [(2, 1), (0, 3), (0, 0.1)], ids=["elsewhere", "noise", "collapsed"])
def test_it_is_nothing_for_samples_that_know_no_training_item_however_bad_they_are(shift, spread):
    rng, found, held_it = np.random.default_rng(0), [], 0
    for _ in range(60):
        train, held, made = rng.standard_normal((3, 100, 4))
        centre, (low, high) = value(train, held, shift + spread * made)
        found.append(centre)
        held_it += low <= 0 <= high
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(60) < 0.35
    assert held_it >= 54


def test_of_items_that_both_sets_have_nothing_is_known():
    both = np.random.default_rng(0).standard_normal((200, 8))
    assert abs(value(both, both, both)[0]) < 1e-9


def test_it_rises_with_the_share_of_copies_and_falls_with_their_noise():
    rng = np.random.default_rng(0)
    train, held = rng.standard_normal((500, 8)), rng.standard_normal((600, 8))
    shares = [value(train, held, copies(rng, train, share, 0.1, 1000))[0] for share in (0, 0.2, 0.5, 0.8, 1)]
    assert np.allclose(shares, (0, 0.2, 0.5, 0.8, 1), atol=0.12) and shares == sorted(shares), shares
    noisy = [value(train, held, copies(rng, train, 1, noise, 1000))[0] for noise in (0, 0.4, 0.6, 0.8)]
    assert noisy == sorted(noisy, reverse=True) and noisy[0] == 1 and noisy[-1] < 0.6, noisy


def test_a_false_alarm_is_as_rare_as_the_level_says():
    alarms = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        none = np.zeros(150)
        alarms += Space(rng.random(150), none, rng.random(120), none, none, 1).chance(0.05) <= 0.05
    assert 20 <= alarms <= 65


# ---------------------------------------------------------------------------------------------------------------------- digits


def test_held_out_digits_raise_at_most_one_alarm_in_twenty():
    whole = np.concatenate([digits().split(name).x for name in ("train", "test")])
    alarms, values = 0, []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(whole))
        parts = [whole[part] for part in (order[:1000], order[1000:1400], order[1400:])]
        train, held, fresh = (seen(Split(x), x.reshape(len(x), -1) / 255) for x in parts)
        found = measured(Evidence(train, held, fresh))
        alarms += alarm(found)
        values.append(found["memorisation[f]"].value)
    assert alarms <= 1 and abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(20) < 0.1


def test_copies_however_spoilt_raise_it_and_spoilt_new_digits_do_not():
    train, test = (torch.from_numpy(digits().split(name).x) for name in ("train", "test"))
    old, held, fresh = images(train[:80]), images(test[:85]), test[85:]
    for again in (train[:80], noise(train[:80], 16), blur(train[:80], 0.7)):
        found = measured(beside_digits(images(again), train=old, test=held))
        assert alarm(found) and found["memorisation[pixels]"].value > 0.9
    for new in (fresh, noise(fresh, 16), blur(fresh, 0.5), blur(fresh, 0.7)):
        found = measured(beside_digits(images(new), train=old, test=held))
        low, high = found["memorisation[pixels]"].interval
        assert not alarm(found) and low < 0 < high < 0.5


def test_a_few_copies_are_seen_and_named_though_most_samples_are_new():
    train, test = (torch.from_numpy(digits().split(name).x) for name in ("train", "test"))
    few = torch.cat([noise(train[:20], 4), test[85:]])
    found = measured(beside_digits(images(few), test=images(test[:85])))
    assert alarm(found) and found["memorisation[pixels]"].interval[0] < 0.3
    named = found["memorisation[f]"].facts["worst"]
    assert len(named) == 16 and all(row["sample"] == row["training"] < 20 for row in named)


@pytest.mark.parametrize("seed", range(2))
def test_it_falls_as_the_training_set_grows(seed):
    """The generator is a kernel density of its training set, as wide at any size."""
    rng, made = np.random.default_rng(seed), []
    pool, held = rng.standard_normal((4096, 8)), rng.standard_normal((2000, 8))
    for n in (16, 64, 512, 4096):
        found = Memorisation.make()(Evidence(rows(pool[:n]), rows(held), rows(copies(rng, pool[:n], 1, 0.4, 500))))[0]
        assert found.interval[0] <= found.value <= found.interval[1]
        made.append(found.value)
    assert made == sorted(made, reverse=True) and made[0] > 0.9 > 0.7 > made[3], made


@pytest.mark.slow
def test_a_model_trained_on_fewer_points_is_nearer_to_them():
    pool, held = draws(512, 0, 6), draws(300, 1, 6)
    values, shares = [], []
    for n in (16, 64, 512):
        given = Evidence(rows(pool[:n]), rows(held), rows(learnt(pool[:n])))
        values.append(Memorisation.make()(given)[0].value)
        shares.append(DataReplication.make()(given)[0].value)
    assert values == sorted(values, reverse=True) and values[0] > 0.8 > 0.3 > values[2], values
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.5 > 0.2 > shares[2], shares


def learnt(train, steps=500, n=300):
    """Samples of a small diffusion model of points `(N, D)`."""
    torch.manual_seed(0)
    spec = Spec(Field("points", train.shape[1:]))
    model = load("models", "edm").make({"net": {"name": "denoising-mlp", "width": 128, "layers": 3}}, spec)
    optimiser = torch.optim.Adam(model.parameters())
    x = torch.from_numpy(train).float()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        rng = Rng.batch("toy", step, total=256)
        optimiser.zero_grad()
        model({"x": x[rng.at("item").integers((256,), len(x))]}, Turn("main", step, steps, rng))["loss"].backward()
        optimiser.step()
    run = Run(model.eval(), [], spec, spec)
    return run.sample(Rng.rows(range(n)), None, run.sampler("heun", {"steps": 12}))["x"].double().numpy()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(GencliError, match="there are 40, at least 60"):
        Memorisation.make()(beside_digits(images(digits().split("test").x), test=images(digits().split("test").x[:40])))
    with pytest.raises(GencliError, match="a sample has 64 values, an item of the data 256"):
        Memorisation.make()(beside_digits(images(np.zeros((80, 1, 8, 8), np.uint8)), test=split("test")))


def test_of_many_held_out_items_some_are_compared_spread_evenly():
    test = digits().split("test")
    some, few = measured(beside_digits(images(test.x[::2])), held=84), beside_digits(images(test.x[::2]))
    evenly = measured(beside_digits(few.samples, test=seen(test.only(np.arange(84) * len(test) // 84))))
    assert {key: v.value for key, v in some.items()} == {key: v.value for key, v in evenly.items()}
    assert some["memorisation[pixels]"].facts["n_held_out"] == 84
