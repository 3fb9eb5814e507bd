"""Runs that guide another run: a worse denoiser, or a classifier of noisy data; both live in the same model space."""

from __future__ import annotations

from gencli.bundle import Run
from gencli.config import as_dict
from gencli.core import Classifier, Denoiser
from gencli.errors import GencliError


def as_guide(run: Run, guide: Run) -> Run:
    """`guide`, if `run` may be moved away from it.

    Raises:
        GencliError: it is no denoiser, its estimate means something else, or it lives in another space.
    """
    for one in (run, guide):
        if not isinstance(one.model, Denoiser):
            raise GencliError(
                f"run {one.name} is no denoiser: {one.model.public_name()} has no noise levels to guide at",
                "guide one diffusion model by another, such as the same recipe trained for fewer steps",
            )
    ours, theirs = (one.model.meaning for one in (run, guide))
    if ours != theirs:
        raise GencliError(
            f"guide {guide.name} estimates a {theirs}, run {run.name} a {ours}", "choose a guide of the same method"
        )
    check_space(run, guide, "guide")
    return guide


def as_classifier(run: Run, classifier: Run) -> Run:
    """`classifier`, if it can tell the classes of what `run` draws.

    Raises:
        GencliError: it does not classify, knows no classes or others than `run`, or lives in another space; `run` is no
            denoiser.
    """
    if not isinstance(classifier.model, Classifier):
        raise GencliError(
            f"run {classifier.name} is no classifier: {classifier.model.public_name()} tells no classes",
            "train one on noisy images: gencli train noisy-classifier",
        )
    if not isinstance(run.model, Denoiser):
        raise GencliError(
            f"run {run.name} cannot be guided by a classifier: {run.model.public_name()} has no noise levels",
            "leave --classifier out, or sample a diffusion model",
        )
    theirs, ours = (one.model.spec.cond.get("label") for one in (classifier, run))
    if theirs is None:
        raise GencliError(
            f"run {classifier.name} was trained without classes, so it tells none", "train it on labelled data"
        )
    if ours is not None and (ours.vocab, ours.names) != (theirs.vocab, theirs.names):
        raise GencliError(
            f"classifier {classifier.name} knows {_classes(theirs.names, theirs.vocab)}, "
            f"run {run.name} {_classes(ours.names, ours.vocab)}",
            "train both on the same data",
        )
    check_space(run, classifier, "classifier")
    return classifier


def check_space(run: Run, other: Run, role: str) -> None:
    """Refuse a run whose model sees other numbers for the same data."""
    if run.data_spec.x != other.data_spec.x:
        ours, theirs = (f"{one.data_spec.x.kind} {one.data_spec.x.shape}" for one in (run, other))
        raise GencliError(
            f"{role} {other.name} was trained on {theirs}, run {run.name} on {ours}",
            "train both on the same data at the same size",
        )
    if run.spec.x != other.spec.x or _codecs(run) != _codecs(other):
        ours, theirs = (_words(one) for one in (run, other))
        raise GencliError(
            f"{role} {other.name} works behind the codecs {theirs}, run {run.name} behind {ours}",
            "train both with the same codecs",
        )


def _codecs(run: Run) -> list[object]:
    """What the codecs are; of a learned one, its run's weights."""
    made: list[object] = []
    for codec in run.codecs:
        inner: Run | None = getattr(codec, "run", None)
        own = inner.weights_hash() if inner is not None else as_dict(codec.config)  # type: ignore[attr-defined]
        made.append((codec.public_name(), own))  # type: ignore[attr-defined]
    return made


def _words(run: Run) -> str:
    names = [codec.public_name() for codec in run.codecs]  # type: ignore[attr-defined]
    return f"{', '.join(names) or 'none'} ({run.spec.x.kind} {run.spec.x.shape}, range {run.spec.x.range})"


def _classes(names: tuple[str, ...], count: int | None) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{count} classes ({shown})" if names else f"{count} classes"
