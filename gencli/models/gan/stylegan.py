"""A Style-Based Generator Architecture for Generative Adversarial Networks (Karras et al., 2018). arXiv:1812.04948

Offers: sample

    x = G(w₁ … w_L, noise),   w = f(z)   (`networks/stylegan_generator.py`, `models/gan/_style.py`)

in the game of `gan`, non-saturating, with R1 of weight γ every turn, between networks that grow as those of `progan`
(`models/gan/_growing.py`); the discriminator is that one's behind a smoother filter. Only layers that draw have their styles
mixed.

Defaults are the released code's for FFHQ: 512 numbers, γ 10, mixing 0.9, the first side 8, 600,000 images at each and as many
while the next is faded in. Ours: truncation is of all layers (there of the first eight); one rate and one batch size for all
sides; what `_growing.py`, `_style.py` and the networks say. Classes are told with `--classes`.

Images `(N, C, H, W)`. Errors: as of the family (`gencli/models/gan/_family.py`) and of the networks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gencli.config import Part, opt, part
from gencli.models.gan._growing import Growing
from gencli.models.gan._style import Styled


class StyleGan(Growing, Styled):
    """Styles in layers that grow."""

    @dataclass(frozen=True)
    class Config(Styled.Config, Growing.Config):
        first: int = opt(1, "doublings of the coarsest grid to begin with", low=0)
        generator: Part = part("networks", "stylegan-generator", "network from styles to x", role="styled")
        critic: Part = part("networks", "progan-critic", "network from x to a score", role="growing", blur=True)

    def drawn(self, w: Tensor, noise: Tensor) -> Tensor:
        return self.ranged(self.generator(w, noise, self.growth).to(noise.dtype))

    @property
    def layers(self) -> int:
        return 2 * (self.growth.top + 1)
