"""Trackers: what is logged and drawn goes to TensorBoard or Weights & Biases as well, under `track/` in the run's folder.

Which one is the setting `track`, which a resumed run may change. After resuming, TensorBoard hides what was logged past the
saved state, and Weights & Biases continues the same run and ignores steps that it has. WANDB_MODE and the other variables of
wandb mean what they always mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gencli.core import mix, world
from gencli.errors import GencliError

PROJECT = {"tensorboard": "", "wandb": "gencli"}  # for TensorBoard a folder below track/, which needs none


def check(tracker: str) -> None:
    """Refuse a tracker that is not installed."""
    if tracker != "none" and find_spec(tracker) is None:
        raise GencliError(f"tracker '{tracker}' is not installed", "pip install 'gencli[track]'")


def settings(tracker: str, folder: Path) -> dict[str, Any]:
    """What Accelerate must be told."""
    return {} if tracker == "none" else {"log_with": tracker, "project_dir": folder / "track"}


@contextmanager
def started(accelerator: Any, tracker: str, config: Mapping[str, Any], folder: Path, step: int) -> Iterator[None]:
    """The run's tracker, if it has one, at work inside the block; `step` is the last that counts so far."""
    if tracker != "none" and world().main:
        (folder / "track").mkdir(exist_ok=True)
        options = {
            "tensorboard": {"purge_step": step + 1},
            "wandb": {
                "name": folder.name,
                "id": f"{mix(config['name'], config['created']):016x}",
                "resume": "allow",
                "dir": str(folder / "track"),
                "config": config["recipe"],
            },
        }
        _start(accelerator, tracker, options)
    try:
        yield
    finally:
        for each in accelerator.trackers:
            each.finish()


def _start(accelerator: Any, tracker: str, options: dict[str, Any]) -> None:
    failures: tuple[type[Exception], ...] = ()
    if tracker == "wandb":
        from wandb.errors import Error

        failures = (Error,)
    try:
        accelerator.init_trackers(PROJECT[tracker], init_kwargs=options)
    except failures as error:
        keep = "`wandb login`, or set WANDB_MODE=offline to keep the logs in the run's folder; then --resume"
        raise GencliError(f"wandb did not start: {error}", keep) from None


def log(trainer: Any, step: int, values: Mapping[str, float]) -> None:
    """The losses of a step and the learning rate of each optimiser."""
    if trainer.accelerator.trackers:
        several = len(trainer.optimisers) > 1
        rates = {
            f"{name}/lr" if several else "lr": optimiser.param_groups[0]["lr"]
            for name, optimiser in trainer.optimisers.items()
        }
        trainer.accelerator.log({**values, **rates}, step=step)


def picture(accelerator: Any, step: int, path: Path) -> None:
    """A picture that was just saved."""
    if accelerator.trackers:
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("RGB"))[None]
        for tracker in accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": pixels}, step=step, **layout)
