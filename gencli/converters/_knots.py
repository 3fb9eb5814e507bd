"""Pickles that are small and take for ever: tuples of tuples, each twice in the next, whose hash is a number of 2ⁿ steps.

    depth of a tuple = 1 + that of its deepest item

Found from the opcodes alone, before anything is built. Files of tensors have depths of up to about five.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

from gencli.errors import GencliError

DEEPEST = 20
PARTS = 5  # pickles that one file of the old form begins with
MOST = 2**28  # bytes of opcodes that are looked at; a zip's others are storages


def refuse(path: Path) -> None:
    """Refuse a file with such a tuple; what is no pickle is left to who reads it."""
    try:
        deep = _deepest_in(path)
    except (OSError, ValueError, LookupError, RuntimeError, EOFError, zipfile.BadZipFile):
        return
    if deep > DEEPEST:
        raise GencliError(
            f"{path} holds tuples nested {deep} deep, which would take for ever to read", "give another file"
        )


def _deepest_in(path: Path) -> int:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return max(deepest(file) for _ in range(PARTS if path.suffix != ".pkl" else 1))
    with zipfile.ZipFile(path) as archive:
        inner = [m for m in archive.infolist() if m.filename.endswith(".pkl") and m.file_size <= MOST]
        return max((deepest(archive.open(member)) for member in inner), default=0)


def deepest(file: IO[bytes]) -> int:
    """The depth of the deepest tuple in the next pickle of a file."""
    stack: list[int | None] = []  # None is a mark
    memo: dict[Any, int] = {}
    most = 0
    for code, arg, _ in pickletools.genops(file):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if code.name == "MEMOIZE" else arg] = stack[-1] or 0
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(arg, 0))
        elif code.name == "MARK":
            stack.append(None)
        else:
            depth = max(_taken(stack, code.stack_before), default=0) + code.name.startswith("TUPLE")
            most = max(most, depth)
            stack += [depth] * len(code.stack_after)
    return most


def _taken(stack: list[int | None], before: list[Any]) -> list[int]:
    """What an opcode takes from the stack."""
    made: list[int] = []
    count = len(before)
    if pickletools.markobject in before:
        count = before.index(pickletools.markobject)
        while (item := stack.pop()) is not None:
            made.append(item)
    return made + [stack.pop() or 0 for _ in range(count)]
