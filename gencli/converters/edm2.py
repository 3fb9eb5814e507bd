"""Analyzing and Improving the Training Dynamics of Diffusion Models: checkpoints (Karras et al., 2023). arXiv:2312.02696

The `.pkl` files of NVlabs/edm2, read without running the code that is in them, as an `edm2` with the network `edm2-unet`, and
back as a `.pt` of the same names; the log-variance of the loss, which only training needs, is kept.

Networks of 512×512 are of latents: `--codec RUN` names the autoencoder, into whose first and last layers go the mean and
deviation of each channel that EDM2 takes out of them.

The file says no dropout, which is taken to be 0 (released from M on: 0.1).

Errors: no `--codec`, or one whose latents are of another size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gencli.bundle import Run
from gencli.converters._latents import Scaling, latents_of
from gencli.converters._official import Found, Given, Names, count, images
from gencli.converters._persistent import Persistent, square
from gencli.converters._ways import Way
from gencli.models.diffusion.edm2 import Edm2 as Model
from gencli.networks.edm2_unet import Edm2UNet

SCALING = Scaling((5.81, 3.25, 0.12, -2.15), tuple(2 * std for std in (4.17, 4.62, 3.71, 3.28)))  # deviation ½


class Edm2(Persistent):
    """EDM2."""

    precondition: ClassVar[str] = "Precond"
    names: ClassVar[Names] = (
        (r"^(net\.)waves\.frequency$", "unet.emb_fourier.freqs"),
        (r"^(net\.)waves\.phase$", "unet.emb_fourier.phases"),
        (r"^log_variance\.waves\.frequency$", "logvar_fourier.freqs"),
        (r"^log_variance\.waves\.phase$", "logvar_fourier.phases"),
        (r"^log_variance\.linear\.", "logvar_linear."),
        (r"^net\.level\.", "unet.emb_noise."),
        (r"^net\.label\.", "unet.emb_label."),
        (r"^net\.gain$", "unet.out_gain"),
        (r"^net\.conv_out\.", "unet.out_conv."),
        (r"\.conv2\.", ".conv_res1."),
        (r"\.conv1\.", ".conv_res0."),
        (r"\.told\.", ".emb_linear."),
        (r"\.gain$", ".emb_gain"),
        (r"\.skip\.", ".conv_skip."),
        (r"\.attention\.", ".attn_"),
    )
    ways: ClassVar[tuple[tuple[str, Way], ...]] = ()

    def fits(self, run: Run) -> bool:
        shape = run.spec.x.shape
        return isinstance(run.model, Model) and isinstance(run.model.net, Edm2UNet) and shape[1] == shape[2]

    def places(self, model: Any) -> Mapping[str, str]:
        s = side = model.spec.x.shape[1]
        made, block = {"net.conv_in": f"unet.enc.{square(side)}_conv"}, 0
        for path, short in (("encoder", "enc"), ("decoder", "dec")):
            if path == "decoder":
                made |= {f"net.middle.{i}": f"unet.dec.{square(s)}_in{i}" for i in range(2)}
                block = 0
            for i, one in enumerate(getattr(model.net, path)):
                if one.resample == "keep":
                    made[f"net.{path}.{i}"] = f"unet.{short}.{square(s)}_block{block}"
                    block += 1
                else:
                    s, block = (s // 2 if one.resample == "down" else s * 2), 0
                    made[f"net.{path}.{i}"] = f"unet.{short}.{square(s)}_{one.resample}"
        return made

    def recognise(self, given: Given, where: Path) -> Found:
        sides = self.sides(given, "unet.", where)
        conv = self.need(given, f"unet.enc.{square(sides[0])}_conv.weight", where)
        width, channels = len(conv), conv.shape[1] - 1
        wide = [len(self.need(given, f"unet.enc.{square(s)}_block0.conv_res0.weight", where)) for s in sides]
        classes = given["unet.emb_label.weight"].shape[1] if "unet.emb_label.weight" in given else 0
        net = {
            "name": "edm2-unet",
            "width": width,
            "mults": [w // width for w in wide],
            "blocks": count(given, rf"^unet\.enc\.{square(sides[0])}_block(\d+)\."),
            "attention": [s for s in sides if f"unet.enc.{square(s)}_block0.attn_qkv.weight" in given],
        }
        latent = channels == len(SCALING.mean)
        model = {
            "name": "edm2",
            "p_mean": -0.4 if latent else -0.8,
            "p_std": 1.0 if latent else 1.6,
            "label_dropout": 0.0,
            "waves": len(self.need(given, "logvar_fourier.freqs", where)),
            "net": net,
        }
        spec = images(sides[0], channels, classes)
        codec: Run | None = None
        inner: dict[str, Tensor] = {}
        if latent:
            codec, inner, spec = latents_of(self.config.codec, (channels, *sides[:1] * 2), classes, SCALING, where)
        recipe: dict[str, Any] = {
            "recipe": "edm2",
            "model": model,
            "data": {"name": "folder", "image_size": spec.x.shape[1]},
            "train": {
                "batch_size": 2048,
                "lr": 1e-2,
                "betas": [0.9, 0.99],
                "warmup": 4883,
                "schedule": "rsqrt",
                "decay_after": 70_000 if latent else 35_000,
                "ema": 0.075,
            },
            "sample": {"name": "heun", "steps": 32},
        }
        if latent:
            recipe["codecs"] = [{"name": "learned"}]
        return Found(recipe, spec, "dropout 0", codec, inner)
