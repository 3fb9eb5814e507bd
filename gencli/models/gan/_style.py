"""What style-based generators share: a latent with its noise, styles that are mixed, truncation towards the mean style.

    w = f(z, y),   x = G(w₁ … w_L, noise),   z ~ N(0, I), noise ~ N(0, I)

The latent is one row of numbers, z and then the noise of all layers, so that it can be cooled and walked like any other. In
training the layers from a random one on have, with probability `mixing`, the style of another z: neighbouring layers then
cannot count on one style. Truncation: w′ = w̄ + ψ (w − w̄), w̄ the mean style of the class over fixed draws of z, worked out
from the weights at hand; a latent of styles is then `{"w": (N, L, style), "noise": (N, …)}`, which `decode` takes too.

Ours: where the styles change is each item's own, in the released codes a batch's; w̄ is no running mean of training, and is a
class's own where there are classes; the image is not squashed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Rng
from gencli.models.gan._objectives import OBJECTIVES, Objective
from gencli.models.gan._scored import Scored

DRAWS, SEED = 4096, 0  # of z, whose mean style truncation moves to


class Styled(Scored):
    """A generator with a mapping to styles."""

    @dataclass(frozen=True)
    class Config(Scored.Config):
        latent: int = opt(512, "numbers in a latent, besides noise", low=1)
        smooth: Literal["none", "r1", "r2", "dragan"] = opt("r1", "penalty on the critic's gradient")
        smooth_weight: float = opt(10.0, "γ of that penalty", low=0)
        mixing: float = opt(0.9, "probability of a second style in training", low=0, high=1)
        generator: Part = part("networks", "stylegan2-generator", "network from styles to x", role="styled")
        critic: Part = part("networks", "stylegan2-critic", "network from x to a score", role="map")

    def objective(self) -> Objective:
        return OBJECTIVES["non-saturating"]

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """A latent and the noise of all layers."""
        size = self.config.latent + sum(self.generator.spots)
        return rng.at("latent").normal((n, size))

    def decode(self, z: Any, **cond: Tensor) -> Tensor:
        """x from a latent, or from styles and noise."""
        styles = z if isinstance(z, dict) else self.styles(z, **cond)
        return self.drawn(styles["w"], styles["noise"])

    def drawn(self, w: Tensor, noise: Tensor) -> Tensor:
        """x from the styles of all layers and their noise, in the data's range."""
        return self.ranged(self.generator(w, noise).to(noise.dtype))

    @property
    def layers(self) -> int:
        """How many layers draw."""
        return int(self.generator.layers)

    def styles(self, z: Tensor, **cond: Tensor) -> dict[str, Tensor]:
        """One style for all layers of an item, and the noise."""
        z, noise = z.split([self.config.latent, z.shape[1] - self.config.latent], 1)
        w = self.generator.style(z, **cond).to(z.dtype)
        return {"w": w[:, None].expand(-1, self.generator.layers, -1), "noise": noise}

    def mixed(self, x: Tensor, rng: Rng, **cond: Tensor) -> dict[str, Tensor]:
        """Styles and noise to learn from, as many as there are data."""
        one = self.styles(self.prior(len(x), rng).to(x), **cond)
        if not self.config.mixing:
            return one
        other = self.styles(self.prior(len(x), rng.at("mixed")).to(x), **cond)
        u, whole = rng.at("mixing").uniform((len(x), 2)).to(x.device), self.generator.layers
        first = torch.where(u[:, 0] < self.config.mixing, 1 + (u[:, 1] * (self.layers - 1)).floor(), whole)
        later = torch.arange(whole, device=x.device) >= first[:, None]
        return {**one, "w": torch.where(later[:, :, None], other["w"], one["w"])}

    def samples(self, x: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        return self.decode(self.mixed(x, rng, **cond))

    def truncate(self, z: Any, amount: float, **cond: Tensor) -> dict[str, Tensor]:
        """Styles nearer to their mean; an amount of 1 leaves them, 0 is the mean."""
        styles = z if isinstance(z, dict) else self.styles(z, **cond)
        mean = self.mean_style(styles["w"], **cond)[:, None]
        return {**styles, "w": mean + amount * (styles["w"] - mean)}

    def mean_style(self, like: Tensor, **cond: Tensor) -> Tensor:
        """`(N, style)` the mean style of each row's class."""
        z = Rng.batch(SEED, "mean style", total=DRAWS).normal((DRAWS, self.config.latent)).to(like)
        if "label" not in cond:
            return self.generator.style(z).mean(0, keepdim=True).expand(len(like), -1)
        classes, rows = cond["label"].unique(return_inverse=True)
        return torch.stack([self.generator.style(z, label=c.expand(DRAWS)).mean(0) for c in classes])[rows]
