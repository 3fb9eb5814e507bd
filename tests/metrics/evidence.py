"""Evidence for metrics of items: digits, and anything beside them."""

from functools import cache

import numpy as np
import torch

from gencli.data._base import Split
from gencli.data.digits import Digits
from gencli.metrics._base import Evidence, FeatureSet, Seen
from gencli.metrics._features import extractor


@cache
def digits():
    return Digits.make({})


@cache
def bundled():
    return extractor("gencli")


def seen(items, features=None):
    """Items with the bundled features, or the given ones."""
    if features is not None:
        return Seen(items, lambda: FeatureSet(features, "f"))
    return Seen(items, lambda: bundled().extract(items.batch(torch.arange(len(items)))["x"].split(256)))


@cache
def split(name):
    return seen(digits().split(name))


def images(x, label=None):
    """Raw images as samples."""
    return seen(Split(np.ascontiguousarray(np.asarray(x)), {} if label is None else {"label": torch.as_tensor(label)}))


def rows(x):
    """Items that are their own features `(N, D)`."""
    return seen(Split(x.astype(np.float32)), x)


def beside_digits(samples=None, run=None, train=None, test=None):
    """Samples beside digits."""
    label = digits().spec.cond["label"]
    return Evidence(train or split("train"), test or split("test"), samples, run, label)
