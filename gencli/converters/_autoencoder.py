"""CompVis's names of an encoder, a decoder and what is between, in taming-transformers and latent-diffusion alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from gencli import recipe as recipes
from gencli.bundle import Run
from gencli.config import merge
from gencli.converters._official import Found, Given, Names, Official, count, images
from gencli.converters._ways import POINT2, Way, joined
from gencli.models.vae.kl_autoencoder import KLAutoencoder
from gencli.models.vae.vqgan import VQGAN
from gencli.networks._resample_blocks import SelfAttention
from gencli.networks._vqgan import Block
from gencli.networks.vqgan_decoder import VqganDecoder
from gencli.networks.vqgan_encoder import VqganEncoder

SIDE = 256  # of every released model


class CompVis(Official):
    """Levels are counted from the largest side, on both paths."""

    names: ClassVar[Names] = (
        (r"\.shortcut\.", ".nin_shortcut."),
        (r"(attn[._]\d+)\.qkv\.", r"\1.{}."),
        (r"(attn[._]\d+)\.out\.", r"\1.proj_out."),
        (r"^quantiser\.codebook$", "quantize.embedding.weight"),
    )
    ways: ClassVar[Sequence[tuple[str, Way]]] = (
        (r"\.qkv\.weight$", joined("q", "k", "v").then(POINT2)),
        (r"\.qkv\.bias$", joined("q", "k", "v")),
        (r"body\.\d+\.out\.weight$", POINT2),
    )
    own: ClassVar[Sequence[str]] = (r"^(discriminator|watch|spread|quantiser\.statistics)\.",)
    left: ClassVar[Sequence[str]] = (r"^loss\.",)

    def fits(self, run: Run) -> bool:
        model = run.model
        if not isinstance(model, (VQGAN, KLAutoencoder)):
            return False
        encoder, decoder = model.encoder, model.decoder
        if not (isinstance(encoder, VqganEncoder) and isinstance(decoder, VqganDecoder)):
            return False
        return encoder.config.style == decoder.config.style == "vqgan"

    def output(self, model: Any, given: Given) -> Tensor:
        return model.reconstruct(given["x"].float())

    def places(self, model: Any) -> Mapping[str, str]:
        body = model.decoder.body
        levels = len(model.encoder.config.mults)
        parts = _path("encoder", list(model.encoder.body[:-1]), 0) | _path("decoder", list(body[1:]), levels - 1)
        made = {f"{net}.body.{i + (net == 'decoder')}": name for (net, i), name in parts.items()}
        return made | {f"encoder.body.{len(model.encoder.body) - 1}": "quant_conv", "decoder.body.0": "post_quant_conv"}

    def recognise(self, given: Given, where: Path) -> Found:
        width = len(self.need(given, "encoder.conv_in.weight", where))
        levels = count(given, r"^encoder\.down\.(\d+)\.")
        wide = [len(self.need(given, f"encoder.down.{i}.block.0.conv2.weight", where)) for i in range(levels)]
        side = self.config.image_size or SIDE
        net = {
            "width": width,
            "mults": [w // width for w in wide],
            "blocks": count(given, r"^encoder\.down\.0\.block\.(\d+)\."),
            "attention": [side >> i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in given],
        }
        into = self.need(given, "post_quant_conv.weight", where)
        codes = given.get("quantize.embedding.weight")
        name = "kl-autoencoder-f8" if codes is None else "vqgan-imagenet256"
        model = {
            "dim": into.shape[1],
            "encoder": {**net, "z": len(self.need(given, "encoder.conv_out.weight", where))},
            "decoder": {**net, "z": len(into)},
        }
        tables = {
            "model": model if codes is None else {**model, "codes": len(codes)},
            "data": {"image_size": side},
        }
        channels = self.need(given, "encoder.conv_in.weight", where).shape[1]
        said = f"{side}×{side}" if not self.config.image_size else ""
        return Found(merge(recipes.load(name), tables), images(side, channels), said)


def _path(net: str, layers: list[nn.Module], level: int) -> dict[tuple[str, int], str]:
    """The layers of an encoder or of a decoder, the decoder's levels falling from `level`."""
    down, middles = net == "encoder", [i for i in range(len(layers)) if _middle(layers, i)]
    middle = middles[-1 if down else 0]
    ends = {middle: "block_1", middle + 1: "attn_1", middle + 2: "block_2"}
    made: dict[tuple[str, int], str] = {}
    block = look = 0
    convs = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    for i, layer in enumerate(layers):
        here = f"{net}.{'down' if down else 'up'}.{level}"
        if i in ends:
            made[net, i] = f"{net}.mid.{ends[i]}"
        elif isinstance(layer, Block):
            made[net, i] = f"{here}.block.{block}"
            block += 1
        elif isinstance(layer, SelfAttention):
            made[net, i] = f"{here}.attn.{look}"
            look += 1
        elif isinstance(layer, nn.GroupNorm):
            made[net, i] = f"{net}.norm_out"
        elif isinstance(layer, nn.Conv2d):
            made[net, i] = f"{net}.conv_{'in' if i == convs[0] else 'out'}"
        elif any(True for _ in layer.parameters()):
            made[net, i] = f"{here}.{'down' if down else 'up'}sample"
            level, block, look = level + (1 if down else -1), 0, 0
    return made


def _middle(layers: list[nn.Module], i: int) -> bool:
    kinds = [type(layer) for layer in layers[i : i + 3]]
    return kinds == [Block, SelfAttention, Block]
