"""Kernel discrepancies: the definition, the closed form of Gaussians, the published scale of CMMD."""

import numpy as np
import pytest
import torch

from gencli.errors import GencliError
from gencli.metrics._base import FeatureSet
from gencli.metrics._mmd import gaussian, over_pairs, unbiased
from gencli.metrics._torchvision import import_torchvision
from gencli.metrics.cmmd import Cmmd
from gencli.metrics.mmd import Mmd, median_distance


def draws(n, seed, shift=0.0, d=2):
    return shift + np.random.default_rng(seed).standard_normal((n, d))


def points(x, name="points"):
    return FeatureSet(x, name, "abc")


def test_the_kernel_sums_are_those_of_the_definition():
    x, y = draws(7, 0), draws(5, 1, 0.5)
    k = lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * 1.3**2))  # noqa: E731
    xx = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    for found in (unbiased(gaussian(1.3), x, y), over_pairs(gaussian(1.3), x, y)[0]):
        assert found == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


def test_torch_fidelity_computes_the_same():
    import_torchvision()
    theirs = pytest.importorskip("torch_fidelity.metric_kid").kernel_mmd
    x, y = draws(90, 0, d=6), draws(90, 1, 0.3, d=6)
    found = theirs(torch.tensor(x).numpy(), y, kid_kernel="rbf", kid_kernel_rbf_sigma=2.0)
    assert unbiased(gaussian(2.0), x, y) == pytest.approx(found, rel=1e-9)


def test_gaussians_have_the_closed_form_within_three_errors():
    """E k(x, y) of x ~ N(0, 1), y ~ N(m, 1) is √(σ²/(σ²+2)) exp(−m²/(2(σ²+2))) a dimension."""
    sigma, shift, d = 1.5, 0.6, 2
    wide = sigma**2 + 2
    truth = 2 * (sigma**2 / wide) ** (d / 2) * (1 - np.exp(-d * shift**2 / (2 * wide)))
    metric = Mmd.make({"bandwidth": sigma})
    found = np.array([metric(points(draws(200, 2 * s)), points(draws(150, 2 * s + 1, shift))).value for s in range(60)])
    assert abs(found.mean() - truth) < 3 * found.std(ddof=1) / np.sqrt(60)


def test_the_bandwidth_is_the_references_median_whatever_the_samples_are():
    real = points(draws(300, 0))
    value, far = (Mmd.make()(real, points(draws(200, 1, shift))) for shift in (0.2, 40.0))
    x = real.x
    median = np.median([np.linalg.norm(x[i] - x[j]) for i in range(300) for j in range(i)])
    assert value.facts["bandwidth"] == far.facts["bandwidth"] == pytest.approx(median, rel=1e-12)
    assert median_distance(draws(2500, 2), seed=1) == pytest.approx(median_distance(draws(2500, 2), seed=2), rel=0.05)
    assert value.name == "mmd[points]" and f"σ = {median:.4g}, the reference's median" in value.note
    assert value.interval[0] < value.value < value.interval[1] and value.n == 200
    assert "0.5, given" in Mmd.make({"bandwidth": 0.5})(real, real).note


def test_a_reference_of_equal_items_is_refused():
    with pytest.raises(GencliError, match="median distance is 0"):
        Mmd.make()(points(np.ones((60, 2))), points(draws(60, 0)))


def published(x, y):
    """CMMD as published in code: embeddings of length one, every pair counted, an item with itself too."""
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    mean = lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * 10**2)).mean()  # noqa: E731
    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_cmmd_is_the_published_number_but_for_pairs_of_an_item_with_itself():
    x, y = draws(200, 0, 1.0, d=16), draws(150, 1, 1.4, d=16)
    value = Cmmd.make()(points(x, "clip-vit-l-14-336"), points(y, "clip-vit-l-14-336"))
    theirs = published(x, y)
    assert value.value < theirs < value.value + 40 / 150
    assert value.interval[0] < value.value < value.interval[1] and value.note == ""
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)]
    own = [np.exp(-((v[:, None] - v[None]) ** 2).sum(2) / 200).sum() / len(v) - 1 for v in unit]
    kept = sum(1000 * (1 - s / (len(v) - 1)) / len(v) for s, v in zip(own, unit, strict=True))
    assert value.value + kept == pytest.approx(theirs, rel=1e-6)


def test_cmmd_of_other_features_says_so_and_their_length_does_not_matter():
    x, y = draws(80, 0, 1.0, d=8), draws(80, 1, 1.2, d=8)
    value = Cmmd.make()(points(x, "gencli-features-v1"), points(y, "gencli-features-v1"))
    assert value.name == "cmmd[gencli-features-v1]" and "not comparable with published" in value.note
    longer = Cmmd.make()(points(7 * x, "gencli-features-v1"), points(7 * y, "gencli-features-v1"))
    assert longer.value == pytest.approx(value.value, rel=1e-9)
    with pytest.raises(GencliError, match="1 of 80 items have features f that are all zero"):
        Cmmd.make()(points(x * (np.arange(80) != 3)[:, None], "f"), points(y, "f"))
