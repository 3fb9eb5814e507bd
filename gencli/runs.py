"""Finding runs by name, model or age, reading only their config.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gencli import files, home, registry
from gencli.errors import GencliError


class NoRun(GencliError):
    """No run has the name; one that is there but damaged is another error."""


@dataclass(frozen=True)
class Found:
    """A run on disk, not loaded."""

    path: Path
    config: dict[str, Any]
    shipped: bool

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def model(self) -> str:
        """The model's public name."""
        return registry.public_name(self.config["recipe"]["model"]["name"])

    @property
    def models(self) -> list[str]:
        """The model and, of nested bundles, theirs."""
        return [self.model, *self.config.get("codec_models", [])]

    @property
    def samplable(self) -> bool:
        """Whether its model says that it can draw samples."""
        known = registry.entries("models")
        return self.model in known and "sample" in known[self.model].offers

    @property
    def ready(self) -> bool:
        """Whether there are weights to sample with."""
        return (self.path / "model.safetensors").is_file()


def every() -> list[Found]:
    """All runs, newest first; a folder that cannot be read is left out (naming it loads and explains).

    Shipped ones are last, and of them those of a method's own recipe first: their data come with gencli.
    """
    found: list[Found] = []
    for folder in home.run_folders():
        shipped = folder == home.shipped_runs()
        for path in sorted(folder.glob("*/config.json")) if folder.is_dir() else []:
            config = _peek(path)
            if config is not None and all(other.name != path.parent.name for other in found):
                found.append(Found(path.parent, config, shipped))
    found.sort(key=lambda run: str(run.config.get("created", "")), reverse=True)
    return sorted(found, key=lambda run: (run.shipped, run.shipped and run.config["recipe"].get("recipe") != run.model))


def _peek(path: Path) -> dict[str, Any] | None:
    try:
        return checked(files.read_json(path))
    except (OSError, ValueError, KeyError):
        return None


PRECISIONS = ("fp32", "bf16", "fp16")
_TEXTS = ("gencli", "name", "created", "command", "precision")
_LISTS = ("codec_models", "model_names", "sources", "adapters")
_TABLES = ("model", "data", "train", "sample")


def checked(config: Any) -> dict[str, Any]:
    """The config.json of a run, if everything that other commands ask of it is of its type.

    Raises:
        ValueError: something is of another type, in words.
        KeyError: something is missing.
    """
    data, recipe = _a(dict, config, "it")["data"], config["recipe"]
    _a(int, config["format"], "format")
    for key in _TABLES:
        if key in _a(dict, recipe, "recipe") and recipe[key] is not None:
            _a(dict, recipe[key], f"recipe.{key}")
    _a(str, recipe["model"]["name"], "recipe.model.name")
    for key in ("data", "sample"):
        _a(str, (recipe.get(key) or {}).get("name", ""), f"recipe.{key}.name")
    for key in ("codecs", "adapters"):
        for table in _a(list, recipe.get(key) or [], f"recipe.{key}"):
            _a(str, _a(dict, table, f"recipe.{key}")["name"], f"recipe.{key}.name")
    _a(dict, _a(dict, _a(dict, data, "data")["spec"], "data.spec")["x"], "data.spec.x")
    _a(dict, data["spec"].get("cond", {}), "data.spec.cond")
    for key in ("name", "hash"):
        _a(str, data[key], f"data.{key}")
    for split in ("train", "test"):
        _a(int, _a(dict, data["items"], "data.items")[split], f"data.items.{split}")
    for key, value in {**dict.fromkeys(_TEXTS, ""), **config}.items():
        if key in _TEXTS:
            _a(str, value, key)
        elif key in _LISTS:
            for one in _a(list, value, key):
                _a(str, one, key)
    if config.get("precision", "fp32") not in PRECISIONS:
        raise ValueError(f"precision is {config['precision'][:40]!r}")
    for key in ("step", "parameters"):
        _a(int, config.get(key, 0), key)
    return dict(config)


def _a(kind: type, value: Any, what: str) -> Any:
    """A value that must be of a kind."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{what} is no {_NAMES[kind]}: {str(value)[:40]!r}")
    return value


_NAMES = {dict: "table", list: "list", str: "text", int: "whole number"}


def find(name: str) -> Found | None:
    """The run called `name`, or in the folder `name`."""
    path = Path(name)
    if (path / "config.json").is_file() and ("/" in name or "\\" in name or path.is_dir()):
        from gencli.bundle import read_config

        config = read_config(path)
        return Found(path, config, home.shipped_runs() in path.absolute().parents)
    found = next((run for run in every() if run.name == name), None)
    if found is None and path.name == name:
        for folder in home.run_folders():
            if (folder / name / "config.json").is_file():
                from gencli.bundle import read_config

                read_config(folder / name)  # a run that cannot be listed says why
    return found


def named(name: str, as_codec: bool = False) -> Found:
    """The run that `name` means: a run's name or folder, else the newest of that model, or with it as a codec.

    Args:
        name: of a run, a folder, or a model.
        as_codec: only runs of the model itself will do.
    """
    key = registry.public_name(name)
    run = find(name) or newest(lambda r: r.model == key)
    if not as_codec and (run is None or run.name != name):
        run = newest(lambda r: key in r.models and r.samplable) or run
    if run is None:
        near = registry.nearest(name, sorted({word for r in every() for word in (r.name, *r.models)}))
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise NoRun(f"no run '{name}'", f"{hint}looked in {places()}")
    return run


def newest(fits: Callable[[Found], bool]) -> Found | None:
    """The newest run with weights that `fits`; shipped ones only if there is no other."""
    return next((run for run in every() if run.ready and fits(run)), None)


def places() -> str:
    """The folders of the search, for error messages."""
    return ", ".join(str(folder) for folder in home.run_folders())
