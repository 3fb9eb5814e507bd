"""RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., 2022). arXiv:2201.09865

Offers: sample

Each step of ancestral sampling is followed by replacement of what is known,

    x_s ← m ⊙ (x_0 + s n) + (1 − m) ⊙ x_s

and every `jump` steps the chain goes back up as many levels by the forward process and down again, `resample` times in all, so
that both halves come to agree. `resample` 1 is plain replacement. The paper's are 250 steps, jump 10, resample 10; ours are
fewer, for laptops. The known image is `known` among the conditions, `keep` is m (true = stays); the result equals it there.

Raises GencliError without a known image and a mask, and for a denoiser whose estimate is not a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Model, Spec
from gencli.errors import GencliError
from gencli.samplers._diffusion import Memory
from gencli.samplers._editing import Editor
from gencli.samplers.ancestral import Ancestral


class Repaint(Editor):
    """Replacement, and jumps back."""

    @dataclass(frozen=True)
    class Config(Ancestral.Config):
        steps: int = opt(50, "levels from noise to data; 0 = every level the model was trained at")
        jump: int = opt(5, "levels that a jump goes back", low=1)
        resample: int = opt(5, "times that the same levels are gone through", low=1)

    def recalled(self, model: Any, spec: Spec, n: int, cond: Batch) -> Memory:
        memory = super().recalled(model, spec, n, cond)
        if "keep" not in memory:
            raise GencliError("sampler repaint was not told what to keep", "add --keep top-half, or a mask")
        return memory

    def levels(self, model: Any) -> Tensor:
        return torch.stack([level for part in self._walk(super().levels(model)) for level in part])

    def _walk(self, plain: Tensor) -> list[list[Tensor]]:
        """The levels in the order of visiting, in pieces of `jump` steps, each gone through `resample` times."""
        jump, last = self.config.jump, len(plain) - 1
        made = [[plain[0]]]
        for start in range(0, last, jump):
            piece = list(plain[start + 1 : min(start + jump, last) + 1])
            made.append(piece)
            for _ in range(self.config.resample - 1):
                made.append([plain[start], *piece])
        return made

    def evaluations(self, model: Model, spec: Spec) -> int:
        levels = self.levels(model)
        return int((levels[1:] < levels[:-1]).sum())
