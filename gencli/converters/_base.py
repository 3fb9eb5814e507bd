"""What every format shares: a run as plain values, foreign weights that must fit, writing whole or not at all, checking."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor

from gencli import __version__, files, runs
from gencli.bundle import FORMAT, Run, new_config, read_config, read_tensors
from gencli.config import Component
from gencli.errors import GencliError
from gencli.training.ema import kept_state
from gencli.training.session import make_folder, safe_name

PREFIXES = ("module.", "_orig_mod.")  # what wrappers put before every name
UNKNOWN: dict[str, Any] = {
    "name": "unknown",
    "hash": "",
    "items": {"train": 0, "test": 0},
}  # data that a file does not name
INSIDE = re.compile(r"|(codec|sources/\w+)(/(codec|sources/\w+))*")  # folders of a run that hold runs


@dataclass
class Packed:
    """A run as values. Keys are its folders: `""` is the run, `codec` and `sources/KEY` those inside, `/` before a tensor."""

    configs: dict[str, dict[str, Any]]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, folder: Path) -> Packed:
        """What is in a run's folder."""
        made = cls({}, {})
        for path in _nested(folder):
            place = path.relative_to(folder).as_posix() if path != folder else ""
            made.configs[place] = read_config(path)
            tensors, _ = read_tensors(path / "model.safetensors")
            made.tensors |= {f"{place}/{key}" if place else key: value for key, value in tensors.items()}
        return made

    @classmethod
    def like(cls, run: Run) -> Packed:
        """The values of a run whose own weights were changed in memory; of unknown age."""
        made = cls.of(run.path) if run.path else cls({"": run.config}, {})
        inner = {key: value for key, value in made.tensors.items() if "/" in key}
        own = {key: value.detach().cpu().contiguous() for key, value in kept_state(run.model).items()}
        return cls({**made.configs, "": {**run.config, "step": 0}}, {**inner, **own})

    @classmethod
    def parsed(cls, text: str, tensors: dict[str, Tensor], where: Path) -> Packed:
        """From the JSON that `text` made."""
        try:
            configs = files.parsed(text, finite=True)
            version = int(configs[""]["format"])
            if version <= FORMAT:
                runs.checked(configs[""])
            outside = [place for place in configs if not INSIDE.fullmatch(place)]
            if outside:
                raise ValueError(f"no folder of a run: {outside[0]!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise GencliError(f"{where} is damaged: {error!r}", "convert the run again") from None
        if version > FORMAT:
            raise GencliError(
                f"{where} holds a run of format {version}; this version reads up to {FORMAT}", "upgrade gencli"
            )
        return cls(configs, tensors)

    @property
    def text(self) -> str:
        """The configs as JSON."""
        return json.dumps(self.configs)  # ASCII: a name on disk may hold what UTF-8 cannot

    def inside(self, place: str) -> dict[str, Tensor]:
        """The weights of the run in one folder."""
        return {key.rpartition("/")[2]: v for key, v in self.tensors.items() if key.rpartition("/")[0] == place}


def _nested(folder: Path) -> Iterator[Path]:
    yield folder
    for inner in (folder / "codec", *sorted((folder / "sources").glob("*"))):
        if (inner / "config.json").is_file():
            yield from _nested(inner)


@dataclass(frozen=True)
class Check:
    """What a comparison found: the greatest difference, and the most that is allowed."""

    what: str
    error: float
    most: float

    @property
    def line(self) -> str:
        """For the user."""
        exact = "bit-equal, " if self.most == 0 == self.error else ""
        return f"verified: {self.what}, {exact}maximum error {self.error:.2g}"


@dataclass(frozen=True)
class Done:
    """A finished conversion."""

    path: Path
    notes: list[str]
    checks: list[Check]
    unverified: str = ""


class Converter(Component, ABC):
    """One format. `write` refuses what it cannot hold; `read` gives a run's values; `check` compares a run with a file."""

    suffix: ClassVar[str]
    folder: ClassVar[bool] = False
    reads: ClassVar[bool] = False
    folds: ClassVar[bool] = True  # takes a run whose adapters were folded into its weights
    peer: ClassVar[tuple[str, str] | None] = None  # the library that checks, and the extra that installs it

    @abstractmethod
    def write(self, run: Run, path: Path) -> list[str]:
        """Write `run` to the file or into the folder `path`; returns what the user should know."""

    def read(self, path: Path, like: Run | None) -> tuple[Packed, list[str]]:
        """The run in `path` and what the user should know; `like` says what foreign weights are."""
        raise GencliError(f"gencli does not read the format {self.public_name()}", "it writes it: --to")

    @abstractmethod
    def check(self, run: Run, path: Path) -> list[Check]:
        """Compare `run` with what is in `path`."""

    def export(self, run: Run, target: Path, verify: bool) -> Done:
        """Write `target`, whole and checked or not at all."""
        with _staged(target, self.folder) as temporary:
            notes = self.write(run, temporary)
            checks, unverified = self._checked(run, temporary, verify)
        return Done(target, notes, checks, unverified)

    def bring(self, path: Path, like: Run | None, root: Path, name: str | None, command: str, verify: bool) -> Done:
        """A new run's folder under `root`, checked against `path`; removed again if they differ."""
        with files.understood(path, "give the file as its program wrote it", also=(RuntimeError,)):
            packed, notes = self.read(path, like)
            config = runs.checked(packed.configs[""])
        folder = make_folder(root, safe_name(name or str(config.get("name") or path.stem)))
        packed.configs[""] = {
            **config,
            "gencli": __version__,
            "name": folder.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(),
            "command": command,
            "converted": {"from": self.public_name(), "path": str(path), "command": config.get("command")},
        }
        try:
            for place in sorted(packed.configs, reverse=True):  # the run itself last: a folder without it is no run
                weights = save(packed.inside(place), metadata={"step": str(packed.configs[place].get("step", 0))})
                files.atomic_write(folder / place / "model.safetensors", weights)
                files.atomic_json(folder / place / "config.json", packed.configs[place])
            checks, unverified = self._checked(Run.load(folder), path, verify)
            if checks:
                packed.configs[""]["converted"]["maximum_errors"] = {found.what: found.error for found in checks}
                files.atomic_json(folder / "config.json", packed.configs[""])
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Done(folder, notes, checks, unverified)

    def _checked(self, run: Run, path: Path, verify: bool) -> tuple[list[Check], str]:
        if not verify:
            return [], "--no-verify"
        if self.peer is not None and not installed(self.peer[0]):
            return [], f"{self.peer[0]} is not installed (pip install 'gencli[{self.peer[1]}]')"
        checks = self.check(run, path)
        for found in checks:
            if not found.error <= found.most:
                raise GencliError(
                    f"conversion of {run.name} failed: {found.what} differ by {found.error:.3g}, allowed is {found.most:g}",
                    "nothing was written; please report it, or look at the result with --no-verify",
                    code=1,
                )
        return checks, ""


def installed(module: str) -> bool:
    """Whether a library can be imported."""
    return find_spec(module) is not None


def differences(run: Run, packed: Packed) -> Check:
    """A saved run against values that must be the same."""
    assert run.path is not None, "only a saved run can be compared"
    ours, theirs = Packed.of(run.path).tensors, packed.tensors
    same = ours.keys() == theirs.keys() and all(
        value.dtype == theirs[key].dtype and value.shape == theirs[key].shape for key, value in ours.items()
    )
    gaps = [gap(value, theirs[key]) for key, value in ours.items()] if same else []
    return Check(f"{len(ours)} tensors", max(gaps, default=0.0) if same else float("inf"), 0.0)


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The greatest difference, in their type; none between equal bits, whatever they mean."""
    mine = ours.to(theirs.dtype)
    if mine.shape == theirs.shape and torch.equal(_bits(mine), _bits(theirs)):
        return 0.0
    return float((mine.double() - theirs.double()).abs().max())


def _bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().flatten().view(torch.uint8)


@contextlib.contextmanager
def _staged(target: Path, folder: bool) -> Iterator[Path]:
    """A temporary path that becomes `target` if the block succeeds."""
    if not folder:
        with files.atomic_path(target) as temporary:
            yield temporary
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with files.explained(target):
            temporary.mkdir(parents=True)
        yield temporary
        with files.explained(target):
            old = temporary.with_suffix(".old")
            if target.exists():
                files.replace(target, old)  # until the new one is there
            try:
                files.replace(temporary, target)
            except OSError:
                if old.exists():
                    files.replace(old, target)
                raise
            shutil.rmtree(old, ignore_errors=True)
            files.sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def described(run: Run, data: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run that was not trained here, from name, hash and number of items of its data set."""
    return new_config(run, data, f"{run.config['recipe']['model']['name']}-{data['name']}")


def foreign(tensors: Mapping[str, Tensor], like: Run | None, where: Path) -> Packed:
    """Weights saved by another program, as the run that `like` says they are."""
    if like is None:
        raise GencliError(
            f"{where} holds {len(tensors)} tensors and does not say what they are for",
            "say it with --like RUN or --like RECIPE, whose weights have the same names and shapes",
        )
    given = stripped(tensors)
    own, skip = like.model.state_dict(), like.model.training_only
    needed = {key for key in kept_state(like.model) if not (skip and key.startswith(skip))}
    shapes = [key for key in given if key in own and own[key].shape != given[key].shape]
    wrong = {
        "missing": sorted(needed - given.keys()),
        "unexpected": sorted(given.keys() - own.keys()),
        "of another shape": [f"{key} {tuple(given[key].shape)} for {tuple(own[key].shape)}" for key in shapes],
    }
    said = [
        f"{what} {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
        for what, names in wrong.items()
        if names
    ]
    if said:
        raise GencliError(f"{where} does not fit {like.name}: {'; '.join(said)}", "choose another --like RUN or RECIPE")
    like.model.load_state_dict(given, strict=False)
    return Packed.like(like)


def stripped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what a wrapper put before every name."""
    made = dict(tensors)
    while prefix := next((p for p in PREFIXES if made and all(key.startswith(p) for key in made)), None):
        made = {key.removeprefix(prefix): value for key, value in made.items()}
    return made
