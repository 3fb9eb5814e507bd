"""Generative Pretraining From Pixels: released checkpoints in PyTorch (Chen et al., 2020).

`pytorch_model.bin` or `model.safetensors` of openai/imagegpt-small, -medium and -large, in the layout of the library
transformers, as an `imagegpt`, and back. The colours come from `preprocessor_config.json` beside the file (`clusters`, in
[−1, 1]), from `kmeans_centers.npy`, or from `--codec RUN`, a run of `palette`.

Their table of tokens has the first vector as its last row. Their linear layers have biases, which must be 0. The file says no
number of heads: those of the released widths, else 64 channels wide.

Errors: no colours; a number of tokens that is no square.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gencli import runs
from gencli.bundle import Run, new_config
from gencli.converters._base import UNKNOWN
from gencli.converters._official import Found, Given, Names, Official, count, images
from gencli.converters._ways import TURNED, Way
from gencli.errors import GencliError
from gencli.models.autoregressive.imagegpt import ImageGPT
from gencli.models.vae.palette import Palette
from gencli.networks.transformer import Transformer
from gencli.training.session import resolve

HEADS = {512: 8, 1024: 8, 1536: 16}
TABLE, FIRST = "transformer.wte.weight", "transformer.wte.first"


class ImageGpt(Official):
    """Image GPT."""

    names: ClassVar[Names] = (
        (r"^net\.table\.", "transformer.wte."),
        (r"^net\.sos$", FIRST),
        (r"^net\.learned\.", "transformer.wpe."),
        (r"^net\.norm\.", "transformer.ln_f."),
        (r"^net\.head\.", "lm_head."),
        (r"^net\.blocks\.", "transformer.h."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attention\.qkv\.", ".attn.c_attn."),
        (r"\.attention\.proj\.", ".attn.c_proj."),
        (r"\.up\.", ".mlp.c_fc."),
        (r"\.down\.", ".mlp.c_proj."),
    )
    ways: ClassVar[Sequence[tuple[str, Way]]] = ((r"\.(qkv|proj|up|down)\.weight$", TURNED),)
    left: ClassVar[Sequence[str]] = (r"\.attn\.(bias|masked_bias)$",)

    def fits(self, run: Run) -> bool:
        net = getattr(run.model, "net", None)
        if not (isinstance(run.model, ImageGPT) and isinstance(net, Transformer) and len(run.spec.x.shape) == 2):
            return False
        config = net.config
        plain = config.norm == "rms" and config.norm_at == "before" and not (config.bias or config.tied)
        return plain and config.positions == "learned" and config.mask == "full" and not config.attention

    def fixed(self, model: Any) -> Mapping[str, Tensor]:
        made = {}
        for line in self.layout(model):
            if line.way is TURNED:
                rows = len(model.get_parameter(line.ours))
                made[line.theirs[0].removesuffix("weight") + "bias"] = torch.zeros(rows)
        return made

    def sent(self, model: nn.Module) -> dict[str, Tensor]:
        made = super().sent(model)
        return made | {TABLE: torch.cat([made[TABLE], made.pop(FIRST)[None]])}

    def brought(self, model: nn.Module, given: Given, where: Path) -> dict[str, Tensor]:
        table = self.need(given, TABLE, where)
        return super().brought(model, {**given, TABLE: table[:-1], FIRST: table[-1]}, where)

    def output(self, model: Any, given: Given) -> Tensor:
        """Logits of codes."""
        return model.net(given["x"].long())

    def recognise(self, given: Given, where: Path) -> Found:
        table, places = self.need(given, TABLE, where), self.need(given, "transformer.wpe.weight", where)
        width, side = table.shape[1], math.isqrt(len(places))
        if side**2 != len(places):
            raise GencliError(f"{where} has {len(places)} places, which is no square", "choose a square model")
        inner = self.need(given, "transformer.h.0.mlp.c_fc.weight", where).shape[1]
        net: dict[str, Any] = {
            "name": "transformer",
            "width": width,
            "depth": count(given, r"^transformer\.h\.(\d+)\."),
            "heads": HEADS.get(width, max(width // 64, 1)),
            "mlp": inner / width,
            "norm": "rms",
            "activation": "quick-gelu",
            "bias": False,
            "init": "imagegpt",
        }
        codec = self._colours(len(table) - 1, side, where)
        recipe = {
            "recipe": "imagegpt",
            "model": {"name": "imagegpt", "net": net},
            "data": {"name": "folder", "image_size": side},
            "codecs": [{"name": "learned"}],
            "train": {"batch_size": 128, "lr": 3e-3, "betas": [0.9, 0.95], "ema": 0.0},
            "sample": {"name": "next-token"},
        }
        return Found(recipe, codec.data_spec, f"{net['heads']} heads", codec)

    def _colours(self, codes: int, side: int, where: Path) -> Run:
        """The run of the palette."""
        if self.config.codec:
            run = Run.load(runs.named(self.config.codec, as_codec=True).path)
            if (
                not isinstance(run.model, Palette)
                or run.model.latent.vocab != codes
                or run.data_spec.x.shape[1] != side
            ):
                raise GencliError(
                    f"{where} is of {codes} colours at {side}×{side}, run {run.name} is not", "choose another --codec"
                )
            return run
        beside = where.with_name("preprocessor_config.json"), where.with_name("kmeans_centers.npy")
        if beside[0].is_file():
            colours = torch.tensor(json.loads(beside[0].read_text(encoding="utf-8"))["clusters"])
        elif beside[1].is_file():
            colours = torch.from_numpy(np.load(beside[1], allow_pickle=False)).float()
        else:
            raise GencliError(
                f"{where} holds no colours, and beside it is no preprocessor_config.json",
                "put that file there, or give a run of palette with --codec",
            )
        table = {"model": {"name": "palette", "codes": codes}, "data": {"name": "folder", "image_size": side}}
        run = Run.build(resolve(table), images(side, colours.shape[1]))
        run.config = new_config(run, UNKNOWN, f"{where.stem}-palette")
        run.model.load_state_dict({"quantiser.codebook": colours.reshape(codes, -1)}, strict=False)
        return run
