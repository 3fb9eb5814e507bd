"""Features of published vision transformers, from a folder of their weights: DINOv2's and CLIP's.

| folder of a | features | resize, Pillow's antialiased bicubic on 8 bits | scale |
|---|---|---|---|
| `dinov2` model | the class token after the last norm | to 224×224 | ImageNet's mean and deviation |
| `clip` model | the image's embedding, not normalised | to the model's own side | CLIP's mean and deviation |

The folder is what the model hub gives: `config.json` and `model.safetensors`. The Fréchet distance of DINOv2's features is
FD-DINOv2 (Stein et al., 2023; arXiv:2306.04675), CMMD is defined on CLIP's of ViT-L/14 at 336 pixels. The networks are the
library `transformers`'; only safetensors are read, and a folder that lacks a tensor is refused, not filled at random.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.home import home
from gencli.metrics._features import Extractor, digest_of, sha256_of
from gencli.metrics._torchvision import import_torchvision

MICRO = 16
FOLDERS = {"dinov2": "facebook/dinov2-large", "clip": "openai/clip-vit-large-patch14-336"}
"""What `--features NAME` looks for in the cache folder, and where it is published."""


@dataclass(frozen=True)
class Kind:
    """How one sort of network is called.

    Args:
        name: of its features.
        network: its class in `transformers`.
        side: of the input, from its settings.
        mean: subtracted from pixels in [0, 1], a channel each.
        deviation: what they are then divided by.
        read: features `(N, D)` from what it returns.
    """

    name: str
    network: str
    side: Callable[[Any], int]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    read: Callable[[Any], Tensor]


CLIP = Kind(
    "clip",
    "CLIPVisionModelWithProjection",
    lambda config: config.image_size,
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
    lambda made: made.image_embeds,
)
KINDS = {
    "dinov2": Kind(
        "dinov2",
        "Dinov2Model",
        lambda config: 224,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        lambda made: made.pooler_output,
    ),
    "clip": CLIP,
    "clip_vision_model": CLIP,
}


class Pretrained(Extractor):
    """A vision transformer with published weights."""

    note = "weights from a folder"

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.kind = KINDS[kind_of(folder)]
        self.device, self.net = (
            torch.device(device),
            load(folder, self.kind.network, self.kind.name).eval().requires_grad_(False).to(device),
        )
        self.side = self.kind.side(self.net.config)
        mean, deviation = (", ".join(f"{x:g}" for x in values) for values in (self.kind.mean, self.kind.deviation))
        self.words = (
            f"Pillow's antialiased bicubic on 8 bits to {self.side}×{self.side}, / 255, less ({mean}), / ({deviation})"
        )
        self.fingerprint = digest_of(self.net, f"{self.kind.network}: {self.words}")
        self.sha256 = sha256_of(folder / "model.safetensors")
        self.name = f"{self.kind.name}-{self.fingerprint[:8]}"

    def features(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise GencliError(
                f"{self.kind.name} takes images of 1 or 3 channels, these have {images.shape[1]}",
                "use `--features pixels`",
            )
        parts = [self.net(pixel_values=self._prepared(part).to(self.device)) for part in images.split(MICRO)]
        return torch.cat([self.kind.read(made) for made in parts])

    def _prepared(self, images: Tensor) -> Tensor:
        """`(N, 3, side, side)` from uint8 `(N, 1 or 3, H, W)`."""
        from PIL import Image

        size, planes = (self.side, self.side), images.cpu().flatten(0, 1).numpy()
        resized = [np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)) for plane in planes]
        x = torch.from_numpy(np.stack(resized)).view(*images.shape[:2], *size).float() / 255
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (self.kind.mean, self.kind.deviation))
        return (x - mean) / deviation


def kind_of(folder: Path) -> str:
    """The sort of network in a folder; empty for one of another sort, such as a run.

    Raises:
        GencliError: a published network, but none of these.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    found = str(config.get("model_type", "")) if isinstance(config, dict) else ""
    if found and found not in KINDS:
        raise GencliError(f"{folder} holds a network of type '{found}'", f"features come from {', '.join(FOLDERS)}")
    return found


def beside(name: str) -> Path:
    """Where the weights of `--features dinov2` or `clip` lie.

    Raises:
        GencliError: they do not.
    """
    folder = home() / "weights" / FOLDERS[name].split("/")[1]
    if not (folder / "model.safetensors").is_file():
        raise GencliError(
            f"no {name} weights in {folder} (needed: config.json and model.safetensors of {FOLDERS[name]})",
            "put the two files there, or give their folder: --features FOLDER",
        )
    return folder


def load(folder: Path, network: str, name: str) -> Any:
    """A network of `transformers` with its weights; `name` is what for.

    Raises:
        GencliError: `transformers` is not installed, or the folder is damaged or lacks tensors.
    """
    try:
        import_torchvision()  # which transformers imports too
        import transformers
    except ImportError:
        raise GencliError(f"{name} needs the package transformers", "pip install 'gencli[features]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not (folder / "model.safetensors").is_file():
        raise GencliError(f"{folder} has no model.safetensors", "weights are read from safetensors only")
    with torch.device("cpu"):
        torch.zeros(
            0
        )  # torch lists its constructors at their first use, and transformers has another linspace while it loads
    try:
        made, told = getattr(transformers, network).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # the library raises anything on damaged files
        why = str(error).partition("\n")[0]
        raise GencliError(f"{folder} cannot be read as {network}: {why}", "copy its files again") from error
    if missing := sorted(told["missing_keys"]):
        raise GencliError(
            f"{folder} lacks {len(missing)} tensors of {network}, first '{missing[0]}'", "copy its files again"
        )
    return made
