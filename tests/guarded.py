"""What a command run on hostile input may do, made to hold in the process itself before the command begins.

It may write in its own folder alone (which is also its cache and its place for temporary files), start no program, open no
connection, look up no name of a pickle, and take a stated time of the CPU and a stated room of memory. What it does beyond
ends it at once with an exit code of its own.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

OUTSIDE, STARTED, CONNECTED, LOOKED_UP = 91, 92, 93, 94
CODES = {OUTSIDE: "wrote outside", STARTED: "started a program", CONNECTED: "connected", LOOKED_UP: "looked up a name"}
WALL = 120.0  # seconds; a hang takes no time of the CPU
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
DEVICES = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/self/")
CHANGES = {  # events whose first arguments are paths that change
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), 1),
    **dict.fromkeys(("os.rename", "os.link", "shutil.move"), 2),
    "shutil.rmtree": 1,
}
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")


def confine(folder: str, seconds: int, room: int) -> None:
    """Hold this process to `folder`, to so many seconds of the CPU, and to so many bytes above what it has now."""
    home = os.path.realpath(folder)
    os.environ["GENCLI_HOME"] = str(Path(home, "home"))
    os.environ["TMPDIR"] = home
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + room, held + room))
    signal.setitimer(signal.ITIMER_REAL, WALL)
    sys.addaudithook(lambda event, args: _look(event, args, home))


def _look(event: str, args: tuple[Any, ...], home: str) -> None:
    if event == "open":
        if isinstance(args[0], (str, bytes)) and isinstance(args[2], int) and args[2] & WRITES:
            _within(os.path.realpath(args[0]), home)
    elif event in CHANGES:
        for path in args[: CHANGES[event]]:
            _within(path, home)
    elif event == "os.symlink":
        _within(args[1], home)
    elif event in STARTS:
        _end(STARTED, args[0])
    elif event == "socket.connect":
        _end(CONNECTED, args[1])
    elif event == "pickle.find_class":
        _end(LOOKED_UP, ".".join(map(str, args)))


def _within(path: Any, home: str) -> None:
    text = os.fsdecode(path) if not isinstance(path, int) else home
    folder, _, name = text.rpartition("/")
    whole = f"{os.path.realpath(folder or ('/' if text.startswith('/') else '.'))}/{name}"
    if whole != home and not whole.startswith((home + os.sep, *DEVICES)):
        _end(OUTSIDE, text)


def _end(code: int, what: object) -> None:
    os.write(2, f"\n{CODES[code]}: {what!r}\n".encode("utf-8", "replace"))
    os._exit(code)
