"""A run as one HTML page: its samples, training, numbers with their receipts, settings and card, from its files alone."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gencli import __version__, registry
from gencli.errors import GencliError
from gencli.report import figures, latents, markdown, numbers
from gencli.report.album import ROOM, Album, strip
from gencli.report.folder import Draw, Folder, read
from gencli.report.frame import Page, Section
from gencli.report.markup import Markup, code, element, facts, folded, joined
from gencli.training import adversarial
from gencli.training.latents import FILE as LATENTS
from gencli.training.latents import read as read_latents

if TYPE_CHECKING:
    from gencli.report.codebook import Seen

MOST_DRAWS = 4
_NO_CURVE = ("step", "seconds")


def of_run(path: Path, shipped: bool = False, room: int = ROOM, seen: Seen | None = None) -> Page:
    """The page of the run in a folder.

    Args:
        path: of the run.
        shipped: it came with gencli, so that its evaluations are beside its samples.
        room: characters for pictures.
        seen: what was drawn of an autoencoder.
    """
    run, album = read(path, shipped), Album(room)
    config = run.config
    parts = [
        _samples(run, album),
        _trajectory(run, album),
        _codes(run, album, seen),
        _training(run, album),
        Section("evaluations", "Evaluations", _evaluations(run), folds=True),
        _neighbours(run, album),
        Section("configuration", "Configuration", configuration(_configured(run)), folds=True),
        Section("card", "Model card", _card(run)),
        Section("environment", "Environment", _environment(run)),
    ]
    items = config["data"].get("items") or {}
    shown = [
        ("parameters", f"{config.get('parameters', 0):,}"),
        ("steps", f"{config.get('step') or 0:,}"),
        ("batch", config["recipe"].get("train", {}).get("batch_size", "")),
        ("training items", f"{items.get('train', 0):,}"),
        ("data", config["data"].get("name", "")),
        ("made with gencli", config.get("gencli", "")),
    ]
    return Page(
        "gencli run",
        run.name,
        _summary(run),
        config.get("command") or "made by another program",
        [pair for pair in shown if pair[1] != ""],
        [part for part in parts if part is not None],
        [*run.problems, *([seen.problem] if seen and seen.problem else []), *album.notes()],
        album.count,
        _following(run),
    )


def _summary(run: Folder) -> Markup:
    model, data = run.config["recipe"]["model"]["name"], run.config["data"]
    after = f", trained on {data.get('name', 'data')} for {run.config.get('step') or 0:,} steps."
    codec = f" Its data are the codes of {run.codec.get('name', 'its codec')}." if run.codec else ""
    return joined(element("strong", model), ": ", paper(model), after, codec)


def paper(model: str) -> Markup:
    """A model's paper in words, with a link where it has an arXiv number."""
    try:
        entry = registry.entry("models", registry.public_name(model))
    except GencliError:
        return joined("a model that is not installed here")
    link = element("a", f"arXiv:{entry.arxiv}", href=f"https://arxiv.org/abs/{entry.arxiv}") if entry.arxiv else None
    by = f" ({entry.authors}, {entry.year})" if entry.authors else ""
    return joined(f"{entry.title.rstrip('.')}{by}", ", " if link else None, link)


def _draws(run: Folder) -> bool:
    """Whether the model makes samples; others make reconstructions, or nothing to look at."""
    known = registry.entries("models").get(registry.public_name(run.config["recipe"]["model"]["name"]))
    return known is None or "sample" in known.offers


def _following(run: Folder) -> str:
    if not _draws(run):
        return f"gencli info {run.name}"
    if not run.weights:
        return f"gencli train --resume {run.name}"
    if not run.draws:
        return f"gencli sample {run.name}"
    points = run.config["data"]["spec"]["x"].get("kind") == "points"
    return f"gencli eval {'wasserstein' if points else 'fid'} -c {run.name}"


def _missing(text: str, command: str) -> Markup:
    return element("p", f"{text} ", code(command), " makes them.", class_="note")


# ---------------------------------------------------------------------------------------------------------------- pictures


def _samples(run: Folder, album: Album) -> Section | None:
    draws = [draw for draw in run.draws if draw.picture("grid.png")]
    made = [_drawn(run, draw, album) for draw in draws[:MOST_DRAWS]]
    if len(draws) > MOST_DRAWS:
        album.left_out.append(f"{len(draws) - MOST_DRAWS} older folders of samples")
    if not draws and run.progress:
        words = "What training drew, step by step." if len(run.progress) > 1 else "What training drew."
        made = [element("div", _progress(run, album), element("p", words, class_="note"))]
    if not draws and not run.progress:
        if not _draws(run):
            return None
        return Section("samples", "Samples", _missing("No samples are stored yet.", f"gencli sample {run.name}"))
    body = element("div", made, class_="gallery")
    return Section("samples", "Samples" if _draws(run) else "Reconstructions", body)


