"""Files of published data sets: looked for on this machine first, else fetched to the cache, verified and renamed."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gencli.errors import GencliError
from gencli.files import atomic_path
from gencli.home import home

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is (0 when unknown)."""

_CHUNK = 1 << 18
_TIMEOUT = 30


@dataclass(frozen=True)
class Remote:
    """One published file.

    Args:
        name: file name, in any of the folders looked in and in the cache.
        url: where it is published.
        md5: the digest its publishers state.
    """

    name: str
    url: str
    md5: str


def cache_folder(dataset: str) -> Path:
    """Where the files of a data set are kept."""
    return home() / "data" / dataset


def obtain(
    dataset: str, files: Sequence[Remote], folders: Sequence[Path], advice: str, progress: Progress | None
) -> dict[str, Path]:
    """The path of every file, fetching those that are nowhere; no socket is opened when all are here.

    Args:
        dataset: name of the data set, for the cache folder and messages.
        files: what is needed.
        folders: where to look beside the cache folder, in order.
        advice: the next step when the files are missing and cannot be fetched.
        progress: told about downloads.

    Raises:
        GencliError: a file is missing and cannot be fetched, or what came has another digest.
    """
    cache = cache_folder(dataset)
    places = [*folders, cache]
    found = located(dataset, files, folders)
    for file in files:
        if file.name not in found:
            here = cache / file.name
            try:
                fetch(file, here, progress)
            except (OSError, http.client.HTTPException) as error:
                looked = " and ".join(str(place) for place in places)
                reason = getattr(error, "reason", None) or error
                message = f"data set '{dataset}' lacks {file.name}: not in {looked}, and {file.url} failed ({reason})"
                raise GencliError(message.replace("\n", " "), advice.format(cache=cache)) from error
            found[file.name] = here
    return found


def located(dataset: str, files: Sequence[Remote], folders: Sequence[Path]) -> dict[str, Path]:
    """The path of every file that is on this machine."""
    places = [*folders, cache_folder(dataset)]
    paths = [(file.name, place / file.name) for file in files for place in reversed(places)]
    return {name: path for name, path in paths if path.is_file()}


def fetch(file: Remote, target: Path, progress: Progress | None = None) -> None:
    """Download to a temporary name, compare the digest, rename to `target`."""
    request = urllib.request.Request(file.url, headers={"User-Agent": "gencli"})
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, atomic_path(target) as temporary:
        total = int(answer.headers.get("Content-Length") or 0)
        done = 0
        with temporary.open("wb") as out:
            while chunk := _read(answer):
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(f"downloading {file.name}", done, total)
        if digest.hexdigest() != file.md5:
            raise GencliError(
                f"{file.url} has md5 {digest.hexdigest()}, published is {file.md5}",
                f"try again, or put the published file at {target}",
                code=1,
            )


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(_CHUNK)
    except OSError as error:  # of the network, not of the disk that is written to in the same block
        raise http.client.HTTPException(f"connection lost: {error}") from error
