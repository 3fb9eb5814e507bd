"""A path that holds images, whatever it is: a folder, a zip, shards."""

from __future__ import annotations

import zipfile
from pathlib import Path

from gencli.data._shards import is_shard, open_shards
from gencli.data._source import Source, folder_source, zip_source
from gencli.errors import GencliError

COMPRESSED = (".tgz", ".gz", ".bz2", ".xz", ".zst")


def open_source(path: Path) -> Source:
    """List a folder, a zip, a shard, or a folder that holds shards and no images.

    Raises:
        GencliError: nothing is there, or it is none of them, or it cannot be read.
    """
    if not path.exists():
        near = next((parent for parent in path.parents if parent.exists()), Path())
        raise GencliError(f"no folder or zip at {path}", f"{near} exists, what is below it does not")
    if path.is_dir():
        source = folder_source(path)
        shards = [] if source.stamps else [place for place in path.rglob("*") if is_shard(place) and place.is_file()]
        return open_shards(path, shards) if shards else source
    if is_shard(path) and path.is_file():
        return open_shards(path, [path])
    if path.is_file() and zipfile.is_zipfile(path):  # a pipe would never end
        return zip_source(path)
    if path.suffix.lower() in COMPRESSED:
        raise GencliError(
            f"{path} is compressed, so that its images cannot be read one by one", "decompress it to a .tar"
        )
    raise GencliError(f"{path} is neither a folder nor a zip nor a tar", "give the folder that holds the images")
