"""Sources: the runs that make a run's conditions when it is sampled, chosen when it is trained and nested in its folder.

A prior of the bottom codes of a hierarchy is given the top codes: in training the codec makes them of the data, in sampling
a source draws them. A source brings along what it was given itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from gencli.bundle import Run
from gencli.codecs.learned import Learned
from gencli.core import Denoiser, Field
from gencli.errors import GencliError


def complete(run: Run, given: Mapping[str, Run]) -> dict[str, Run]:
    """The sources of a new run: those given and, where they lack one, that of another source.

    Args:
        run: just built.
        given: saved runs by condition.

    Raises:
        GencliError: a source's key or samples fit no condition, a level above has no source, or the model ignores it.
    """
    for key, source in given.items():
        _check(run, key, source)
    learned, made = _learned(run), dict(given)
    if learned is None:
        return made
    for key in learned.above:
        inner = next((source.sources[key] for source in given.values() if key in source.sources), None)
        if key not in run.model.spec.cond:
            level, model = learned.config.level, run.config["recipe"]["model"]["name"]
            raise GencliError(
                f"model {model} takes no conditions, and the codes '{level}' depend on those of '{key}'",
                "choose a conditional model such as gated-pixelcnn",
            )
        if key not in made and inner is not None:
            made[key] = inner
        if key not in made:
            codec = f"{learned.name}:{key}"
            raise GencliError(
                f"the condition '{key}' has no source, so the new run could not be sampled",
                f"train a prior of {codec} first (gencli train gated-pixelcnn --codec {codec}), then give --source {key}=RUN",
            )
    return made


def _check(run: Run, key: str, source: Run) -> None:
    """Refuse a source that does not make what the condition `key` holds."""
    field = run.spec.cond.get(key)
    if field is None:
        has = ", ".join(run.spec.cond) or "none"
        raise GencliError(f"--source {key}={source.name}: there is no condition '{key}'", f"the conditions are: {has}")
    picture = run.data_spec.cond.get(key)
    if picture is not None and picture.kind == "image":
        _check_picture(run, key, source, picture)
    elif field not in (source.spec.x, source.data_spec.x):
        raise GencliError(
            f"--source {key}={source.name}: '{key}' is {_said(field)}, the run makes {_said(source.spec.x)}",
            f"give a run that makes '{key}', such as a prior over the same codes",
        )
    source.default_sampler()
    ours, theirs = _learned(run), _learned(source)
    if ours is not None and key in ours.above and not (theirs and theirs.run.weights_hash() == ours.run.weights_hash()):
        whose = f"of run {theirs.name}" if theirs else "of no codec"
        raise GencliError(
            f"--source {key}={source.name}: its codes are those {whose}, needed are those of run {ours.name}",
            f"give a prior trained with --codec {ours.name}:{key}",
        )


def _check_picture(run: Run, key: str, source: Run, picture: Field) -> None:
    """Refuse a source of images of another size, and one that is to stop at a level of noise and knows none."""
    made = source.data_spec.x
    if (made.kind, made.shape) != (picture.kind, picture.shape):
        raise GencliError(
            f"--source {key}={source.name}: '{key}' is image {picture.shape}, the run makes {made.kind} {made.shape}",
            "give a run that was trained on images of that size: --image-size",
        )
    space = run.spec.cond[key]
    if run.model.until(key) and not (isinstance(source.model, Denoiser) and source.spec.x.range == space.range):
        raise GencliError(
            f"--source {key}={source.name}: it is to stop at a level of noise, and model "
            f"{source.config['recipe']['model']['name']} has none in pixels",
            "give a run of a denoiser such as ddpm, or leave --truncated out",
        )


def _learned(run: Run) -> Learned | None:
    """The run's learned codec, if it has one."""
    return next((codec for codec in run.codecs if isinstance(codec, Learned)), None)


def _said(field: Field) -> str:
    values = f" of {field.vocab} values" if field.vocab else ""
    return f"{field.kind} {field.shape}{values}"


def nest(run: Run, folder: Path) -> None:
    """Copy what is needed of a saved run into `folder` (hard links where possible)."""
    assert run.path is not None, "only a saved run can be nested"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        target = folder / name
        target.unlink(missing_ok=True)
        try:
            os.link(run.path / name, target)
        except OSError:
            shutil.copy2(run.path / name, target)
    for inner in ("codec", "sources"):
        if (run.path / inner).is_dir():
            shutil.copytree(run.path / inner, folder / inner, dirs_exist_ok=True)
