"""Elucidating the Design Space of Diffusion-Based Generative Models: checkpoints (Karras et al., 2022). arXiv:2206.00364

The `.pkl` files of NVlabs/edm, read without running the code that is in them, as an `edm` with the network `song-unet` (DDPM++,
NCSN++) or `adm`; written as a `.pt` of the same names. Rows of queries, keys and values are interleaved. Their resampling
filters must be ours, which are computed. ADM's labels become a table of their map's columns, with zeros for "no class".

The file says no dropout: that of the released models is taken.

Errors: networks with the preconditioning of VP, VE or iDDPM.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gencli.bundle import Run
from gencli.converters._official import Found, Given, Names, count, images
from gencli.converters._persistent import Persistent, square
from gencli.converters._ways import INTERLEAVED, NULL_LAST, POINT2, TURNED, Way
from gencli.models.diffusion.edm import Edm as Model
from gencli.models.diffusion.edm2 import Edm2
from gencli.networks._resample_blocks import BOX, Stage, kernel
from gencli.networks.adm import Adm
from gencli.networks.song_unet import SongUNet

FIR = (1.0, 3.0, 3.0, 1.0)


class Edm(Persistent):
    """EDM."""

    precondition: ClassVar[str] = "EDMPrecond"
    names: ClassVar[Names] = (
        (r"^net\.frequencies$", "model.map_noise.freqs"),
        (r"^net\.(label|augment)\.", r"model.map_\1."),
        (r"^net\.(path\.time\.0|time1)\.", "model.map_layer0."),
        (r"^net\.(path\.time\.2|time2)\.", "model.map_layer1."),
        (r"^net\.(norm|conv)_out\.", r"model.out_\1."),
        (r"\.norm1\.", ".norm0."),
        (r"\.norm2\.", ".norm1."),
        (r"\.conv1\.", ".conv0."),
        (r"\.conv2\.", ".conv1."),
        (r"\.look\.norm\.", ".norm2."),
        (r"\.look\.out\.", ".proj."),
        (r"\.(block|look)\.", "."),
        (r"\.level\.", ".affine."),
        (r"\.shortcut\.", ".skip."),
    )

    def ways_of(self, model: Any) -> tuple[tuple[str, Way], ...]:
        table = ((r"^net\.label\.weight$", TURNED.then(NULL_LAST)),) if isinstance(model.net, Adm) else ()
        return (
            (r"\.qkv\.weight$", POINT2.then(INTERLEAVED)),
            (r"\.qkv\.bias$", INTERLEAVED),
            (r"\.look\.out\.weight$", POINT2),
            *table,
        )

    def fits(self, run: Run) -> bool:
        model = run.model
        if not isinstance(model, Model) or isinstance(model, Edm2):
            return False
        return isinstance(model.net, (SongUNet, Adm)) and run.spec.x.shape[1] == run.spec.x.shape[2]

    def places(self, model: Any) -> Mapping[str, str]:
        side = model.spec.x.shape[1]
        return _adm(model.net, side) if isinstance(model.net, Adm) else _song(model.net, side)

    def fixed(self, model: Any) -> Mapping[str, Tensor]:
        net, places = model.net, self.places(model)
        taps = BOX if isinstance(net, Adm) else net.config.filter
        moves = [name for name in places.values() if name.endswith(("_down", "_up"))]
        layers = [f"{name}.{layer}" for name in moves for layer in ("conv0", "skip")]
        layers += [name for name in places.values() if name.endswith("_aux_residual")]
        if isinstance(net, SongUNet) and net.config.decoder == "skip":
            layers += [name.replace("_aux_norm", "_aux_up") for name in places.values() if name.endswith("_aux_norm")][
                1:
            ]
        if isinstance(net, SongUNet) and net.config.encoder == "skip":
            layers += [name.replace("_aux_skip", "_aux_down") for name in places.values() if name.endswith("_aux_skip")]
        return {f"{layer}.resample_filter": kernel(taps) for layer in layers}

    def recognise(self, given: Given, where: Path) -> Found:
        sides = self.sides(given, "model.", where)
        first = f"model.enc.{square(sides[0])}"
        conv = self.need(given, f"{first}_conv.weight", where)
        adm = "model.out_conv.weight" in given
        width = len(conv)
        if adm:
            width = self.need(given, "model.map_layer0.weight", where).shape[1]
        wide = [len(self.need(given, f"model.enc.{square(s)}_block0.conv0.weight", where)) for s in sides]
        classes = given["model.map_label.weight"].shape[1] if "model.map_label.weight" in given else 0
        net: dict[str, Any] = {
            "width": width,
            "mults": [w // width for w in wide],
            "blocks": count(given, rf"^model\.enc\.{square(sides[0])}_block(\d+)\."),
            "attention": [s for s in sides if f"model.enc.{square(s)}_block0.qkv.weight" in given],
        }
        if adm:
            net |= {"name": "adm", "head_width": 64, "dropout": 0.1}
        else:
            net |= {"name": "song-unet", "dropout": 0.13 if sides[0] == 32 else 0.05} | self._style(given)
        augment = (0.12 if sides[0] == 32 else 0.15) if "model.map_augment.weight" in given else 0.0
        lr = {"adm": 1e-4}.get(net["name"], 1e-3 if sides[0] == 32 else 2e-4)
        recipe = {
            "recipe": "edm",
            "model": {"name": "edm", "augment": augment, "label_dropout": 0.0, "net": net},
            "data": {"name": "folder", "image_size": sides[0]},
            "train": {"batch_size": 512, "lr": lr, "ema": 0.0, "ema_decay": 0.99929},
            "sample": {"name": "heun", "steps": 18 if sides[0] == 32 else 40},
        }
        said = f"dropout {net['dropout']:g}" + (f", augmented with probability {augment:g}" if augment else "")
        return Found(recipe, images(sides[0], conv.shape[1], classes), said)

    def _style(self, given: Given) -> dict[str, Any]:
        """What a SongUNet adds of the image, and how it resamples."""
        kinds = {"_aux_residual.weight": "residual", "_aux_skip.weight": "skip"}
        encoder = next((kind for end, kind in kinds.items() if any(n.endswith(end) for n in given)), "standard")
        heads = sum(name.endswith("_aux_conv.weight") for name in given)
        long = any(name.endswith("resample_filter") and value.shape[-1] == len(FIR) for name, value in given.items())
        return {
            "embedding": "fourier" if "model.map_noise.freqs" in given else "positional",
            "encoder": encoder,
            "decoder": "skip" if heads > 1 else "standard",
            "filter": list(FIR if long else BOX),
        }


def _song(net: SongUNet, side: int) -> dict[str, str]:
    made = {"net.conv_in": f"model.enc.{square(side)}_conv"}
    levels = len(net.up)
    for i in range(levels):
        s = side >> i
        here = f"model.enc.{square(s)}"
        made |= {
            f"net.down.{i}.enter.block": f"{here}_down",
            f"net.down.{i}.enter.shrink.conv": f"{here}_aux_residual",
            f"net.down.{i}.enter.add": f"{here}_aux_skip",
        }
        made |= {f"net.down.{i}.stages.{j}": f"{here}_block{j}" for j in range(net.config.blocks)}
    made |= _bottom("net.middle", side >> (levels - 1))
    for k in range(levels):
        s = side >> (levels - 1 - k)
        here = f"model.dec.{square(s)}"
        made |= {f"net.up.{k}.stages.{j}": f"{here}_block{j}" for j in range(net.config.blocks + 1)}
        made |= {f"net.up.{k}.head.{part}": f"{here}_aux_{part}" for part in ("norm", "conv")}
        made[f"net.up.{k}.leave"] = f"model.dec.{square(2 * s)}_up"
    real = {name for name, _ in net.named_modules(prefix="net")}
    return {ours: theirs for ours, theirs in made.items() if ours in real}


def _adm(net: Adm, side: int) -> dict[str, str]:
    made, s, block = {"net.path.conv_in": f"model.enc.{square(side)}_conv"}, side, 0
    for i, stage in enumerate(net.path.down):
        if isinstance(stage, Stage):
            made[f"net.path.down.{i}"] = f"model.enc.{square(s)}_block{block}"
            block += 1
        else:
            s, block = s // 2, 0
            made[f"net.path.down.{i}"] = f"model.enc.{square(s)}_down"
    made |= _bottom("net.path.middle", s)
    for i, stage in enumerate(net.up):
        assert isinstance(stage, Stage), "an expanding path is made of stages"
        made[f"net.up.{i}"] = f"model.dec.{square(s)}_block{i % (net.config.blocks + 1)}"
        if stage.leave is not None:
            s *= 2
            made[f"net.up.{i}.leave"] = f"model.dec.{square(s)}_up"
    return made


def _bottom(ours: str, side: int) -> dict[str, str]:
    return {f"{ours}.{i}": f"model.dec.{square(side)}_in{i}" for i in range(2)}
