"""Writers: one module for each kind of data, which lays items out and saves them.

Every writer has `grid`, `save_grid`, `save_items` and `save_animation`; a new kind is a new file here.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from gencli.errors import GencliError


def writer(kind: str) -> ModuleType:
    """The module that writes `image`, `points`, … (the `kind` of a data set).

    Raises:
        GencliError: nothing writes this kind.
    """
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem[0] != "_")
    if kind not in known:
        raise GencliError(f"nothing can draw data of kind '{kind}'", f"kinds that can be drawn: {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{kind}")
