"""What processes tell each other in training, each as one message; alone, nothing is copied and nothing changes.

Gradients are summed here, once a turn, and not by a wrapper's hooks during the backward pass: hooks want every parameter to
get one gradient in each backward pass, which neither phases nor a penalty that differentiates twice give them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gencli.core import all_reduce, world


@torch.no_grad()
def sum_gradients(params: Sequence[nn.Parameter], sums: Tensor) -> Tensor:
    """Gradients become their sums over the processes; returns the sum of `sums`.

    A parameter that has no gradient on any process keeps none.
    """
    if world().size == 1:
        return sums
    has = torch.tensor([p.grad is not None for p in params])
    parts = [p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in params]
    message = all_reduce(torch.cat([part.to(sums) for part in (sums, has, *parts)]))
    sums, has, *parts = message.split([len(sums), len(params), *(p.numel() for p in params)])
    for parameter, present, part in zip(params, has.tolist(), parts, strict=True):
        if present:
            parameter.grad = part.view_as(parameter).to(parameter)
    return sums


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """The running statistics of batch normalisation, of which each process saw its own rows, become their means."""
    if world().size == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    held = [value for m in norms for value in (m.running_mean, m.running_var) if value is not None]
    if held:
        message = all_reduce(torch.cat([value.flatten() for value in held])) / world().size
        for value, part in zip(held, message.split([value.numel() for value in held]), strict=True):
            value.copy_(part.view_as(value))
