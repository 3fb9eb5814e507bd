"""Inception features by clean-fid's protocol: its resizing (PIL bicubic on floats, one channel at a time) and network.

The network is the TensorFlow graph of 2015 as TorchScript; torchvision's Inception is another one. The file is 95.6 MB,
taken from the cache folder or a given path, fetched only when asked, and its sha256 is checked before every load.
"""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.files import atomic_path
from gencli.home import home
from gencli.metrics._features import Extractor

FILE = "inception-2015-12-05.pt"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
SIDE = 299


class Inception(Extractor):
    """2,048 features of the last pooling layer."""

    name = "inception-clean"
    note = "clean-fid's protocol"

    def __init__(
        self, weights: Path | None = None, fetch: bool = False, device: torch.device | str = "cpu", sha256: str = SHA256
    ) -> None:
        self.path = locate(weights, fetch, sha256)
        self.device = torch.device(device)
        self.layers = torch.jit.load(str(self.path), map_location=self.device).eval().layers
        self.resize = clean_resizer()
        self.fingerprint = hashlib.sha256(f"clean-fid {sha256}".encode()).hexdigest()[:16]

    def features(self, images: Tensor) -> Tensor:
        x = torch.from_numpy(np.stack([self.canvas(image) for image in images.cpu().numpy()])).to(self.device)
        return self.layers.forward((x - 128) / 128).flatten(1)  # (N, 2048)

    def canvas(self, image: np.ndarray) -> np.ndarray:
        """`(3, 299, 299)` float32 in [0, 255] from one uint8 image `(1 or 3, H, W)`."""
        if image.shape[0] not in (1, 3):
            raise GencliError(
                f"Inception takes images of 1 or 3 channels, these have {image.shape[0]}", "use `--features pixels`"
            )
        rgb = np.broadcast_to(image, (3, *image.shape[1:]))
        return np.ascontiguousarray(self.resize(rgb.transpose(1, 2, 0)).transpose(2, 0, 1))


def clean_resizer() -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's own function, `(H, W, 3)` uint8 to `(299, 299, 3)` float32."""
    from gencli.metrics._torchvision import import_torchvision

    import_torchvision()
    from cleanfid.resize import build_resizer

    return build_resizer("clean")


def locate(weights: Path | None, fetch: bool, sha256: str = SHA256) -> Path:
    """The checked file of weights; fetched into the cache folder if that was asked for."""
    folder = home() / "weights"
    path = weights if weights is not None else folder / FILE
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        if not fetch or weights is not None:
            raise GencliError(
                f"no Inception weights at {path} (needed: {FILE}, sha256 {sha256})",
                f"put the file into {folder}, or name it with `--weights PATH`; it is published at {URL}",
            )
        _fetch(path, sha256)
    found = _sha256(path)
    if found != sha256:
        raise GencliError(
            f"{path} is not {FILE}: its sha256 is {found}, not {sha256}", f"delete it and fetch it again from {URL}"
        )
    return path


def _fetch(path: Path, sha256: str) -> None:
    with atomic_path(path) as temporary:
        try:
            urllib.request.urlretrieve(URL, temporary)
        except OSError as error:
            raise GencliError(
                f"{URL} could not be fetched: {error}",
                f"fetch {FILE} elsewhere (sha256 {sha256}) and put it into {path.parent}",
                code=1,
            ) from error
        found = _sha256(temporary)
        if found != sha256:
            raise GencliError(f"{URL} sent another file: sha256 {found}, not {sha256}", "try again later", code=1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