def _drawn(run: Folder, draw: Draw, album: Album) -> Markup | None:
    grid = draw.picture("grid.png")
    assert grid is not None, "only draws with a grid are shown"
    picture = album.file(grid, f"{draw.count} samples of {run.name} by {_sampler(draw)}")
    return element("figure", picture, element("figcaption", _how(draw))) if picture else None


def _sampler(draw: Draw) -> str:
    sampler = draw.facts.get("sampler")
    if not isinstance(sampler, Mapping):
        return "its sampler"
    return f"{sampler.get('name')}" + (f", {sampler['steps']} steps" if "steps" in sampler else "")


def _how(draw: Draw) -> str:
    told = [f"{draw.count} samples", _sampler(draw)]
    told += [f"seeds {draw.facts['seeds']}"] if "seeds" in draw.facts else []
    guidance = draw.facts.get("guidance")
    told += [f"guidance {guidance:g}"] if isinstance(guidance, (int, float)) and guidance != 1 else []
    told += _asked(draw.facts)
    calls = draw.facts.get("network_evaluations")
    told += [f"{calls} network evaluations"] if calls else []
    return " · ".join([*told, str(draw.folder)])


def _asked(facts: Mapping[str, Any]) -> list[str]:
    """What the samples complete, and which of those that were drawn they are."""
    made = []
    if isinstance(completion := facts.get("completion"), Mapping):
        inputs = len(completion.get("inputs", ()))
        made.append(
            f"{inputs} input{'s' * (inputs != 1)}, what is kept ({completion.get('keep')}), and completions, row by row"
        )
    if isinstance(rejection := facts.get("rejection"), Mapping):
        made.append(f"of {rejection.get('candidates')} those that {rejection.get('classifier')} is surest of")
    return made


def _trajectory(run: Folder, album: Album) -> Section | None:
    moving = {
        "trajectory": "the way from noise to samples",
        "entropy": "how unsure the model was of each position",
        "confidence": "with which probability each position was fixed, white being one",
    }
    made: list[Markup] = []
    for stem, words in moving.items():
        draw = next((d for d in run.draws if d.picture(f"{stem}.webp", f"{stem}.gif")), None)
        path = draw.picture(f"{stem}.webp", f"{stem}.gif") if draw else None
        frames = album.frames(path, words) if path else []
        if draw and frames:
            made += [strip(frames, words), element("p", f"{words}: {_how(draw)}".capitalize(), class_="note")]
    still = {
        "order": "in which step each position was fixed",
        "attention": "how much each token takes from each, block by block and head by head",
        "interpolation": "on the way through the latent",
        "traversal": "what each number of the latent does",
        "latents": "where items lie in the latent by class, beside the prior, and what each number carries",
    }
    for stem, words in still.items():
        draw = next((d for d in run.draws if d.picture(f"{stem}.png")), None)
        path = draw.picture(f"{stem}.png") if draw else None
        picture = album.file(path, words) if path else None
        if draw and picture:
            made.append(element("figure", picture, element("figcaption", f"{words}: {_how(draw)}".capitalize())))
    return Section("trajectory", "Trajectory", joined(made)) if made else None


def _codes(run: Folder, album: Album, seen: Seen | None) -> Section | None:
    """An autoencoder's reconstructions beside the originals, and how often it uses its codes."""
    if seen is None or not seen.items:
        return None
    made = []
    words = f"Held-out items, each followed by its reconstruction by {run.name}"
    if seen.pairs and (picture := album.drawn(seen.pairs, "reconstructions", words)):
        made.append(element("figure", picture, element("figcaption", f"{words}.")))
    if seen.map and (picture := album.drawn(seen.map, "codebook", f"How often each code of {run.name} is used")):
        made.append(element("figure", picture, element("figcaption", seen.words)))
    return Section("codes", "Codes" if seen.map else "Held-out reconstructions", joined(made)) if made else None


# ---------------------------------------------------------------------------------------------------------------- training


def _training(run: Folder, album: Album) -> Section:
    made: list[Markup] = []
    if run.progress and any(draw.picture("grid.png") for draw in run.draws):  # else they are the samples
        made += [element("h3", "What training drew, step by step"), *_progress(run, album)]
    made += curves([*run.metrics, *_made_in_training(run.path)])
    if carried := latents.over_training(read_latents(run.path / LATENTS)):
        picture = album.drawn(carried[0], "latents over training", carried[1])
        words = element("figcaption", carried[1])
        made += [element("h3", "What the latent carries"), element("figure", picture, words)] if picture else []
    if not made:
        made = [element("p", "The run has no log of its training.", class_="note")]
    return Section("training", "Training", joined(made))


