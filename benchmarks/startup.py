"""How long a command takes that only tells what there is: gencli's against `diffusers-cli --help`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks._frame import Case, Side

PEER = "diffusers-cli --help"
COMMANDS = ("gencli --help", "gencli list", "gencli train ddpm --help")


def cases(folder: Path, mini: bool) -> list[Case]:
    """One a command."""
    return [
        Case(
            name,
            PEER,
            lambda side, name=name: program(name if side == "gencli" else PEER),
            rounds=1 if mini else 5,
        )
        for name in (COMMANDS[:1] if mini else COMMANDS)
    ]


def program(line: str) -> Side:
    """A console script of this interpreter's environment, run to its end."""
    script, *rest = line.split()
    command = [str(Path(sys.executable).parent / script), *rest]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
