"""Writers: one module for each kind of data, which lays items out and saves them.

Every writer has `grid`, `panel` (many small items among other panels), `save_grid`, `save_items`, `save_animation`, and
`save_denoising` (what the network saw beside what it made of it), and says in `MOVING` how many items move; a new kind is a
new file here.
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
