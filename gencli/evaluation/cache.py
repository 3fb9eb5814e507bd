"""Features of generated samples, kept micro-batch by micro-batch: what was drawn once is never drawn again.

A set of features is known by everything that decides it: the weights (a codec's and sources' too) and what they are weights
of, the sampler and guidance with all settings, precision, device, size of a micro-batch, versions, the source code that
draws, and the extractor. Inside a set a micro-batch is known by its seeds and conditions. So a second evaluation calls no
network, one that was killed goes on at the first micro-batch that is missing, and more samples reuse the fewer. All sets
together, references' too, take at most `$GENCLI_CACHE_GB`, else 20 GB: those used longest ago are deleted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gencli
from gencli import __version__, files
from gencli.bundle import Run, spec_to
from gencli.config import as_dict
from gencli.evaluation.generate import Request, origin
from gencli.home import home
from gencli.metrics._features import Extractor, keep, make_room, read_kept, used

DRAWING = (
    *("core.py", "bundle.py", "nn", "networks", "operators", "guidance", "samplers", "adapters", "models", "codecs"),
    "evaluation/generate.py",
)


class Kept:
    """The features of a resolved request's samples, as far as they are kept.

    Args:
        run: whose samples.
        by: what turns samples into features.
        request: resolved.
    """

    def __init__(self, run: Run, by: Extractor, request: Request) -> None:
        facts = described(run, by, request)
        self.request, self._facts = request, facts
        self.folder = home() / "cache" / "features" / _digest(facts)
        self.starts = range(0, len(request.seeds), request.micro)

    def path(self, chunk: int) -> Path:
        """Where the features of a micro-batch are kept."""
        part = slice(self.starts[chunk], self.starts[chunk] + self.request.micro)
        cond = {key: _told(value[part]) for key, value in sorted(self.request.cond.items())}
        return self.folder / f"{_digest([list(self.request.seeds[part]), cond])}.npy"

    def missing(self) -> list[int]:
        """The micro-batches that have to be drawn."""
        return [chunk for chunk in range(len(self.starts)) if not self.path(chunk).exists()]

    def write(self, chunk: int, rows: np.ndarray) -> None:
        """Keep one micro-batch; the first of a set writes what the set is of, for people."""
        about = self.folder / "about.json"
        if not about.exists():
            files.atomic_json(about, self._facts)
        keep(self.path(chunk), rows)

    def read(self) -> list[Any]:
        """The features of all micro-batches in order, none of which is missing; makes room for them among the others."""
        used(self.folder)
        make_room(self.folder)
        return [read_kept(self.path(chunk)) for chunk in range(len(self.starts))]


def _told(rows: torch.Tensor) -> Any:
    """Conditions of a micro-batch: labels as they are, of images a digest."""
    return rows.tolist() if rows.ndim == 1 else hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest()


def part_of(request: Request, chunks: list[int]) -> Request:
    """The request for some of its micro-batches, ascending: only the last of all may be short, so the cuts stay."""
    rows = [row for chunk in chunks for row in range(len(request.seeds))[chunk * request.micro :][: request.micro]]
    index = torch.tensor(rows, dtype=torch.int64)
    cond = {key: value[index] for key, value in request.cond.items()}
    return dataclasses.replace(request, seeds=[request.seeds[row] for row in rows], cond=cond)


def described(run: Run, by: Extractor, request: Request) -> dict[str, Any]:
    """Everything that decides features of samples, but for their seeds and conditions."""
    drawn = {key: value for key, value in origin(run, request).items() if key not in ("run", "step", "averaged")}
    facts = {
        **drawn,
        "made of": identity(run),
        "sampler": [request.sampler.public_name(), as_dict(request.sampler.config)],
        "code": _code(type(run.model), type(request.sampler), *(type(codec) for codec in run.codecs)),
        "versions": [__version__, torch.__version__],
        "features": [by.name, by.fingerprint],
    }
    made: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return made


def identity(run: Run) -> list[Any]:
    """What a run's numbers are and what they mean, with all runs inside it; not its name."""
    recipe = run.config.get("recipe", {})
    inner = [codec.run for codec in run.codecs if hasattr(codec, "run")]
    return [
        run.weights_hash(),
        recipe.get("model"),
        recipe.get("codecs"),
        spec_to(run.spec),
        spec_to(run.data_spec),
        [identity(other) for other in inner],
        {key: identity(source) for key, source in sorted(run.sources.items())},
    ]


def _code(*kinds: type[Any]) -> str:
    """A digest of the source that draws, with that of components from other packages."""
    paths = {getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in kinds}
    others = sorted(Path(path) for path in paths if path and not Path(path).is_relative_to(_package()))
    return hashlib.sha256(_own_code() + b"".join(path.read_bytes() for path in others)).hexdigest()[:16]


@cache
def _own_code() -> bytes:
    digest = hashlib.sha256()
    for name in DRAWING:
        place = _package() / name
        for path in sorted(place.rglob("*.py")) or [place] * place.is_file():
            digest.update(path.relative_to(_package()).as_posix().encode() + path.read_bytes())
    return digest.digest()


def _package() -> Path:
    return Path(gencli.__file__).parent


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:24]
