"""Running one step again from the bundle that a run wrote when a loss, a gradient or weights were not finite.

The run's config.json says what the model is; the bundle has its weights as they were, the batch, and the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gencli import device as hardware
from gencli import files, runs
from gencli.bundle import Run, load_tensors, read_config, read_tensors, spec_from
from gencli.config import parse
from gencli.core import Batch
from gencli.errors import GencliError
from gencli.launch import World
from gencli.training.faults import BATCH, MODEL, bad_weights
from gencli.training.settings import TrainConfig

PATTERN = "not-finite-*.json"


@dataclass(frozen=True)
class Replayed:
    """A step that was run again.

    Args:
        bundle: what training wrote.
        layer: the first that is not finite now; empty if all is finite.
        device: where it ran.
        recipe: of the run.
    """

    bundle: dict[str, Any]
    layer: str
    device: str
    recipe: str


class _NoItems:
    """The batch is in the bundle."""

    def __len__(self) -> int:
        return 0

    def batch(self, indices: Any) -> Batch:
        raise AssertionError("a replayed step takes its batch from the bundle")


def find(name: str) -> Path:
    """The bundle that a path means, or the newest in a run's folder or in the run of that name."""
    path = Path(name)
    if path.suffix == ".json":
        return path
    folder = path if path.is_dir() else runs.named(name).path
    found = sorted(folder.glob(f"train/{PATTERN}"), key=lambda each: int(each.stem.rpartition("-")[2]))
    if not found:
        raise GencliError(
            f"run {folder.name} has no bundle of a step that was not finite", f"training writes {PATTERN} there"
        )
    return found[-1]


def replay(path: Path) -> Replayed:
    """Run the step of a bundle again.

    Raises:
        GencliError: it is no bundle, damaged, or its run is gone.
    """
    bundle = _read(path)
    folder = path.absolute().parent.parent
    config = read_config(folder)
    nested = folder / "codec"
    codec_run = Run.load(nested) if nested.is_dir() else None
    run = Run.build(config["recipe"], spec_from(config["data"]["spec"]), codec_run)
    tensors, _ = read_tensors(path.with_suffix(".safetensors"))
    weights = {key.removeprefix(MODEL): value for key, value in tensors.items() if key.startswith(MODEL)}
    load_tensors(run.model, weights, str(path.with_suffix(".safetensors")))
    trainer = _trainer(run, config, bundle.get("precision", "no"))
    device, recipe = trainer.accelerator.device, config["recipe"]["recipe"]
    if bundle["what"] == "weights":
        return Replayed(bundle, bad_weights(run.model), device.type, recipe)
    trainer.step, trainer.world = bundle["step"] - 1, World(*bundle["process"])
    batch = {key.removeprefix(BATCH): value.to(device) for key, value in tensors.items() if key.startswith(BATCH)}
    phase = next((each for each in trainer.phases if each.name == bundle["phase"]), None)
    if phase is None:
        raise GencliError(
            f"{path} is about phase {bundle['phase']}, which the model does not have", "see its config.json"
        )
    found, _ = trainer.blame(bundle["what"], range(*bundle["rows"]), bundle["items"], batch, phase)
    return Replayed(bundle, found["layer"], device.type, recipe)


def _read(path: Path) -> dict[str, Any]:
    try:
        bundle = dict(files.read_json(path))
        if bundle["what"] not in ("loss", "gradient", "weights"):
            raise ValueError(f"it is about {bundle['what']}")
        if bundle.get("precision", "no") not in ("no", "bf16", "fp16"):
            raise ValueError(f"its precision is {bundle['precision']}")
        int(bundle["step"]), str(bundle["layer"]), str(bundle["phase"])
        if bundle["what"] != "weights":
            range(*bundle["rows"]), World(*bundle["process"]), bundle["items"]
    except FileNotFoundError:
        raise GencliError(f"there is no bundle {path}", "name a run, or its train/not-finite-STEP.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GencliError(
            f"{path} is no bundle of a step that was not finite, or damaged: {error!r}", "training writes them"
        ) from None
    return bundle


def _trainer(run: Run, config: dict[str, Any], precision: str) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from gencli.training.trainer import Trainer

    AcceleratorState._reset_state(reset_partial_state=False)
    device = hardware.default()
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    run.model.to(accelerator.device).train()
    return Trainer(run, parse(TrainConfig, config["recipe"]["train"], "train"), _NoItems(), accelerator)
