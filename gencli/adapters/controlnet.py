"""Adding Conditional Control to Text-to-Image Diffusion Models (Zhang, Rao & Agrawala, 2023). arXiv:2302.05543

Offers: fine-tuning

    F(x, c) = D(e₀(x) + s z(e(x, h(c)))),   F₀ = D ∘ e₀ the U-Net of another run, which is frozen

e is a copy of its contracting path e₀; h an encoder of the image c whose last layer starts at zero, added to what the copy's
first layer makes; and z a 1×1 convolution that starts at zero, for each feature that the expanding path D is given and for the
bottom. e, h and z are trained, by the loss that the run was trained by. At the start the model is the one that it was; so it is
for `scale` s = 0, and where no image is given.

h is convolutions of 3×3 with swish, of widths 16, 32, 96, 256, one more for each halving of the image's sides on the way to
those of x: with three halvings the paper's for latents, 1,086,480 numbers for three colours and 320 channels. The image is told
in [0, 1].

Data are images and their edges, unless they are pairs already (`gencli/data/edges.py`). The copy is of the run's weights if the
run has no such adapter; else its training goes on. Ours: pixels, where the paper has latents.

Raises GencliError for a network without a contracting path, for data without an image, for an image whose sides are not x's
times a power of two, and where an adapter is to be folded into the run's own tensors.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from gencli.adapters._base import Adapter
from gencli.config import opt
from gencli.core import Field, Spec
from gencli.errors import GencliError
from gencli.networks._resample_blocks import zeroed
from gencli.networks.adm import Adm
from gencli.networks.unet import UNet

IMAGE = "image"
PAIRED = ("edges", "pairs")
WIDTHS = (16, 32, 96, 256)
ENCODER = "net.control.encoder."


class Controlnet(Adapter):
    """A second contracting path, which is told an image."""

    @dataclass(frozen=True)
    class Config:
        scale: float = opt(1.0, "what is multiplied with the outputs of the copy; 0 = the model as it was", low=0)

    def data_for(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if data["name"] in PAIRED:
            return data
        return {"name": "edges", "of": data["name"], **{key: value for key, value in data.items() if key != "name"}}

    def narrowed(self, spec: Spec) -> Spec:
        return dataclasses.replace(spec, cond={key: field for key, field in spec.cond.items() if key != IMAGE})

    def apply(self, model: nn.Module, spec: Spec) -> None:
        net, image = getattr(model, "net", None), spec.cond.get(IMAGE)
        if type(net) not in KINDS:
            name = cast(Any, net).public_name() if hasattr(net, "public_name") else type(net).__name__
            raise GencliError(
                f"controlnet: network {name} has no contracting path that can be copied",
                "use a run of a denoiser with --net unet or adm",
            )
        if image is None:
            raise GencliError(
                "controlnet is told images, and the data have none beside x", "give --data edges, or a folder of pairs"
            )
        model.requires_grad_(False)
        control = Control(cast(UNet | Adm, net), image, spec.x, self.config.scale)
        net.__class__ = KINDS[type(net)]
        cast(Any, net).control = control
        owner = cast(Any, model)
        owner.spec = dataclasses.replace(owner.spec, cond={**owner.spec.cond, IMAGE: image})

    def begin(self, model: nn.Module, anew: Collection[str]) -> None:
        own = cast(Any, model).net.control.encoder.state_dict()
        state = model.state_dict()
        with torch.no_grad():
            for name, value in own.items():
                if f"{ENCODER}{name}" in anew:
                    value.copy_(state[f"net.{name}"])

    def fold(self, model: nn.Module) -> None:
        raise GencliError(
            "a controlnet cannot be folded into the network that it controls", "use the run that it was begun from"
        )


class Control(nn.Module):
    """From x, its level and the image to what is added to each feature and to the bottom."""

    def __init__(self, net: UNet | Adm, image: Field, x: Field, scale: float) -> None:
        super().__init__()
        self.range, self.scale = image.range or (0.0, 255.0), scale
        self.encoder = copy.deepcopy(net).requires_grad_(True)
        for name in net.expanding:
            delattr(self.encoder, name)
        self.hint = hint_encoder(image, x, net.features[0])
        widths = [*net.features, net.features[-1]]
        self.outputs = nn.ModuleList(zeroed(nn.Conv2d(width, width, 1)) for width in widths)

    def forward(self, x: Tensor, level: Tensor, image: Tensor, cond: Mapping[str, Tensor]) -> list[Tensor]:
        """`(N, channels, …)` each."""
        low, high = self.range
        hint = self.hint((image.to(x) - low) / (high - low))
        features, bottom, _ = self.encoder.contract(x, level, cond, hint)
        return [self.scale * layer(h) for layer, h in zip(self.outputs, [*features, bottom], strict=True)]


class _Controlled(nn.Module):
    """A network with a control, which it asks if there is an image."""

    control: Control

    def controlled(self, x: Tensor, level: Tensor, cond: dict[str, Tensor]) -> list[Tensor] | None:
        """What is added to the features; the image is taken out of the conditions."""
        image = cond.pop(IMAGE, None)
        return None if image is None else self.control(x, level, image, cond)


class _ControlledUNet(_Controlled, UNet):
    def forward(self, x: Tensor, level: Tensor, residuals: Any = None, **cond: Tensor) -> Tensor:
        return UNet.forward(self, x, level, self.controlled(x, level, cond), **cond)


class _ControlledAdm(_Controlled, Adm):
    def forward(self, x: Tensor, level: Tensor, residuals: Any = None, **cond: Tensor) -> Tensor:
        return Adm.forward(self, x, level, self.controlled(x, level, cond), **cond)


KINDS: dict[type[Any], Any] = {UNet: _ControlledUNet, Adm: _ControlledAdm}


def hint_encoder(image: Field, x: Field, channels: int) -> nn.Sequential:
    """Convolutions from the image to `channels` at x's sides, the last of them zero.

    Raises:
        GencliError: the image's sides are not x's times a power of two up to 8.
    """
    ratio = image.shape[1] / x.shape[1]
    halvings = int(math.log2(ratio)) if ratio >= 1 else -1
    if halvings not in range(len(WIDTHS)) or tuple(side * 2**halvings for side in x.shape[1:]) != image.shape[1:]:
        raise GencliError(
            f"controlnet: an image of {image.shape} for x of {x.shape}",
            "give images of x's sides, or 2, 4, 8 times those",
        )
    widths = WIDTHS[: halvings + 1]
    layers = [nn.Conv2d(image.shape[0], widths[0], 3, padding=1)]
    for narrow, wide in itertools.pairwise(widths):
        layers += [nn.Conv2d(narrow, narrow, 3, padding=1), nn.Conv2d(narrow, wide, 3, stride=2, padding=1)]
    if not halvings:
        layers.append(nn.Conv2d(widths[0], widths[0], 3, padding=1))
    made: list[nn.Module] = [module for layer in layers for module in (layer, nn.SiLU())]
    return nn.Sequential(*made, zeroed(nn.Conv2d(widths[-1], channels, 3, padding=1)))
