"""One process a run: a lock file that names its holder, and is ignored when the holder is gone."""

from __future__ import annotations

import json
import os
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


def holder(path: Path) -> str | None:
    """Who holds the lock, or None if nobody that is alive does."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        pid, host = int(facts["pid"]), str(facts["host"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None
    if host != socket.gethostname():
        return f"process {pid} on {host}"
    return f"process {pid}" if pid != os.getpid() and _alive(pid) else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's lock inside the block; of two that ask at once, one gets it."""
    path = folder / "train" / "lock.json"
    facts = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    with files.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if holder(path) is None:
            path.unlink(missing_ok=True)
        try:
            with path.open("x", encoding="utf-8") as handle:
                handle.write(facts)
        except FileExistsError:
            who = holder(path) or "another process"
            raise GencliError(
                f"run {folder.name} is being trained by {who}", f"stop it first; if it is gone, remove {path}"
            ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