def _made_in_training(path: Path) -> list[dict[str, Any]]:
    """What was found of samples at every save, where a generator was trained against a critic."""
    keys = ("diversity", "modes", "good", "entropy")
    return [
        {"step": row["step"], **{f"samples/{key}": row[key] for key in keys if key in row}}
        for row in adversarial.read(path / adversarial.FILE)
    ]


def _progress(run: Folder, album: Album) -> list[Markup]:
    """The pictures that training drew, as one that a slider turns."""
    what = "samples over training" if _draws(run) else "reconstructions over training"
    frames = album.files([(f"step {step:,}", path) for step, path in run.progress], what)
    return [strip(frames, what)] if frames else []


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """The losses in one figure, and a figure for everything else that was logged."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in _NO_CURVE))
    lines = {key: figures.series(rows, key) for key in keys}
    lines = {key: line for key, line in lines.items() if line.total or line.odd}
    losses = [line for key, line in lines.items() if key.rpartition("/")[2] == "loss"]
    others = [line for line in lines.values() if line not in losses]
    made = [element("h3", "Loss"), figures.curve(losses, "Loss", caption=False)] if losses else []
    if others:
        small = [figures.curve([line], line.name) for line in others]
        made += [element("h3", "What else was logged"), element("div", small, class_="pair")]
    return made


# -------------------------------------------------------------------------------------------------------------- everything


def _evaluations(run: Folder) -> Markup:
    if not run.evaluations:
        points = run.config["data"]["spec"]["x"].get("kind") == "points"
        metric = "wasserstein" if points else "fid"
        return _missing("No numbers are stored yet.", f"gencli eval {metric} -c {run.name}")
    return numbers.evaluations(run.evaluations, run.weights)


def _neighbours(run: Folder, album: Album) -> Section | None:
    named = numbers.neighbours(run.evaluations)
    words = f"samples of {run.name}, each followed by its nearest training item"
    picture = album.file(run.nearest, words) if run.nearest else None
    shown = [element("figure", picture, element("figcaption", f"{words[0].upper()}{words[1:]}."))] if picture else []
    body = shown + [part for label, table in named for part in (element("h3", label), table)]
    return Section("neighbours", "Nearest neighbours", joined(body)) if body else None


def _configured(run: Folder) -> dict[str, Any]:
    """config.json with its tables first and single facts as one more."""
    nested = {f"codec ({run.codec.get('name', '')})": run.codec} if run.codec else {}
    tables = {key: value for key, value in run.config.items() if isinstance(value, Mapping)}
    return {**tables, "record": {key: run.config[key] for key in run.config if key not in tables}, **nested}


def configuration(values: Mapping[str, Any], opened: Sequence[str] = ("recipe",)) -> Markup:
    """A table of single settings, and what has settings of its own folded below."""
    flat = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    deep = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    folds = [folded(key, _branch(value, key), opened=key in opened) for key, value in deep.items()]
    return element("div", facts(_pairs(flat), "settings") if flat else None, folds, class_="tree")


def _branch(values: Mapping[str, Any], name: str) -> Markup:
    if not values:
        return element("p", "none", class_="note")
    flat = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    deep = [(key, value) for key, value in values.items() if isinstance(value, Mapping)]
    folds = [folded(key, _branch(value, f"{name}.{key}"), opened=True) for key, value in deep]
    own = facts(_pairs(flat), f"settings of {name}") if flat else None
    return joined(own, element("div", folds, class_="branches") if folds else None)


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, _words(value)) for key, value in values.items()]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _card(run: Folder) -> Markup:
    if not run.card:
        return element("p", "The run has no README.md.", class_="note")
    return element("div", markdown.rendered(run.card), class_="card")


def _environment(run: Folder) -> Markup:
    receipts = [row.get("receipt", {}) for row in run.evaluations] + [draw.facts for draw in run.draws]
    told = {
        "created": run.config.get("created", ""),
        "trained with": f"gencli {run.config.get('gencli', '')}",
        "precision": run.config.get("precision", "not recorded"),
        "weights": run.weights or "none yet",
        "devices of sampling and measuring": _distinct(receipts, "device"),
        "versions of sampling and measuring": _distinct(receipts, "versions"),
        "this page": f"gencli {__version__}, Python {platform.python_version()}, torch {torch.__version__}",
    }
    return facts([(key, value) for key, value in told.items() if value], "environment")


def _distinct(receipts: Sequence[Mapping[str, Any]], key: str) -> str:
    found = [receipt[key] for receipt in receipts if receipt.get(key)]
    words = [
        ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, Mapping) else str(value)
        for value in found
    ]
    return "; ".join(dict.fromkeys(words))
