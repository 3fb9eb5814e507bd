"""Makers of hostile input, by kind; each case follows from its kind and number alone."""

from __future__ import annotations

from pathlib import Path

from fuzzing import Maker

from hostile import archives, folders, options, pickles, pictures, tensors, texts
from hostile.stock import Stock, stocked

__all__ = ["Stock", "makers", "stocked"]


def makers(stock: Path) -> dict[str, Maker]:
    """Every kind of case; `stock` is a folder that `stocked` filled."""
    held = Stock(stock)
    kinds = (tensors, texts, pictures, archives, pickles, folders, options)
    return {name: maker for kind in kinds for name, maker in kind.makers(held).items()}
