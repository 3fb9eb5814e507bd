"""Inception features, clean-fid's by default: a protocol's preprocessing (`_protocols.py`), then the network.

The network is the TensorFlow graph of 2015 as TorchScript; torchvision's Inception is another one. The file is 95.6 MB,
taken from the cache folder or a given path, fetched only when asked, and its sha256 is checked before every load.
"""

from __future__ import annotations

import hashlib
import urllib.request
from pathlib import Path

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.files import atomic_path
from gencli.home import home
from gencli.metrics._base import Head
from gencli.metrics._features import Extractor, linear
from gencli.metrics._features import sha256_of as _sha256
from gencli.metrics._protocols import PROTOCOLS, Protocol

FILE = "inception-2015-12-05.pt"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
MICRO = 32
OUTPUT = (1008, 2048)  # classes of the graph of 2015


class Inception(Extractor):
    """2,048 features of the last pooling layer."""

    least = 2048

    def __init__(
        self,
        weights: Path | None = None,
        fetch: bool = False,
        device: torch.device | str = "cpu",
        sha256: str = SHA256,
        protocol: Protocol = PROTOCOLS["clean"],
    ) -> None:
        self.path = locate(weights, fetch, sha256)
        self.device, self.protocol, self.sha256 = torch.device(device), protocol, sha256
        whole = torch.jit.load(str(self.path), map_location=self.device).eval()
        self.layers, self.head = whole.layers, _head(whole)
        self.name, self.words = f"inception-{protocol.name}", protocol.words
        self.note = "clean-fid's protocol" if protocol.name == "clean" else f"the protocol {protocol.name}"
        key = "clean-fid" if protocol.name == "clean" else f"{protocol.name}: {protocol.words}:"
        self.fingerprint = hashlib.sha256(f"{key} {sha256}".encode()).hexdigest()[:16]

    def features(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise GencliError(
                f"Inception takes images of 1 or 3 channels, these have {images.shape[1]}", "use `--features pixels`"
            )
        prepare = self.protocol.prepare  # 299×299 is large: a few at a time
        parts = [self.layers.forward(prepare(part).to(self.device)).flatten(1) for part in images.split(MICRO)]
        return torch.cat(parts)  # (N, 2048)


def _head(whole: torch.nn.Module) -> Head | None:
    """Logits as the Inception score's authors compute them: the last layer without its bias."""
    found = [value for value in whole.state_dict().values() if tuple(value.shape) == OUTPUT]
    return linear(found[0]) if len(found) == 1 else None


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
