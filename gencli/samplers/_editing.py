"""What samplers that edit an image share: the image, and which parts of it stay."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from gencli.core import Batch, Rng, Spec
from gencli.errors import GencliError
from gencli.samplers._diffusion import After, Memory
from gencli.samplers.ancestral import Ancestral


class Editor(Ancestral):
    """Samplers that are given an image: `known`, and `keep` where parts of it stay."""

    takes: ClassVar[tuple[str, ...]] = ("known", "keep")

    def recalled(self, model: Any, spec: Spec, n: int, cond: Batch) -> Memory:
        if "known" not in cond:
            raise GencliError(f"sampler {self.public_name()} edits images and was given none", "add --input IMAGE")
        memory: Memory = {"known": cond["known"].to(model.device)}
        return {**memory, "keep": cond["keep"].to(model.device)} if "keep" in cond else memory

    def after(self, memory: Memory) -> After | None:
        return replaced(memory) if "keep" in memory else None


def replaced(memory: Memory) -> After:
    """What is kept, as it looks at a level: the guide and noise of that level."""

    def after(x: Tensor, level: Tensor, rng: Rng) -> Tensor:
        known = memory["known"].to(x)
        if level > 0:
            known = known + level * rng.at("known").normal(x.shape).to(x)
        return known.where(memory["keep"], x)

    return after
