"""What `gencli train … --verify-resume` prints: whether a run that is killed ends as one that is not, on this machine."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gencli.cli import console
from gencli.cli.options import Flag
from gencli.errors import GencliError

FLAG = Flag(
    "verify_resume",
    ("--verify-resume",),
    bool,
    "kill and resume a few steps of it, compare with as many left alone, and do not train",
    "Run",
    default=False,
)


def show(
    recipe: dict[str, Any], codec_run: Any, sources: Mapping[str, Any] | None, begun: Path | None, old: Any
) -> None:
    """Verify, and say the verdict; nothing is kept."""
    if old is not None:
        raise GencliError("--verify-resume is about a new run", f"leave --resume {old.name} out")
    from gencli.training.verify import KILLS, STEPS, verify

    console.say(f"verifying {recipe['recipe']}: {STEPS} steps, twice, in a temporary folder")
    with console.task("verifying", len(KILLS) + 2, "runs") as task:

        def say(what: str) -> None:
            task.advance(task.done, what)
            task.done += 1
            console.say(f"{task.done} of {task.total}: {what}")

        made = verify(recipe, say, codec_run, sources, begun)
    console.document(verified=not made.differ, **dataclasses.asdict(made))
    where = " and ".join(map(str, made.resumed))
    if made.differ:
        raise GencliError(
            f"resuming is not exact here: {len(made.differ)} of {made.files} files differ, first {made.differ[0]} "
            f"(killed {made.kills} times, resumed at steps {where})",
            "on a GPU some kernels add in any order; a CPU does not: file an issue with `gencli env`",
            code=1,
        )
    console.out(
        f"resuming is exact here: killed {made.kills} times, resumed at steps {where}; "
        f"all {made.files} files of step {STEPS} equal those of a run left alone"
    )
    console.following(
        "gencli " + shlex.join(["train", *(arg for arg in console.state.args if arg != "--verify-resume")])
    )
