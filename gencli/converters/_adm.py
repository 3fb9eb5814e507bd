"""OpenAI's names of the U-Net of Improved DDPM, ADM and consistency models, and its settings from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gencli.bundle import Run
from gencli.converters._official import Given, Names, Official, count
from gencli.converters._ways import LEGACY, NULL_LAST, POINT1, SAME, TURNED, Way
from gencli.errors import GencliError
from gencli.networks._resample_blocks import SelfAttention, Stage
from gencli.networks.adm import Adm


class AdmNames(Official):
    """Blocks are numbered through all levels; within one, its residual block is 0, then attention, then what leads on."""

    names: ClassVar[Names] = (
        (r"^net\.pool\.positions$", "out.2.positional_embedding"),
        (r"^net\.pool\.qkv\.", "out.2.qkv_proj."),
        (r"^net\.pool\.out\.", "out.2.c_proj."),
        (r"^net\.path\.time\.", "time_embed."),
        (r"^net\.path\.conv_in\.", "input_blocks.0.0."),
        (r"^net\.label\.", "label_emb."),
        (r"^net\.norm_out\.", "out.0."),
        (r"^net\.conv_out\.", "out.2."),
        (r"\.norm1\.", ".in_layers.0."),
        (r"\.conv1\.", ".in_layers.2."),
        (r"\.level\.", ".emb_layers.1."),
        (r"\.norm2\.", ".out_layers.0."),
        (r"\.conv2\.", ".out_layers.3."),
        (r"\.shortcut\.", ".skip_connection."),
        (r"(\.\d+)\.out\.(weight|bias)$", r"\1.proj_out.\2"),
    )

    def fits(self, run: Run) -> bool:
        net = getattr(run.model, "net", None)
        return self.told(run) and isinstance(net, Adm) and net.augment is None

    def told(self, run: Run) -> bool:
        """Whether the model tells its network the level as theirs does."""
        raise NotImplementedError

    def legacy(self, model: Any) -> bool:
        """Whether rows of queries, keys and values go by head first."""
        return True

    def ways_of(self, model: Any) -> tuple[tuple[str, Way], ...]:
        order = POINT1.then(LEGACY) if self.legacy(model) else POINT1
        bias = ((r"\.qkv\.bias$", LEGACY),) if self.legacy(model) else ()
        return (
            (r"^net\.pool\.positions$", TURNED),
            (r"^net\.pool\.(qkv|out)\.weight$", POINT1),
            (r"^net\.pool\.", SAME),
            (r"\.qkv\.weight$", order),
            *bias,
            (r"look\.out\.weight$", POINT1),
            (r"^net\.label\.weight$", NULL_LAST),
        )

    def places(self, model: Any) -> Mapping[str, str]:
        net = model.net
        made = {"net.path.middle.0.block": "middle_block.0", "net.path.middle.0.look": "middle_block.1"}
        made["net.path.middle.1"] = "middle_block.2"
        for i, stage in enumerate(net.path.down):
            made |= _stage(f"net.path.down.{i}", f"input_blocks.{i + 1}", stage, "op")
        for i, stage in enumerate(getattr(net, "up", ())):
            made |= _stage(f"net.up.{i}", f"output_blocks.{i}", stage, "conv")
        return made


def _stage(ours: str, theirs: str, stage: Any, plain: str) -> dict[str, str]:
    if not isinstance(stage, Stage):  # leads to the next resolution
        return {ours: f"{theirs}.0", f"{ours}.conv": f"{theirs}.0.{plain}"}
    after = 1 + isinstance(stage.look, SelfAttention)
    leave = f"{theirs}.{after}"
    return {
        f"{ours}.block": f"{theirs}.0",
        f"{ours}.look": f"{theirs}.1",
        f"{ours}.leave": leave,
        f"{ours}.leave.conv": f"{leave}.{plain}",
    }


Need = Callable[[str], Tensor]  # a tensor of theirs, or an error


def settings(need: Need, given: Given) -> dict[str, Any]:
    """What names and shapes say of the network, and of its inputs, outputs and classes."""
    outputs = len(need("out.2.weight"))
    leads = [i for i in range(count(given, r"^output_blocks\.(\d+)\.")) if _leads(given, i)]
    blocks = leads[0] if leads else len(need("output_blocks.0.1.conv.weight"))
    found = contracting(need, given, blocks, len(leads) + 1)
    classes = len(given["label_emb.weight"]) if "label_emb.weight" in given else 0
    return {**found, "learned": outputs == 2 * found["inputs"], "classes": classes}


def contracting(need: Need, given: Given, blocks: int, levels: int) -> dict[str, Any]:
    """What names and shapes say of the contracting path; attention as levels."""
    width = need("time_embed.0.weight").shape[1]
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    wide = [len(need(f"input_blocks.{i}.0.out_layers.3.weight")) for i in firsts]
    return {
        "width": width,
        "mults": [w // width if w % width == 0 else w / width for w in wide],
        "blocks": blocks,
        "levels": [level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.norm.weight" in given],
        "resample": "conv" if f"input_blocks.{blocks + 1}.0.op.weight" in given else "block",
        "scale_shift": len(need("input_blocks.1.0.emb_layers.1.weight")) == 2 * wide[0],
        "inputs": need("input_blocks.0.0.weight").shape[1],
    }


def _leads(given: Given, block: int) -> bool:
    return any(f"output_blocks.{block}.{k}.{n}.weight" in given for k in (1, 2) for n in ("conv", "in_layers.0"))


def side_of(mults: list[float], sides: Mapping[tuple[float, ...], int], asked: int, where: Path) -> int:
    """The side of the images, asked for or that of the released model with these multiples."""
    if asked or tuple(mults) in sides:
        return asked or sides[tuple(mults)]
    raise GencliError(
        f"{where} has the multiples {','.join(f'{m:g}' for m in mults)}, which no released model has",
        "say the side of its images: --image-size 64",
    )


def network(found: Mapping[str, Any], side: int, **more: Any) -> dict[str, Any]:
    """The settings of `adm`, or with another name of its contracting half."""
    kept = ("width", "mults", "blocks", "resample", "scale_shift")
    return {
        "name": "adm",
        **{key: found[key] for key in kept},
        "attention": [side // 2**level for level in found["levels"]],
        **more,
    }
