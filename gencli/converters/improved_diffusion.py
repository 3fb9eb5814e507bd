"""Improved Denoising Diffusion Probabilistic Models: released checkpoints (Nichol & Dhariwal, 2021). arXiv:2102.09672

The `.pt` files of openai/improved-diffusion, as an `iddpm` with the network `adm`, and back: ImageNet 64×64 and CIFAR-10 (4,000
levels, cosine) and LSUN 256×256 (1,000, linear). Rows of queries, keys and values go by head first.

The file says every width, but neither schedule nor heads: those of the released models are taken.

Errors: the model of ImageNet's classes, which is told 4,000 levels as they are, where `iddpm` scales them to 1,000; models of
larger images given smaller ones.
"""

from __future__ import annotations

from pathlib import Path

from gencli.bundle import Run
from gencli.converters._adm import AdmNames, network, settings, side_of
from gencli.converters._official import Found, Given, images
from gencli.errors import GencliError
from gencli.models.diffusion.iddpm import Iddpm

SIDES: dict[tuple[float, ...], int] = {(1, 2, 3, 4): 64, (1, 2, 2, 2): 32, (1, 1, 2, 2, 4, 4): 256}


class ImprovedDiffusion(AdmNames):
    """Improved DDPM."""

    def told(self, run: Run) -> bool:
        return isinstance(run.model, Iddpm)

    def recognise(self, given: Given, where: Path) -> Found:
        found = settings(lambda name: self.need(given, name, where), given)
        if found["inputs"] != 3 or found["classes"]:
            what = "takes classes: it is told levels up to 4,000" if found["classes"] else "enlarges images"
            raise GencliError(
                f"{where} {what}, for which gencli has no counterpart", "choose a model of images without classes"
            )
        side = side_of(found["mults"], SIDES, self.config.image_size, where)
        levels, schedule, heads = (1000, "linear", 1) if side == 256 else (4000, "cosine", 4)
        model = {
            "name": "iddpm",
            "timesteps": levels,
            "schedule": schedule,
            "loss": "hybrid" if found["learned"] else "simple",
            "net": network(found, side, head_width=0, heads=heads, dropout=0.3 if side == 32 else 0.0),
        }
        recipe = {
            "recipe": "iddpm",
            "model": model,
            "data": {"name": "folder", "image_size": side},
            "train": {"batch_size": 128, "lr": 1e-4, "optimizer": "adamw", "ema": 0.0, "ema_decay": 0.9999},
            "sample": {"name": "ancestral", "steps": 250},
        }
        said = f"{side}×{side}, {levels} levels, schedule {schedule}, {heads} head{'s' * (heads > 1)}"
        return Found(recipe, images(side), said)
