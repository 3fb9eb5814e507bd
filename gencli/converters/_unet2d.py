"""The network `unet` as diffusers' `UNet2DModel`, and back: options and names of tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gencli.bundle import Run
from gencli.core import Spec
from gencli.errors import GencliError
from gencli.models.diffusion.ddpm import Ddpm
from gencli.networks.unet import UNet

FIXED: dict[str, tuple[Any, Any]] = {  # option of UNet2DModel: what our network is, and what a file without it means
    "center_input_sample": (False, False),
    "time_embedding_type": ("positional", "positional"),
    "time_embedding_dim": (None, None),
    "freq_shift": (1, 0),
    "flip_sin_to_cos": (False, True),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "mid_block_scale_factor": (1, 1),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "upsample_type": ("conv", "conv"),
    "act_fn": ("silu", "silu"),
    "attention_head_dim": (None, 8),
    "attn_norm_num_groups": (None, None),
    "norm_eps": (1e-6, 1e-5),
    "resnet_time_scale_shift": ("default", "default"),
    "add_attention": (True, True),
    "class_embed_type": (None, None),
}

NAMES = (  # our tensor's name to theirs: every rule whose pattern is found, in this order
    (r"^norm_out\.", "conv_norm_out."),
    (r"^time([12])\.", r"time_embedding.linear_\1."),
    (r"^label\.", "class_embedding."),
    (r"^middle\.0\.", "mid_block.resnets.0."),
    (r"^middle\.1\.", "mid_block.attentions.0."),
    (r"^middle\.2\.", "mid_block.resnets.1."),
    (r"^(down|up)\.(\d+)\.resample\.", r"\1_blocks.\2.\1samplers.0.conv."),
    (r"^(down|up)\.(\d+)\.blocks\.", r"\1_blocks.\2.resnets."),
    (r"^(down|up)\.(\d+)\.attentions\.", r"\1_blocks.\2.attentions."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.out\.", r"\1.to_out.0."),
    (r"\.level\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
)
LEGACY = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))


def unet_of(run: Run, model: Ddpm) -> dict[str, Any]:
    """The arguments of `UNet2DModel`."""
    net = model.net
    assert isinstance(net, UNet), "checked by `convertible`"
    config, (channels, height, width) = net.config, run.spec.x.shape
    groups = {module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)}
    if len(groups) > 1:
        raise GencliError(
            f"run {run.name} has net.groups 0, norms of {sorted(groups)} groups; UNet2DModel has one number for all",
            f"train with --net.groups {min(groups)}, which divides every width of this network",
        )
    if config.mults[0] != 1:
        raise GencliError(
            f"run {run.name} has net.mults {','.join(map(str, config.mults))}; "
            "the first level of UNet2DModel is as wide as its first layer",
            f"gencli convert {run.name} --to safetensors, or onnx",
        )
    looks = [height // 2**i in config.attention for i in range(len(config.mults))]
    label = run.spec.cond.get("label")
    return {
        "_class_name": "UNet2DModel",
        **{key: ours for key, (ours, _) in FIXED.items()},
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": [config.width * m for m in config.mults],
        "layers_per_block": config.blocks,
        "down_block_types": ["AttnDownBlock2D" if look else "DownBlock2D" for look in looks],
        "up_block_types": ["AttnUpBlock2D" if look else "UpBlock2D" for look in reversed(looks)],
        "dropout": config.dropout,
        "norm_num_groups": groups.pop(),
        "num_class_embeds": (label.vocab or 0) + 1 if label else None,
    }


def net_from(unet: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """The settings of `unet` that make the network; an option without a counterpart is refused by name."""
    demand(unet, FIXED, "unet")
    widths = [int(w) for w in unet["block_out_channels"]]
    down, up = unet["down_block_types"], unet["up_block_types"]
    looks = [kind.startswith("Attn") for kind in down]
    twins = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D"}
    if [twins.get(kind) for kind in down] != list(reversed(up)):
        raise GencliError(
            f"unet: down_block_types {down} and up_block_types {up} have no counterpart",
            "of each level both must be plain, or both Attn…Block2D",
        )
    if any(w % widths[0] for w in widths) or unet.get("out_channels") != unet["in_channels"]:
        raise GencliError(
            f"unet: block_out_channels {widths}, {unet.get('out_channels')} output channels have no counterpart",
            "widths must be multiples of the first, and outputs as many as inputs",
        )
    return {
        "name": "unet",
        "width": widths[0],
        "mults": [w // widths[0] for w in widths],
        "blocks": int(unet.get("layers_per_block", 2)),
        "attention": [spec.x.shape[1] // 2**i for i, look in enumerate(looks) if look],
        "dropout": float(unet.get("dropout", 0.0)),
        "groups": int(unet.get("norm_num_groups", 32)),
    }


def their_name(name: str) -> str:
    """Our tensor's name in `UNet2DModel`."""
    for pattern, text in NAMES:
        name = re.sub(pattern, text, name)
    return name


def our_tensors(net: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Their tensors under our names."""
    given = dict(tensors)
    for old, new in LEGACY:
        given = {key.replace(old, new): value for key, value in given.items()}
    names = {their_name(key): key for key in net.state_dict()}
    missing, unexpected = sorted(names.keys() - given.keys()), sorted(given.keys() - names.keys())
    if missing or unexpected:
        said = [f"{what} {keys[0]}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise GencliError(f"{where} does not fit its config.json: {', '.join(said)}", "give the folder as it was saved")
    return {ours: given[theirs].reshape(net.state_dict()[ours].shape) for theirs, ours in names.items()}


def demand(given: Mapping[str, Any], fixed: Mapping[str, tuple[Any, Any]], what: str) -> None:
    for key, (ours, absent) in fixed.items():
        if given.get(key, absent) != ours:
            raise GencliError(
                f"{what}: {key} {given.get(key, absent)} has no counterpart in gencli, whose network or sampler has {ours}",
                "only such networks can be read",
            )
