"""The round trip of flows: exact ones pass, and each way of being wrong is seen."""

import pytest
import torch
from tiny import opened, smoke
from torch import nn

from gencli.bundle import Run
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.metrics.roundtrip import Roundtrip


def run_of(name):
    torch.manual_seed(0)
    tables = smoke(name)
    data = opened(tables["data"])
    run = Run.build(tables, data.spec)
    with torch.no_grad():
        for p in run.model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    run.model.eval()
    return run, data.split("test")


def values(run, items, **settings):
    made = Roundtrip.make(settings)(run, items, Rng.batch("r", total=1), n=20, batch_size=8)
    return {value.name: value for value in made}


@pytest.mark.parametrize("name", ["realnvp", "glow", "maf"])
def test_exact_flows_come_back_within_a_thousandth_of_a_grey_level(name):
    found = values(*run_of(name))
    assert 0 < found["roundtrip"].value < 1e-2 and found["log-det"].value < 1e-6
    assert found["roundtrip-mean"].value <= found["roundtrip"].value and found["roundtrip"].n == 20
    assert found["roundtrip"].unit in ("grey levels", "")
    assert "log-det" not in values(*run_of(name), jacobians=0)


def test_a_wrong_inverse_and_a_wrong_volume_are_seen():
    run, items = run_of("realnvp")
    exact = type(run.model)

    class Wrong(exact):
        def inverse(self, z, **cond):
            return super().inverse(z, **cond) + 0.01

        def forward_flow(self, x, **cond):
            z, log_det = super().forward_flow(x, **cond)
            return z, log_det + 0.5

    run.model.__class__ = Wrong
    found = values(run, items)
    levels = run.spec.x.vocab - 1
    assert found["roundtrip"].value == pytest.approx(0.01 * levels, rel=0.05)
    assert found["log-det"].value == pytest.approx(0.5, abs=1e-4)


def test_other_models_and_broken_ones_are_refused():
    run, items = run_of("vae")
    with pytest.raises(GencliError, match="'roundtrip' needs a model that offers Invertible"):
        values(run, items)
    run, items = run_of("realnvp")
    nn.init.constant_(next(run.model.parameters()), float("nan"))
    with pytest.raises(GencliError, match="the round trip of 20 of 20 items is not finite"):
        values(run, items)
