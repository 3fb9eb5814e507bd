"""One small safetensors file of what `--adapter lora` learned: A and B of each layer, without the weights beside them.

    base_model.model.LAYER.lora_A.weight  (r, in), of a convolution (r, in, k, k)
    base_model.model.LAYER.lora_B.weight  (out, r), of a convolution (out, r, 1, 1)

Names and shapes are those of the library peft, whose LAYER is the layer's name in the model. The header's metadata has one
key, `lora_adapter_metadata` as in files of diffusers, so that equal runs are equal bytes: JSON of `r` and `lora_alpha` = α, as
peft's adapter_config.json calls them, and of gencli's own `base`, the hash of the weights that stayed, and `base_name`.
Read with `--like BASE`, it makes a run of BASE with the adapter, whose tensors are bit-equal.

Ours: α and r are in the header, so that one file is enough. diffusers puts `unet.` in place of `base_model.model.`, and gives
layers the names of its own networks, which those of gencli are not: such files do not fit.

Errors: writing: a run without a LoRA, or with layers whose statistics training moves; reading: no `--like`, a base with an
adapter, tensors that are no LoRA or fit no layer of the base, a file without α, other weights than those it was trained on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from gencli import __version__, files, registry
from gencli.adapters.lora import KINDS, thin
from gencli.adapters.lora import Lora as Adapter
from gencli.bundle import Run, read_tensors
from gencli.converters._base import Check, Converter, Packed, gap
from gencli.errors import GencliError

KEY = "lora_adapter_metadata"
NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


class Lora(Converter):
    """What was learned beside the weights, to be handed on alone."""

    suffix = "-lora.safetensors"
    reads = True
    folds = False

    def write(self, run: Run, path: Path) -> list[str]:
        tables = run.config["recipe"].get("adapters", [])
        if [registry.public_name(table["name"]) for table in tables] != ["lora"]:
            raise GencliError(
                f"run {run.name} has no LoRA to write",
                f"train one: gencli train {run.config['recipe']['model']['name']} --from {run.name} --adapter lora",
            )
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in run.model.modules()):
            raise GencliError(
                f"run {run.name} has batch norms, whose statistics moved in training: A and B are not all that it learned",
                f"gencli convert {run.name} --to safetensors",
            )
        adapter = Adapter.make({key: value for key, value in tables[0].items() if key != "name"})
        rank, begun = adapter.config.rank, run.config.get("from") or {}
        beside = any(key.endswith(".lora_a") for key in begun.get("anew", ()))  # else it went on from a LoRA
        said = {
            "gencli": __version__,
            "r": rank,
            "lora_alpha": rank * adapter.config.scale,
            "base": base_hash(Packed.like(run).tensors),
            "base_name": begun["run"] if beside else "",
        }
        path.write_bytes(save(written(run.model), metadata={KEY: json.dumps(said)}))
        return []

    def read(self, path: Path, like: Run | None) -> tuple[Packed, list[str]]:
        tensors, header = read_tensors(path)
        metadata = _said(header, path)
        if like is None:
            base = metadata.get("base_name") or "BASE"
            raise GencliError(
                f"{path} holds a LoRA without the weights that it was trained on", f"say which: --like {base}"
            )
        if like.config["recipe"].get("adapters"):
            raise GencliError(f"--like {like.name} has an adapter already", "choose the run that it was trained from")
        if like.path is None:
            raise GencliError(
                f"--like {like.name} is a recipe, whose weights are not trained",
                "choose the run that it was trained from",
            )
        rank = _fits(tensors, like, path)
        notes = _same_base(metadata, like, path)
        table = {"rank": rank, "scale": _alpha(metadata, path) / rank, "layers": _pattern(tensors, like.model)}
        Adapter.make(table).apply(like.model, like.spec)
        layers = thin(like.model)
        with torch.no_grad():
            for key, value in tensors.items():
                layer, which = _parts(key, path)
                own = layers[layer].lora_a if which == "A" else layers[layer].lora_b
                own.copy_(value.reshape(own.shape))
        like.config = {
            **like.config,
            "recipe": {**like.config["recipe"], "adapters": [{"name": "lora", **table}]},
            "adapters": ["lora"],
            "parameters": sum(p.numel() for p in like.model.parameters()),
            "name": f"{like.name}-lora",
            "from": {
                "run": like.name,
                "weights": like.weights_hash(),
                "anew": [f"{name}.lora_{k}" for name in layers for k in "ab"],
                "left": [],
            },
        }
        return Packed.like(like), notes

    def check(self, run: Run, path: Path) -> list[Check]:
        ours, (theirs, _) = written(run.model), read_tensors(path)
        same = {key: value.shape for key, value in ours.items()} == {key: v.shape for key, v in theirs.items()}
        gaps = [gap(ours[key], theirs[key]) for key in ours] if same else []
        return [Check(f"{len(ours)} tensors", max(gaps, default=0.0) if same else float("inf"), 0.0)]


def written(model: nn.Module) -> dict[str, Tensor]:
    """A and B with the names and shapes of peft."""
    made = {}
    for name, layer in thin(model).items():
        a, b = layer.lora_a.detach().cpu(), layer.lora_b.detach().cpu()
        inner = layer.weight.shape[1:]
        made[f"base_model.model.{name}.lora_A.weight"] = a.reshape(len(a), *inner).contiguous()
        made[f"base_model.model.{name}.lora_B.weight"] = b.reshape(*b.shape, *[1] * (len(inner) - 1)).contiguous()
    return made


def base_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a run's values but A and B, shortened; the base's own and a run's that was trained from it are equal."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        if "/" in key or not key.endswith((".lora_a", ".lora_b")):
            digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}\n".encode())
            digest.update(tensors[key].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _parts(key: str, path: Path) -> tuple[str, str]:
    """The layer of a tensor, and A or B."""
    found = NAME.fullmatch(key)
    if not found:
        raise GencliError(
            f"{path} holds '{key}', which is no tensor of a LoRA in peft's form",
            "its names are base_model.model.LAYER.lora_A.weight and .lora_B.weight",
        )
    return found[1], found[2]


def _fits(tensors: Mapping[str, Tensor], like: Run, path: Path) -> int:
    """The rank; refuses layers that the base does not have, or of other sizes."""
    layers = {name: module for name, module in like.model.named_modules() if type(module) in KINDS}
    given = {key: _parts(key, path) for key in tensors}
    halves = set(given.values())
    if any(value.dim() < 2 for value in tensors.values()):
        raise GencliError(f"{path} holds A or B that is no matrix", "give the file as it was saved")
    ranks = {len(tensors[key]) if which == "A" else tensors[key].shape[1] for key, (_, which) in given.items()}
    whole = all((layer, other) in halves for layer, _ in halves for other in "AB")
    if not tensors or not whole or len(ranks) != 1:
        raise GencliError(f"{path} does not hold A and B of one rank for each layer", "give the file as it was saved")
    (rank,) = ranks
    wrong = []
    for key, (layer, which) in given.items():
        weight = layers[layer].weight if layer in layers else None
        count = None if weight is None else rank * (weight[0].numel() if which == "A" else len(weight))
        if tensors[key].numel() != count:
            wrong.append(layer)
    if wrong:
        raise GencliError(
            f"{path} is a LoRA for another architecture than that of {like.name}: {len(wrong)} of {len(tensors)} tensors "
            f"fit no layer, first that of '{wrong[0]}'",
            "choose the run that it was trained from: --like BASE",
        )
    return rank


def _same_base(metadata: Mapping[str, Any], like: Run, path: Path) -> list[str]:
    """What is not known of the base; refuses another one."""
    if "base" not in metadata:
        return [f"{path} does not say on which weights it was trained: taken to be those of {like.name}"]
    own = base_hash(Packed.like(like).tensors)
    if own != metadata["base"]:
        named = metadata.get("base_name")
        raise GencliError(
            f"{path} was trained on weights {metadata['base']}{f' (run {named})' if named else ''}, those of {like.name} "
            f"are {own}",
            "choose the run that it was trained from: --like BASE",
        )
    return []


def _said(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What the header says of the file."""
    try:
        made = files.parsed(header.get(KEY, "{}"))
    except ValueError as error:
        raise GencliError(
            f"{path} is damaged: its header's {KEY} is no JSON: {error}", "convert the run again"
        ) from None
    if not isinstance(made, dict):
        raise GencliError(f"{path} is damaged: its header's {KEY} is no JSON object", "convert the run again")
    return made


def _alpha(metadata: Mapping[str, Any], path: Path) -> float:
    """The α of α / r."""
    alpha = metadata.get("lora_alpha")
    if not isinstance(alpha, int | float) or not 0 <= alpha < float("inf"):
        raise GencliError(
            f"{path} does not say its alpha: its header's lora_alpha is {'not there' if alpha is None else repr(alpha)}",
            f"write lora_alpha of its adapter_config.json into the file's metadata, under {KEY}",
        )
    return float(alpha)


def _pattern(tensors: Mapping[str, Tensor], model: nn.Module) -> str:
    """The setting `layers` that means the layers of a file."""
    named = {found[1] for key in tensors if (found := NAME.fullmatch(key))}
    able = {name for name, module in model.named_modules() if type(module) in KINDS}
    return "" if named == able else f"^({'|'.join(re.escape(name) for name in sorted(named))})$"
