"""`gencli selftest` passes here, and finds arithmetic that is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shell import Shell
from torch import nn

from gencli import registry
from gencli.evaluation import selftest
from gencli.metrics import fid

CPU = torch.device("cpu")


def figures(*names: str) -> list[bool]:
    """Whether the checks of these names pass."""
    todo = dict(selftest.checks(CPU))
    return [todo[name]().passed for name in names]


def test_every_check_passes_and_is_a_line(shell: Shell) -> None:
    done = shell.fine("selftest")
    lines = done.out.splitlines()
    assert len(lines) == 1 + len(selftest.checks(CPU)) and all(line.startswith("ok\t") for line in lines[1:])
    assert {line.split("\t")[1].split(" of ")[0] for line in lines[1:]} >= {
        "order",
        "inverse",
        "sum",
        "fid",
        "fp32 drift",
    }


def test_a_sampler_of_a_lower_order_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures("order of heun") == [True]

    def euler(self: Any, denoise: Any, x: torch.Tensor, here: Any, there: Any, memory: Any, rng: Any) -> torch.Tensor:
        return x + (there - here) * (x - denoise(x, here)) / here

    monkeypatch.setattr(registry.load("samplers", "heun"), "step", euler)
    assert figures("order of heun", "order of euler") == [False, True]


def test_an_inverse_and_a_volume_that_are_wrong_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = registry.load("models", "realnvp")
    real = kind.forward_flow
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward_flow", lambda self, x, **c: (real(self, x, **c)[0] + 0.01, real(self, x, **c)[1]))
        assert figures("inverse of realnvp", "log-determinant of realnvp") == [False, True]
    monkeypatch.setattr(
        kind, "forward_flow", lambda self, x, **c: (real(self, x, **c)[0], real(self, x, **c)[1] * 1.01)
    )
    assert figures("inverse of realnvp", "log-determinant of realnvp") == [True, False]


def test_probabilities_and_distances_that_are_wrong_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = registry.load("models", "made")
    log, distance = kind.log_prob, fid.distance
    monkeypatch.setattr(kind, "log_prob", lambda self, x, rng: log(self, x, rng) + 1e-3)
    monkeypatch.setattr(fid, "distance", lambda x, y: distance(x, y) + 1e-6)
    assert figures("sum of p of made", "fid of x and x", "fid of x and x + v") == [False, False, False]


def test_a_device_that_rounds_more_than_it_says_is_found(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (nn.Conv2d, nn.Linear):

        def rounded(self: Any, x: torch.Tensor, real: Any = kind.forward) -> torch.Tensor:
            return real(self, x if x.dtype == torch.float64 else x.bfloat16().float())

        monkeypatch.setattr(kind, "forward", rounded)
    todo = [one for one in selftest.checks(CPU) if one[0].startswith("fp32 drift")]
    monkeypatch.setattr(selftest, "checks", lambda device: todo)
    done = shell("selftest", "--json")
    assert done.code == 1 and done.document["error"].startswith("2 of 2 checks fail, first fp32 drift of unet")


def test_what_is_no_number_passes_no_bar() -> None:
    nan = float("nan")
    assert (
        not selftest.Check("a", nan, 1.0, "cpu").passed and not selftest.Check("a", nan, 1.0, "cpu", least=True).passed
    )
