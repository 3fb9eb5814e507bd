"""Improved Techniques for Training Score-Based Generative Models: checkpoints (Song & Ermon, 2020). arXiv:2006.09011

The `.pth` files of ermongroup/ncsnv2 as an `ncsnv2` with the network `refinenet`, and back: CIFAR-10, CelebA, LSUN, FFHQ.
A training checkpoint is a list, whose last element is the average.

The levels are those of the file's `sigmas`, which must be ours. From their number follow what the file does not say: the side
(232: 32×32, 500: 64, 788: 96, 1,086: 128, 2,311: 256) and the steps of Langevin dynamics; `--image-size` says it otherwise.

Errors: a file without `sigmas`; an unknown number of them without `--image-size`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gencli.bundle import Run
from gencli.converters._official import Found, Given, Names, Official, images
from gencli.converters._ways import Way, each, joined
from gencli.errors import GencliError
from gencli.models.diffusion.ncsnv2 import Ncsnv2 as Model
from gencli.networks.refinenet import RefineNet

RELEASED = {  # number of levels: side, Langevin steps at each, their size ε
    232: (32, 5, 6.2e-6),
    500: (64, 5, 3.3e-6),
    788: (96, 4, 4.9e-6),
    1086: (128, 3, 1.8e-6),
    2311: (256, 3, 9e-7),
}
STAGES = {4: ("1", "2", "3", "4"), 5: ("1", "2", "3", "4", "5"), 6: ("1", "2", "3", "31", "4", "5")}


class Ncsnv2(Official):
    """NCSNv2."""

    names: ClassVar[Names] = (
        (r"^net\.conv_in\.", "begin_conv."),
        (r"^net\.conv_out\.", "end_conv."),
        (r"^net\.norm_out\.", "normalizer."),
        (r"\.norm([12])\.", r".normalize\1."),
        (r"\.table\.weight$", ".{}"),
        (r"\.after\.", ".output_convs."),
        (r"\.adapt\.", ".adapt_convs."),
        (r"\.convs\.(\d+)\.", lambda m: f".{int(m[1]) // 2 + 1}_{int(m[1]) % 2 + 1}_conv."),
        (r"\.joins\.", ".msf.convs."),
        (r"\.pools\.", ".crp.convs."),
    )
    ways: ClassVar[Sequence[tuple[str, Way]]] = (
        (r"\.table\.weight$", joined("gamma", "alpha", "beta").then(each(lambda t: t[None], lambda t: t[0]))),
    )

    own: ClassVar[Sequence[str]] = (r"^widest$",)

    def fits(self, run: Run) -> bool:
        net = getattr(run.model, "net", None)
        return (
            isinstance(run.model, Model)
            and isinstance(net, RefineNet)
            and not net.config.conditional
            and not run.spec.cond
            and net.config.depth in STAGES
        )

    def places(self, model: Any) -> Mapping[str, str]:
        net = model.net
        made: dict[str, str] = {}
        names = STAGES[net.config.depth]
        for i, (stage, name) in enumerate(zip(net.stages, names, strict=True)):
            made |= {f"net.stages.{i}": f"res{name}", f"net.refine.{i}": f"refine{name}"}
            pooled = [j for j, block in enumerate(stage) if block.pools]
            for j in pooled:
                at, theirs = f"net.stages.{i}.{j}", f"res{name}.{j}"
                made |= {f"{at}.{layer}": f"{theirs}.{layer}.conv" for layer in ("conv2", "shortcut")}
        return made

    def fixed(self, model: Any) -> Mapping[str, Tensor]:
        return {"sigmas": model.levels.float()}

    def unpacked(self, held: Any, path: Path) -> dict[str, Tensor]:
        if not (isinstance(held, list) and held):
            return super().unpacked(held, path)
        average = super().unpacked(held[-1], path)  # of parameters alone
        first = super().unpacked(held[0], path)
        return {**first, **average} if first.keys() >= average.keys() else average

    def recognise(self, given: Given, where: Path) -> Found:
        sigmas = self.need(given, "sigmas", where)
        side, inner, size = RELEASED.get(len(sigmas), (0, 5, 6.2e-6))
        side = self.config.image_size or side
        if not side:
            raise GencliError(
                f"{where} has {len(sigmas)} noise levels, as no released model has", "say the side: --image-size 64"
            )
        depth = max(
            (d for d, names in STAGES.items() if all(f"res{n}.0.conv1.weight" in given for n in names)), default=4
        )
        conv = self.need(given, "begin_conv.weight", where)
        recipe = {
            "recipe": "ncsnv2",
            "model": {
                "name": "ncsnv2",
                "sigma_begin": float(sigmas[0]),
                "sigma_end": float(f"{float(sigmas[-1]):.6g}"),
                "noise_levels": len(sigmas),
                "inner": inner,
                "net": {"name": "refinenet", "width": len(conv), "depth": depth, "conditional": False},
            },
            "data": {"name": "folder", "image_size": side},
            "train": {"batch_size": 128, "lr": 1e-4, "ema": 0.0, "ema_decay": 0.999, "flip": True},
            "sample": {"name": "annealed-langevin", "inner": inner, "step_size": 2e4 * size, "clip": False},
        }
        return Found(
            recipe, images(side, conv.shape[1]), f"{side}×{side}, {inner} Langevin steps of ε {size:g} at a level"
        )
