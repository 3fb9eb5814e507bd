"""The flags that guide, shared by every command that samples, and the `Guidance` that they mean for a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gencli import runs
from gencli.cli.options import Flag
from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.bundle import Run
    from gencli.guidance._base import Guidance

PANEL = "Guidance"
KEYS = ("guidance", "guidance_w", "guidance_interval", "guide", "classifier", "classifier_scale")


def run_names(incomplete: str) -> list[str]:
    """Runs that complete a word."""
    return [run.name for run in runs.every() if run.name.startswith(incomplete)]


FLAGS = [
    Flag("guidance", ("--guidance",), float, "scale; 1 = conditional, no second call", PANEL, shown="the recipe's"),
    Flag("guidance_w", ("--guidance-w",), float, "the paper's w = scale − 1", PANEL),
    Flag(
        "guidance_interval",
        ("--guidance-interval",),
        str,
        "guide only where the noise level σ is between these two",
        PANEL,
        shown="everywhere",
        metavar="LOW,HIGH",
    ),
    Flag(
        "guide",
        ("--guide",),
        str,
        "a worse run to move away from (autoguidance), instead of the same one without its classes",
        PANEL,
        metavar="RUN",
        complete=run_names,
    ),
    Flag(
        "classifier",
        ("--classifier",),
        str,
        "a run that classifies noisy images, to climb towards the class",
        PANEL,
        metavar="RUN",
        complete=run_names,
    ),
    Flag("classifier_scale", ("--classifier-scale",), float, "strength of the classifier", PANEL, shown="1"),
]


def guidance_of(values: dict[str, Any], run: Run) -> Guidance | None:
    """What the flags ask for; None = the recipe's own scale.

    Raises:
        GencliError: a flag that means nothing for this run, each with its value.
    """
    from gencli.evaluation.guides import as_classifier, as_guide
    from gencli.guidance._base import Guidance

    _check_numbers(values)
    if not any(key in values for key in KEYS):
        return None
    guide = as_guide(run, _loaded(values["guide"])) if "guide" in values else None
    classifier = as_classifier(run, _loaded(values["classifier"])) if "classifier" in values else None
    names = {
        f"{what}{suffix}": fact
        for what, other in (("guide", guide), ("classifier", classifier))
        if other is not None
        for suffix, fact in (("", other.name), ("_weights", other.weights_hash()))
    }
    guidance = Guidance(
        _scale(values, run, guide is not None),
        interval_of(values["guidance_interval"]) if "guidance_interval" in values else None,
        None if guide is None else guide.model,  # type: ignore[arg-type]  # checked by as_guide
        None if classifier is None else classifier.model,  # type: ignore[arg-type]  # checked by as_classifier
        values.get("classifier_scale", 1.0),
        tuple(names.items()),
    )
    _check_use(values, run, guidance)
    return guidance


def interval_of(text: str) -> tuple[float, float]:
    """`0.2,5` to the two numbers."""
    from gencli.guidance.interval import checked

    parts = [part.strip() for part in text.split(",")]
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise GencliError(
            f"--guidance-interval is '{text}'", "give the least and the greatest σ, such as 0.2,5"
        ) from None
    if low < 0:
        raise GencliError(f"--guidance-interval begins at {low:g}", "noise levels σ are 0 or more, such as 0,5")
    return checked(low, high)


def _loaded(name: str) -> Run:
    from gencli import device
    from gencli.bundle import Run

    return Run.load(runs.named(name).path, device.default())


def _check_numbers(values: dict[str, Any]) -> None:
    for key in ("guidance", "guidance_w", "classifier_scale"):
        if not math.isfinite(values.get(key, 0.0)):
            raise GencliError(f"--{key.replace('_', '-')} is {values[key]}", "give a number such as 2")
    if "guidance" in values and "guidance_w" in values:
        raise GencliError(
            f"--guidance {values['guidance']:g} and --guidance-w {values['guidance_w']:g} are the same setting",
            "give one: scale = 1 + w",
        )
    if "classifier_scale" in values and "classifier" not in values:
        raise GencliError(
            f"--classifier-scale {values['classifier_scale']:g} has no classifier", "add --classifier RUN"
        )


def _scale(values: dict[str, Any], run: Run, guided: bool) -> float:
    if "guidance_w" in values:
        return float(values["guidance_w"] + 1)
    return float(values.get("guidance", run.guidance if guided or run.model.spec.cond else 1.0))


def _check_use(values: dict[str, Any], run: Run, guidance: Guidance) -> None:
    """A flag that would change nothing is refused."""
    scale, conditional = guidance.scale, bool(run.model.spec.cond)
    if scale != 1.0 and not conditional and guidance.guide is None:
        raise GencliError(f"guidance {scale:g} needs a condition, run {run.name} has none", "leave --guidance out")
    if guidance.guide is not None and scale == 1.0:
        raise GencliError(f"--guide {values['guide']} does nothing at guidance scale 1", "add --guidance 2")
    if guidance.interval is not None and scale == 1.0 and guidance.classifier is None:
        raise GencliError(
            f"--guidance-interval {values['guidance_interval']} has nothing to limit: the guidance scale is 1",
            "add --guidance 2",
        )


def names_of(guidance: float | Guidance | None) -> list[tuple[str, str]]:
    """The runs that guide, for the line that says what was resolved."""
    names = getattr(guidance, "names", ())
    return [(key, name) for key, name in names if key in ("guide", "classifier")]
