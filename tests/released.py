"""Released models made narrow, and their files as the authors' programs write them."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import originals
import torch
from saved import filled

from gencli import registry
from gencli.bundle import Run
from gencli.converters._official import images
from gencli.core import Spec
from gencli.training.session import resolve

MANIFESTS = Path(__file__).parent / "converters" / "manifests"


def manifest(name: str) -> dict[str, list[int]]:
    """Names and shapes of a released file."""
    with gzip.open(MANIFESTS / f"{name}.json.gz", "rt") as file:
        return json.load(file)


def numbers(shapes: dict[str, list[int]], real: bool) -> dict[str, torch.Tensor]:
    """Tensors of these shapes whose numbers are all different, as far as float32 tells them apart."""
    made, at = {}, 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        if name == "sigmas":
            made[name] = torch.linspace(math.log(50), math.log(0.01), count).exp()
        elif name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(at)
        elif real:
            made[name] = (torch.arange(at, at + count, dtype=torch.float32) / 2**24).reshape(shape)
        else:
            made[name] = torch.empty(shape, device="meta")
        at += count
    return made


def skeleton(kind: Any, given: dict[str, torch.Tensor]) -> Run:
    """The run that a file is, without memory for its weights."""
    found = kind.recognise(given, Path("file"))
    with torch.device("meta"):
        return Run.build(resolve(found.recipe), found.spec, found.codec)


def converter(name: str, **settings: Any) -> Any:
    """A format."""
    return registry.load("converters", name).make(settings)


@dataclass(frozen=True)
class Twin:
    """A released model made narrow: tables over those of the format's recipe, and what the original makes of its file."""

    kind: str
    model: dict[str, Any]
    spec: Spec
    original: Callable[..., Any]
    shape: tuple[int, ...]
    settings: dict[str, Any]
    level: tuple[float, ...] = (3.0, 700.0)


