"""The entry point: the list of commands, each loaded when first needed, and the one place where errors end."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer
import typer.main
from typer.core import TyperGroup

from gencli import registry
from gencli.cli import console
from gencli.cli.options import chosen_value
from gencli.errors import GencliError
from gencli.files import as_size
from gencli.launch import World, launched

COMMANDS = {
    "train": "train",
    "sample": "sample",
    "eval": "eval",
    "compare": "compare",
    "choose": "choose",
    "report": "report",
    "list": "list_",
    "info": "info",
    "data": "data",
    "convert": "convert",
    "runs": "runs_",
    "cache": "cache",
    "replay": "replay",
    "selftest": "selftest",
    "env": "env",
    "demo": "demo",
}
ALIASES = {"evaluate": "eval"}
SHARED = ("train", "sample", "eval", "evaluate")  # several processes work on one; all else is done by the first alone
OPTIONAL = {"--resume": "newest", "--clear": "made"}  # what a flag means without its value


class Root(TyperGroup):
    """The commands by name; a module of `gencli.cli` each."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            raise registry.unknown("command", cmd_name, [*COMMANDS, *ALIASES], "gencli --help")
        return importlib.import_module(f"gencli.cli.{COMMANDS[name]}").command()


app = typer.Typer(cls=Root, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.callback(epilog="Start here: gencli demo")
def _root(
    quiet: bool = typer.Option(False, "--quiet", "-q", help="errors and the final path only, with every command"),
    json: bool = typer.Option(False, "--json", help="one JSON document on stdout, with every command"),
    debug: bool = typer.Option(False, "--debug", help="show the traceback of an error, with every command"),
    version: bool = typer.Option(False, "--version", help="show the version"),
) -> None:
    """Train, sample, evaluate and convert every kind of deep generative model."""


def _take_globals(args: list[str]) -> list[str]:
    """Read the flags that work anywhere, and give those of `OPTIONAL` their value."""
    kept: list[str] = []
    for i, arg in enumerate(args):
        if arg in ("--quiet", "-q"):
            console.state.quiet = True
        elif arg == "--json":
            console.state.json = True
        elif arg == "--debug":
            console.state.debug = True
        elif arg in OPTIONAL and (i + 1 == len(args) or args[i + 1].startswith("-")):
            kept.append(f"{arg}={OPTIONAL[arg]}")
        else:
            kept.append(arg)
    return kept


def main() -> None:
    """Run the command line; exits with 0, 2 for the user's mistakes, 1 for the machine's, 128 + n after a signal."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that cannot show a character shows a question mark
    if "OMP_WAIT_POLICY" not in os.environ:  # threads that spin for long are ten times slower beside a busy process
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    args = _take_globals(sys.argv[1:])
    console.state.args = args[1:]
    if args == ["--version"]:
        from gencli import __version__

        console.out(f"gencli {__version__}")
        return
    here = World()
    try:
        here = launched()
        if not here.main:
            _hush()
        if here.size > 1 and args and args[0] in SHARED:
            core, device = importlib.import_module("gencli.core"), importlib.import_module("gencli.device")
            core.join(cpu=device.default().type == "cpu")
        elif not here.main:
            return
        if here.size == 1:  # several are ended by their launcher
            _end_tidily()
        code = app(args=args, standalone_mode=False, prog_name="gencli")
        console.flush_json()
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except GencliError as error:
        if console.state.debug:
            raise
        _fail(error, here, error.code)
    except OSError as error:
        if console.state.debug:
            raise
        _fail(_of_system(error), here, 2 if error.errno in _PATHS else 1)
    except Exception as error:
        if console.state.debug:
            raise
        if isinstance(error, MemoryError) or "can't allocate memory" in str(
            error
        ):  # on a CPU torch has no class for it
            _fail(_of_memory(error), here, 2)
        _fail(_readable(error), here, 2 if hasattr(error, "format_message") else 1)
    sys.exit(code if isinstance(code, int) else 0)


def _end_tidily() -> None:
    """SIGTERM and SIGHUP unwind as Ctrl-C does, so that nothing half written stays; training has its own way to stop."""

    def end(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


def _hush() -> None:
    """The first process speaks for all."""
    console.state.quiet = True
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends


def _fail(error: GencliError, here: World, code: int) -> NoReturn:
    """Say what went wrong and exit; the user's mistakes are the same in all processes, so the first alone names them."""
    if here.main or code != 2:
        if not here.main:
            error.message = f"process {here.rank}: {error.message}"
        console.fail(error)
    sys.exit(code)


_PATHS = {
    getattr(errno, name)
    for name in ("ENAMETOOLONG", "ELOOP", "ENOENT", "ENOTDIR", "EISDIR", "EACCES", "EPERM", "ENODEV", "EINVAL")
    if hasattr(errno, name)
}  # the path is at fault


def _of_memory(error: Exception) -> GencliError:
    """What does not fit, as far as it is known."""
    asked = re.search(r"tried to allocate (\d+) bytes", str(error))
    size = f": {as_size(int(asked[1]))} were asked for at once" if asked else ""
    return GencliError(
        f"there is not enough memory{size}", "give less at a time, a smaller file or network: see --plan"
    )


def _of_system(error: OSError) -> GencliError:
    """What the system says of a path that somebody gave."""
    words = (error.strerror or str(error) or type(error).__name__).lower()
    place = f"{error.filename}: " if error.filename is not None else ""
    return GencliError(f"{place}{words}", "give another path, or run again with --debug for the traceback")


def _readable(error: Exception) -> GencliError:
    """The parser's own errors, and anything unforeseen, as one line with a next step."""
    where = getattr(error, "ctx", None)
    if hasattr(error, "option_name") and where is not None:
        return _unknown_option(error.option_name, where)
    if hasattr(error, "format_message"):
        path = where.command_path if where is not None else "gencli"
        for flag in getattr(getattr(error, "param", None), "opts", []):
            value = chosen_value(console.state.args, flag)
            if value is not None:
                return GencliError(f"{flag} is '{value}'", f"{getattr(error, 'message', '')}; see `{path} --help`")
        return GencliError(str(error.format_message()).rstrip("."), f"see `{path} --help`")
    text = " ".join(str(error).split()) or "no message"
    return GencliError(
        f"{type(error).__name__}: {text}", "run again with --debug for the traceback, and please report it", code=1
    )


def _unknown_option(name: str, ctx: Any) -> GencliError:
    known = [
        opt
        for parameter in ctx.command.params
        for opt in (*parameter.opts, *parameter.secondary_opts)
        if opt.startswith("--")
    ]
    prefix = name.split(".")[0] + "."
    family = [opt for opt in known if opt.startswith(prefix)] if "." in name else []
    near = registry.nearest(name.lstrip("-"), [opt.lstrip("-") for opt in known])
    hint = f"did you mean {' or '.join('--' + n for n in near)}?" if near else ""
    if family:
        hint = f"{hint} it has {', '.join(family)}".strip()
    return GencliError(f"`{ctx.command_path}` has no option {name}", hint or f"see `{ctx.command_path} --help`")
