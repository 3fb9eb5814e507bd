"""Which items a batch holds, as a pure function of the step: epochs follow each other without a gap.

Every item comes exactly once an epoch, batches may straddle epochs, and nothing but (seed, step) is needed to resume.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gencli.core import mix


def order(seed: int, epoch: int, n: int) -> Tensor:
    """The order `(n,)` in which epoch `epoch` visits the n items."""
    return _order(seed, epoch, n).clone()


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix("order", seed, epoch)))


def indices(step: int, batch_size: int, n: int, seed: int) -> Tensor:
    """The items `(batch_size,)` of the global batch at optimiser step `step`, counted from 0."""
    assert n > 0, "a split without items has no batches"
    assert batch_size > 0 and step >= 0, f"no batch of {batch_size} items at step {step}"
    place = torch.arange(step * batch_size, (step + 1) * batch_size)
    epoch, within = place // n, place % n
    first, last = int(epoch[0]), int(epoch[-1])
    return torch.cat([_order(seed, e, n)[within[epoch == e]] for e in range(first, last + 1)])
