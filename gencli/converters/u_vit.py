"""All are Worth Words: released checkpoints (Bao et al., 2022). arXiv:2209.12152

The `nnet_ema.pth` files of baofff/U-ViT that are of images, as a `score-sde` (VP) with the network `uvit`, and back: CIFAR-10,
CelebA 64×64 and ImageNet 64×64, whose classes get a row of zeros for "no class".

The file says no number of heads: 64 channels wide.

Errors: models of latents, whose schedule (√β linear from 0.00085 to 0.012) no model of ours has; models of texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from gencli.bundle import Run
from gencli.converters._official import Found, Given, Names, Official, count, images
from gencli.converters._ways import NULL_LAST, ROW, Way
from gencli.errors import GencliError
from gencli.models.diffusion.score_sde import ScoreSde
from gencli.networks.uvit import UViT

HEAD = 64


class UVit(Official):
    """U-ViT."""

    names: ClassVar[Names] = (
        (r"^net\.patches\.", "patch_embed.proj."),
        (r"^net\.label\.", "label_emb."),
        (r"^net\.positions$", "pos_embed"),
        (r"^net\.down\.", "in_blocks."),
        (r"^net\.up\.", "out_blocks."),
        (r"^net\.middle\.", "mid_block."),
        (r"^net\.norm\.", "norm."),
        (r"^net\.last\.", "decoder_pred."),
        (r"^net\.conv\.", "final_layer."),
        (r"\.skip\.", ".skip_linear."),
        (r"(blocks\.\d+|block)\.(qkv|proj)\.", r"\1.attn.\2."),
        (r"(blocks\.\d+|block)\.up\.", r"\1.mlp.fc1."),
        (r"(blocks\.\d+|block)\.down\.", r"\1.mlp.fc2."),
    )
    ways: ClassVar[Sequence[tuple[str, Way]]] = ((r"^net\.positions$", ROW), (r"^net\.label\.weight$", NULL_LAST))

    def fits(self, run: Run) -> bool:
        model = run.model
        return isinstance(model, ScoreSde) and isinstance(model.net, UViT) and model.config.sde == "vp"

    def recognise(self, given: Given, where: Path) -> Found:
        kernel = self.need(given, "patch_embed.proj.weight", where)
        width, channels, patch = kernel.shape[0], kernel.shape[1], kernel.shape[2]
        if channels != 3:
            raise GencliError(
                f"{where} is a model of {channels} channels, of latents; gencli has not the schedule that they are told by",
                "choose the one of CIFAR-10, CelebA or ImageNet 64×64",
            )
        classes = len(given["label_emb.weight"]) if "label_emb.weight" in given else 0
        extra = 1 + bool(classes)
        side = math.isqrt(self.need(given, "pos_embed", where).shape[1] - extra) * patch
        net: dict[str, Any] = {
            "name": "uvit",
            "patch": patch,
            "width": width,
            "depth": 2 * count(given, r"^in_blocks\.(\d+)\."),
            "heads": max(width // HEAD, 1),
            "mlp": len(self.need(given, "mid_block.mlp.fc1.weight", where)) / width,
            "qkv_bias": "mid_block.attn.qkv.bias" in given,
            "conv": "final_layer.weight" in given,
        }
        recipe = {
            "recipe": "score-sde",
            "model": {"name": "score-sde", "sde": "vp", "label_dropout": 0.0, "net": net},
            "data": {"name": "folder", "image_size": side},
            "train": {
                "batch_size": 1024 if classes else 128,
                "lr": 3e-4 if classes else 2e-4,
                "optimizer": "adamw",
                "betas": [0.99, 0.99 if side > 32 else 0.999],
                "weight_decay": 0.03,
                "warmup": 5000 if side > 32 else 2500,
                "ema": 0.0,
                "ema_decay": 0.9999,
            },
            "sample": {"name": "reverse-sde", "steps": 1000},
        }
        return Found(recipe, images(side, channels, classes), f"VP from 0.1 to 20, {net['heads']} heads")
