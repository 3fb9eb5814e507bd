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
from gencli.metrics.memorisation import Memorisation, Space, ratio_of, share_below
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


def test_the_intervals_hold_what_they_estimate():
    truth, inside = np.exp(-0.3), np.zeros(2)
    below = 0.1857  # of N(−0.3, 0.4²) under the 5 % quantile of N(0, 0.4²)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        held, made = np.exp(0.4 * rng.standard_normal(170)), np.exp(0.4 * rng.standard_normal(200) - 0.3)
        ratio, (low, high) = ratio_of(made, held)
        part, (least, most) = share_below(made, held, 0.05)
        assert low <= ratio <= high and least <= part <= most
        inside += low <= truth <= high, least <= below <= most
    assert (inside >= 184).all() and (inside <= 199).all(), inside


def test_many_distances_are_paired_by_their_quantiles():
    rng = np.random.default_rng(0)
    made, held = rng.gamma(4, 1, 5000), rng.gamma(5, 1, 3000)
    every = np.median(made[:, None] / held[None])
    assert ratio_of(made, held)[0] == pytest.approx(every, rel=1e-3)


def test_a_false_alarm_is_as_rare_as_the_level_says():
    alarms = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        alarms += Space(rng.random(150), rng.random(120), np.array([])).chance(0.05) <= 0.05
    assert 20 <= alarms <= 65


# ---------------------------------------------------------------------------------------------------------------------- digits


def test_held_out_digits_raise_at_most_one_alarm_in_twenty():
    whole = np.concatenate([digits().split(name).x for name in ("train", "test")])
    alarms, ratios = 0, []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(whole))
        parts = [whole[part] for part in (order[:1000], order[1000:1400], order[1400:])]
        train, held, fresh = (seen(Split(x), x.reshape(len(x), -1) / 255) for x in parts)
        found = measured(Evidence(train, held, fresh))
        alarms += alarm(found)
        ratios.append(found["memorisation[f]"].value)
    assert alarms <= 1 and 0.97 < np.mean(ratios) < 1.03


def test_copies_however_spoilt_raise_it_and_spoilt_new_digits_do_not():
    train, test = (torch.from_numpy(digits().split(name).x) for name in ("train", "test"))
    held, fresh = images(test[:85]), test[85:]
    for copies in (train[:80], noise(train[:80], 16), blur(train[:80], 0.7)):
        found = measured(beside_digits(images(copies), test=held))
        assert alarm(found) and found["memorisation[pixels]"].value < 0.6
    for new in (fresh, noise(fresh, 16), blur(fresh, 0.5), blur(fresh, 0.7)):
        found = measured(beside_digits(images(new), test=held))
        assert not alarm(found) and found["memorisation[pixels]"].value > 0.9


def test_a_few_copies_are_seen_and_named_though_they_move_no_median():
    train, test = (torch.from_numpy(digits().split(name).x) for name in ("train", "test"))
    few = torch.cat([noise(train[:20], 4), test[85:]])
    found = measured(beside_digits(images(few), test=images(test[:85])))
    assert alarm(found) and found["memorisation[pixels]"].value > 0.8
    named = found["memorisation[f]"].facts["worst"]
    assert len(named) == 16 and all(row["sample"] == row["training"] < 20 for row in named)


def test_the_ratio_falls_as_the_training_set_shrinks():
    pool, held = draws(4096, 0, 8), draws(300, 1, 8)
    rng, made = np.random.default_rng(2), []
    for n in (16, 64, 512, 4096):
        train = pool[:n]
        samples = train[rng.integers(0, n, 300)] + 0.3 * rng.standard_normal(
            (300, 8)
        )  # a kernel density of what was seen
        found = Memorisation.make()(Evidence(rows(train), rows(held), rows(samples)))
        made.append(found[0].value)
    assert made == sorted(made) and made[0] < 0.6 * made[-1], made


@pytest.mark.slow
def test_a_model_trained_on_fewer_points_is_nearer_to_them():
    pool, held = draws(512, 0, 6), draws(300, 1, 6)
    ratios, shares = [], []
    for n in (16, 64, 512):
        given = Evidence(rows(pool[:n]), rows(held), rows(learnt(pool[:n])))
        ratios.append(Memorisation.make()(given)[0].value)
        shares.append(DataReplication.make()(given)[0].value)
    assert ratios == sorted(ratios) and ratios[0] < 0.2 < 0.8 < ratios[2], ratios
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
