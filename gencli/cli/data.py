"""`gencli data check PATH`: what is in a folder or zip of images, as the model will see it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import typer
import typer.main

from gencli.cli import console
from gencli.cli.options import Flag, build


def command() -> Any:
    """The `data` group."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")

    @app.callback()
    def _data() -> None:
        """Look at data before training on them."""

    group = typer.main.get_command(app)
    group.name = "data"
    group.add_command(build("check", "Report what is in a folder or zip of images.", _FLAGS, run))  # type: ignore[attr-defined]
    return group


SETTINGS = ("image_size", "fit", "background", "group_by", "unconditional")

_FLAGS = [
    Flag("path", (), str, "folder or zip of images", metavar="PATH"),
    Flag("preview", ("--preview",), bool, "write a contact sheet of what the model will see", default=False),
    Flag("image_size", ("--image-size",), str, "side in pixels, or 64x96", shown="32"),
    Flag("fit", ("--fit",), str, "crop, pad or stretch", shown="crop"),
    Flag("background", ("--background",), str, "colour behind transparent pixels", shown="white"),
    Flag(
        "group_by",
        ("--group-by",),
        str,
        "none, folder, prefix or csv: what stays on one side of the split",
        shown="none",
    ),
    Flag("unconditional", ("--unconditional",), bool, "ignore class folders"),
    Flag("out", ("--out",), str, "where --preview writes", shown="PATH-preview.png in this folder"),
]


def run(values: dict[str, Any]) -> None:
    """Check and report."""
    from gencli.data import open_table
    from gencli.data._report import check
    from gencli.errors import GencliError

    if "path" not in values:
        raise GencliError("`gencli data check` needs a path", "gencli data check ./my-photos --preview")
    given = {key: values[key] for key in SETTINGS if key in values}
    table = {"name": "folder", "path": values["path"], **given}
    data: Any = open_table(table)
    report = check(data)
    facts = dataclasses.asdict(report)
    console.document(**facts)
    for key, value in facts.items():
        if key in ("notes", "suggestion", "unreadable") or value in ("", [], {}, ()):
            continue
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        console.show(f"{key.replace('_', ' ')}: {shown}")
    _lines(facts)
    if values["preview"]:
        _preview(data, values)
    console.following(facts["suggestion"])


def _lines(facts: dict[str, Any]) -> None:
    unreadable = facts.get("unreadable", [])
    for item in unreadable.items() if isinstance(unreadable, dict) else unreadable:
        console.show(f"unreadable: {': '.join(map(str, item)) if isinstance(item, (tuple, list)) else item}")
    for note in facts.get("notes", []):
        console.show(f"note: {note}")


def _preview(data: Any, values: dict[str, Any]) -> None:
    import torch

    from gencli.report.kinds._pictures import save_picture
    from gencli.report.kinds.image import contact_sheet, grid

    split = data.split("train")
    chosen = torch.linspace(0, len(split) - 1, min(64, len(split))).round().long()
    target = Path(values.get("out", f"{Path(values['path']).stem}-preview.png"))
    batch = split.batch(chosen)
    label = data.spec.cond.get("label")
    captions = [label.names[int(i)] for i in batch["label"]] if label is not None else []
    sheet = contact_sheet(batch["x"], captions) if label is not None else grid(batch["x"])
    save_picture(target, sheet)
    console.result(target)
