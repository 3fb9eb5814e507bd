"""Settings: frozen dataclasses whose fields carry their help, one parser for TOML and flags.

A component is a class with a nested `Config`; each field is one line, `codes: int = opt(512, "size of the codebook")`.
A field made by `part(...)` chooses another component (a network, a data set) and holds that component's settings.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeVar

from gencli import registry
from gencli.errors import GencliError

T = TypeVar("T")
MOST = 2**63  # what a number must be below; torch counts in 64 bits
LONGEST = 60  # characters of a value that a message repeats


@dataclass(frozen=True)
class NoSettings:
    """The settings of a component that has none."""


class Component:
    """Anything that is chosen by name: a model, network, sampler, codec, data set or metric."""

    Config: ClassVar[type[Any]] = NoSettings

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self.config = config

    @classmethod
    def public_name(cls) -> str:
        """What it is called on the command line: its file's name."""
        return registry.public_name(cls.__module__.rsplit(".", 1)[-1])

    @classmethod
    def make(cls, values: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any) -> Self:
        """Build from plain settings: `Ddim.make({"eta": 1.0})`."""
        return cls(parse(cls.Config, values or {}, cls.__name__), *args, **kwargs)


def opt(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A setting: its default, its help, and inclusive bounds for numbers."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class Part:
    """A chosen component and its settings; `build` makes it."""

    kind: str
    name: str
    config: Any

    def load(self) -> type[Any]:
        """The component's class."""
        return registry.load(self.kind, self.name)

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """The component, made from its settings and what else its role asks for."""
        return self.load()(self.config, *args, **kwargs)


def part(kind: str, default: str, help: str, *, role: str | None = None, **defaults: Any) -> Any:
    """A setting that chooses a component of `kind` (and, for networks, of a role), with defaults for its settings."""
    meta = {"help": help, "part": kind, "role": role, "default": default, "defaults": defaults}
    return field(default_factory=lambda: choose(kind, {"name": default, **defaults}, role=role), metadata=meta)


def choose(kind: str, values: Mapping[str, Any] | str, *, role: str | None = None, where: str = "") -> Part:
    """Parse `{"name": "unet", "width": 64}` into a `Part`; refuses a network of another role."""
    table = {"name": values} if isinstance(values, str) else dict(_table(values, where or kind))
    name = registry.public_name(_name(table.pop("name", None), where or kind, kind))
    cls = registry.load(kind, name)
    if role is not None and getattr(cls, "role", None) != role:
        fitting = [
            other for other in registry.entries(kind) if getattr(registry.load(kind, other), "role", None) == role
        ]
        raise GencliError(
            f"{kind[:-1]} '{name}' has role {getattr(cls, 'role', None)}, needed is {role}",
            f"choose {', '.join(fitting)}",
        )
    return Part(kind, name, parse(cls.Config, table, where or name))


@dataclass(frozen=True)
class Setting:
    """One setting as flags and help screens see it."""

    path: str
    type: Any
    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    part: str | None = None


def settings(cls: type[Any], prefix: str = "", chosen: Mapping[str, Any] | None = None) -> list[Setting]:
    """The settings of a Config class, one dot deep; `chosen` names the parts and values picked so far."""
    chosen = chosen or {}
    hints = typing.get_type_hints(cls)
    rows: list[Setting] = []
    for item in dataclasses.fields(cls):
        meta, path = item.metadata, prefix + item.name
        if "part" in meta:
            picked = chosen.get(item.name, {})
            picked = {"name": picked} if isinstance(picked, str) else dict(_table(picked, path))
            name = _name(picked.pop("name", meta["default"]), path, meta["part"])
            rows.append(
                Setting(path, str, name, meta["help"], choices=_of_role(meta["part"], meta["role"]), part=meta["part"])
            )
            picked = ({**meta["defaults"], **picked}) if name == meta["default"] else picked
            rows += settings(registry.load(meta["part"], name).Config, f"{path}.", picked)
            continue
        kind = hints[item.name]
        default = chosen.get(item.name, item.default)
        rows.append(
            Setting(path, kind, default, meta.get("help", ""), _choices(kind), meta.get("low"), meta.get("high"))
        )
    return rows


def _of_role(kind: str, role: str | None) -> tuple[str, ...]:
    names = registry.entries(kind)
    return tuple(n for n in names if role is None or getattr(registry.load(kind, n), "role", None) == role)


def _choices(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def parse(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a Config from plain values, with types, bounds, choices and did-you-mean.

    Raises:
        GencliError: naming the setting, the value and what is allowed.
    """
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    for key, value in _table(values, where or cls.__name__).items():
        name = key.replace("-", "_")
        if name not in fields:
            near = registry.nearest(key, fields)
            has = f"it has {', '.join(f.replace('_', '-') for f in fields)}" if fields else "it has no settings"
            raise GencliError(
                f"{where or cls.__name__} has no setting '{key}'", f"did you mean {near[0]}? {has}" if near else has
            )
        meta = fields[name].metadata
        label = f"{where}: {key}" if where else key
        if "part" in meta:
            table = {"name": value} if isinstance(value, str) else dict(_table(value, label))
            table.setdefault("name", meta["default"])
            if registry.public_name(str(table["name"])) == meta["default"]:
                table = {**meta["defaults"], **table}
            made[name] = choose(meta["part"], table, role=meta["role"], where=label)
        else:
            made[name] = _bounded(_convert(value, hints[name], label), meta, label)
    return cls(**made)


def _name(value: Any, where: str, kind: str) -> str:
    """A component's name, which a file may hold anything for."""
    if not isinstance(value, str):
        raise GencliError(f"{where} names no {kind}: {_short(value)}", 'give it name = "…"')
    return value


def _table(value: Any, label: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise GencliError(f"{label} is {_short(value)}", "give a table of settings")
    return value


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def _bounded(value: Any, meta: Mapping[str, Any], label: str) -> Any:
    low, high = meta.get("low"), meta.get("high")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if low is not None and value < low:
            raise GencliError(f"{label} is {value}, the least is {low}", f"give a value of {low} or more")
        if high is not None and value > high:
            raise GencliError(f"{label} is {value}, the most is {high}", f"give a value of {high} or less")
    return value


def _convert(value: Any, kind: Any, label: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, typing.get_args(kind), label)
    if origin is Literal:
        allowed = typing.get_args(kind)
        for choice in allowed:
            if str(value) == str(choice):
                return choice
        near = registry.nearest(str(value), [str(a) for a in allowed])
        hint = f"did you mean {near[0]}? " if near else ""
        raise GencliError(f"{label} is {_short(value)}", f"{hint}choose one of {', '.join(map(str, allowed))}")
    if origin is tuple:
        return _convert_tuple(value, typing.get_args(kind), label)
    if origin is dict:
        return dict(_table(value, label))
    return _convert_plain(value, kind, label)


def _convert_union(value: Any, kinds: tuple[Any, ...], label: str) -> Any:
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        return None
    for kind in kinds:
        if kind is types.NoneType:
            continue
        try:
            return _convert(value, kind, label)
        except GencliError as error:
            last = error
    raise last


def _convert_tuple(value: Any, inner: tuple[Any, ...], label: str) -> Any:
    if not isinstance(value, (str, list, tuple)):
        raise GencliError(f"{label} is {_short(value)}", "give values with commas between them")
    items = [p for p in value.split(",") if p.strip()] if isinstance(value, str) else list(value)
    return tuple(_convert(item, inner[0], label) for item in items)


_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _convert_plain(value: Any, kind: Any, label: str) -> Any:
    readers: dict[Any, Callable[[Any], Any]] = {int: _int, float: float, str: _word}
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in _WORDS:
            return _WORDS[str(value).lower()]
    elif kind in readers and not isinstance(value, (bool, dict, list)):
        try:
            made = readers[kind](value)
        except (ValueError, TypeError, OverflowError):
            raise GencliError(f"{label} is {_short(value)}", f"give {_ARTICLE[kind]}") from None
        if kind is not str and not abs(made) < MOST:  # NaN is not either
            raise GencliError(f"{label} is {_short(value)}", "give a number of fewer digits")
        return made
    raise GencliError(f"{label} is {_short(value)}", f"give {_ARTICLE.get(kind, kind)}")


_ARTICLE = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


def _int(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    return int(value) if not isinstance(value, str) else int(value.replace("_", ""))


def _word(value: Any) -> str:
    text = str(value)
    if "\0" in text:
        raise ValueError(text)
    return text


def as_dict(config: Any) -> dict[str, Any]:
    """A Config as plain values for TOML and JSON; `parse(type(config), as_dict(config)) == config`."""
    made: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, Part):
            value = {"name": value.name, **as_dict(value.config)}
        made[item.name] = list(value) if isinstance(value, tuple) else value
    return made


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, tables merged; a table that names another component replaces the whole table."""
    if "name" in base and "name" in over and not _same(base["name"], over["name"]):
        return dict(over)
    made = dict(base)
    for key, value in over.items():
        below = made.get(key)
        if isinstance(below, str) and isinstance(value, Mapping):
            below = {"name": below}
        if isinstance(below, Mapping) and isinstance(value, str):
            value = {"name": value}
        nested = isinstance(below, Mapping) and isinstance(value, Mapping)
        made[key] = merge(below, value) if nested else value  # type: ignore[arg-type]
    return made


def _same(a: str, b: str) -> bool:
    return registry.public_name(a) == registry.public_name(b)
