"""Progressive Growing of GANs for Improved Quality, Stability, and Variation (Karras et al., 2017). arXiv:1710.10196

Offers: sample

Both networks begin at the coarsest grid, and layers for twice the sides are faded in one after the other
(`models/gan/_growing.py`). The loss is that of `wgan-gp`, with a drift of 0.001 E f(x)² and one turn of the critic for each of
the generator; equalised rates, pixel norm and the batch's variation are in `networks/progan_generator.py` and
`networks/progan_critic.py`.

Defaults are the released code's: 512 numbers, 600,000 images at each side and as many while the next is faded in; Adam with
rate 1e-3 and betas 0, 0.99, and the average of the generator's weights with a decay of 0.999 are the recipes'. Ours: one batch
size for all sides; classes as an option, which the paper does without; what `_growing.py` says.

Images `(N, C, H, W)`. Errors: as of the family (`gencli/models/gan/_family.py`) and of the networks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gencli.config import Part, opt, part
from gencli.models.gan._growing import Growing
from gencli.models.gan.wgan_gp import WganGp


class ProGan(Growing, WganGp):
    """The sides double as it learns."""

    @dataclass(frozen=True)
    class Config(Growing.Config, WganGp.Config):
        latent: int = opt(512, "numbers in a latent", low=1)
        drift: float = opt(0.001, "weight of the square of what the critic says of data", low=0)
        generator: Part = part("networks", "progan-generator", "network from a latent to x", role="growing")

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        return self.ranged(self.generator(z, growth=self.growth, **cond).to(z.dtype))
