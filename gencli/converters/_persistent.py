"""NVIDIA's files of whole networks, whose layers are called after the side of their feature maps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from gencli.converters import _pickles
from gencli.converters._official import Given, Official


class Persistent(Official):
    """A `.pkl` of a network under `ema`."""

    precondition: ClassVar[str]  # the class of the network
    key: ClassVar[str] = "ema"

    def tensors(self, path: Path) -> dict[str, Tensor]:
        if path.suffix != ".pkl":
            return super().tensors(path)
        module = _pickles.module_in(_pickles.read(path), self.key, path)
        _pickles.expect(module, self.precondition, path)
        return {name: value.detach() for name, value in module.tensors()}

    def sides(self, given: Given, prefix: str, where: Path) -> list[int]:
        """The sides of the feature maps, from the largest."""
        found = {int(match[1]) for name in given if (match := re.match(rf"{prefix}enc\.(\d+)x", name))}
        if not found:
            self.need(given, f"{prefix}enc.64x64_conv.weight", where)
        return sorted(found, reverse=True)


def square(side: int) -> str:
    """How a side is written."""
    return f"{side}x{side}"
