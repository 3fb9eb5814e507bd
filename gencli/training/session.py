"""A training run from its folder's point of view: make or resume it, train, save, draw, and tell the caller as events.

The caller shows events; nothing here prints. Stopping is asked for by setting `session.asked`, on any process.

Several processes train in step; the first alone locks, writes and draws, and tells the others which folder and state.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from gencli import device as hardware
from gencli import files
from gencli.adapters import _base as adapting
from gencli.bundle import Run, new_config, read_config
from gencli.config import as_dict, choose, parse
from gencli.core import broadcast, greatest, main_first, mix, world
from gencli.data._base import Data, Split
from gencli.errors import GencliError
from gencli.training import adversarial, journal, latents, memory, preserve, start, teaching, track
from gencli.training.settings import RESUMABLE, TrainConfig
from gencli.training.sources import complete, nest

LOGGED = 5000
OUTPUT_FLAGS = ("--debug", "--quiet", "-q", "--json")  # no part of what made a run


@dataclass(frozen=True)
class Event:
    """Something a user may want to see."""

    kind: Literal["note", "start", "step", "saved", "picture", "done", "stopped"]
    step: int = 0
    text: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    path: Path | None = None
    picture: Any = None


def resolve(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a recipe spelt out, so that a later change of defaults changes no old run."""
    model = choose("models", teaching.filled(recipe["model"]), where="model")
    data = model.load().data_for(model.config, recipe.get("data", {"name": "digits"}))
    for adapter in adapting.made(recipe):
        data = adapter.data_for(data)
    table = {
        "recipe": recipe.get("recipe", model.name),
        "model": {"name": model.name, **as_dict(model.config)},
        "data": {"name": data["name"], **as_dict(choose("data", data, where="data").config)},
        "train": as_dict(parse(TrainConfig, recipe.get("train", {}), "train")),
    }
    for key in ("codecs", "sample"):
        if recipe.get(key):
            table[key] = recipe[key]
    if adapters := [choose("adapters", one, where="adapters") for one in recipe.get("adapters", [])]:
        table["adapters"] = [{"name": one.name, **as_dict(one.config)} for one in adapters]
    return table


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Settings that differ, as (dotted name, old, new)."""
    rows: list[tuple[str, Any, Any]] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            rows += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            rows.append((prefix + key, a, b))
    return rows


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> list[str]:
    """Refuse what a resumed run may not change; returns a line for each change it may."""
    notes = []
    chosen_first = sorted(differences(old, new), key=lambda row: not row[0].endswith(".name"))
    for key, a, b in chosen_first:
        if key in ("data.path", "recipe") or key.startswith("sample"):
            continue
        if key.removeprefix("train.") not in RESUMABLE:
            flag = flag_for(key)
            raise GencliError(
                f"run {name} was made with {flag} {a}, a resumed run cannot change it to {b}",
                f"leave {flag} out, or leave --resume out to start a new run",
            )
        notes.append(f"{key.removeprefix('train.')} is now {b}, was {a}")
        if key == "train.steps" and (way := new["train"]["schedule"]) in ("cosine", "linear"):
            notes.append(f"the {way} schedule restarts from here with {b} steps in view")
    return notes


def flag_for(key: str) -> str:
    """The command line's flag for a dotted setting: `data.name` is `--data`, `model.net.width` is `--net.width`."""
    path = key.removesuffix(".name") if key.endswith(".name") else key.removeprefix("data.")
    return "--" + path.removeprefix("train.").removeprefix("model.").replace("_", "-")


def make_folder(root: Path, name: str) -> Path:
    """An unused folder `name`, `name-2`, … made in one atomic step."""
    with files.explained(root):
        root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        with files.explained(path):
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
        return path


