"""Spoilt halves of Fashion-MNIST in the order in which a person would put them, whatever the distance and the features."""

import damage
import pytest
import torch

from gencli.data.fashion_mnist import FashionMnist
from gencli.metrics._features import extractor
from gencli.metrics.fid import Fid
from gencli.metrics.kid import Kid
from gencli.metrics.precision_recall import PrecisionRecall

HALF = 1000


@pytest.fixture(scope="module")
def sets():
    """Two halves of real images and three spoilt versions of the second, in rising order of damage."""
    x = torch.from_numpy(FashionMnist.make().split("test").x[: 2 * HALF].copy())
    first, second = x[:HALF], x[HALF:]
    drawn = torch.randint(0, 256, second.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    spoilt = {"floor": second, "jpeg-75": damage.jpeg(second, 75), "blur": damage.blur(second, 1.0), "noise": drawn}
    return first, spoilt


def features(images, by):
    return by.extract(images.split(250))


@pytest.mark.parametrize(
    ("metric", "by"), [(Fid, "gencli"), (Kid, "gencli"), (Fid, "random")], ids=["fid", "kid", "fd"]
)
def test_floor_jpeg_blur_noise(sets, metric, by):
    first, spoilt = sets
    extract = extractor(by)
    real = features(first, extract)
    found = {name: metric.make()(real, features(x, extract)) for name, x in spoilt.items()}
    values = [value.value for value in found.values()]
    assert values == sorted(values), {name: value.value for name, value in found.items()}
    if metric is Kid:
        low, high = found["floor"].interval
        assert low <= 0 <= high


def test_noise_is_not_precise_and_blur_forgets(sets):
    first, spoilt = sets
    extract = extractor()
    real = features(first, extract)
    pairs = {
        name: [value.value for value in PrecisionRecall.make()(real, features(spoilt[name], extract))]
        for name in ("floor", "blur", "noise")
    }
    assert pairs["noise"][0] < 0.05 and pairs["blur"][1] < pairs["floor"][1], pairs
