"""Settings to Typer options: every field of a Config is a flag with its type, default, help and choices."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
import typer.main

from gencli.config import Setting

EVERYWHERE = "--quiet, --json and --debug work with every command"


@dataclass(frozen=True)
class Flag:
    """One option or, with no dashes in `names`, one argument."""

    key: str
    names: tuple[str, ...]
    kind: Any
    help: str
    panel: str = "Options"
    default: Any = None
    shown: str = ""
    metavar: str | None = None
    complete: Callable[..., Any] | None = None
    hidden: bool = False


def flag_of(setting: Setting, key: str, panel: str, name: str | None = None) -> Flag:
    """The option for a setting."""
    dashed = "--" + (name or setting.path).replace("_", "-")
    kinds = [k for k in (typing.get_args(setting.type) or (setting.type,)) if k is not type(None)]
    kind = kinds[0] if len(kinds) == 1 and kinds[0] in (int, float, bool, str) else str
    metavar = "|".join(map(str, setting.choices)) if setting.choices and len(setting.choices) < 12 else None
    if typing.get_origin(setting.type) is tuple:
        metavar = "A,B,…"
    default = setting.default
    shown = ",".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)
    if kind is bool:
        shown = "on" if default else "off"
        stem = dashed.removeprefix("--")
        return Flag(key, (f"{dashed}/--no-{stem}",), bool, setting.help, panel, shown=shown)
    return Flag(
        key, (dashed,), kind, setting.help, panel, shown=shown, metavar=metavar, complete=_completer(setting.choices)
    )


def _completer(choices: tuple[Any, ...]) -> Callable[[str], list[str]] | None:
    if not choices:
        return None

    def complete(incomplete: str) -> list[str]:
        return [str(choice) for choice in choices if str(choice).startswith(incomplete)]

    return complete


def build(name: str, help: str, flags: Iterable[Flag], run: Callable[[dict[str, Any]], None]) -> Any:
    """A command whose flags arrive in `run` as a dict of those given, by key."""
    flags = list(flags)
    parameters = [_parameter(i, flag) for i, flag in enumerate(flags)]
    keys = {parameter.name: flag.key for parameter, flag in zip(parameters, flags, strict=True)}

    def callback(**values: Any) -> None:
        run({keys[ident]: value for ident, value in values.items() if value is not None and value != []})

    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    callback.__doc__ = help
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command(name, help=help, epilog=EVERYWHERE)(callback)
    made = typer.main.get_command(app)
    made.name = name
    return made


def _parameter(index: int, flag: Flag) -> inspect.Parameter:
    ident = f"p{index}_" + "".join(c if c.isalnum() else "_" for c in flag.key)
    extra: dict[str, Any] = {"autocompletion": flag.complete} if flag.complete else {}
    if flag.metavar:
        extra["metavar"] = flag.metavar
    if flag.names and flag.names[0].startswith("-"):
        shown = f" \\[{flag.shown}]" if flag.shown not in ("", "None") else ""
        text = flag.help + shown
        info: Any = typer.Option(
            *flag.names, help=text, rich_help_panel=flag.panel, show_default=False, hidden=flag.hidden, **extra
        )
    else:
        info = typer.Argument(help=flag.help, show_default=False, **extra)
    kind: Any = flag.kind if typing.get_origin(flag.kind) is list else flag.kind | None
    annotation = Annotated[kind, info]
    return inspect.Parameter(ident, inspect.Parameter.KEYWORD_ONLY, default=flag.default, annotation=annotation)


def chosen_value(args: Iterable[str], flag: str) -> str | None:
    """The value of `--flag` in raw arguments, before they are parsed: what decides which other flags exist."""
    args = list(args)
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.split("=", 1)[1]
    return None


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"net.width": 64, "net": "dit"}` -> `{"net": {"name": "dit", "width": 64}}`, to any depth."""
    made: dict[str, Any] = {}
    for path, value in sorted(values.items()):
        *heads, last = path.split(".")
        table = made
        for head in heads:
            below = table.get(head, {})
            table[head] = {"name": below} if isinstance(below, str) else below
            table = table[head]
        table[last] = value
    return made