LEVELS = {"loss": "hybrid", "timesteps": 1000}
DDPMPP = {"name": "song-unet", "width": 16, "mults": [1, 2], "blocks": 2, "attention": [8]}
ADM = {"name": "adm", "width": 64, "mults": [1, 2], "blocks": 2, "attention": [16], "head_width": 64}
CLASSES = 5
TWINS = {
    "guided-diffusion": Twin(
        "guided-diffusion",
        {"name": "iddpm", **LEVELS, "net": ADM},
        images(32, classes=CLASSES),
        lambda s, x, t, y: originals.openai(s, x, t, y, lambda c: c // 64, True, {3}),
        (3, 8, 8),
        {"image_size": 32},
    ),
    "guided-diffusion-64": Twin(
        "guided-diffusion",
        {"name": "iddpm", **LEVELS, "net": {**ADM, "blocks": 1, "attention": [32]}},
        images(64, classes=CLASSES),
        lambda s, x, t, y: originals.openai(s, x, t, y, lambda c: c // 64, False, {2}),
        (3, 8, 8),
        {"image_size": 64},
    ),
    "guided-diffusion-classifier": Twin(
        "guided-diffusion",
        {
            "name": "noisy-classifier",
            "net": {**ADM, "name": "adm-encoder", "blocks": 1, "mults": [1, 2, 3, 4], "attention": [8, 4, 2]},
        },
        images(16, classes=CLASSES),
        lambda s, x, t, y: originals.openai(s, x, t, None, lambda c: c // 64, True, {2, 4, 6}),
        (3, 16, 16),
        {"image_size": 16},
    ),
    "improved-diffusion": Twin(
        "improved-diffusion",
        {"name": "iddpm", "timesteps": 4000, "net": {**ADM, "head_width": 0, "heads": 4, "resample": "conv"}},
        images(32),
        lambda s, x, t, y: originals.openai(s, x, t, y, lambda c: 4, True, set()),
        (3, 8, 8),
        {"image_size": 32},
    ),
    "edm-ddpmpp": Twin(
        "edm",
        {
            "name": "edm",
            "augment": 0.1,
            "net": {"name": "song-unet", "width": 16, "mults": [1, 2], "blocks": 2, "attention": [8]},
        },
        images(16, classes=CLASSES),
        originals.edm,
        (3, 16, 16),
        {},
        (-1.0, 0.4),
    ),
    "edm-ncsnpp": Twin(
        "edm",
        {
            "name": "edm",
            "net": {
                "name": "song-unet",
                "width": 16,
                "mults": [1, 2],
                "blocks": 1,
                "attention": [16],
                "embedding": "fourier",
                "encoder": "residual",
                "filter": [1.0, 3.0, 3.0, 1.0],
            },
        },
        images(16, classes=CLASSES),
        originals.edm,
        (3, 16, 16),
        {},
        (-1.0, 0.4),
    ),
    "edm-adm": Twin(
        "edm",
        {"name": "edm", "net": {**ADM, "attention": [8]}},
        images(16, classes=CLASSES),
        lambda s, x, t, y: originals.edm(s, x, t, y, 64),
        (3, 16, 16),
        {},
        (-1.0, 0.4),
    ),
    "edm2": Twin(
        "edm2",
        {"name": "edm2", "net": {"name": "edm2-unet", "width": 64, "mults": [1, 2], "blocks": 1, "attention": [8]}},
        images(16, classes=CLASSES),
        originals.edm2,
        (3, 16, 16),
        {},
        (-1.0, 0.4),
    ),
    "u-vit": Twin(
        "u-vit",
        {"name": "score-sde", "net": {"name": "uvit", "patch": 2, "width": 128, "depth": 4, "heads": 2}},
        images(8, classes=CLASSES),
        lambda s, x, t, y: originals.uvit(s, x, t, y, 2),
        (3, 8, 8),
        {},
    ),
    "score-sde-ddpmpp": Twin(
        "score-sde",
        {
            "name": "score-sde",
            "net": {"name": "song-unet", "width": 16, "mults": [1, 2], "blocks": 2, "attention": [16]},
        },
        images(32),
        lambda s, x, t, y: originals.score_sde(s, x, t, "bbdbaba|bab/bbbaubbbo"),
        (3, 32, 32),
        {},
    ),
    "score-sde-ncsnpp": Twin(
        "score-sde",
        {
            "name": "score-sde",
            "sde": "ve",
            "net": {
                "name": "song-unet",
                "width": 16,
                "mults": [1, 2],
                "blocks": 1,
                "attention": [16],
                "embedding": "fourier",
                "encoder": "residual",
                "filter": [1.0, 3.0, 3.0, 1.0],
            },
        },
        images(32),
        lambda s, x, t, y: originals.score_sde(s, x, t, "bdpba|bab/bbaubbo"),
        (3, 32, 32),
        {},
        (-1.0, 0.4),
    ),
    "score-sde-skips": Twin(
        "score-sde",
        {
            "name": "score-sde",
            "sde": "ve",
            "net": {
                "name": "song-unet",
                "width": 16,
                "mults": [1, 2],
                "blocks": 1,
                "attention": [16],
                "embedding": "fourier",
                "encoder": "skip",
                "decoder": "skip",
                "filter": [1.0, 3.0, 3.0, 1.0],
            },
        },
        images(32),
        lambda s, x, t, y: originals.score_sde(s, x, t, "bdcba|bab/bbaoubbo"),
        (3, 32, 32),
        {},
        (-1.0, 0.4),
    ),
    "ncsnv2": Twin(
        "ncsnv2",
        {
            "name": "ncsnv2",
            "sigma_begin": 5.0,
            "noise_levels": 10,
            "net": {"name": "refinenet", "width": 8, "depth": 4, "conditional": False},
        },
        images(16),
        lambda s, x, t, y: originals.ncsnv2(s, (x + 1) / 2, ("1", "2", "3", "4")),
        (3, 16, 16),
        {"image_size": 16},
    ),
}


def built(model: dict[str, Any], spec: Spec, **tables: Any) -> Run:
    """A run in memory whose weights are all random, those of norms about 1."""
    run = Run.build(resolve({"model": model, "data": {"name": "folder"}, **tables}), spec)
    filled(run.model, std=0.05, gain=1.0)
    return run


def file_of(kind: Any, run: Run, path: Path) -> dict[str, torch.Tensor]:
    """The run as the authors' program would have saved it."""
    state = {name: value.detach().clone() for name, value in kind.sent(run.model).items()}
    torch.save(state, path)
    return state
