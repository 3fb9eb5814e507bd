"""The tables of flows in miniature: their controls in closed form, and a row of each kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import smoke, table, trained

from benchmarks import flow_memory, flows, page
from gencli import recipe
from gencli.bundle import Run
from gencli.config import merge
from gencli.data import open_table
from gencli.metrics._base import spread


def test_the_control_has_the_moments_of_dequantised_images() -> None:
    data = open_table({"name": "digits", "image_size": 8, "unconditional": True})
    run, judged = flows.gaussian(data, classes=False)
    (law,) = judged.laws
    train = data.split("train").batch(torch.arange(len(data.split("train"))))["x"].double().flatten(1)
    levels = (train * 16 / 255).round()
    drawn = (levels + torch.rand(50, *levels.shape, generator=torch.Generator().manual_seed(0))).flatten(0, 1) / 17
    torch.testing.assert_close(drawn.mean(0), law.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(drawn.T.cov(), law.covariance_matrix, rtol=0, atol=5e-4)
    bits = flows.control("digits")
    again = flows.each(run, data.split("test"), 169, judged)
    assert len(bits) == 169 and (bits == again).all(), "the same noise each time"
    uniform = flows.Gaussian(judged.spec, [torch.distributions.MultivariateNormal(law.mean, 100 * torch.eye(64))])
    assert bits.mean() < 3.1 < flows.each(run, data.split("test"), 169, uniform).mean()


def test_a_row_of_images_is_paired_with_the_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flows.N, "digits", 20)
    tables = merge(table("realnvp", {"data": {"unconditional": True}}, steps=1), {"model": {"norm": "none"}})
    run = Run.load(trained(tmp_path, tables))
    row = flows.of_images("digits", run)
    items = open_table(run.config["recipe"]["data"]).split("test")
    mine, others = flows.each(run, items, 20), flows.control("digits")
    assert row["bits"] == pytest.approx(mine.mean()) and row["apart"] == pytest.approx((mine - others).mean())
    assert row["apart_error"] < 1 and row["round trip"] < 1e-2 and row["log-det"] < 1e-6
    assert len(spread(len(items), 20)) == 20 and row["density"] == "of all"


def test_a_row_of_points_is_apart_from_the_exact_density(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.load(trained(tmp_path, smoke("linear-flow")))
    data: Any = open_table(run.config["recipe"]["data"])
    known = torch.from_numpy(data.split("train").x).double()
    law = torch.distributions.MultivariateNormal(known.mean(0), known.T.cov())
    (layer,) = run.model.net.layers
    layer.weight = lambda: torch.linalg.cholesky(law.precision_matrix).T.float()
    layer.log_scale.copy_(0.5 * torch.logdet(law.precision_matrix) / 2)
    layer.bias.copy_(-(layer.weight() @ known.mean(0).float()))
    row, control = flows.of_points(run), flows.gaussian_of_points()
    assert row["above"] == pytest.approx(control["above"], abs=1e-4) and row["integral"] == pytest.approx(1, abs=1e-3)
    assert control["above"] == pytest.approx(1.416, abs=0.03)
    exact = float(-data.log_density(torch.from_numpy(data.split("test").x)).mean())
    assert row["nats"] - row["above"] == pytest.approx(exact, abs=1e-5)


def test_rows_are_recipes_that_exist_and_have_names_of_their_own() -> None:
    known = recipe.names()
    for name, rows in flows.ROWS.items():
        assert all(row[0] in known for row in rows.values())
        assert len({flows.called(name, row) for row in rows}) == len(rows)


def test_memory_is_flat_where_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: (tuple(d // 2 + 1 for d in depths[:2]), of) for name, (depths, of) in flow_memory.LINES.items()}
    monkeypatch.setattr(flow_memory, "LINES", few)
    rows = flow_memory.measured()
    for name, row in rows.items():
        grows = row["times"] > 1 + 0.7 * (row["deeper"] - 1) if "all kept" in name else row["times"] < 1.1
        assert grows, (name, row)
    assert flow_memory.drawn(rows)[:4] == b"\x89PNG" and not math.isnan(sum(row["times"] for row in rows.values()))


def test_the_page_has_every_table_of_flows() -> None:
    facts = {
        "flows-points": {"maf": {"nats": 1.5, "above": 0.07, "integral": 1.0}},
        "flow-memory": {"RevNet": {"times": 1.0}},
    }
    made = page.page(facts)
    assert "## Flows of points" in made and "| maf |" in made and "## Memory against depth" in made
