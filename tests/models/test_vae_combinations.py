"""VAEs in every pair of choices: networks, labels, priors, posteriors, decoders and shapes of images."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from gencli import registry
from gencli.core import Field, Rng, Spec, Turn

SMALL = {"width": 8, "residual_width": 4, "residual_blocks": 1}
CHOICES: dict[str, tuple[Any, ...]] = {
    "prior": ("standard", "mixture", "vampprior", "flow", "autoregressive"),
    "likelihood": ("bernoulli", "gaussian", "logistic", "logistic-mixture"),
    "networks": ("mlp", "conv"),
    "classes": (False, True),
    "model": ("vae", "beta-vae", "nf-vae"),
    "shape": ((1, 8, 8), (3, 12, 8)),
    "objective": ("elbo", "iwae"),
}
NETWORKS = {
    "mlp": {"encoder": {"name": "mlp", "width": 16}, "decoder": {"name": "mlp", "width": 16}},
    "conv": {"encoder": {"name": "conv-encoder", **SMALL}, "decoder": {"name": "conv-decoder", **SMALL}},
}
POSTERIORS = {
    "vae": {},
    "beta-vae": {"beta": 1.0},
    "nf-vae": {"flow": "iaf", "length": 1, "context": 4, "flow_width": 8},
}

Row = tuple[Any, ...]


def pairs(row: Row) -> set[tuple[tuple[int, Any], tuple[int, Any]]]:
    return set(itertools.combinations(enumerate(row), 2))


def pairwise(choices: list[tuple[Any, ...]]) -> list[Row]:
    """Rows in which every two values of different choices meet: each time the one with most pairs that have not met."""
    every = list(itertools.product(*choices))
    missing, rows = set().union(*map(pairs, every)), list[Row]()
    while missing:
        rows.append(max(every, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return rows


ROWS = pairwise(list(CHOICES.values()))


def test_few_rows_have_all_pairs() -> None:
    met = set().union(*map(pairs, ROWS))
    for (i, first), (j, second) in itertools.combinations(enumerate(CHOICES.values()), 2):
        assert {((i, a), (j, b)) for a in first for b in second} <= met
    assert len(ROWS) <= 25 < math.prod(map(len, CHOICES.values()))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row)).replace(" ", ""))
def test_every_pair_learns_bounds_and_samples(row: Row) -> None:
    chosen = dict(zip(CHOICES, row, strict=True))
    nets, name, shape = (chosen.pop(key) for key in ("networks", "model", "shape"))
    values, low = (2, 0.0) if chosen["likelihood"] == "bernoulli" else (17, -1.0)
    spec = Spec(Field("image", shape, vocab=values, range=(low, 1.0)), {"label": Field("label", (), vocab=10)})
    settings = {"dim": 4, "components": 3, "prior_width": 8, "prior_layers": 1, "draws": 2, **NETWORKS[nets]}
    torch.manual_seed(0)
    model = registry.load("models", name).make({**settings, **chosen, **POSTERIORS[name]}, spec)
    x = low + (1 - low) * torch.randint(values, (6, *shape), generator=torch.Generator().manual_seed(0)) / (values - 1)
    cond = {"label": torch.arange(6)} if chosen["classes"] else {}
    losses = model.loss({"x": x, "label": torch.arange(6)}, Turn("main", 0, 10, Rng.batch("pairs", total=6)))
    losses["loss"].backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert torch.isfinite(losses["each"]).all() and not still
    with torch.no_grad():
        z = model.prior(6, Rng.rows(range(6)), **cond)
        made = model.decode(z, **cond)
        bounds = [model.log_prob(x, Rng.batch("bound", total=6), k, **cond) for k in (1, 20)]
        kept = model.reconstruct(x, **cond)
    assert z.shape == (6, 4) and made.shape == kept.shape == x.shape and torch.isfinite(made).all()
    assert bounds[1].mean() > bounds[0].mean() - 1.0, "twenty draws bound no looser, but for their chance"
