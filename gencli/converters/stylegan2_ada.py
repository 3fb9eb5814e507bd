"""Training Generative Adversarial Networks with Limited Data: released networks (Karras et al., 2020). arXiv:2006.06676

The `.pkl` files of NVlabs/stylegan2-ada-pytorch, read without running the code that is in them, as a `stylegan2-ada`: the
averaged generator and the discriminator; and back as a `.pt` of the same names, `G_ema.` and `D.` before them.

Left out: `w_avg`, for the mean style is worked out from the weights, for each class; `noise_const`, for noise is a part of
the latent. Resampling filters must be ours, which are computed. The file says no group of the batch's variation: 32 for
32×32, else 4.

Errors: a network of another class under `G_ema` or `D`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli import recipe as recipes
from gencli.bundle import Run
from gencli.config import merge
from gencli.converters import _pickles
from gencli.converters._official import Found, Given, Names, Official, count, images
from gencli.converters._ways import Way
from gencli.models.gan.stylegan2_ada import Stylegan2Ada as Model
from gencli.networks.stylegan2_critic import Stylegan2Critic
from gencli.networks.stylegan2_generator import Stylegan2Generator
from gencli.nn.fir import Fir

PARTS = {"G_ema": "Generator", "D": "Discriminator"}


def strengths(count: int) -> Way:
    """A number of each convolution of a level is one of ours."""
    parts = ("0", "1") if count == 2 else ("1",)
    return Way(lambda given, _: torch.stack(list(given)), lambda ours, _: list(ours.unbind()), parts)


class Stylegan2Ada(Official):
    """StyleGAN2-ADA."""

    names: ClassVar[Names] = (
        (r"^generator\.mapping\.row\.linear\.", "G_ema.mapping.embed."),
        (r"^critic\.mapping\.row\.linear\.", "D.mapping.embed."),
        (r"^generator\.mapping\.layers\.", "G_ema.mapping.fc"),
        (r"^critic\.mapping\.layers\.", "D.mapping.fc"),
        (r"^generator\.constant$", "G_ema.synthesis.b4.const"),
        (r"\.convs\.(\d)\.", r".conv\1."),
        (r"\.picture\.", ".torgb."),
        (r"\.conv\.weight$", ".weight"),
        (r"\.strength$", ".conv{}.noise_strength"),
        (r"\.same\.", ".conv0."),
        (r"\.halving\.", ".conv1."),
    )
    left: ClassVar[Sequence[str]] = (r"\.w_avg$", r"\.noise_const$")
    own: ClassVar[Sequence[str]] = (r"^(pace\.|path_mean)",)
    optional: ClassVar[Sequence[str]] = (r"^critic\.",)

    def fits(self, run: Run) -> bool:
        model, shape = run.model, run.spec.x.shape
        if not isinstance(model, Model) or not isinstance(model.generator, Stylegan2Generator):
            return False
        parts = not model.generator.config.squash
        return parts and isinstance(model.critic, Stylegan2Critic) and shape[1] == shape[2] == _power(shape[1])

    def places(self, model: Any) -> Mapping[str, str]:
        made, grids = {}, model.generator.grids
        for i, (side, _) in enumerate(grids):
            here = f"G_ema.synthesis.b{side}"
            made[f"generator.levels.{i}"] = here
            if i == 0:
                made["generator.levels.0.convs.0"] = f"{here}.conv1"
        for i, (side, _) in enumerate(reversed(grids[1:])):
            made[f"critic.levels.{i}"] = f"D.b{side}"
        made["critic.first"] = f"D.b{grids[-1][0]}.fromrgb"
        ends = {
            "conv": "conv@",
            "dense": "fc",
            "last": "out",
        }  # @ hides a convolution's weight from the rule for styles
        return made | {f"critic.{ours}": f"D.b4.{theirs}" for ours, theirs in ends.items()}

    def ways_of(self, model: Any) -> Sequence[tuple[str, Way]]:
        return ((r"levels\.0\.strength$", strengths(1)), (r"\.strength$", strengths(2)))

    def layout(self, model: Any) -> Any:
        return [line.renamed(lambda name: name.replace("@", "")) for line in super().layout(model)]

    def fixed(self, model: Any) -> Mapping[str, Tensor]:
        kernel = Fir().kernel[0, 0]
        lines = [name for line in self.layout(model) for name in line.theirs]
        convs = [m[1] for name in lines if (m := re.match(r"(.*\.(conv\d?|fromrgb|skip))\.weight$", name))]
        blocks = [m[1] for name in lines if (m := re.match(r"(.*\.b\d+)\.(conv1\.weight)$", name))]
        return {f"{name}.resample_filter": kernel for name in (*convs, *blocks)}

    def tensors(self, path: Path) -> dict[str, Tensor]:
        if path.suffix != ".pkl":
            return super().tensors(path)
        held = _pickles.read(path)
        found = {part: _pickles.module_in(held, part, path) for part in PARTS}
        for part, kind in PARTS.items():
            _pickles.expect(found[part], kind, path)
        return {f"{part}.{name}": value.detach() for part, inner in found.items() for name, value in inner.tensors()}

    def output(self, model: Any, given: Given) -> Tensor:
        """Of latents without noise."""
        z, label = given["x"].float(), {"label": given["label"].long()} if "label" in given else {}
        noise = z.new_zeros(len(z), sum(model.generator.spots))
        return model.decode(torch.cat([z, noise], 1), **label)

    def recognise(self, given: Given, where: Path) -> Found:
        sides = sorted({int(m[1]) for name in given if (m := re.match(r"G_ema\.synthesis\.b(\d+)\.", name))})
        last = self.need(given, f"G_ema.synthesis.b{(sides or [4])[-1]}.conv1.weight", where)
        affine = self.need(given, "G_ema.synthesis.b4.conv1.affine.weight", where)
        embed = given.get("G_ema.mapping.embed.weight")
        classes = 0 if embed is None else embed.shape[1]
        fc = self.need(given, "G_ema.mapping.fc0.weight", where)
        wide = [len(given[f"G_ema.synthesis.b{side}.conv1.weight"]) for side in sides]
        side, size = sides[-1], {"base": sides[-1] * len(last), "most": max(wide)}
        critic = {"residual": f"D.b{side}.skip.weight" in given, "group": 32 if side == 32 else 4}
        layers = count(given, r"^D\.mapping\.fc(\d+)\.")
        tables = {
            "model": {
                "classes": bool(classes),
                "latent": fc.shape[1] - (0 if embed is None else len(embed)),
                "generator": {**size, "style": affine.shape[1], "mapping": count(given, r"^G_ema\.mapping\.fc(\d+)\.")},
                "critic": {**size, **critic, **({"mapping": layers} if layers else {})},
            },
            "data": {"name": "folder", "image_size": side},
        }
        recipe = merge(recipes.load("stylegan2-ada-cifar10" if side == 32 else "stylegan2-ada-256"), tables)
        channels = self.need(given, f"G_ema.synthesis.b{side}.torgb.weight", where).shape[0]
        return Found(recipe, images(side, channels, classes), f"variation over groups of {critic['group']}")


def _power(side: int) -> int:
    """The power of two up to a side."""
    return 1 << (int(side).bit_length() - 1)
