"""What classifiers of clean images ask for and refuse."""

from __future__ import annotations

from torch import Tensor

from gencli.core import Spec
from gencli.errors import GencliError


def classes_of(spec: Spec, name: str) -> int:
    """How many classes the data have; refuses data without classes, and whole numbers."""
    classes = spec.cond["label"].vocab if "label" in spec.cond else None
    if not classes:
        raise GencliError(f"{name} needs data with class labels, these have none", "choose labelled data with --data")
    if spec.x.vocab is not None and spec.x.range is None:
        raise GencliError(
            f"{name} takes continuous data, got whole numbers ({spec.x.kind} of {spec.x.vocab} values)",
            "use the codec pixels",
        )
    return classes


def refuse_noise(sigma: Tensor | None, name: str) -> None:
    """Refuse a level of noise other than 0."""
    if sigma is not None and bool((sigma > 0).any()):
        raise GencliError(
            f"{name} was trained on clean images, it cannot tell the class of noisy ones",
            "train one that can: gencli train noisy-classifier",
        )
