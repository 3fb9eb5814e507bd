"""The benchmarks in miniature: both sides do the same work, and a side that does not is caught. Never a time."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import _frame

PEERS = {"startup": "diffusers", "unet": "diffusers", "flow_speed": "zuko"}


@pytest.mark.parametrize("name", program.NAMES)
def test_both_sides_agree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in PEERS:
        pytest.importorskip(PEERS[name])
    if name == "startup":
        monkeypatch.setattr("benchmarks.startup.PEER", "accelerate --help")  # starts sooner than diffusers-cli
    rows = [_frame.measure(case) for case in program.cases(name, tmp_path, mini=True)]
    for row in rows:
        assert not _frame.misses(row)
        assert min(row["seconds"].values()) > 0 and row["spread"][0] <= row["ratio"] <= row["spread"][1]
        assert len(_frame.lines(row)) == 1 + len(row["outcome"])
    assert any(row["outcome"] for row in rows) or name in ("startup", "precision")


def test_other_weights_are_no_equal_work(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    unet = importlib.import_module("benchmarks.unet")
    shape = unet.Shape(8, unet.MINI, tmp_path / "there")
    unet.write(shape)
    other = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = unet.sampling(shape, 2, 2, "gencli")()
    torch.save(other, shape.place / unet.NOISE)
    row: dict[str, Any] = {"name": "other noise", "outcome": {}}
    row["outcome"] = {
        key: {"found": found, "limit": limit}
        for key, (found, limit) in unet.apart(ours, unet.sampling(shape, 2, 2, "peer")()).items()
    }
    assert len(_frame.misses(row)) == 1


def test_sides_take_turns_and_the_ratio_is_of_whole_work() -> None:
    order: list[str] = []

    def make(side: str) -> _frame.Side:
        return lambda: order.append(side)

    case = _frame.Case("turns", "itself", make, rounds=2, share={"peer": 1e-6})
    row = _frame.measure(case)
    assert order == ["gencli", "peer", "peer", "gencli", "gencli", "peer"], "warmed up, then B A, A B"
    assert row["ratio"] > 1000, "the peer did a millionth of its work"


def test_a_figure_that_is_missing_is_a_miss() -> None:
    held = {"found": float("nan"), "limit": 1.0}
    assert _frame.misses({"name": "row", "outcome": {"difference": held}})


def test_memory_is_measured_of_what_ran(tmp_path: Path) -> None:
    held: list[Any] = []
    small = _frame.peak(_frame.Case("little", "", lambda side: lambda: None), "gencli")
    grown = _frame.peak(_frame.Case("much", "", lambda side: lambda: held.append(b"x" * 300_000_000)), "gencli")
    assert 10e6 < small <= grown and grown > 300e6
