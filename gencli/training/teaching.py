"""The teacher of a run that is distilled from another: whose settings the student has, and that it stays the same one.

A model with the settings `teacher`, a run, and `denoiser`, what is trained, gets the second from the first where its table has
none. The teacher is needed while the student is trained, and not after: its weights are no part of the student's run, whose
config.json has their hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gencli import registry, runs
from gencli.bundle import hash_of
from gencli.errors import GencliError


def filled(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's table, with its teacher's model as the denoiser where it names none.

    Raises:
        GencliError: there is no run of the teacher's name.
    """
    fields = registry.load("models", model["name"]).Config.__dataclass_fields__
    if not model.get("teacher") or "denoiser" in model or "denoiser" not in fields:
        return dict(model)
    return {**model, "denoiser": runs.named(model["teacher"]).config["recipe"]["model"]}


def taught(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A recipe's tables with another teacher: its model is the denoiser, and its data and codecs are the student's."""
    found = runs.named(name)
    model = {key: value for key, value in table["model"].items() if key != "denoiser"}
    known = runs.find(found.name)
    model["teacher"] = found.name if known is not None and known.path == found.path else str(found.path)
    kept = {key: found.config["recipe"][key] for key in ("data", "codecs") if key in found.config["recipe"]}
    return {**table, **kept, "model": filled(model)}


def facts(model: Mapping[str, Any]) -> dict[str, Any]:
    """For config.json: the teacher of a resolved model's table, nothing where it has none."""
    if not model.get("teacher"):
        return {}
    found = runs.named(model["teacher"])
    if not found.ready:
        raise GencliError(f"run {found.name} has no weights yet to teach", "train it first, or name another teacher")
    return {"teacher": {"run": model["teacher"], "weights": hash_of(found.path)}}


def check(config: Mapping[str, Any]) -> None:
    """Refuse to go on with a teacher that is gone, or no longer the one it was."""
    then = config.get("teacher")
    if then is None:
        return
    now = hash_of(runs.named(then["run"]).path)
    if now != then["weights"]:
        raise GencliError(
            f"run {config['name']} was taught by {then['run']} with weights {then['weights']}, they are now {now}",
            "put the teacher's folder back as it was, or leave --resume out to start a new run",
        )