def safe_name(name: str) -> str:
    """Lower case, letters, digits and hyphens; nothing that any system reserves."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
    return f"{slug}-run" if slug in {"con", "prn", "aux", "nul"} or re.fullmatch(r"(com|lpt)\d", slug) else slug


class Session:
    """One call of `gencli train`.

    Args:
        recipe: resolved tables.
        data: the data set, opened.
        root: where run folders are made.
        name: of the run; None = MODEL-DATA.
        codec_run: a saved run whose latents are the data.
        folder: an existing run to resume.
        sources: saved runs that make the data's conditions when the new run is sampled.
        begun: the folder of a saved run whose weights the new one begins with.
    """

    def __init__(
        self,
        recipe: dict[str, Any],
        data: Data,
        root: Path,
        name: str | None = None,
        codec_run: Run | None = None,
        folder: Path | None = None,
        sources: Mapping[str, Run] | None = None,
        begun: Path | None = None,
    ) -> None:
        self.recipe, self.data, self.root = recipe, data, root
        self.train = parse(TrainConfig, recipe["train"], "train")
        self.resuming = folder is not None
        self.codec_run = codec_run
        self.notes: list[str] = []
        self.asked = 0  # a signal's number; a handler may set it at any moment
        self.stop = 0  # what all processes agreed on after a step
        if folder is not None:
            self.folder = folder
            self.config = read_config(folder)
            self._check_state()
            teaching.check(self.config)
            with main_first():
                self._check_data()
            nested = folder / "codec"
            self.codec_run = Run.load(nested) if nested.is_dir() else None
            sources = {key: Run.load(folder / "sources" / key) for key in self.config.get("sources", [])}
        track.check(self.train.track)
        needs = memory.held(memory.blueprint(recipe, data.spec, self.codec_run), self.train)
        memory.refuse_too_large(recipe["model"]["name"], needs, hardware.default())
        with main_first():
            data.split("train")
        torch.manual_seed(mix(self.train.seed, "weights"))
        self.run = Run.build(recipe, data.spec, self.codec_run)
        self.run.config["recipe"] = recipe
        self.run.sources = complete(self.run, sources or {}) if folder is None else dict(sources or {})
        if folder is None:
            taken = start.begin(self.run.model, begun) if begun is not None else None
            for adapter in adapting.made(recipe):
                adapter.begin(self.run.model, taken.anew if taken else [])
            preserve.check(self.run, taken.facts if taken else None, self.train)
            wanted = safe_name(name or f"{recipe['model']['name']}-{data.name}")
            self.folder = broadcast(make_folder(root, wanted) if world().main else root / wanted)
            begun_from, self.notes = ({"from": taken.facts}, taken.notes) if taken else ({}, [])
            self.config = self._new_config() | teaching.facts(recipe["model"]) | begun_from
            if world().main:
                self._fill_folder()
        self.run.path, self.run.config = self.folder, self.config

    # --------------------------------------------------------------------------------------------------------------- config

    def _fill_folder(self) -> None:
        if self.codec_run is not None:
            nest(self.codec_run, self.folder / "codec")
        for key, source in self.run.sources.items():
            nest(source, self.folder / "sources" / key)
        if hasattr(self.data, "index"):
            files.atomic_json(self.folder / "train" / "items.json", self.data.index)
        files.atomic_json(self.folder / "config.json", self.config)

    def _new_config(self) -> dict[str, Any]:
        splits = {name: len(self.data.split(name)) for name in ("train", "test")}
        return new_config(
            self.run,
            {"name": self.data.name, "hash": self.data.hash, "items": splits},
            self.folder.name,
            datetime.datetime.now(datetime.UTC).isoformat(),
            shlex.join(["gencli", *(arg for arg in sys.argv[1:] if arg not in OUTPUT_FLAGS)]),
            self.codec_run,
        )

    def _check_state(self) -> None:
        """Refuse a run whose weights a fresh start would replace."""
        step, made = self.config.get("step"), self.config.get("converted")
        if (step or made) and not any((self.folder / "train").glob("step-*")):
            why = f"was slimmed at step {step}" if not made else f"was converted from {made['path']}"
            raise GencliError(
                f"run {self.folder.name} {why}: it has no state to resume from",
                f"it still samples: gencli sample {self.folder.name}; leave --resume out to start a new run",
            )

    def _check_data(self) -> None:
        then = self.config["data"]["hash"]
        if self.data.hash != then:
            raise GencliError(
                f"run {self.folder.name} was trained on other data: hash {then}, now {self.data.hash}{self._changed()}",
                "give the same data with --data, or leave --resume out to start a new run",
            )

    def _changed(self) -> str:
        """How many items of a folder differ from those it was trained on, where that is known."""
        path = self.folder / "train" / "items.json"
        if not hasattr(self.data, "changed") or not path.is_file():
            return ""
        with files.understood(path, "give the same data with --data"):
            return f"; {self.data.changed(files.read_json(path))} items differ"

    # ---------------------------------------------------------------------------------------------------------------- events

    def events(self) -> Iterator[Event]:
        """Train to the end (or until `stop`), yielding what happens."""
        from gencli.training.faults import NotFinite, write
        from gencli.training.lock import locked

        with locked(self.folder) if world().main else contextlib.nullcontext():
            trainer = self.trainer(self.train)
            yield from self.begin(trainer)
            if world().main:
                journal.trim(self.folder / "metrics.jsonl", trainer.step)
            try:
                with track.started(trainer.accelerator, self.train.track, self.config, self.folder, trainer.step):
                    yield from self._loop(trainer)
            except NotFinite as error:
                write(error, self.run.model, self.folder)
                raise
        yield Event("stopped" if self.stop else "done", trainer.step, path=self.folder)

    def trainer(self, train: TrainConfig) -> Any:
        """A trainer of this session's model and data, not begun."""
        from gencli.training.trainer import Trainer

        accelerator = self._accelerator()
        self.run.model.to(accelerator.device)
        return Trainer(self.run, train, self._items(), accelerator)

    def _accelerator(self) -> Any:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        from gencli.training import precision

        network = self.recipe["model"].get("denoiser", self.recipe["model"]).get("net", {}).get("name", "")
        device = hardware.default()
        chosen = broadcast(self.config.get("precision") or precision.resolve(self.train.precision, device, network))
        self.config["precision"] = chosen
        AcceleratorState._reset_state(reset_partial_state=False)
        arithmetic = {"fp32": "no"}.get(chosen, chosen)
        return Accelerator(
            mixed_precision=arithmetic, cpu=device.type == "cpu", **track.settings(self.train.track, self.folder)
        )

    def _items(self) -> Any:
        from gencli.training.cache import encoded

        split = self.data.split("train")
        if not len(split):
            raise GencliError(f"data set '{self.data.name}' has no training items", "see `gencli data check`")
        augmented = self.train.shift or self.train.flip
        if self.codec_run is None or augmented:
            return split
        with main_first():
            return encoded(self.run, split, self.data.hash)

    def begin(self, trainer: Any) -> Iterator[Event]:
        """Make the trainer ready for its next step: from data, or from the newest good state."""
        from gencli.training import checkpoint, posthoc

        state, facts, damaged = broadcast(checkpoint.newest(self.folder) if world().main else (None, {}, []))
        if state is None:
            self._start(trainer)
        trainer.prepare()
        trainer.preserved = preserve.ready(self.run, self.data.split("train"), self.folder, self.train, state is None)
        if state is not None:
            checkpoint.restore(trainer, state, facts)
        if world().main:
            if state is not None:
                checkpoint.publish(state, self.folder)
            posthoc.rewind(self.folder, trainer.step, trainer.profiles)
            checkpoint.remove_partial(self.folder)
        for line in damaged:
            yield Event("note", text=f"{line}; falling back to the state before it")
        if self.resuming:
            found = f"resumed at step {trainer.step}" if state else "no saved state: started at 0"
            yield Event("note", trainer.step, found)
        yield Event("start", trainer.step, path=self.folder)

    def _start(self, trainer: Any) -> None:
        """Step 0: from data, or from the weights of another run, which are in the model already."""
        other = self.config.get("from")
        if other is None:
            trainer.initialise()
        elif self.resuming:
            raise GencliError(
                f"run {self.folder.name} began from {other['run']} and has saved nothing since",
                f"start it again: gencli train {self.recipe['recipe']} --from {other['run']}",
            )

    def _loop(self, trainer: Any) -> Iterator[Event]:
        log: list[str] = []
        every, began = max(1, self.train.steps // LOGGED), time.perf_counter()
        seen: dict[str, Any] = {}  # since the last line: not every phase has its turn in every step
        latent, game = latents.Watch(self.run, self.folder), adversarial.Watch(self.run, self.folder, self.data)
        for step in trainer:
            seen |= step.losses
            values: dict[str, float] = {}
            self.stop = greatest(self.asked)
            ends = step.step == self.train.steps or self.stop > 0
            saves = ends or step.step % self.train.save_every == 0
            if step.step % every == 0 or saves:
                values = {key: float(value) for key, value in seen.items()}
                seen = {}
                game.see(values)
                log.append(journal.line(step, values, began))
                track.log(trainer, step.step, values)
            yield Event("step", step.step, values=values)
            if saves:
                if world().main:
                    self.save(trainer, log)
                log = []
                figures, told = game.look(trainer.average, step.step, ends) if world().main else ({}, [])
                if figures:
                    track.log(trainer, step.step, figures)
                yield Event("saved", step.step, values=figures, path=self.folder)
                if world().main:
                    told.append(latent.look(trainer.average, self._held_out(), step.step, ends))
                for text in filter(None, told):
                    yield Event("note", step.step, text)
            draws = ends or step.step % (self.train.sample_every or self.train.save_every) == 0
            if draws and not self.stop and world().main:
                yield from self.draw(trainer, step.step)
            if ends:
                break

    def save(self, trainer: Any, log: list[str]) -> None:
        """Write what was logged and the whole state."""
        from gencli.training import checkpoint

        trainer.check_weights()
        self.config["step"] = trainer.step
        self.config["recipe"] = self.recipe
        journal.append(self.folder / "metrics.jsonl", log)  # first: resuming drops lines without a state
        checkpoint.save_state(trainer, self.folder, self.train.keep)
        files.atomic_json(self.folder / "config.json", self.config)

    def _held_out(self) -> Split:
        """Items for pictures and for a look at latents; training items where no others are."""
        test = self.data.split("test")
        return test if len(test) else self.data.split("train")

    def draw(self, trainer: Any, step: int) -> Iterator[Event]:
        """Write a picture of what the averaged weights make, and the curve of the loss."""
        from gencli.evaluation.preview import preview
        from gencli.report.curves import save_curve
        from gencli.report.kinds import writer

        with trainer.average.worn_by(self.run.model):
            picture = preview(self.run, self._held_out())
        if picture is not None:
            path = self.folder / "samples" / f"step-{step:08d}.png"
            writer(self.data.kind).save_grid(path, picture)
            track.picture(trainer.accelerator, step, path)
            yield Event("picture", step, path=path, picture=picture)
        if (self.folder / "metrics.jsonl").is_file():  # not before the first save
            rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
            save_curve(self.folder / "loss.png", rows)
