"""Runs that are killed, again and again, until they are finished: what the tests of `tests/faults` share."""

from __future__ import annotations

import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tiny import hashes, logged, table, toml
from zygote import Process, Zygote

from gencli import crash
from gencli.bundle import Run

FAMILIES = {
    "diffusion": "ddpm",
    "quantised": "vqvae",
    "autoregressive": "gated-pixelcnn",
    "vae": "vae",
    "flow": "realnvp",
    "gan": "wgan-gp",
}
STEPS, EVERY, DRAWN = 6, 2, 4
RANDOM = "any moment"
SLOW = """
import time
from gencli.training import trainer
real = trainer.Trainer.take_step
def take_step(self):
    time.sleep(0.02)
    return real(self)
trainer.Trainer.take_step = take_step
"""


def armed(fault: str) -> str:
    """A patch that arms a fault point."""
    return f"from gencli import crash; crash.arm({fault!r})\n"


def announced(text: str) -> int:
    """The last save that a process spoke of."""
    return max([0, *map(int, re.findall(r"saved at step (\d+)", text))])


def began(text: str) -> int:
    """The step that a resumed process said it continued from."""
    if "no saved state: started at 0" in text:
        return 0
    (step,) = re.findall(r"resumed at step (\d+)", text)
    return int(step)


def args(cwd: Path, family: str, steps: int = STEPS) -> list[str]:
    """The command that trains a family's tiny model."""
    cwd.mkdir(parents=True, exist_ok=True)
    settings = {"steps": steps, "save_every": EVERY, "sample_every": DRAWN, "batch_size": 4, "keep": 1}
    return ["train", str(toml(cwd / "tiny.toml", table(FAMILIES[family], **settings)))]


def folder_of(cwd: Path) -> Path | None:
    """The one run in a folder, if it is one already."""
    found = [path.parent for path in (cwd / "checkpoints").glob("*/config.json")]
    assert len(found) <= 1
    return found[0] if found else None


@dataclass
class Life:
    """One run from its beginning to its end, over as many processes as it takes.

    Args:
        zygote: what starts them.
        cwd: an empty folder.
        family: what is trained.
        expected: the hashes of a run that was left alone.
        steps: how many it takes.
    """

    zygote: Zygote
    cwd: Path
    family: str
    expected: dict[str, str]
    steps: int = STEPS
    saved: int = 0
    kills: Counter[str] = field(default_factory=Counter)

    def start(self, patch: str) -> Process:
        """The next process."""
        command = args(self.cwd, self.family, self.steps)
        return self.zygote.start(self.cwd, *command, *(["--resume"] if folder_of(self.cwd) else []), patch=patch)

    def at(self, point: str, number: int = 1) -> bool:
        """Kill it at a point; False if it comes by less often and has ended."""
        process = self.start(armed(f"{point}:{number}"))
        return self._dead(process, point)

    def anywhere(self, chance: random.Random, seconds: float) -> bool:
        """Kill it at any moment within some seconds; False if it has ended before."""
        process = self.start(SLOW)
        time.sleep(chance.uniform(0, seconds))
        process.kill()  # nobody has waited for it: the number is still its own
        return self._dead(process, RANDOM)

    def _dead(self, process: Process, where: str) -> bool:
        code = process.wait()
        self._check(process)
        if code == 0:
            return False
        assert code == -signal.SIGKILL, (where, code, process.stderr)
        self.kills[where] += 1
        return True

    def _check(self, process: Process) -> None:
        """What must hold after every process, however it ended."""
        text = process.stderr
        assert "Traceback" not in text and "error:" not in text, text
        if "resumed at" in text or "no saved state" in text:
            assert began(text) >= self.saved, (self.saved, text)
        self.saved = max(self.saved, announced(text))
        folder = folder_of(self.cwd)
        if folder is not None and self.saved:
            assert Run.load(folder).step in range(0, self.steps + 1)

    def finish(self) -> None:
        """Let it end, and compare it with the run that was left alone."""
        process = self.start("")
        code = process.wait()
        assert code == 0, process.stderr
        self._check(process)
        folder = folder_of(self.cwd)
        assert folder is not None and hashes(folder) == self.expected, (self.family, self.kills)
        assert logged(folder) == list(range(1, self.steps + 1))
        assert not list(folder.rglob(".*")), "nothing temporary is left"


def alone(zygote: Zygote, cwd: Path, family: str, steps: int = STEPS) -> tuple[dict[str, str], float]:
    """The hashes of a run that nobody kills, and the seconds that it takes slowed down."""
    first = time.perf_counter()
    code, process = zygote.run(cwd, *args(cwd, family, steps), patch=SLOW)
    assert code == 0, process.stderr
    folder = folder_of(cwd)
    assert folder is not None
    return hashes(folder), time.perf_counter() - first


def places(chance: random.Random) -> Iterator[tuple[str, int]]:
    """Fault points in a random order without end, each with how often it is passed before."""
    while True:
        for point in chance.sample(sorted(crash.POINTS), len(crash.POINTS)):
            yield point, chance.randint(1, 8 if point.startswith("file") else 2)
