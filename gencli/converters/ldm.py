"""High-Resolution Image Synthesis with Latent Diffusion Models: autoencoders (Rombach et al., 2021). arXiv:2112.10752

The `.ckpt` files of CompVis/latent-diffusion: the first stage by itself, or inside a whole model (`first_stage_model.`), whose
other parts are left out; KL as a `kl-autoencoder`, VQ as a `vqgan`, and back. `scale_factor` of a whole model becomes the
latents' deviation; without it that is 1, and DiT and others who know theirs set it.

Left out: the discriminator and the perceptual network (`loss.`), averages, the diffusion model, its schedule and what it
is told.

Errors: an autoencoder without attention in its middle (vq-f4-noattn), which `vqgan-encoder` always has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from gencli.converters._autoencoder import CompVis
from gencli.converters._official import Given

STAGE = "first_stage_model."
SCALE = "scale_factor"


class Ldm(CompVis):
    """The first stage of latent diffusion."""

    left: ClassVar[Sequence[str]] = (
        r"^(loss|model|model_ema|cond_stage_model|first_stage_model_ema)\.",
        r"^(logvar|scale_factor|posterior_\w+|(\w+_)?(betas|alphas_cumprod(_prev)?)|log_one_minus_alphas_cumprod|"
        r"sqrt_recip(m1)?_alphas_cumprod|lvlb_weights)$",
        r"^(model_ema\.)?(decay|num_updates)$",
    )

    def tensors(self, path: Path) -> dict[str, Tensor]:
        return {name.removeprefix(STAGE): value for name, value in super().tensors(path).items()}

    def derived(self, given: Given) -> dict[str, Tensor]:
        if SCALE not in given or "quantize.embedding.weight" in given:
            return {}
        return {"spread.deviation": 1 / given[SCALE].float().reshape(())}
