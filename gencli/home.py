"""Where gencli keeps what may be made or fetched again: `$GENCLI_HOME`, else `~/.cache/gencli`."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from gencli import files, registry


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


def short(path: Path) -> str:
    """A path for people, the user's own folder as `~`."""
    whole = path.absolute()
    return str(Path("~") / whole.relative_to(Path.home())) if whole.is_relative_to(Path.home()) else str(whole)


@dataclass(frozen=True)
class Cache:
    """A folder under `home()` whose content comes again by itself.

    Args:
        name: for the command line.
        inside: the folder, below `home()`.
        what: what is kept there.
        names: a pattern of what gencli calls it; anything else in the folder is somebody else's.
        fetched: it comes again from the network, not by computing.
    """

    name: str
    inside: str
    what: str
    names: str
    fetched: bool = False

    @property
    def folder(self) -> Path:
        """Where it is."""
        return home() / self.inside

    @property
    def items(self) -> list[Path]:
        """What is there of gencli's, with what interrupted writes left."""
        pattern = re.compile(rf"(?:{self.names or '|'.join(registry.entries('data'))})|\..+\.tmp")
        return [path for path in files.inside(self.folder) if pattern.fullmatch(path.name)]

    def clear(self) -> None:
        """Delete it."""
        for path in self.items:
            with files.explained(path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


CACHES = (
    Cache("folders", "cache/folders", "decoded folders and zips", r"[0-9a-f]{20}|stat-[0-9a-f]{32}\.json"),
    Cache("codes", "cache/codes", "data encoded by a codec", r"[0-9a-f]{16}\.safetensors"),
    Cache("features", "cache/features", "features of reference data and of samples", r"[0-9a-f]{24}(?:\.npy)?"),
    Cache("data", "data", "published data sets", "", fetched=True),  # a folder a data set
    Cache("weights", "weights", "published networks for features", r"[\w.-]+\.pth?", fetched=True),
)
