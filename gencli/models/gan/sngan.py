"""Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018). arXiv:1802.05957

Offers: sample

    every weight of the discriminator W / σ(W), σ its greatest singular value;
    hinge:  D minimises E max(0, 1 − V(x)) + E max(0, 1 + V(G(z))),   G minimises −E V(G(z))

so that V changes by at most as much as its input, layer by layer, without a penalty. σ comes from a power iteration of one step
a training step (`nn/spectral.py`). The objective may also be non-saturating, as in the paper's convolutional networks.

Ours: the power iteration moves once a step, not once a pass, and starts after 15 iterations; the networks are those of `dcgan`
with 5×5 filters, the generator with layer normalisation so that items stay independent.

Images `(N, C, H, W)`. Errors: a discriminator without spectral normalisation, and as of the family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gencli.config import Part, opt, part
from gencli.core import Spec
from gencli.errors import GencliError
from gencli.models.gan._objectives import OBJECTIVES, Objective
from gencli.models.gan._scored import Scored
from gencli.nn.spectral import Spectral


class SnGan(Scored):
    """A discriminator whose layers stretch nothing."""

    @dataclass(frozen=True)
    class Config(Scored.Config):
        objective: Literal["hinge", "non-saturating"] = opt("hinge", "the two losses")
        generator: Part = part("networks", "dcgan-generator", "network from a latent to x", role="map", norm="layer")
        critic: Part = part("networks", "dcgan-critic", "network from x to a score", role="map", norm="spectral")

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        if not any(isinstance(module, Spectral) for module in self.critic.modules()):
            raise GencliError(
                f"sngan needs a discriminator with spectral normalisation, {config.critic.name} has none",
                "give --critic.norm spectral",
            )

    def objective(self) -> Objective:
        return OBJECTIVES[self.config.objective]
