"""One safetensors file: the averaged weights, and what they are as JSON in the header.

The header's metadata has one key, `gencli`, so that equal runs are equal bytes. Weights of a nested run stand under its
folder's name: `codec/decoder.last.weight`. There and back is bit-equal.

Reads also files of other programs, if `--like` says what they are: names must fit, but for a `module.` or `_orig_mod.` that
all of them begin with.

Errors: names or shapes that do not fit; a foreign file without `--like`; a damaged file.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from gencli.bundle import Run, read_tensors
from gencli.converters._base import Check, Converter, Packed, differences, foreign

KEY = "gencli"


class Safetensors(Converter):
    """The safe way to hand weights on."""

    suffix = ".safetensors"
    reads = True

    def write(self, run: Run, path: Path) -> list[str]:
        assert run.path is not None, "only a saved run can be converted"
        packed = Packed.of(run.path)
        path.write_bytes(save(packed.tensors, metadata={KEY: packed.text}))
        return []

    def read(self, path: Path, like: Run | None) -> tuple[Packed, list[str]]:
        tensors, metadata = read_tensors(path)
        if KEY in metadata:
            return Packed.parsed(metadata[KEY], tensors, path), []
        return foreign(tensors, like, path), [f"its {len(tensors)} tensors fit {like.name}"] if like else []

    def check(self, run: Run, path: Path) -> list[Check]:
        return [differences(run, self.read(path, run)[0])]
