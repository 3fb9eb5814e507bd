"""`gencli info NAME|RUN`: all there is to know of a component, a recipe or a run."""

from __future__ import annotations

import json
from typing import Any

from gencli import files, registry, runs
from gencli import recipe as recipes
from gencli.cli import console
from gencli.cli.options import Flag, build
from gencli.config import settings
from gencli.errors import GencliError


def command() -> Any:
    """The `info` command."""
    return build("info", "Show everything about a model, sampler, data set, metric, recipe or run.", [_NAME], run)


def names() -> list[str]:
    """Everything that `info` knows."""
    components = [name for kind in registry.KINDS for name in registry.entries(kind)]
    return sorted({*components, *recipes.names(), *(r.name for r in runs.every())})


_NAME = Flag(
    "name",
    (),
    str,
    "a component, recipe or run",
    metavar="NAME",
    complete=lambda incomplete: [n for n in names() if n.startswith(incomplete)],
)


def run(values: dict[str, Any]) -> None:
    """Print what NAME is."""
    if "name" not in values:
        raise GencliError("`gencli info` needs a name", "see `gencli list`")
    name = values["name"]
    key = registry.public_name(name)
    kinds = [kind for kind in registry.KINDS if key in registry.entries(kind)]
    found = runs.find(name)
    if found is not None:
        _run(found)
    elif kinds:
        for kind in kinds:
            _component(registry.entry(kind, key))
    elif key in recipes.names():
        _recipe(key)
    else:
        raise registry.unknown("name", name, names(), "gencli list")


def _component(entry: registry.Entry) -> None:
    cls = entry.load()
    console.show(f"{entry.name} ({entry.kind})\n\n{entry.doc}\n")
    rows = [[s.path, _type(s), s.default, s.help] for s in settings(cls.Config)]
    header = ["setting", "type", "default", "help"]
    made = (
        sorted(n for n in recipes.names() if recipes.load(n)["model"]["name"] == entry.name)
        if entry.kind == "models"
        else []
    )
    facts = {"name": entry.name, "kind": entry.kind, "title": entry.title, "authors": entry.authors, "year": entry.year}
    described = [dict(zip(header, row, strict=True)) for row in rows]
    console.document(**facts, arxiv=entry.arxiv, offers=entry.offers, settings=described, recipes=made)
    if rows:
        console.table(rows, header)
    if made:
        console.show(f"recipes: {', '.join(made)}")
    console.following(
        {"models": f"gencli train {entry.name}", "samplers": f"gencli sample {entry.name}"}.get(
            entry.kind, "gencli list"
        )
    )


def _type(setting: Any) -> str:
    return (
        "|".join(map(str, setting.choices)) if setting.choices else getattr(setting.type, "__name__", str(setting.type))
    )


def _recipe(name: str) -> None:
    table = recipes.load(name)
    console.show(recipes.summary(recipes.names()[name]))
    console.show(json.dumps(table, indent=2))
    console.document(recipe=table)
    console.following(f"gencli train {name}")


def _run(found: runs.Found) -> None:
    from gencli.bundle import MEND, read_config

    config = read_config(found.path)
    with files.understood(found.path / "config.json", MEND):
        rows = _facts(found, config)
    console.table(rows, ["fact", "value"])
    console.document(run=config, folder=str(found.path))
    for line in _evaluations(found):
        console.show(line)
    console.following(f"gencli sample {found.name}")


def _facts(found: runs.Found, config: dict[str, Any]) -> list[list[Any]]:
    """What a config.json says, a row a fact."""
    data = config["data"]
    return [
        ["folder", found.path],
        ["model", found.model],
        ["made by", f"{config['command']} (gencli {config['gencli']})"],
        ["created", config["created"]],
        ["step", config["step"]],
        ["parameters", f"{config['parameters']:,}"],
        [
            "data",
            f"{data['name']} · {data['items']['train']} train · {data['items']['test']} test · hash {data['hash']}",
        ],
        ["classes", ", ".join(data["spec"]["cond"].get("label", {}).get("names", [])) or "none"],
        ["codec", _codec(config)],
        *([["sources", _sources(found, config)]] if config.get("sources") else []),
        ["weights", "yes" if found.ready else "not yet"],
    ]


def _codec(config: dict[str, Any]) -> str:
    """The codec's run and, where it has several, the level whose codes are modelled."""
    levels = [table["level"] for table in config["recipe"].get("codecs") or [] if table.get("level")]
    return ":".join([config.get("codec") or "none", *levels])


def _sources(found: runs.Found, config: dict[str, Any]) -> str:
    """Which run makes which condition."""
    from gencli.bundle import read_config

    return ", ".join(f"{key}={read_config(found.path / 'sources' / key)['name']}" for key in config["sources"])


def _evaluations(found: runs.Found) -> list[str]:
    path = found.path / "evaluations.jsonl"
    if not path.is_file():
        return []
    with files.understood(path, "take the damaged line out, or delete the file"):
        rows = [files.parsed(line) for line in files.read_bytes(path).decode("utf-8").splitlines()]
        lines = [f"{row['metric']} = {row['value']:.4g} (n = {row['n']})" for row in rows]
    console.document(evaluations=rows)
    return lines
