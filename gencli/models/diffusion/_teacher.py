"""Saved runs that teach: found by name, and refused if they make other data, or no estimate that the method can learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gencli import runs
from gencli.bundle import Run
from gencli.core import Denoiser, Field, Model, Spec
from gencli.errors import GencliError

KINDS = {
    "mean": "a denoiser E[x0 | x]",
    "transport": "a velocity of paired noise, or a distilled one",
    "endpoint": "a consistency function",
}


def teacher_of(name: str, spec: Spec, meanings: Sequence[str] = ("mean", "transport")) -> Any:
    """The model of the run called `name`.

    Args:
        name: of the run.
        spec: what its student models.
        meanings: of a denoiser's estimate that the student can learn from.

    Raises:
        GencliError: there is no such run, it is no denoiser, its estimate means something else, or its data are others.
    """
    model: Model = Run.load(runs.named(name).path).model
    if not isinstance(model, Denoiser):
        raise GencliError(
            f"run {name} is no denoiser: it has no path from noise to data", "learn from a diffusion model such as ddpm"
        )
    if model.meaning not in meanings:
        raise GencliError(
            f"run {name} cannot teach: its {model.public_name()} is {KINDS[model.meaning]}",
            f"needed is {' or '.join(KINDS[meaning] for meaning in meanings)}",
        )
    theirs, ours = _words(model.spec), _words(spec)
    if theirs != ours:
        raise GencliError(f"run {name} makes {theirs}, wanted are {ours}", "train on the same data as that run")
    return model


def _words(spec: Spec) -> str:
    """What is made of what."""
    told = [f"{key} ({_values(field)})" if field.vocab else key for key, field in spec.cond.items()]
    span = f" in [{spec.x.range[0]:g}, {spec.x.range[1]:g}]" if spec.x.range else ""
    return f"{spec.x.kind} of shape {spec.x.shape}{span} from {', '.join(told) or 'no condition'}"


def _values(field: Field) -> str:
    return ", ".join(field.names) or f"{field.vocab} values"
