"""What codecs share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencli.config import Component
from gencli.core import Batch, Rng, Spec


class BaseCodec(Component):
    """A codec without randomness that keeps volume; subclasses override what differs."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def require(self, batch: Batch) -> None:
        """Refuse a batch that lacks what decoding needs."""

    def spec(self, data: Spec) -> Spec:
        """What `encode` makes of a batch with spec `data`."""
        return data

    def encode(self, batch: Batch) -> Batch:
        """Deterministic part."""
        return batch

    def draw(self, batch: Batch, rng: Rng) -> Batch:
        """Random part."""
        return batch

    def decode(self, batch: Batch) -> Batch:
        """Back to data."""
        return batch

    def log_det(self, batch: Batch) -> Tensor:
        """Log volume change of each row, in nats."""
        return torch.zeros(len(batch["x"]), dtype=torch.float64)
