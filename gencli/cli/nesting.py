"""Runs that another run is made of: the codec whose latents it models, sources of conditions, the run it begins from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gencli import recipe as recipes
from gencli import registry, runs
from gencli.cli.options import Flag, chosen_value, flag_of
from gencli.config import merge, settings
from gencli.errors import GencliError

ADAPTER = Flag(
    "adapter",
    ("--adapter",),
    str,
    "with --from: train little beside the weights, which stay as they are (lora, controlnet)",
    "Run",
    complete=lambda incomplete: [name for name in registry.entries("adapters") if name.startswith(incomplete)],
)


def adapter_flags(args: Sequence[str]) -> list[Flag]:
    """The settings of the adapter chosen in `args`."""
    name = chosen_value(args, "--adapter")
    if name is None:
        return []
    kind = registry.load("adapters", registry.public_name(name))
    return [flag_of(row, f"adapter.{row.path}", "Adapter", f"adapter.{row.path}") for row in settings(kind.Config)]


def adapters(own: dict[str, Any], chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe's table of the adapter that was asked for.

    Raises:
        GencliError: there is no run to adapt, or it has an adapter already.
    """
    name = own["adapter"]
    if "from" not in own:
        raise GencliError(f"--adapter {name} leaves the weights as they are, and there are none", "add --from RUN")
    there = runs.named(own["from"]).config["recipe"].get("adapters", [])
    if there:
        raise GencliError(
            f"run {own['from']} has the adapter {there[0]['name']} already", "leave --adapter out to train it further"
        )
    return [{"name": registry.public_name(name), **chosen}]


def begun_with(name: str, data: str | None, smoke: bool, begun: str | None, teacher: str | None) -> dict[str, Any]:
    """The recipe, with the settings of the run that it begins from or the denoiser, data and codecs of its teacher.

    Args:
        name: recipe or model.
        data: a registered data set that was asked for.
        smoke: the recipe in miniature.
        begun: the run that the new one begins from.
        teacher: the run that teaches it.
    """
    table = recipes.load(name, data=data, smoke=smoke)
    begins = "from" in table  # with data of its own
    begun = begun or table.get("from")
    from gencli.training import teaching  # needs torch, which a name that is unknown is answered without

    if begun is None:
        return teaching.taught(table, teacher) if teacher else {**table, "model": teaching.filled(table["model"])}
    found = begun_from(begun, registry.public_name(table["model"]["name"]))
    kept = {
        key: found.config["recipe"][key]
        for key in ("model", "codecs", "sample", "adapters")
        if key in found.config["recipe"]
    }
    if teacher:
        kept["model"] = {**kept["model"], "teacher": teacher}
    own = table["data"] if (data or begins) and "data" in table else found.config["recipe"]["data"]
    return {**table, **kept, "from": begun, "data": sized_like(own, found) if begins else own}


def begin_by_recipe(name: str, own: dict[str, Any]) -> None:
    """Note the run that a recipe begins from in what was asked for, where nothing else was."""
    if not {"from", "resume"} & own.keys():
        begun = recipes.load(name, smoke=own.get("smoke", False)).get("from")
        own |= {"from": begun} if begun else {}


def data_of(base: dict[str, Any], given: str, begun: str | None) -> dict[str, Any]:
    """The table of data that were asked for; a folder takes the place of the images that a recipe has a `few` of.

    Args:
        base: the recipe's table.
        given: a name or a path.
        begun: the run that the new one begins from, whose classes a folder's images are of.
    """
    from gencli.data import table_of

    table = table_of(given)
    if base["name"] != "few" or table["name"] != "folder":
        return merge(base, table)
    label = runs.named(begun).config["data"]["spec"]["cond"].get("label", {}) if begun else {}
    names = ",".join(label.get("names", ()))
    return {"name": "few", "of": "folder", "path": table["path"], "classes": names, "unconditional": not names}


def begun_from(name: str, model: str) -> runs.Found:
    """The run that a new run of `model` begins from.

    Raises:
        GencliError: it is of another model.
    """
    found = runs.named(name)
    if found.model != model:
        raise GencliError(
            f"run {found.name} is of model {found.model}, not of {model}",
            f"gencli train {found.model} --from {found.name}",
        )
    return found


def sized_like(data: dict[str, Any], run: runs.Found) -> dict[str, Any]:
    """A table of image data with the sides of a run's own where it names none."""
    field = run.config["data"]["spec"]["x"]
    kind = registry.load("data", data["name"])
    if field["kind"] != "image" or "image_size" in data or "image_size" not in kind.Config.__dataclass_fields__:
        return data
    height, width = field["shape"][1:]
    return {**data, "image_size": height if height == width else f"{width}x{height}"}


def levelled(codec: str) -> tuple[str, str]:
    """`RUN:LEVEL` in two; a folder may have a colon of its own."""
    name, _, level = codec.rpartition(":")
    return (codec, "") if not name or not level.isidentifier() or runs.find(codec) else (name, level)


def sources(given: list[str], old: runs.Found | None) -> dict[str, Any]:
    """The runs of `KEY=RUN`, loaded."""
    from gencli.bundle import Run

    if given and old:
        raise GencliError(f"--source {given[0]}: run {old.name} keeps the sources that it has", "leave --source out")
    made: dict[str, Any] = {}
    for text in given:
        key, _, name = text.partition("=")
        if not key or not name or key in made:
            why = "gives that condition twice" if key in made else "is not KEY=RUN"
            raise GencliError(f"--source {text} {why}", "give a condition and a run, such as --source top=RUN")
        made[key] = Run.load(runs.named(name).path)
    return made


def sources_of(run: runs.Found) -> dict[str, Any]:
    """The sources inside a run's folder."""
    from gencli.bundle import Run

    return {key: Run.load(run.path / "sources" / key) for key in run.config.get("sources", [])}


def codec_of(run: runs.Found) -> Any:
    """The codec inside a run's folder, or None."""
    from gencli.bundle import Run

    nested = run.path / "codec"
    return Run.load(nested) if nested.is_dir() else None
