"""One process a run: a lock file that names its holder, and is ignored when the holder is gone."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gencli import files
from gencli.errors import GencliError


def _alive(pid: int) -> bool:
    if sys.platform == "win32":  # where os.kill(pid, 0) would send Ctrl-C
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        code = ctypes.c_ulong()
        known = bool(handle) and ctypes.windll.kernel32.GetExitCodeProcess(handle, ctypes.byref(code))
        ctypes.windll.kernel32.CloseHandle(handle)
        return bool(known) and code.value == 259  # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _began(pid: int) -> str:
    """When a process began, where the system tells: another one that was given its number began at another time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def holder(path: Path) -> str | None:
    """Who holds the lock, or None if nobody that is alive does."""
    try:
        facts = files.read_json(path)
        pid, host, began = int(facts["pid"]), str(facts["host"]), str(facts.get("began", ""))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None
    if host != socket.gethostname():
        return f"process {pid} on {host}"
    same = pid != os.getpid() and _alive(pid) and began in ("", _began(pid))
    return f"process {pid}" if same else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's lock inside the block; of two that ask at once, one gets it."""
    path = folder / "train" / "lock.json"
    mine = path.with_name(f".lock-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with files.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "began": _began(os.getpid())}
        mine.write_text(json.dumps(facts), encoding="utf-8")
        try:
            if not (_made(mine, path) or (_cleared(path) and _made(mine, path))):
                raise GencliError(
                    f"run {folder.name} is being trained by {holder(path) or 'another process'}",
                    f"stop it first; if it is gone, remove {path}",
                )
        finally:
            mine.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _made(mine: Path, path: Path) -> bool:
    """Give the lock its name, whole, unless the name is taken."""
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with path.open("x", encoding="utf-8") as handle:
                handle.write(mine.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _cleared(path: Path) -> bool:
    """Take a stale lock away; one that somebody else took over in this very moment is given back."""
    if holder(path) is not None:
        return False
    taken = path.with_name(f".lock-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        files.replace(path, taken)
    except FileNotFoundError:
        return True
    try:
        return holder(taken) is None or not _made(taken, path)
    finally:
        taken.unlink(missing_ok=True)
