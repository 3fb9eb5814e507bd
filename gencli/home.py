"""Where gencli keeps what may be made or fetched again: `$GENCLI_HOME`, else `~/.cache/gencli`."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder of downloads, caches and shared checkpoints, absolute; it need not exist yet."""
    given = os.environ.get("GENCLI_HOME", "").strip()
    return Path(given).expanduser().absolute() if given else Path.home() / ".cache" / "gencli"


def shipped_runs() -> Path:
    """The trained models that come with gencli: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent / "checkpoints" / "shipped"


def run_folders() -> list[Path]:
    """Folders of runs in the order of search."""
    return [Path("checkpoints"), home() / "checkpoints", shipped_runs()]
