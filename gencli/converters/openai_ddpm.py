"""Denoising Diffusion Probabilistic Models: checkpoints in PyTorch (Ho, Jain & Abbeel, 2020). arXiv:2006.11239

The `.ckpt` files of ermongroup/ddim, which are DDPM's of CIFAR-10, CelebA and LSUN, as a `ddpm` with the network `unet`, and
back: one head, norms of 32 groups, 1,000 levels, linear. A training checkpoint is a list, whose last element is the average.

The file says no side: feature maps with attention are 16×16.

Errors: a network without attention, whose images' side `--image-size` must say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gencli.bundle import Run
from gencli.converters._official import Found, Given, Names, Official, count, images
from gencli.converters._ways import POINT2, Way
from gencli.errors import GencliError
from gencli.models.diffusion.ddpm import Ddpm
from gencli.networks.unet import UNet

LOOKS = 16  # the side of feature maps with attention


class OpenaiDdpm(Official):
    """DDPM."""

    names: ClassVar[Names] = (
        (r"^net\.time1\.", "temb.dense.0."),
        (r"^net\.time2\.", "temb.dense.1."),
        (r"^net\.middle\.0\.", "mid.block_1."),
        (r"^net\.middle\.1\.", "mid.attn_1."),
        (r"^net\.middle\.2\.", "mid.block_2."),
        (r"\.blocks\.", ".block."),
        (r"\.attentions\.", ".attn."),
        (r"(attn[._]\d+)\.out\.", r"\1.proj_out."),
        (r"^(down\.\d+)\.resample\.", r"\1.downsample.conv."),
        (r"^(up\.\d+)\.resample\.", r"\1.upsample.conv."),
        (r"\.level\.", ".temb_proj."),
        (r"\.shortcut\.", ".nin_shortcut."),
        (r"^net\.", ""),
    )
    ways: ClassVar[tuple[tuple[str, Way], ...]] = ((r"(attentions\.\d+|middle\.1)\.(q|k|v|out)\.weight$", POINT2),)

    def fits(self, run: Run) -> bool:
        net = getattr(run.model, "net", None)
        return isinstance(run.model, Ddpm) and isinstance(net, UNet) and net.label is None

    def places(self, model: Any) -> Mapping[str, str]:
        levels = len(model.net.up)
        made = {f"net.down.{i}": f"down.{i}" for i in range(levels)}
        return made | {f"net.up.{i}": f"up.{levels - 1 - i}" for i in range(levels)}

    def unpacked(self, held: Any, path: Path) -> dict[str, Tensor]:
        return super().unpacked(held[-1] if isinstance(held, list) and held else held, path)

    def recognise(self, given: Given, where: Path) -> Found:
        width = len(self.need(given, "conv_in.weight", where))
        levels = count(given, r"^down\.(\d+)\.")
        wide = [len(self.need(given, f"down.{i}.block.0.conv2.weight", where)) for i in range(levels)]
        looks = [i for i in range(levels) if f"down.{i}.attn.0.q.weight" in given]
        if not looks and not self.config.image_size:
            raise GencliError(f"{where} has no attention, which would say the side of its images", "add --image-size")
        side = self.config.image_size or LOOKS * 2 ** looks[0]
        net = {
            "name": "unet",
            "width": width,
            "mults": [w // width for w in wide],
            "blocks": count(given, r"^down\.0\.block\.(\d+)\."),
            "attention": [side // 2**i for i in looks],
            "groups": 32,
            "dropout": 0.1 if side == 32 else 0.0,
        }
        recipe = {
            "recipe": "ddpm",
            "model": {"name": "ddpm", "timesteps": 1000, "schedule": "linear", "variance": "large", "net": net},
            "data": {"name": "folder", "image_size": side},
            "train": {
                "batch_size": 128 if side < 256 else 64,
                "lr": 2e-4 if side < 256 else 2e-5,
                "clip": 1.0,
                "ema": 0.0,
                "ema_decay": 0.9999,
                "flip": True,
            },
            "sample": {"name": "ddim", "steps": 100},
        }
        channels = self.need(given, "conv_in.weight", where).shape[1]
        return Found(recipe, images(side, channels), f"{side}×{side}, 1000 levels, schedule linear")
