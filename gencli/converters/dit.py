"""Scalable Diffusion Models with Transformers: released checkpoints (Peebles & Xie, 2022). arXiv:2212.09748

The `.pt` files of facebookresearch/DiT, the released ones and those of its `train.py` (their averages, under `ema`), as an
`iddpm` with the network `dit`, and back. The model is of an autoencoder's latents, which the file has not: `--codec RUN` names
it, such as Stable Diffusion's (`gencli convert FILE --from ldm`). Its deviation becomes 1/0.18215, by which DiT's
latents are scaled.

`pos_embed` must be ours, which are computed. The file says no number of heads: theirs are as of the released widths, else 64
channels wide. Guidance is of all channels of the latent, where their sampler guides the first three.

Errors: no `--codec`, or one whose latents are not of the size that the positions say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gencli.bundle import Run
from gencli.converters._latents import Scaling, latents_of
from gencli.converters._official import Found, Given, Names, Official, count
from gencli.models.diffusion.iddpm import Iddpm
from gencli.networks.dit import DiT

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
SCALING = Scaling((), (1 / 0.18215,))


class Dit(Official):
    """DiT."""

    names: ClassVar[Names] = (
        (r"^net\.patches\.", "x_embedder.proj."),
        (r"^net\.time\.", "t_embedder.mlp."),
        (r"^net\.label\.", "y_embedder.embedding_table."),
        (r"^net\.modulation\.", "final_layer.adaLN_modulation.1."),
        (r"^net\.last\.", "final_layer.linear."),
        (r"^net\.blocks\.(\d+)\.(qkv|proj)\.", r"blocks.\1.attn.\2."),
        (r"^net\.blocks\.(\d+)\.up\.", r"blocks.\1.mlp.fc1."),
        (r"^net\.blocks\.(\d+)\.down\.", r"blocks.\1.mlp.fc2."),
        (r"^net\.blocks\.(\d+)\.modulation\.", r"blocks.\1.adaLN_modulation.1."),
    )

    def fits(self, run: Run) -> bool:
        net = getattr(run.model, "net", None)
        return isinstance(run.model, Iddpm) and isinstance(net, DiT) and run.model.config.timesteps == 1000

    def fixed(self, model: Any) -> Mapping[str, Tensor]:
        return {"pos_embed": model.net.positions.detach()[None].float()}

    def recognise(self, given: Given, where: Path) -> Found:
        kernel, last = (self.need(given, key, where) for key in ("x_embedder.proj.weight", "final_layer.linear.weight"))
        width, channels, patch = kernel.shape[0], kernel.shape[1], kernel.shape[2]
        side = math.isqrt(self.need(given, "pos_embed", where).shape[1]) * patch
        classes = len(self.need(given, "y_embedder.embedding_table.weight", where)) - 1
        net = {
            "name": "dit",
            "patch": patch,
            "width": width,
            "depth": count(given, r"^blocks\.(\d+)\."),
            "heads": HEADS.get(width, max(width // 64, 1)),
            "mlp": len(self.need(given, "blocks.0.mlp.fc1.weight", where)) / width,
        }
        learned = len(last) == 2 * channels * patch**2
        codec, inner, spec = latents_of(self.config.codec, (channels, side, side), classes, SCALING, where)
        recipe = {
            "recipe": "iddpm",
            "model": {
                "name": "iddpm",
                "timesteps": 1000,
                "schedule": "linear",
                "loss": "hybrid" if learned else "simple",
                "net": net,
            },
            "data": {"name": "folder", "image_size": spec.x.shape[1]},
            "codecs": [{"name": "learned"}],
            "train": {
                "batch_size": 256,
                "lr": 1e-4,
                "optimizer": "adamw",
                "ema": 0.0,
                "ema_decay": 0.9999,
                "flip": True,
            },
            "sample": {"name": "ancestral", "steps": 250, "guidance": 4.0},
        }
        return Found(recipe, spec, f"1000 levels, schedule linear, {net['heads']} heads", codec, inner)
