"""What models of whole numbers share: they need data that are such numbers, and know how many values there are."""

from __future__ import annotations

from gencli.core import Spec
from gencli.errors import GencliError


def vocab_of(spec: Spec, model: str) -> int:
    """The number of values of x.

    Raises:
        GencliError: x is continuous.
    """
    x = spec.x
    if x.vocab is not None and x.range is None:
        return x.vocab
    values = f"with values in [{x.range[0]:g}, {x.range[1]:g}]" if x.range else "without a vocab"
    raise GencliError(
        f"{model} models whole numbers, got {x.kind} of shape {x.shape} {values}",
        "give `--codec RUN` of a discrete autoencoder such as vqvae, or use the tokens codec",
    )
