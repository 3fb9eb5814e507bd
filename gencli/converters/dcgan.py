"""Unsupervised Representation Learning with DCGANs: those of PyTorch (Radford et al., 2015). arXiv:1511.06434

`netG_epoch_N.pth`, with `netD_epoch_N.pth` if it lies beside it, as a `dcgan`, and the generator back. Its first transposed
convolution is of one point, a linear layer here. Batch normalisation keeps its running statistics, with which samples are made.

Errors: a discriminator by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gencli.bundle import Run
from gencli.converters._official import Found, Given, Names, Official, count, images
from gencli.converters._ways import Way
from gencli.models.gan.dcgan import DcGan
from gencli.networks.dcgan_critic import DcganCritic
from gencli.networks.dcgan_generator import DcganGenerator

SIDE = 4  # of the smallest maps

FROM_POINT = Way(
    lambda given, _: given[0].flatten(1).T,
    lambda ours, module: [ours.T.reshape(ours.shape[1], -1, SIDE, SIDE)],
)
TO_POINT = Way(
    lambda given, _: given[0].flatten(1),
    lambda ours, module: [ours.reshape(len(ours), -1, SIDE, SIDE)],
)


class Dcgan(Official):
    """DCGAN in torch."""

    names: ClassVar[Names] = (
        (r"^generator\.body\.0\.", "G.main.0."),
        (r"^generator\.body\.(\d+)\.", lambda m: f"G.main.{int(m[1]) - 1}."),
        (r"^critic\.body\.(\d+)\.", r"D.main.\1."),
    )
    optional: ClassVar[Sequence[str]] = (r"^critic\.",)

    def fits(self, run: Run) -> bool:
        model = run.model
        if not isinstance(model, DcGan) or run.spec.cond:
            return False
        parts = (model.generator, model.critic)
        kinds = isinstance(parts[0], DcganGenerator) and isinstance(parts[1], DcganCritic)
        return kinds and all(part.config.kernel == 4 for part in parts) and parts[0].grid == (SIDE, SIDE)

    def ways_of(self, model: Any) -> Sequence[tuple[str, Way]]:
        last = len(model.critic.body) - 2
        return ((r"^generator\.body\.0\.weight$", FROM_POINT), (rf"^critic\.body\.{last}\.weight$", TO_POINT))

    def places(self, model: Any) -> dict[str, str]:
        last = len(model.critic.body) - 2  # there is no flattening there
        return {f"critic.body.{last}": f"D.main.{last - 1}"}

    def tensors(self, path: Path) -> dict[str, Tensor]:
        made = super().tensors(path)
        if any(name.startswith("G.") for name in made):
            return made
        beside = path.with_name(path.name.replace("netG", "netD"))
        critic = super().tensors(beside) if beside != path and beside.is_file() else {}
        return {f"G.{name}": value for name, value in made.items()} | {f"D.{name}": v for name, v in critic.items()}

    def output(self, model: Any, given: Given) -> Tensor:
        return model.decode(given["x"].float().flatten(1))

    def recognise(self, given: Given, where: Path) -> Found:
        first = self.need(given, "G.main.0.weight", where)
        layers = count(given, r"^G\.main\.(\d+)\.weight$")
        ups = (layers - 1) // 3
        last = self.need(given, f"G.main.{3 * ups}.weight", where)
        side = SIDE << ups
        model: dict[str, Any] = {
            "name": "dcgan",
            "latent": len(first),
            "generator": {"name": "dcgan-generator", "width": len(last), "upsamples": ups, "kernel": 4},
            "critic": {"name": "dcgan-critic", "width": len(last), "downsamples": ups, "kernel": 4, "norm": "batch"},
        }
        recipe = {
            "recipe": "dcgan",
            "model": model,
            "data": {"name": "folder", "image_size": side},
            "train": {"batch_size": 64, "lr": 2e-4, "betas": [0.5, 0.999], "ema": 0.0},
        }
        return Found(recipe, images(side, last.shape[1]))
