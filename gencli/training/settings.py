"""The settings that every training run has, whatever the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gencli.config import opt
from gencli.errors import GencliError

WIDEST = 0.28
"""Relative width of a power-function average: at 0.289 it is the plain mean of all steps."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimiser, schedule, averaging, precision and intervals; batch size is global, in items."""

    steps: int = opt(2000, "optimiser steps", low=1)
    batch_size: int = opt(64, "items in one optimiser step, over all processes", low=1)
    lr: float = opt(1e-3, "learning rate", low=0.0)
    optimizer: Literal["adam", "adamw", "rmsprop"] = opt("adam", "optimiser")
    betas: tuple[float, ...] = opt((0.9, 0.999), "Adam's decay rates")
    weight_decay: float = opt(0.0, "weight decay; skips 1-D parameters and embeddings", low=0.0)
    warmup: int = opt(0, "steps over which the learning rate rises from 0", low=0)
    schedule: Literal["constant", "linear", "cosine", "rsqrt"] = opt("constant", "learning rate after the warm-up")
    decay_after: int = opt(1000, "step from which the schedule rsqrt falls as 1/√step", low=1)
    clip: float = opt(0.0, "largest gradient norm; 0 = no clipping", low=0.0)
    ema: float = opt(
        0.1, "width of the power-function average of the weights, as a share of the run; 0 = off", low=0, high=WIDEST
    )
    ema_decay: float = opt(
        0.0, "constant decay of the average instead, as in older papers (0.9999)", low=0, high=0.999999
    )
    ema_profiles: tuple[float, ...] = opt(
        (), "widths of further averages kept at each save (0.05,0.1), from which `convert --ema` makes any other"
    )
    grad_accum: int = opt(1, "micro-batches in one step", low=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = opt(
        "auto", "arithmetic of the network; noise and losses stay fp32"
    )
    compile: bool = opt(False, "compile the network with torch.compile: minutes at the start, faster steps")
    preserve: float = opt(
        0.0, "with --from: weight of the loss on what that run made, so that little is forgotten (paper: 1)", low=0.0
    )
    preserve_items: int = opt(200, "samples of that run that are drawn once for it", low=1)
    shift: int = opt(0, "augment by random shifts of up to this many pixels", low=0)
    flip: bool = opt(False, "augment by horizontal flips")
    seed: int = opt(0, "seed of everything random in the run", low=0)
    save_every: int = opt(500, "steps between saves", low=1)
    sample_every: int = opt(0, "steps between pictures; 0 = at each save")
    keep: int = opt(2, "saved states to keep", low=1)
    track: Literal["none", "tensorboard", "wandb"] = opt("none", "also log to a tracker, in the run's folder")

    def __post_init__(self) -> None:
        check_widths(self.ema_profiles, "ema_profiles")


def check_widths(widths: tuple[float, ...], what: str) -> None:
    """Refuse relative widths that no power function has, and the same one twice."""
    for width in widths:
        if not 0 < width <= WIDEST:
            raise GencliError(
                f"{what} is {width:g}, the width of an average is more than 0 and at most {WIDEST}",
                "it is a share of the run: 0.1 averages over about the last third",
            )
        if widths.count(width) > 1:
            raise GencliError(f"{what} has {width:g} twice", "give two different widths, such as 0.05,0.1")


RESUMABLE = ("steps", "save_every", "sample_every", "keep", "compile", "grad_accum", "track")
"""What a resumed run may change; anything else is refused."""
