"""Diffusion Models Beat GANs on Image Synthesis: released checkpoints (Dhariwal & Nichol, 2021). arXiv:2105.05233

The `.pt` files of openai/guided-diffusion, as an `iddpm` with the network `adm`, and back: 64×64 … 512×512, with or without
classes. Their rows of queries, keys and values go by head first, but for the released 64×64 model of classes.

The file says every width, but neither schedule nor heads: those of the released model of that size are taken (at 64×64 cosine,
else linear; heads of 64 channels, at 128×128 four). Theirs has no row for "no class": ours is zeros, and not written back.

Classifiers are a `noisy-classifier`, to be guided by: `gencli sample RUN --class 3 --classifier NAME`.

Errors: the models of larger images given smaller ones, which take 6 channels; classifiers of other multiples than released.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.converters._adm import AdmNames, Need, contracting, network, settings, side_of
from gencli.converters._official import Found, Given, count, images
from gencli.errors import GencliError
from gencli.models.diffusion.iddpm import Iddpm
from gencli.networks.adm_encoder import AdmEncoder

SIDES: dict[tuple[float, ...], int] = {
    (1, 2, 3, 4): 64,
    (1, 1, 2, 3, 4): 128,
    (1, 1, 2, 2, 4, 4): 256,
    (0.5, 1, 1, 2, 2, 4, 4): 512,
}
POOL = "out.2.c_proj.weight"  # a classifier has it
NEW_ORDER = 64  # the side whose released model has the new order of rows


class GuidedDiffusion(AdmNames):
    """ADM."""

    levels: ClassVar[int] = 1000

    def fits(self, run: Run) -> bool:
        return isinstance(getattr(run.model, "net", None), AdmEncoder) or super().fits(run)

    def told(self, run: Run) -> bool:
        return isinstance(run.model, Iddpm) and run.model.config.timesteps == self.levels

    def legacy(self, model: Any) -> bool:
        return isinstance(model.net, AdmEncoder) or bool(model.spec.x.shape[1] != NEW_ORDER)

    def output(self, model: Any, given: Given) -> Tensor:
        if isinstance(model.net, AdmEncoder):
            return torch.as_tensor(model.net(given["x"].float(), given["level"].float()))
        return super().output(model, given)

    def recognise(self, given: Given, where: Path) -> Found:
        need = lambda name: self.need(given, name, where)  # noqa: E731
        if POOL in given:
            return self._classifier(need, given, where)
        found = settings(need, given)
        if found["inputs"] != 3:
            raise GencliError(
                f"{where} takes {found['inputs']} channels: it enlarges images, for which gencli has no counterpart",
                "choose a model of images alone",
            )
        side = side_of(found["mults"], SIDES, self.config.image_size, where)
        heads = {"head_width": 0, "heads": 4} if side == 128 else {"head_width": 64}
        schedule = "cosine" if side == 64 else "linear"
        model = {
            "name": "iddpm",
            "timesteps": self.levels,
            "schedule": schedule,
            "loss": "hybrid" if found["learned"] else "simple",
            "label_dropout": 0.0,
            "net": network(found, side, **heads, dropout=0.1 if side == 64 else 0.0),
        }
        train = {"batch_size": 2048 if side == 64 else 256, "lr": 3e-4 if side == 64 else 1e-4, "ema": 0.0}
        recipe = {
            "recipe": "iddpm",
            "model": model,
            "data": {"name": "folder", "image_size": side},
            "train": {**train, "ema_decay": 0.9999, "optimizer": "adamw", "flip": True},
            "sample": {"name": "ancestral", "steps": 250},
        }
        order = "new" if side == NEW_ORDER else "legacy"
        heads_said = "4 heads" if side == 128 else "heads of 64 channels"
        said = f"{side}×{side}, {self.levels} levels, schedule {schedule}, {heads_said}, {order} order of rows"
        return Found(recipe, images(side, classes=found["classes"]), said)

    def _classifier(self, need: Need, given: Given, where: Path) -> Found:
        """The one of the released that has as many blocks of these widths."""
        number = count(given, r"^input_blocks\.(\d+)\.") - 1  # after the first layer
        fitting = []
        for mults, side in SIDES.items():
            blocks, rest = divmod(number - (len(mults) - 1), len(mults))
            if blocks > 0 and not rest:
                found = contracting(need, given, blocks, len(mults))
                fitting += [(found, side)] if tuple(found["mults"]) == mults and found["levels"] else []
        if not fitting:
            raise GencliError(
                f"{where} is a classifier of {number} blocks, as none of the released ones", "choose a released one"
            )
        found, released = fitting[0]
        side = self.config.image_size or released
        schedule = "cosine" if side == 64 else "linear"
        net = network(found, side, name="adm-encoder", head_width=64)
        recipe = {
            "recipe": "noisy-classifier",
            "model": {"name": "noisy-classifier", "timesteps": self.levels, "schedule": schedule, "net": net},
            "data": {"name": "folder", "image_size": side},
            "train": {
                "batch_size": 256,
                "lr": 3e-4,
                "optimizer": "adamw",
                "weight_decay": 0.05,
                "ema": 0.0,
                "flip": True,
            },
        }
        said = f"{side}×{side}, {self.levels} levels, schedule {schedule}, heads of 64 channels"
        return Found(recipe, images(side, found["inputs"], len(given[POOL])), said)
