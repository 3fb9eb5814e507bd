"""The flags by which `gencli sample` completes given images or rejects its worst, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gencli import runs
from gencli.cli import guiding
from gencli.cli.options import Flag
from gencli.errors import GencliError

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.bundle import Run
    from gencli.core import Batch
    from gencli.evaluation.completion import Completion
    from gencli.evaluation.generate import Progress
    from gencli.evaluation.rejection import Score
    from gencli.guidance._base import Guidance

EACH = 4  # completions of an input, unless -n says
SHARE = 0.5
_FITS = ("crop", "pad", "stretch")
_HALVES = "top-half|bottom-half|left-half|right-half|MASK.png"


def _keeps(incomplete: str) -> list[str]:
    halves = _HALVES.split("|")[:4]
    return [half for half in halves if half.startswith(incomplete)] or [incomplete]


FLAGS = [
    Flag(
        "input",
        ("--input",),
        list[str],
        "complete these with --keep, or paint from these where the model does that, -n times each: image files, folders or "
        "zips, or items of the run's own data such as test:0-15; of a completion the class is that of --class (none = "
        "without), else of the item, else none",
        "Completion",
        metavar="IMAGE|FOLDER|test:0-15",
    ),
    Flag(
        "keep",
        ("--keep",),
        str,
        "what is kept of them: top-half, bottom-half, left-half, right-half, or the white pixels of a mask of their size; a "
        "model of next tokens looks back only: of what is kept, a pixel is told what precedes it in the model's order, so "
        "that in rows top-half alone is drawn from the exact conditional",
        "Completion",
        metavar="HALF|MASK.png",
        complete=_keeps,
    ),
    Flag(
        "fit",
        ("--fit",),
        str,
        "resize inputs of another size",
        "Completion",
        shown="refuse them",
        metavar="|".join(_FITS),
        complete=lambda incomplete: [fit for fit in _FITS if fit.startswith(incomplete)],
    ),
    Flag(
        "rejection",
        ("--rejection",),
        str,
        "a run that tells classes: draw more than -n, and keep those most probably of the class they were asked for",
        "Rejection",
        metavar="RUN",
        complete=guiding.run_names,
    ),
    Flag(
        "rejection_share",
        ("--rejection-share",),
        float,
        "share that is kept, in each class; --seeds names what is drawn, -n what is kept",
        "Rejection",
        shown=str(SHARE),
    ),
]


def check_flags(values: dict[str, Any]) -> None:
    """Refuse flags that mean nothing without others, before anything is loaded."""
    if "keep" in values and "input" not in values:
        raise GencliError("--keep needs --input", "add --input IMAGE")
    if "fit" in values and "input" not in values:
        raise GencliError(f"--fit {values['fit']} is about --input, which is not given", "leave --fit out")
    if values.get("fit", "crop") not in _FITS:
        raise GencliError(f"--fit is '{values['fit']}'", f"give {', '.join(_FITS)}")
    if "rejection_share" in values and "rejection" not in values:
        raise GencliError(
            f"--rejection-share {values['rejection_share']:g} has no classifier", "add --rejection CLASSIFIER_RUN"
        )
    if "input" in values and "rejection" in values:
        raise GencliError(
            "--rejection does not go with --input", "leave one of them out: it would compare unlike images"
        )


def without_class(values: dict[str, Any], run: Run) -> bool:
    """Whether inputs shall be completed without their class, by `--class none`; a class of that name comes first."""
    label = run.model.spec.cond.get("label")
    names = label.names if label is not None else ()
    return "input" in values and values.get("classes", "").lower() == "none" and "none" not in map(str.lower, names)


@dataclass(frozen=True)
class Completing:
    """What `--input` and `--keep` ask for."""

    completion: Completion

    @classmethod
    def of(cls, values: dict[str, Any], run: Run, sampler: Any, each: int) -> Completing | None:
        """None without `--input`."""
        from gencli.evaluation import completion as it
        from gencli.evaluation.inputs import keep_of, read_inputs

        if "input" not in values:
            return None
        if "keep" not in values:
            raise GencliError("--input needs --keep", f"add --keep {_HALVES}")
        it.check_sampler(run, sampler)
        inputs = read_inputs(run, values["input"], values.get("fit"))
        if without_class(values, run):
            inputs = replace(inputs, cond={key: value for key, value in inputs.cond.items() if key != "label"})
        keep = keep_of(values["keep"], *inputs.x.shape[2:])
        return cls(it.Completion.of(run, inputs, keep, each, edits=it.edits(run, sampler)))

    def asked(self, run: Run, seeds: list[int], labels: Batch) -> tuple[list[int], Batch]:
        """Seeds and conditions of every image: each input has the same seeds, and the classes asked for by them."""
        from gencli.evaluation.completion import needs_class

        count = len(self.completion.inputs)
        cond = self.completion.rows({key: value.repeat(count) for key, value in labels.items()})
        needs_class(run, cond)
        return seeds * count, self.completion.with_above(run, seeds * count, cond)

    def done(self, done: list[Progress]) -> list[Progress]:
        """What was drawn, with what is kept pasted."""
        from gencli.evaluation.completion import pasted_progress

        return pasted_progress(self.completion, done)

    def rows(self) -> list[dict[str, Any]]:
        """Of every image, the input that it completes, for the receipt."""
        names = self.completion.inputs.names
        return [{"input": names[i // self.completion.each]} for i in range(self.completion.count)]

    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        return {"completion": self.completion.facts}

    def sheet(self, made: Tensor) -> tuple[Tensor, int]:
        """What the grid shows, and its columns: the original, what is kept, the completions."""
        return self.completion.sheet(made), 2 + self.completion.each

    @property
    def notes(self) -> list[str]:
        """What a user must be told, a line each."""
        return self.completion.notes

    @property
    def what(self) -> str:
        """In the line that says what was resolved."""
        inputs = len(self.completion.inputs)
        return f"{inputs} input{'s' * (inputs > 1)}, keeping {self.completion.keep.name}"

    @property
    def name(self) -> str:
        """For the folder."""
        return self.completion.keep.name.rpartition(".")[0] or self.completion.keep.name


@dataclass(frozen=True)
class Rejecting:
    """What `--rejection` asks for: candidates are drawn, `wanted` of them are kept."""

    judge: Run
    score: Score
    share: float
    seeds: list[int]
    wanted: int

    @classmethod
    def of(
        cls, values: dict[str, Any], run: Run, seeds: list[int], guidance: Guidance | float | None
    ) -> Rejecting | None:
        """None without `--rejection`."""
        from gencli import device
        from gencli.bundle import Run
        from gencli.evaluation import rejection as it
        from gencli.evaluation.generate import class_field

        if "rejection" not in values:
            return None
        share, count = values.get("rejection_share", SHARE), len(seeds)
        drawn = it.candidates(count, share)  # checks the share
        classes = class_field(run, guidance)
        if classes is None:
            raise GencliError(
                f"run {run.name} was trained without classes, by which to reject", "leave out --rejection"
            )
        judge = Run.load(runs.named(values["rejection"]).path, device.default())
        score = it.classifier_score(judge, classes, run.data_spec.x.shape)
        if "seeds" in values:
            return cls(judge, score, share, seeds, max(1, round(count * share)))
        return cls(judge, score, share, list(range(seeds[0], seeds[0] + drawn)), count)

    def judged(self, done: list[Progress], cond: Batch) -> tuple[Tensor, Tensor]:
        """Log probability of every candidate's class, and the places of those that are kept."""
        import torch

        from gencli.evaluation.rejection import best_of_each

        made = torch.cat([progress.chunk for progress in done if progress.chunk is not None])
        scores = self.score(made, cond)
        return scores, best_of_each(scores, cond["label"], self.wanted)

    def facts(self, scores: Tensor, kept: Tensor) -> dict[str, Any]:
        """For the receipt."""
        from gencli.evaluation.rejection import facts

        return {"rejection": facts(self.judge, scores, kept, self.share)}

    @staticmethod
    def words(facts: Mapping[str, Any]) -> str:
        """What rejection did, for the person watching."""
        mean = facts["mean_probability"]
        return (
            f"{facts['classifier']} gives their class {mean['kept']:.3f}, all that were drawn {mean['candidates']:.3f}"
        )

    @staticmethod
    def rows(scores: Sequence[float]) -> list[dict[str, Any]]:
        """Of every image that is kept, how probable its class is, for the receipt."""
        return [{"probability": round(p, 6)} for p in scores]


def check_attention(run: Run) -> None:
    """Refuse a run whose model has no attention over tokens to show."""
    if not callable(getattr(run.model, "attention", None)):
        raise GencliError(
            f"run {run.name} has no attention to show: model {run.model.public_name()} does not tell it",
            "a model that does: gencli train gpt",
        )


def attention_of(run: Run, made: Tensor, cond: Batch) -> Tensor:
    """What each token takes from each `(depth, heads, L, L)`, of an image as it lies there, encoded (again)."""
    import torch

    from gencli.core import Rng

    model: Any = run.model
    batch = run.encode({"x": made, **{k: v[:1] for k, v in cond.items()}}, Rng.rows([0], model.device))
    with torch.no_grad():
        return model.attention(batch["x"], **{k: batch[k] for k in run.model.spec.cond if k in batch})[0].cpu()
