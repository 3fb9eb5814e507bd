"""Copy a trained run to `checkpoints/shipped/`, ready to be read for ever: no training state, weights in half precision.

    python -m benchmarks.ship checkpoints/ddpm-digits

Half precision halves the size; the receipts of `gencli sample` and `gencli eval` name the hash of the stored weights, so a
number belongs to what is shipped and not to what was trained.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save

from gencli import files
from gencli.bundle import read_tensors
from gencli.report.card import write_card

SHIPPED = Path(__file__).parent.parent / "checkpoints" / "shipped"


def ship(run: Path, target: Path) -> None:
    """Copy one bundle and those nested in it."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "config.json", target / "config.json")
    tensors, metadata = read_tensors(run / "model.safetensors")
    small = {key: value.half() if value.dtype == torch.float32 else value for key, value in tensors.items()}
    files.atomic_write(target / "model.safetensors", save(small, metadata=metadata))
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    write_card(target, config)
    if (run / "codec").is_dir():
        ship(run / "codec", target / "codec")


def main() -> None:
    """Ship each run named on the command line."""
    for name in sys.argv[1:]:
        target = SHIPPED / Path(name).name
        if target.exists():
            shutil.rmtree(target)
        ship(Path(name), target)
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        print(f"{target}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
