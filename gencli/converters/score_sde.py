"""Score-Based Generative Modeling through SDEs: released checkpoints (Song et al., 2021). arXiv:2011.13456

The `.pth` files of yang-song/score_sde_pytorch with DDPM++ or NCSN++, as a `score-sde` with the network `song-unet`, and back.
A training checkpoint has the averages as a list without names, in the order of the model's parameters; they are what is read.
Layers are numbered in the order in which they are made.

Fourier features mean VE, otherwise VP (sub-VP: `--recipe score-sde-cifar10`). VE's images are taken to [−1, 1], which doubles
its noise: σ from 0.02, and to twice the first of the buffer `sigmas` or that of the released model. Feature maps with attention
are 16×16, which says the side. Left out: `sigmas`.

Errors: DDPM's own network (`NIN_0` in a residual block), which `song-unet` is not; NCSN++ that is told the number of its level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gencli.bundle import Run
from gencli.converters import pt
from gencli.converters._base import stripped
from gencli.converters._official import Found, Given, Names, Official, images
from gencli.converters._ways import TURNED, Way, joined, turned
from gencli.errors import GencliError
from gencli.models.diffusion.score_sde import ScoreSde as Model
from gencli.networks._resample_blocks import BOX
from gencli.networks.song_unet import SongUNet

LOOKS = 16  # the side of feature maps with attention
LARGEST = {32: 50.0, 64: 90.0, 256: 348.0, 1024: 1348.0}  # σ of the released models of each side
FIR = (1.0, 3.0, 3.0, 1.0)
ALL = "all_modules"


class ScoreSde(Official):
    """Score SDE."""

    names: ClassVar[Names] = (
        (r"\.block\.", "."),
        (r"\.norm([12])\.", lambda m: f".GroupNorm_{int(m[1]) - 1}."),
        (r"\.conv([12])\.", lambda m: f".Conv_{int(m[1]) - 1}."),
        (r"\.level\.", ".Dense_0."),
        (r"\.shortcut\.", ".Conv_2."),
        (r"@norm\.", "GroupNorm_0."),
        (r"@qkv\.weight", "NIN_{}.W"),
        (r"@qkv\.bias", "NIN_{}.b"),
        (r"@out\.weight", "NIN_3.W"),
        (r"@out\.bias", "NIN_3.b"),
        (r"^net\.frequencies$", f"{ALL}.0.W"),
    )
    ways: ClassVar[Sequence[tuple[str, Way]]] = (
        (r"\.qkv\.weight$", turned("0", "1", "2")),
        (r"\.qkv\.bias$", joined("0", "1", "2")),
        (r"\.look\.out\.weight$", TURNED),
    )
    left: ClassVar[Sequence[str]] = (r"^sigmas$",)

    def fits(self, run: Run) -> bool:
        net = getattr(run.model, "net", None)
        return isinstance(run.model, Model) and isinstance(net, SongUNet) and net.label is None

    def places(self, model: Any) -> Mapping[str, str]:
        net = model.net
        made: dict[str, str] = {}
        start = int(net.config.embedding == "fourier")
        order = ["net.time1", "net.time2", "net.conv_in"]
        for i, down in enumerate(net.down):
            if down.enter is not None:
                at = f"net.down.{i}.enter"
                order += [f"{at}.block", *[f"{at}.{name}" for name in ("shrink.conv", "add") if _has(down.enter, name)]]
            order += _stages(f"net.down.{i}.stages", down.stages)
        order += ["net.middle.0.block", "net.middle.0.look@", "net.middle.1"]
        for i, up in enumerate(net.up):
            order += _stages(f"net.up.{i}.stages", up.stages)
            order += [f"net.up.{i}.head.norm", f"net.up.{i}.head.conv"] if up.head is not None else []
            order += [f"net.up.{i}.leave"] if up.leave is not None else []
        for number, ours in enumerate(order, start):
            theirs = f"{ALL}.{number}"
            if ours.endswith("@"):
                made |= {f"{ours[:-1]}.{part}": f"{theirs}.@{part}" for part in ("norm", "qkv", "out")}
            else:
                inner = {"conv": ".Conv2d_0", "add": ".Conv_0"}.get(ours.rpartition(".")[2], "")
                made[ours] = theirs + ("" if ".head." in ours else inner)
        return made

    def unpacked(self, held: Any, path: Path) -> dict[str, Tensor]:
        if not (isinstance(held, Mapping) and isinstance(held.get("ema"), Mapping)):
            return super().unpacked(held, path)
        model, averages = stripped(pt.tensors_in(held.get("model"), path)[0]), held["ema"].get("shadow_params")
        names = [name for name in model if name != "sigmas"]
        if isinstance(averages, list) and len(averages) == len(names) - 1:
            names = [name for name in names if name != f"{ALL}.0.W"]  # fixed, and so not averaged
        if not isinstance(averages, list) or [a.shape for a in averages] != [model[name].shape for name in names]:
            raise GencliError(
                f"{path}: its averages are not in the order of its {len(names)} parameters",
                "give the file as it was released",
            )
        return model | dict(zip(names, averages, strict=True))

    def recognise(self, given: Given, where: Path) -> Found:
        fourier = f"{ALL}.0.W" in given
        width = len(self.need(given, f"{ALL}.{2 + fourier}.weight", where))
        channels = given[f"{ALL}.{2 + fourier}.weight"].shape[1]
        plan = _plan(given, 3 + fourier)
        self.need(given, f"{ALL}.{3 + fourier}.Conv_1.weight", where)
        if any(name.endswith("NIN_0.W") and name.replace("NIN_0.W", "Dense_0.weight") in given for name in given):
            raise GencliError(
                f"{where} has DDPM's own network, which is none of gencli's for score SDEs", "choose DDPM++ or NCSN++"
            )
        wide, looks, blocks = _levels(given, plan, 3 + fourier)
        side = self.config.image_size or (LOOKS << looks[0] if looks else 0)
        if not side:
            raise GencliError(f"{where} has no attention, which would say the side of its images", "add --image-size")
        encoder = "residual" if "p" in plan else "skip" if "c" in plan else "standard"
        if encoder != "standard" and not fourier:
            raise GencliError(
                f"{where} is an NCSN++ that is told the number of its level, which no model of gencli's is",
                "choose the continuous one, which has Fourier features",
            )
        net = {
            "name": "song-unet",
            "width": width,
            "mults": [w // width for w in wide],
            "blocks": blocks,
            "attention": [side >> level for level in looks],
            "dropout": 0.1 if side == 32 else 0.0,
            "embedding": "fourier" if fourier else "positional",
            "encoder": encoder,
            "decoder": "skip" if plan.count("n") > 1 else "standard",
            "filter": list(FIR if fourier else BOX),
        }
        recipe: dict[str, Any] = {
            "recipe": "score-sde",
            "model": {"name": "score-sde", "sde": "vp", "label_dropout": 0.0, "net": net},
            "data": {"name": "folder", "image_size": side},
            "train": {
                "batch_size": 128 if side == 32 else 64,
                "lr": 2e-4,
                "warmup": 5000,
                "clip": 1.0,
                "flip": True,
                "ema": 0.0,
                "ema_decay": 0.999 if fourier else 0.9999,
            },
            "sample": {"name": "reverse-sde", "steps": 1000},
        }
        said = f"{side}×{side}"
        if not fourier:
            return Found(recipe, images(side, channels), f"{said}, VP from 0.1 to 20")
        largest = float(given["sigmas"][0]) if "sigmas" in given else LARGEST.get(side, LARGEST[32])
        recipe["model"] |= {"sde": "ve", "least_time": 1e-5, "sigma_min": 0.02, "sigma_max": 2 * largest}
        return Found(recipe, images(side, channels), f"{said}, VE from 0.01 to {largest:g}")


def _has(module: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def _stages(at: str, stages: Any) -> list[str]:
    made = []
    for j, stage in enumerate(stages):
        made.append(f"{at}.{j}.block")
        made += [f"{at}.{j}.look@"] if stage.look is not None else []
    return made


def _plan(given: Given, first: int) -> str:
    """A letter for each layer: b a block, r one that resamples, a attention, p and c the image, n and o an output."""
    made, i = "", first
    while any(
        f"{ALL}.{i}.{name}" in given for name in ("GroupNorm_0.weight", "Conv2d_0.weight", "Conv_0.weight", "weight")
    ):
        at = f"{ALL}.{i}."
        short, conv = given.get(f"{at}Conv_2.weight"), f"{at}GroupNorm_0.weight" in given
        if f"{at}NIN_3.W" in given:
            made += "a"
        elif conv:
            made += "r" if short is not None and short.shape[0] == short.shape[1] else "b"
        elif f"{at}Conv2d_0.weight" in given:
            made += "p"
        elif f"{at}Conv_0.weight" in given:
            made += "c"
        else:
            made += "n" if given[f"{at}weight"].ndim == 1 else "o"
        i += 1
    return made


def _levels(given: Given, plan: str, first: int) -> tuple[list[int], list[int], int]:
    """The channels of each level of the contracting path, the levels with attention, and the blocks of each."""
    parts, wide, looks, at = plan.split("r"), [], [], first
    for level in range(len(parts) // 2 + 1):
        start = at + len(parts[level]) - len(parts[level].lstrip("pc"))
        wide.append(len(given[f"{ALL}.{start}.Conv_1.weight"]))
        looks += [level] if parts[level].lstrip("pc")[1:2] == "a" else []
        at += len(parts[level]) + 1
    return wide, looks, parts[0].count("b")
