"""Real processes that start in milliseconds: one process imports everything once and forks a child for each command.

Each child runs `gencli.cli.main.main()` in its own process, with its own folder, output files, limits and patches, and may be
killed like any other; only the imports, which take seconds, are shared.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = (
    "accelerate",
    "matplotlib.backends.backend_agg",
    "PIL.PngImagePlugin",
    "sklearn.datasets",
    "torch._dynamo",  # what the first optimiser imports
    "torch.distributed.fsdp",
    "gencli.cli.main",
    "gencli.cli.sample",
    "gencli.cli.train",
    "gencli.evaluation.preview",
    "gencli.training.checkpoint",
    "gencli.training.session",
    "gencli.training.trainer",
)
START = "import sys; sys.path.insert(0, sys.argv[1]); import zygote; zygote.serve()"


def _text(path: Path) -> str:
    return (
        path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    )  # a child opens it when it starts


@dataclass
class Process:
    """A running command."""

    server: Zygote
    pid: int
    out: Path

    @property
    def stderr(self) -> str:
        return _text(self.out.with_suffix(".err"))

    @property
    def stdout(self) -> str:
        return _text(self.out)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code; minus the signal's number if one ended it."""
        return self.server.ask({"wait": self.pid})

    def until(self, happened: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for something that this process does."""
        end = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < end, f"nothing happened in {seconds} s; stderr: {self.stderr}"
            time.sleep(0.002)


class Zygote:
    """The process that forks; `also` are modules that it imports beside `SHARED`."""

    def __init__(self, home: Path, also: Sequence[str] = ()) -> None:
        env = {**os.environ, "GENCLI_HOME": str(home), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        here = str(Path(__file__).parent)
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, here, *also],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )
        self._count = 0

    def ask(self, request: Mapping[str, Any]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, cwd: Path, *args: str, patch: str = "", limit: int | None = None) -> Process:
        """Start `gencli ARGS` in `cwd`; `patch` is Python run before it, `limit` is RLIMIT_FSIZE in bytes."""
        self._count += 1
        out = cwd / f".out-{self._count}"
        request = {"cwd": str(cwd), "args": list(args), "out": str(out), "patch": patch, "limit": limit}
        return Process(self, self.ask(request), out)

    def run(self, cwd: Path, *args: str, **kwargs: Any) -> tuple[int, Process]:
        """Start it and wait for its end."""
        made = self.start(cwd, *args, **kwargs)
        return made.wait(), made

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """The forking process's loop."""
    import torch

    from gencli import registry

    for name in (*SHARED, *sys.argv[2:]):
        importlib.import_module(name)
    for kind in ("models", "networks", "codecs", "samplers", "data"):
        for entry in registry.entries(kind).values():
            entry.load()
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _child(request)
        os.write(1, f"{answer}\n".encode())


def _child(request: Mapping[str, Any]) -> None:
    import traceback

    code = 70
    try:
        os.chdir(request["cwd"])
        for number, path in ((1, request["out"]), (2, str(Path(request["out"]).with_suffix(".err")))):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        sys.argv = ["gencli", *request["args"]]
        exec(request["patch"], {})
        if request["limit"] is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
        from gencli.cli.main import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
