"""One training loop for every family: phases outside, micro-batches inside, a generator that yields after each step.

Showing, saving, sampling and stopping belong to the caller. Everything random is a function of (seed, phase, step, global
row) and the order of the data of (seed, epoch), so a resumed run equals an uninterrupted one, and 1×64 equals 2×32.

Several processes each take their rows of the global batch and hold the whole state. They exchange one message a turn:
gradients, losses, weights, and whether any loss was not finite; so all do the same step, or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gencli import crash
from gencli.bundle import Run
from gencli.core import Batch, Items, Losses, Model, Phase, Rng, Turn, gather, mix, share, world
from gencli.data._augment import augment
from gencli.data._loader import indices
from gencli.errors import GencliError
from gencli.training import across, faults, optim
from gencli.training.ema import Average, Profiles, steps_before
from gencli.training.preserve import Preserved
from gencli.training.settings import TrainConfig

Micro = tuple[range, Tensor, Batch]  # rows of the global batch, the items they are, and their tensors


@dataclass(frozen=True)
class Step:
    """What one optimiser step did; `step` counts finished steps."""

    step: int
    losses: dict[str, Tensor]
    items: int


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
        self.preserved: Preserved | None = None

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
        share(self.model.state_dict().values())
        before = steps_before(self.run.config)
        self.average = Average(self.model, self.train.ema, self.train.ema_decay, before)
        self.profiles = Profiles(self.model, self.train.ema_profiles, before)
        owners = [phase for phase in self.phases if self.params[phase.name] and phase.shares is None]
        made = {p.name: optim.make(self.settings[p.name], self.params[p.name], self.model) for p in owners}
        # not prepare(): its wrapper would average gradients in the middle of a penalty's double backward
        self.wrapped: nn.Module = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        self.optimisers = {name: self.accelerator.prepare_optimizer(each) for name, each in made.items()}

    def optimiser(self, phase: Phase) -> Any | None:
        """The optimiser that a phase steps, if it trains anything."""
        return self.optimisers.get(phase.shares or phase.name)

    # ----------------------------------------------------------------------------------------------------------------- steps

    def __iter__(self) -> Iterator[Step]:
        while self.step < self.train.steps:
            yield self.take_step()

    def take_step(self) -> Step:
        """One optimiser step: every phase whose turn it is, then buffers and averages."""
        crash.point("step.begun")
        batches = self._micro_batches()
        shown: dict[str, Tensor] = {}
        for phase in self.phases:
            if self.step % phase.every == 0:
                losses = self._take_turn(phase, batches)
                prefix = "" if len(self.phases) == 1 else f"{phase.name}/"
                shown |= {prefix + key: value for key, value in losses.items()}
        across.average_statistics(self.model)
        self.step += 1
        self.average.update(self.model, self.step)
        self.profiles.update(self.model, self.step)
        return Step(self.step, shown, self.train.batch_size)

    def _micro_batches(self) -> list[Micro]:
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

    def _take_turn(self, phase: Phase, batches: list[Micro]) -> dict[str, Tensor]:
        optimiser = self.optimiser(phase)
        settings, params = self.settings[phase.name], list(self.params[phase.name].values())
        self._seed_torch(phase)
        self._toggle(phase)
        if optimiser is not None:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = optim.rate_of(phase, settings, self.step // phase.every)
        gathered: list[tuple[Losses, Tensor]] = []
        bad: Micro | None = None
        for micro in batches:
            rows, _, batch = micro
            losses = self._losses(batch, phase, rows)
            weight = losses.get("weight", torch.tensor(float(len(rows)))).to(losses["loss"])
            gathered.append((losses, weight))
            if not torch.isfinite(losses["loss"]):
                bad = micro
                break
            if optimiser is not None:
                self.accelerator.backward(losses["loss"] * (weight / self.train.batch_size))
        names, sums = self._sums(gathered, bad is not None)
        found, total, *weighted = across.sum_gradients(params if optimiser is not None else [], sums)
        if bad is not None or (self.world.size > 1 and found):
            self._refuse("loss", [bad] if bad is not None else [], phase)
        shown = dict(zip(names, [value / total for value in weighted], strict=True))
        if optimiser is not None:
            scale = float(self.train.batch_size / total)
            if scale != 1.0:
                torch._foreach_mul_([p.grad for p in params if p.grad is not None], scale)
            norm = self.accelerator.clip_grad_norm_(params, settings.clip) if settings.clip else self._norm(params)
            if settings.clip or len(self.phases) > 1:  # whether one side of a game overpowers the other
                shown["grad_norm"] = norm
            if self.accelerator.scaler is None and not faults.finite(params, norm):  # a scaler skips such a step
                self._refuse("gradient", batches, phase)
            shown |= self._step(optimiser)
        self.model.after_step(self._turn(phase, range(self.train.batch_size)))
        return shown

    def _losses(self, batch: Batch, phase: Phase, rows: range) -> Losses:
        """The model's, and with them those on what is to be preserved."""
        turn = self._turn(phase, rows)
        losses: Losses = self.wrapped(batch, turn)
        if self.preserved is None:
            return losses
        seed = mix(self.train.seed, "preserved")
        chosen = indices(self.step, self.train.batch_size, len(self.preserved), seed)[rows.start : rows.stop]
        with torch.no_grad():
            kept = self.run.encode(self.preserved.batch(chosen), turn.rng.at("preserved", "encode"))
        kept = {key: value.to(self.accelerator.device) for key, value in kept.items()}
        also = self.wrapped(kept, replace(turn, rng=turn.rng.at("preserved")))["loss"]
        return {**losses, "loss": losses["loss"] + self.preserved.weight * also, "preserved": also}

    def _norm(self, params: list[nn.Parameter]) -> Tensor:
        """Of all gradients together, without the scale that losses may have."""
        scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler is not None else 1.0
        return nn.utils.get_total_norm([p.grad for p in params if p.grad is not None]) / scale

    def _step(self, optimiser: Any) -> dict[str, Tensor]:
        """Step; where losses are scaled, say whether the gradients overflowed, which skips the step and lowers the scale."""
        scaler = self.accelerator.scaler
        if scaler is None:
            optimiser.step()
            return {}
        before = scaler.get_scale()  # accelerate's own word misses fused optimisers, which skip inside
        optimiser.step()
        return {"skipped": torch.tensor(float(scaler.get_scale() < before))}

    def _seed_torch(self, phase: Phase) -> None:
        """torch's own generators, which only dropout uses."""
        seed = mix(self.train.seed, "torch", phase.name, self.step, self.world.rank)
        if self.accelerator.device.type == "cpu":  # for devices that are not there torch would note where it was asked
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _toggle(self, phase: Phase) -> None:
        if len(self.phases) > 1:
            mine = set(self.params[phase.name])
            for names in self.params.values():
                for name, parameter in names.items():
                    parameter.requires_grad_(name in mine)

    def _sums(self, gathered: list[tuple[Losses, Tensor]], bad: bool) -> tuple[list[str], Tensor]:
        """Names of what is logged; whether a loss is not finite, the sum of the weights, and the weighted sums."""
        names = [key for key, value in gathered[0][0].items() if value.ndim == 0 and key != "weight"]
        total = torch.stack([weight for _, weight in gathered]).sum()
        sums = [torch.stack([one[name].detach().float() * w for one, w in gathered]).sum() for name in names]
        return names, torch.stack([torch.full_like(total, bad), total, *sums])

    def _refuse(self, what: faults.What, micros: list[Micro], phase: Phase) -> None:
        """Processes where numbers are not finite find out why, the first one says it, the others end."""
        mine = [self.blame(what, rows, items.tolist(), batch, phase) for rows, items, batch in micros]
        told = [one for each in gather(mine) for one in each]
        if not self.world.main:
            raise SystemExit(1)
        bundle, batch = next((one for one in told if one[0]["layer"]), told[0])
        raise faults.NotFinite({**bundle, "layer": bundle["layer"] or "nothing that shows when it is run again"}, batch)

    def blame(
        self, what: faults.What, rows: range, items: list[int], batch: Batch, phase: Phase
    ) -> tuple[dict[str, Any], Batch]:
        """Run a turn of the next step again: its bundle, whose `layer` is empty if all is finite, and its batch."""
        self._seed_torch(phase)  # the same dropout, in the same precision
        self._toggle(phase)
        with self.accelerator.autocast():
            layer = faults.first_bad(what, self.model, batch, self._turn(phase, rows))
        return {
            "step": self.step + 1,
            "what": what,
            "phase": phase.name,
            "seed": self.train.seed,
            "layer": layer,
            "items": items,
            "rows": [rows.start, rows.stop],
            "process": [self.world.rank, self.world.size],
            "device": self.accelerator.device.type,
            "precision": self.accelerator.mixed_precision,
        }, {key: value.cpu() for key, value in batch.items()}

    def check_weights(self) -> None:
        """Refuse to save weights that are not finite: the state before them must stay the newest."""
        if layer := faults.bad_weights(self.model):
            phase = self.phases[-1].name
            raise faults.NotFinite({"step": self.step, "what": "weights", "phase": phase, "layer": layer}, {})
