"""Which generative model for these data, this machine and this time: rules that can be read, times that are measured.

The rules below give points to the laptop recipes; figures in their reasons are of `docs/gallery.md` and `docs/quality.md`. In
the order of their points the recipes are probed as `gencli train … --plan` does, and those of which the budget holds only a
part fall back by `FITS`, until three are known that it holds a fair part of. What a recipe cannot be built for is left out.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from gencli import registry
from gencli.data import open_table, table_of
from gencli.data._base import Data
from gencli.errors import GencliError
from gencli.evaluation import budget
from gencli.training import memory
from gencli.training.plan import Progress

Need = Literal["quality", "likelihood", "speed", "editing", "latent"]
NEEDS: tuple[str, ...] = get_args(Need)
LITTLE = 1_000  # training items, fewer are little data
MUCH = 10_000
SMALL = 256  # numbers of an image that can be drawn one by one
ANSWERS, PROBES = 3, 6
FAIR = 0.2  # part of a recipe that a budget must hold
FITS = ((1.0, 0), (0.5, -1), (FAIR, -3), (0.0, -9))  # part of the recipe that the budget holds, points


@dataclass(frozen=True)
class Facts:
    """What the data are.

    Args:
        name: of the data set.
        kind: `image` or `points`.
        items: for training.
        held_out: for evaluation.
        shape: of an item as it would be trained on.
        classes: 0 without.
        captions: files of text beside the images.
        image_size: to be given to `train`; None = the default fits.
    """

    name: str
    kind: str
    items: int
    held_out: int
    shape: tuple[int, ...]
    classes: int
    captions: int = 0
    image_size: int | None = None

    def words(self) -> str:
        """In one line."""
        colour = {1: " grey", 3: " colour"}.get(self.shape[0], "") if self.kind == "image" else ""
        what = {"image": f"{colour} images", "points": " points"}.get(self.kind, f" items of kind {self.kind}")
        classes = f"{self.classes} classes" if self.classes else "no classes"
        captions = f" · {self.captions:,} captions" if self.captions else ""
        size = "×".join(map(str, self.shape))
        return f"{self.items:,}{what} to train on, {self.held_out:,} held out · {size} · {classes}{captions}"


WHEN: Mapping[str, Callable[[Facts, str], bool]] = {
    "images": lambda facts, need: facts.kind == "image",
    "points": lambda facts, need: facts.kind == "points",
    "little data": lambda facts, need: facts.items < LITTLE,
    "much data": lambda facts, need: facts.items >= MUCH,
    "classes": lambda facts, need: facts.classes > 0,
    "small images": lambda facts, need: facts.kind == "image" and math.prod(facts.shape) <= SMALL,
    "larger images": lambda facts, need: facts.kind == "image" and math.prod(facts.shape) > SMALL,
    **{f"need {word}": lambda facts, need, word=word: need == word for word in NEEDS},  # type: ignore[misc]
}


@dataclass(frozen=True)
class Rule:
    """Points for a model when something holds, and why."""

    model: str
    when: str
    points: int
    why: str


RULES = (
    Rule("ddpm", "images", 5, "the best judged recipe: 98 % of digits as asked, recall 0.73"),
    Rule("ddpm", "classes", 1, "it draws the class you ask for"),
    Rule("ddpm", "little data", -4, "a denoiser repeats so few images"),
    Rule("ddpm", "much data", 1, "it gains most from many images"),
    Rule("ddpm", "points", 4, "distance 0.022 to real points, the bar being 0.074"),
    Rule("ddpm", "need speed", -5, "50 network calls an image"),
    Rule("ddpm", "need latent", -5, "it has no latent space of its own"),
    Rule("ddpm", "need editing", 2, "a denoiser can start from an image"),
    Rule("flow-matching", "images", 4, "92 % of digits as asked, recall 0.88"),
    Rule("flow-matching", "points", 3, "distance 0.025 to real points, and few steps to draw"),
    Rule("flow-matching", "little data", -4, "a denoiser repeats so few images"),
    Rule("flow-matching", "need speed", -4, "50 network calls an image"),
    Rule("flow-matching", "need latent", -5, "it has no latent space of its own"),
    Rule("flow-matching", "need editing", 1, "a denoiser can start from an image"),
    Rule("score-sde", "images", 2, "91 % of digits as asked, recall 0.89"),
    Rule("score-sde", "points", 5, "distance 0.021 to real points, the least of all"),
    Rule("score-sde", "little data", -4, "a denoiser repeats so few images"),
    Rule("score-sde", "need speed", -5, "many network calls an image"),
    Rule("score-sde", "need latent", -5, "it has no latent space of its own"),
    Rule("vdm", "images", 2, "trained by the bound itself"),
    Rule("vdm", "points", 3, "distance 0.022 to real points"),
    Rule("vdm", "little data", -4, "a denoiser repeats so few images"),
    Rule("vdm", "need likelihood", 4, "the best bound measured, 2.08 bits/dim on digits"),
    Rule("vdm", "need speed", -5, "100 network calls an image"),
    Rule("vdm", "need latent", -5, "it has no latent space of its own"),
    Rule("gated-pixelcnn", "small images", 3, "exact, and few pixels to draw one by one"),
    Rule("gated-pixelcnn", "need likelihood", 6, "exact probabilities, not a bound"),
    Rule("gated-pixelcnn", "larger images", -4, "it draws so many pixels one by one"),
    Rule("gated-pixelcnn", "need speed", -4, "a network call a pixel"),
    Rule("gated-pixelcnn", "need latent", -5, "it has no latent space of its own"),
    Rule("realnvp", "images", 2, "a density and samples from one network, recall 0.82 on digits"),
    Rule("realnvp", "need likelihood", 5, "a density in one call"),
    Rule("realnvp", "need speed", 3, "one call, 1 to 7 ms an image"),
    Rule("vae", "images", 3, "trained in a minute, recall 0.89 on digits"),
    Rule("vae", "little data", 3, "small, and it does not repeat: novelty 1.31"),
    Rule("vae", "need speed", 4, "one call, 0.06 ms an image"),
    Rule("vae", "need latent", 6, "it encodes and decodes, a few numbers an image"),
    Rule("vae", "need editing", 1, "its latents can be changed"),
    Rule("vqvae", "need latent", 7, "it encodes and decodes, a few codes an image; a prior makes it draw"),
    Rule("vqvae", "little data", -3, "few images do not fill its codes"),
    Rule("wgan-gp", "images", 3, "sharp samples: 0.74 recognisable on Fashion-MNIST, a VAE 0.64"),
    Rule("wgan-gp", "points", 1, "one call a point"),
    Rule("wgan-gp", "little data", -5, "its critic learns so few images by heart"),
    Rule("wgan-gp", "need speed", 5, "one call, 0.3 ms an image"),
    Rule("wgan-gp", "need likelihood", -9, "it has no likelihood"),
    Rule("wgan-gp", "need latent", -3, "it does not encode"),
)
ONLY_FOR = {"vqvae": "latent"}  # it draws nothing by itself


@dataclass(frozen=True)
class Answer:
    """One recommendation.

    Args:
        model: its name.
        points: by the rules, and by how much of the recipe the budget holds.
        why: in one line.
        steps: to train.
        part: of the recipe's own steps, 1 at most.
        seconds: the plan's.
        command: to be typed.
    """

    model: str
    points: int
    why: str
    steps: int
    part: float
    seconds: float
    command: str


def facts_of(name: str, progress: Progress) -> Facts:
    """Look at the data that a name or path means."""
    data = open_table(table_of(name))
    data.progress = progress
    size, captions = _folder_facts(data)
    if size is not None:
        data = open_table({**table_of(name), "image_size": str(size)})
        data.progress = progress
    label = data.spec.cond.get("label")
    counts = [len(data.split(part)) for part in ("train", "test")]
    if not counts[0]:
        raise GencliError(f"data set '{data.name}' has no training items", "see `gencli data check`")
    classes = (label.vocab or 0) if label is not None else 0
    return Facts(data.name, data.kind, counts[0], counts[1], data.spec.x.shape, classes, captions, size)


def _folder_facts(data: Data) -> tuple[int | None, int]:
    """The size for images that are smaller than the default would make them, and the number of texts beside the images."""
    found = getattr(data, "found", None)
    if found is None:
        return None, 0
    sides = sorted(min(item["width"], item["height"]) for item in found["items"])
    native = max(8, sides[len(sides) // 2] // 8 * 8)
    texts = sum(found["others"].get(ending, 0) for ending in (".txt", ".caption"))
    return native if native < min(data.spec.x.shape[1:]) else None, texts if texts >= len(sides) / 2 else 0


def ranked(facts: Facts, need: str = "quality") -> list[tuple[int, str, list[Rule]]]:
    """Points, model and the rules that gave them, best first; a model that no rule speaks for is left out."""
    made = []
    for model in dict.fromkeys(rule.model for rule in RULES):
        if model not in registry.entries("models") or ONLY_FOR.get(model, need) != need:
            continue
        held = [rule for rule in RULES if rule.model == model and WHEN[rule.when](facts, need)]
        if any(rule.points > 0 for rule in held):
            made.append((sum(rule.points for rule in held), model, held))
    return sorted(made, key=lambda row: -row[0])


def answers(
    name: str, facts: Facts, seconds: float, need: str = "quality", progress: Progress = lambda what, now, total: None
) -> Iterator[Answer | str]:
    """The recommendations in the order in which they were probed, and lines about what was left out.

    Args:
        name: the data, as on the command line.
        facts: of them.
        seconds: the budget.
        need: what matters most.
        progress: told how far a probe is.
    """
    before, fair = time.process_time(), 0
    for probes, (points, model, held) in enumerate(ranked(facts, need)):
        if fair == ANSWERS or probes == PROBES:
            return
        try:
            made = _answer(name, facts, seconds, model, points, held, before, progress)
        except GencliError as error:
            yield f"{model} left out: {error.message}"
            continue
        fair += made.part >= FAIR
        yield made


def best(found: list[Answer]) -> list[Answer]:
    """The first three."""
    return sorted(found, key=lambda answer: -answer.points)[:ANSWERS]


def _answer(
    name: str,
    facts: Facts,
    seconds: float,
    model: str,
    points: int,
    held: list[Rule],
    before: float,
    progress: Progress,
) -> Answer:
    over = {"data": {"image_size": str(facts.image_size)}} if facts.image_size else {}
    tables = budget.tables_for(model, name, over)
    data = open_table(tables["data"])
    data.progress = progress
    memory.blueprint(tables, data.spec, None)
    train = tables["train"]
    found = budget.probe(tables, data, None, lambda what, now, total: progress(f"{what} {model}", now, total), before)
    steps, took = train["steps"], found.time.total
    if took > seconds:
        steps = _fewer(budget.most_steps(found, seconds, train["save_every"], train["sample_every"]))
        if steps < budget.LEAST:
            raise GencliError(f"{seconds:g} seconds hold {max(0, steps)} of its {train['steps']:,} steps", "")
        took = budget.time_of(found, steps, train["save_every"], train["sample_every"])
    part = steps / train["steps"]
    command = ["gencli", "train", model, "--data", name]
    command += ["--image-size", str(facts.image_size)] if facts.image_size else []
    if part < 1:
        command += ["--steps", str(steps)]
        warmup = min(train["warmup"], steps // 10)
        command += ["--warmup", str(warmup)] if warmup < train["warmup"] else []
    points += next(less for least, less in FITS if part >= least)
    return Answer(model, points, _why(held, part), steps, part, took, shlex.join(command))


def _fewer(steps: int) -> int:
    """Rounded down to two figures."""
    unit = 10 ** max(0, math.floor(math.log10(max(1, steps))) - 1)
    return steps // unit * unit


def _why(held: list[Rule], part: float) -> str:
    """The strongest reasons in one line, those for it first."""
    order = sorted(held, key=lambda rule: -rule.points)
    good = [rule.why for rule in order if rule.points > 0][:2]
    bad = [f"but {rule.why}" for rule in order[::-1] if rule.points < 0][:1]
    held_part = [f"but the budget holds {part:.0%} of its steps"] if part < 1 else []
    return "; ".join([*good, *bad, *held_part])
