"""One training loop for every family: phases outside, micro-batches inside, a generator that yields after each step.

Showing, saving, sampling and stopping belong to the caller. Everything random is a function of (seed, phase, step, global
row) and the order of the data of (seed, epoch), so a resumed run equals an uninterrupted one, and 1×64 equals 2×32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gencli.bundle import Run
from gencli.core import Batch, Items, Losses, Model, Phase, Rng, Turn, all_reduce, mix, world
from gencli.data._augment import augment
from gencli.data._loader import indices
from gencli.errors import GencliError
from gencli.training import faults, optim
from gencli.training.ema import Average
from gencli.training.settings import TrainConfig


@dataclass(frozen=True)
class Step:
    """What one optimiser step did; `step` counts finished steps."""

    step: int
    losses: dict[str, Tensor]
    items: int


class NotFinite(GencliError):
    """The loss is not finite; `bundle` is what is needed to run that step again."""

    def __init__(self, bundle: dict[str, Any]) -> None:
        super().__init__(
            f"the loss is not finite at step {bundle['step']} (phase {bundle['phase']}); first in {bundle['layer']}",
            "lower --lr, set --clip 1, or use --precision fp32; the last saved state is untouched",
            code=1,
        )
        self.bundle = bundle


class Trainer:
    """The state of training and the loop; `iter(trainer)` continues at `self.step`."""

    def __init__(self, run: Run, train: TrainConfig, items: Items, accelerator: Accelerator) -> None:
        self.run, self.train, self.items, self.accelerator = run, train, items, accelerator
        self.model: Model = run.model
        self.step = 0
        self.world = world()
        self._split_batch()
        self.phases = self.model.phases()
        self.params = {phase.name: optim.trainable(self.model, phase) for phase in self.phases}
        self.settings = {phase.name: optim.phase_settings(train, phase) for phase in self.phases}

    def _split_batch(self) -> None:
        parts = self.world.size * self.train.grad_accum
        if self.train.batch_size % parts:
            raise GencliError(
                f"batch size {self.train.batch_size} cannot be split over {self.world.size} processes × "
                f"{self.train.grad_accum} micro-batches",
                f"give a multiple of {parts}",
            )
        self.micro = self.train.batch_size // parts

    # ------------------------------------------------------------------------------------------------------------ preparing

    def initialise(self) -> None:
        """Step 0: what the model must learn from data before the first step."""
        self.model.initialise(self._endless(), len(self.items), Rng.batch(self.train.seed, "initialise", total=1))

    def _endless(self) -> Iterator[Batch]:
        step = 0
        while True:
            rng = Rng.batch(self.train.seed, "initialise", step, total=self.train.batch_size)
            yield self._encode(indices(step, self.train.batch_size, len(self.items), self.train.seed), rng)
            step += 1

    def prepare(self) -> None:
        """Optimisers, averages, and whatever wraps the model; after this the plain model is `self.model` still."""
        if self.train.compile:
            for child in self.model.compilable:
                getattr(self.model, child).compile()
        self.model.train()
        self.average = Average(self.model, self.train.ema, self.train.ema_decay)
        owners = [phase for phase in self.phases if self.params[phase.name] and phase.shares is None]
        made = {p.name: optim.make(self.settings[p.name], self.params[p.name], self.model) for p in owners}
        wrapped, *optimisers = self.accelerator.prepare(self.model, *made.values())
        self.wrapped: nn.Module = wrapped
        self.optimisers: dict[str, Any] = dict(zip(made, optimisers, strict=True))

    def optimiser(self, phase: Phase) -> Any | None:
        """The optimiser that a phase steps, if it trains anything."""
        return self.optimisers.get(phase.shares or phase.name)

    # ----------------------------------------------------------------------------------------------------------------- steps

    def __iter__(self) -> Iterator[Step]:
        while self.step < self.train.steps:
            yield self.take_step()

    def take_step(self) -> Step:
        """One optimiser step: every phase whose turn it is, then buffers and averages."""
        batches = self._micro_batches()
        shown: dict[str, Tensor] = {}
        for phase in self.phases:
            if self.step % phase.every == 0:
                losses = self._take_turn(phase, batches)
                prefix = "" if len(self.phases) == 1 else f"{phase.name}/"
                shown |= {prefix + key: value for key, value in losses.items()}
        self.step += 1
        self.average.update(self.model, self.step)
        return Step(self.step, shown, self.train.batch_size)

    def _micro_batches(self) -> list[tuple[range, Tensor, Batch]]:
        chosen = indices(self.step, self.train.batch_size, len(self.items), self.train.seed)
        made = []
        for part in range(self.train.grad_accum):
            start = (self.world.rank * self.train.grad_accum + part) * self.micro
            rows = range(start, start + self.micro)
            rng = Rng.batch(self.train.seed, "data", self.step, total=self.train.batch_size, rows=rows)
            made.append((rows, chosen[rows.start : rows.stop], self._encode(chosen[rows.start : rows.stop], rng)))
        return made

    def _encode(self, chosen: Tensor, rng: Rng) -> Batch:
        batch = self.items.batch(chosen)
        with torch.no_grad():
            if getattr(self.items, "encoded", False):
                for codec in self.run.codecs:
                    batch = codec.draw(batch, rng.at("encode"))
            else:
                batch = augment(batch, self.train.shift, self.train.flip, rng.at("augment"))
                batch = self.run.encode(batch, rng.at("encode"))
        return {key: value.to(self.accelerator.device) for key, value in batch.items()}

    def _turn(self, phase: Phase, rows: range) -> Turn:
        key = (self.train.seed, phase.name, self.step)
        rng = Rng.batch(*key, total=self.train.batch_size, rows=rows, device=self.accelerator.device)
        return Turn(phase.name, self.step // phase.every, -(-self.train.steps // phase.every), rng)

    def _take_turn(self, phase: Phase, batches: list[tuple[range, Tensor, Batch]]) -> dict[str, Tensor]:
        optimiser = self.optimiser(phase)
        settings, params = self.settings[phase.name], list(self.params[phase.name].values())
        self._seed_torch(phase)
        self._toggle(phase)
        if optimiser is not None:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = optim.rate(settings, self.step // phase.every, -(-self.train.steps // phase.every))
        total = torch.zeros((), device=self.accelerator.device)
        gathered: list[tuple[Losses, Tensor]] = []
        for i, (rows, chosen, batch) in enumerate(batches):
            turn = self._turn(phase, rows)
            last = i == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                losses = self.wrapped(batch, turn)
                weight = losses.get("weight", torch.tensor(float(len(rows)))).to(total)
                self._check(losses["loss"], phase, batch, chosen, rows)
                if optimiser is not None:
                    self.accelerator.backward(losses["loss"] * (weight * self.world.size / self.train.batch_size))
            total += weight
            gathered.append((losses, weight))
        shown = self._mean(gathered, total)
        if optimiser is not None:
            scale = float(self.train.batch_size / all_reduce(total.clone()))
            if scale != 1.0:
                torch._foreach_mul_([p.grad for p in params if p.grad is not None], scale)
            if settings.clip:
                shown["grad_norm"] = self.accelerator.clip_grad_norm_(params, settings.clip)
            optimiser.step()
        self.model.after_step(self._turn(phase, batches[-1][0]))
        return shown

    def _seed_torch(self, phase: Phase) -> None:
        """torch's own generators, which only dropout uses."""
        torch.manual_seed(mix(self.train.seed, "torch", phase.name, self.step, self.world.rank))

    def _toggle(self, phase: Phase) -> None:
        if len(self.phases) > 1:
            mine = set(self.params[phase.name])
            for names in self.params.values():
                for name, parameter in names.items():
                    parameter.requires_grad_(name in mine)

    def _mean(self, gathered: list[tuple[Losses, Tensor]], total: Tensor) -> dict[str, Tensor]:
        keys = [key for key, value in gathered[0][0].items() if value.ndim == 0 and key != "weight"]
        return {key: sum(l[key].detach().float() * w for l, w in gathered) / total for key in keys}

    def _check(self, loss: Tensor, phase: Phase, batch: Batch, chosen: Tensor, rows: range) -> None:
        if torch.isfinite(loss):
            return
        self._seed_torch(phase)  # the same dropout, in the same precision
        with self.accelerator.autocast():
            layer = faults.first_bad_layer(self.model, batch, self._turn(phase, rows))
        raise NotFinite(
            {
                "step": self.step + 1,
                "phase": phase.name,
                "seed": self.train.seed,
                "layer": layer,
                "items": chosen.tolist(),
            }
        )
