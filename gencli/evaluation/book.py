"""Where a comparison across families is kept: a folder with `compare.json`, the runs that it trained, and a picture a row.

Rows, and the steps that a budget bought, are written as soon as they are known: what is there is neither trained nor measured
again, and nothing is overwritten by other settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gencli import __version__, files
from gencli.errors import GencliError
from gencli.training.session import safe_name

UNDERTRAINED = 0.01  # of its loss that a run still loses in a tenth of its steps


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: of the entry or run.
        kind: `model`, `floor` or `control`.
        run: the folder that was measured.
        weights: their hash.
        parameters: of the model and of its codec.
        train_seconds: as the log of training has them, a chain's stages together; None without a log.
        train_steps: the same.
        falling: share of its loss that the run still lost in a tenth of its steps; None where that says nothing.
        sample_seconds: of one image, drawn 64 at a time.
        evaluations: of networks, for one image.
        sampler: its name.
        values: measured, with their receipts; the first is the quality.
        notes: why a number is not there.
        why: the row failed; empty where it did not.
    """

    name: str
    kind: str = "model"
    run: str = ""
    weights: str = ""
    parameters: int | None = None
    train_seconds: float | None = None
    train_steps: int | None = None
    falling: float | None = None
    sample_seconds: float | None = None
    evaluations: float | None = None
    sampler: str = ""
    values: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    why: str = ""

    @property
    def slug(self) -> str:
        """A name for files."""
        return safe_name(self.name)

    @property
    def quality(self) -> float | None:
        """The first number measured."""
        return self.values[0]["value"] if self.values else None

    @property
    def undertrained(self) -> bool:
        """Whether more steps would have lowered the loss further."""
        return self.falling is not None and self.falling > UNDERTRAINED

    def of(self, metric: str) -> Mapping[str, Any] | None:
        """The value of a metric, whatever stands in its brackets."""
        return next((v for v in self.values if v["metric"].split("[")[0] == metric), None)


def beaten(row: Row, controls: Sequence[Row]) -> list[str]:
    """The controls that a model does not beat in quality."""
    if row.quality is None:
        return []
    sign = 1 if row.values[0]["better"] == "lower" else -1
    return [one.name for one in controls if one.quality is not None and sign * (row.quality - one.quality) >= 0]


def remarks(row: Row, rest: Sequence[Row]) -> list[str]:
    """What must be read beside a row's numbers; `rest` holds the floor and the controls."""
    if row.kind == "floor":
        return ["floor: two halves of the reference"]
    if row.kind == "control":
        return ["control: every model must beat it"]
    made = [f"failed: {row.why}"] if row.why else []
    if row.undertrained:
        made.append(f"undertrained: its loss still falls {row.falling or 0:.1%} per tenth")
    made += [f"does not beat {name}" for name in beaten(row, [one for one in rest if one.kind == "control"])]
    return [*made, *row.notes]


@dataclass
class Book:
    """A folder with `compare.json`: the facts of all rows, the steps that the budget bought, and the rows.

    Args:
        folder: made if it is not there.
        facts: of the contest, and the budget.

    Raises:
        GencliError: what is in the folder was compared otherwise, with the first fact that differs, or is something else.
    """

    folder: Path
    facts: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    budgets: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.facts = json.loads(json.dumps(self.facts))
        if self.path.is_file():
            self._read()
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise GencliError(f"{self.folder} is not empty and holds no comparison", "give another --out")
        elif self.folder.exists() and not self.folder.is_dir():
            raise GencliError(f"{self.folder} is a file, not a folder", "give another --out")

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return self.folder / "compare.json"

    def _read(self) -> None:
        try:
            document = files.read_json(self.path)
            if document.get("compares") != self.facts["compares"]:
                raise GencliError(f"{self.folder} holds a comparison of samplers", "give another --out")
            self.rows = [
                Row(**{**row, "values": tuple(row["values"]), "notes": tuple(row["notes"])})
                for row in document.pop("rows")
            ]
            self.budgets = document.pop("budgets")
        except (ValueError, KeyError, TypeError) as error:
            raise GencliError(f"{self.path} is damaged: {error}", "give another --out") from None
        for key, value in self.facts.items():
            if document.get(key) != value:
                raise GencliError(
                    f"{self.folder} compares with {key} {document.get(key)}, this asks for {value}",
                    "give another --out, or the same settings",
                )

    def find(self, name: str, weights: str | None = None) -> Row | None:
        """The row of that name, if it is measured.

        Raises:
            GencliError: it was measured with other weights.
        """
        row = next((row for row in self.rows if row.name == name and row.values), None)
        if row is not None and weights is not None and row.weights != weights:
            raise GencliError(
                f"{name} has other weights than when {self.folder} compared it", "give another --out for the new ones"
            )
        return row

    def add(self, row: Row, picture: Any = None) -> None:
        """Keep a row, in the place of one of the same name that failed."""
        from gencli.report.kinds._pictures import save_picture

        assert self.find(row.name) is None, "what is measured is never overwritten"
        names = [known.name for known in self.rows]
        if row.name in names:
            self.rows[names.index(row.name)] = row
        else:
            self.rows.append(row)
        if picture is not None:
            save_picture(self.folder / f"{row.slug}.png", picture)
        self.save()

    def bought(self, name: str, stage: int, digest: str) -> int | None:
        """The steps that a stage of an entry may take, if they are known.

        Raises:
            GencliError: they were found for another recipe.
        """
        stages = self.budgets.get(name, [])
        if stage >= len(stages):
            return None
        if stages[stage]["recipe"] != digest:
            raise GencliError(
                f"{self.folder} has {name} by another recipe than that of today", "give another --out for the new one"
            )
        return int(stages[stage]["steps"])

    def buy(self, name: str, stage: int, digest: str, steps: int, step_seconds: float) -> None:
        """Keep how many steps a stage takes."""
        stages = self.budgets.setdefault(name, [])
        assert len(stages) == stage, "stages are bought in order"
        stages.append({"recipe": digest, "steps": steps, "step_seconds": round(step_seconds, 5)})
        self.save()

    def save(self) -> None:
        """Write `compare.json`."""
        document = {"schema": 1, "gencli": __version__, **self.facts, "budgets": self.budgets}
        document["rows"] = [asdict(row) for row in self.rows]
        files.atomic_write(self.path, (json.dumps(document, indent=1, default=str) + "\n").encode())

    def picture(self, row: Row) -> Any:
        """The row's picture; None without."""
        from PIL import Image

        path = self.folder / f"{row.slug}.png"
        if not path.is_file():
            return None
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
