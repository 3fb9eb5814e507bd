"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021). arXiv:2106.09685

Offers: fine-tuning

    W = W₀ + (α / r) B A,   A (r, in) as linear layers start, B (out, r) zero,   A and B alone are trained

for every linear layer and convolution whose name matches `layers` (a convolution's weight being read as a matrix
`(out, in · k · k)`). W₀ keeps its name and its place, so that the weights of the run that was begun from fit, and everything
else is frozen, bit for bit. At the start the model is the one that it was; what was learned is Σ r (in + out) numbers.

Ours: all layers by default; the paper's are the projections of attention, `--adapter.layers "qkv"`; α is r times `scale`, so
that another rank needs no other learning rate. W is worked out at each call, as large as the layer.

Raises GencliError where no layer has such a name, and for a pattern that is none.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.adapters._base import Adapter
from gencli.config import opt
from gencli.core import Spec
from gencli.errors import GencliError


class Lora(Adapter):
    """Two thin matrices beside each weight."""

    @dataclass(frozen=True)
    class Config:
        rank: int = opt(8, "r: rows of A", low=1)
        scale: float = opt(1.0, "α / r", low=0)
        layers: str = opt("", "a regular expression that layers' names hold; empty = all")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        try:
            self.pattern = re.compile(config.layers)
        except re.error as error:
            raise GencliError(f"lora: layers is '{config.layers}': {error}", "give a regular expression") from None

    def apply(self, model: nn.Module, spec: Spec) -> None:
        model.requires_grad_(False)
        found = [
            module for name, module in model.named_modules() if type(module) in KINDS and self.pattern.search(name)
        ]
        if not found:
            raise GencliError(
                f"lora: no linear layer or convolution has a name with '{self.config.layers}'",
                "leave --adapter.layers out for all of them",
            )
        for module in found:
            module.__class__ = KINDS[type(module)]
            assert isinstance(module, _Thin)
            module.widen(self.config.rank, self.config.scale)

    def fold(self, model: nn.Module) -> None:
        for layer in thin(model).values():
            layer.fold()

    @staticmethod
    def merge(model: nn.Module) -> None:
        """Put W in place of W₀, as fast as layers without A and B; not for training or saving until `unmerge`."""
        for layer in thin(model).values():
            layer.merge()

    @staticmethod
    def unmerge(model: nn.Module) -> None:
        """Put W₀ back, bit for bit."""
        for layer in thin(model).values():
            layer.unmerge()


class _Thin(nn.Module):
    """A layer with A and B; `weight` is W₀, or W while the layer is merged."""

    weight: Tensor
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float
    first: Tensor | None

    def widen(self, rank: int, scale: float) -> None:
        """Give the layer its matrices."""
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, self.weight[0].numel()))
        self.lora_b = nn.Parameter(self.weight.new_zeros(len(self.weight), rank))
        self.scale = scale
        self.first = None  # W₀ of a merged layer
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def whole(self) -> Tensor:
        """W."""
        if self.first is not None:
            return self.weight
        return self.weight + self.scale * (self.lora_b @ self.lora_a).view_as(self.weight)

    def merge(self) -> None:
        """W as the weight; W₀ is kept, since W − (α / r) B A is not it to the last bit."""
        if self.first is None:
            first = self.weight.detach().clone()
            with torch.no_grad():
                self.weight.copy_(self.whole)
            self.first = first

    def unmerge(self) -> None:
        """W₀ as the weight."""
        if self.first is not None:
            with torch.no_grad():
                self.weight.copy_(self.first)
            self.first = None

    def fold(self) -> None:
        """W as the weight of a layer without A and B."""
        self.merge()
        del self.lora_a, self.lora_b, self.first
        plain: Any = next(plain for plain, thin in KINDS.items() if thin is type(self))
        self.__class__ = plain


class _ThinLinear(_Thin, nn.Linear):
    """A linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.whole, self.bias)


class _ThinConv2d(_Thin, nn.Conv2d):
    """A convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.whole, self.bias)


KINDS: dict[type[nn.Module], Any] = {nn.Linear: _ThinLinear, nn.Conv2d: _ThinConv2d}


def thin(model: nn.Module) -> dict[str, _Thin]:
    """The layers that have A and B, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _Thin)}
