"""gencli's trainer of a run that is not on disk."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from gencli.bundle import Run
from gencli.config import parse
from gencli.training.settings import TrainConfig
from gencli.training.trainer import Trainer


def prepared(run: Run, items: Any, precision: str) -> Trainer:
    """Before its first step, in `fp32` or `bf16`, on the CPU."""
    train = parse(TrainConfig, run.config["recipe"]["train"], "train")
    AcceleratorState._reset_state(reset_partial_state=False)
    made = Trainer(run, train, items, Accelerator(mixed_precision={"fp32": "no"}.get(precision, precision), cpu=True))
    made.initialise()
    made.prepare()
    return made
