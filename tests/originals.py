"""What the authors' networks compute, as functions of their files' tensors; nothing is shared with gencli's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


class Layers:
    """The layers of a file by name."""

    def __init__(self, state: State, groups: int = 32, eps: float = 1e-5) -> None:
        self.state, self.groups, self.eps = state, groups, eps

    def has(self, name: str) -> bool:
        return name in self.state

    def norm(self, x: Tensor, name: str) -> Tensor:
        groups = min(self.groups, x.shape[1] // 4)
        return F.group_norm(x, groups, self.state[f"{name}.weight"], self.state[f"{name}.bias"], self.eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def conv(self, x: Tensor, name: str, **how: Any) -> Tensor:
        weight = self.state[f"{name}.weight"]
        how = {"padding": weight.shape[-1] // 2, **how}
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), **how)


def waves(level: Tensor, width: int, last: int = 0) -> tuple[Tensor, Tensor]:
    """Sines and cosines at `width / 2` frequencies down to 1/10,000, or (`last` 0) one step above it."""
    half = width // 2
    angle = level.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half).double() / (half - last))
    return angle.sin(), angle.cos()


def openai(state: State, x: Tensor, t: Tensor, y: Tensor | None, heads: Any, legacy: bool, downs: set[int]) -> Tensor:
    """The U-Net of improved-diffusion and guided-diffusion; `heads` of a width, `downs` the blocks that halve the side."""
    at, width = Layers(state), state["time_embed.0.weight"].shape[1]
    sin, cos = waves(t, width)
    emb = at.linear(F.silu(at.linear(torch.cat([cos, sin], 1).to(x), "time_embed.0")), "time_embed.2")
    emb = emb if y is None else emb + state["label_emb.weight"][y]

    def res(x: Tensor, p: str, way: float) -> Tensor:
        h = F.silu(at.norm(x, f"{p}.in_layers.0"))
        if way == 2:
            h, x = (F.interpolate(v, scale_factor=2, mode="nearest") for v in (h, x))
        if way == 0.5:
            h, x = (F.avg_pool2d(v, 2) for v in (h, x))
        h, told = at.conv(h, f"{p}.in_layers.2"), at.linear(F.silu(emb), f"{p}.emb_layers.1")[:, :, None, None]
        if told.shape[1] == 2 * h.shape[1]:
            scale, shift = told.chunk(2, 1)
            h = at.norm(h, f"{p}.out_layers.0") * (1 + scale) + shift
        else:
            h = at.norm(h + told, f"{p}.out_layers.0")
        h = at.conv(F.silu(h), f"{p}.out_layers.3")
        return h + (at.conv(x, f"{p}.skip_connection") if at.has(f"{p}.skip_connection.weight") else x)

    def look(x: Tensor, p: str) -> Tensor:
        n, c, *sides = x.shape
        count, flat = heads(c), x.flatten(2)
        qkv = F.conv1d(at.norm(flat, f"{p}.norm"), state[f"{p}.qkv.weight"], state[f"{p}.qkv.bias"])
        if legacy:
            q, k, v = qkv.reshape(n * count, 3 * c // count, -1).split(c // count, dim=1)
        else:
            q, k, v = (part.reshape(n * count, c // count, -1) for part in qkv.chunk(3, dim=1))
        weight = torch.einsum("bct,bcs->bts", q, k / math.sqrt(c // count)).softmax(-1)
        made = torch.einsum("bts,bcs->bct", weight, v).reshape(n, c, -1)
        out = F.conv1d(made, state[f"{p}.proj_out.weight"], state[f"{p}.proj_out.bias"])
        return (flat + out).reshape(n, c, *sides)

    def pool(h: Tensor) -> Tensor:
        h = torch.cat([h.mean(-1, keepdim=True), h], -1) + state["out.2.positional_embedding"]
        qkv = F.conv1d(h, state["out.2.qkv_proj.weight"], state["out.2.qkv_proj.bias"])
        n, c, size = len(h), h.shape[1], h.shape[1] // heads(h.shape[1])
        q, k, v = (part.reshape(-1, size, h.shape[2]) for part in qkv.chunk(3, dim=1))
        weight = torch.einsum("bct,bcs->bts", q, k / math.sqrt(size)).softmax(-1)
        made = torch.einsum("bts,bcs->bct", weight, v).reshape(n, c, -1)
        return F.conv1d(made, state["out.2.c_proj.weight"], state["out.2.c_proj.bias"])[:, :, 0]

    def block(h: Tensor, p: str, down: bool = False) -> Tensor:
        for j in range(3):
            at_j = f"{p}.{j}"
            if at.has(f"{at_j}.in_layers.0.weight"):
                h = res(h, at_j, 0.5 if down else 2 if j and not p.startswith("middle") else 1)
            elif at.has(f"{at_j}.qkv.weight"):
                h = look(h, at_j)
            elif at.has(f"{at_j}.op.weight"):
                h = at.conv(h, f"{at_j}.op", stride=2)
            elif at.has(f"{at_j}.conv.weight"):
                h = at.conv(F.interpolate(h, scale_factor=2, mode="nearest"), f"{at_j}.conv")
            elif at.has(f"{at_j}.weight"):
                h = at.conv(h, at_j)
        return h

    number = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("input_blocks"))
    kept, h = [], x
    for i in range(number):
        h = block(h, f"input_blocks.{i}", i in downs)
        kept.append(h)
    h = block(h, "middle_block")
    if at.has("out.2.c_proj.weight"):
        return pool(F.silu(at.norm(h, "out.0")).flatten(2))
    for i in range(number):
        h = block(torch.cat([h, kept.pop()], 1), f"output_blocks.{i}")
    return at.conv(F.silu(at.norm(h, "out.0")), "out.2")


def edm(state: State, x: Tensor, noise: Tensor, y: Tensor | None, head: int = 0) -> Tensor:
    """SongUNet, and DhariwalUNet if `head` says the channels of a head."""
    state = {name.removeprefix("model."): value for name, value in state.items()}
    adm, gain = bool(head), 1.0 if head else math.sqrt(0.5)
    at = Layers(state, eps=1e-5 if adm else 1e-6)
    if "map_noise.freqs" in state:
        angle = noise.double()[:, None] * 2 * math.pi * state["map_noise.freqs"].double()
        sin, cos = angle.sin(), angle.cos()
    else:
        sin, cos = waves(noise, state["map_layer0.weight"].shape[1], 0 if adm else 1)
    emb = torch.cat([cos, sin] if adm else [sin, cos], 1).to(x)
    hot = None if y is None else F.one_hot(y, state["map_label.weight"].shape[1]).to(x)
    if hot is not None and not adm:
        emb = emb + at.linear(hot * math.sqrt(hot.shape[1]), "map_label")
    emb = at.linear(F.silu(at.linear(emb, "map_layer0")), "map_layer1")
    if hot is not None and adm:
        emb = emb + at.linear(hot, "map_label")
    emb = F.silu(emb)

    def resampled(h: Tensor, f: Tensor, way: str) -> Tensor:
        f, pad, c = f.to(h), (f.shape[-1] - 1) // 2, h.shape[1]
        if way == "up":
            return F.conv_transpose2d(h, (4 * f).expand(c, 1, -1, -1), groups=c, stride=2, padding=pad)
        return F.conv2d(h, f.expand(c, 1, -1, -1), groups=c, stride=2, padding=pad)

    def conv(h: Tensor, p: str, way: str) -> Tensor:
        h = resampled(h, state[f"{p}.resample_filter"], way) if way else h
        return at.conv(h, p) if at.has(f"{p}.weight") else h

    def block(x: Tensor, p: str) -> Tensor:
        way = next((w for w in ("up", "down") if p.endswith(f"_{w}")), "")
        h, told = (
            conv(F.silu(at.norm(x, f"{p}.norm0")), f"{p}.conv0", way),
            at.linear(emb, f"{p}.affine")[:, :, None, None],
        )
        if adm:
            scale, shift = told.chunk(2, 1)
            h = F.silu(shift + at.norm(h, f"{p}.norm1") * (scale + 1))
        else:
            h = F.silu(at.norm(h + told, f"{p}.norm1"))
        h = (at.conv(h, f"{p}.conv1") + conv(x, f"{p}.skip", way)) * gain
        if at.has(f"{p}.qkv.weight"):
            n, c, *sides = h.shape
            heads = c // head if adm else 1
            q, k, v = at.conv(at.norm(h, f"{p}.norm2"), f"{p}.qkv").reshape(n * heads, c // heads, 3, -1).unbind(2)
            weight = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(c // heads)).softmax(2)
            made = torch.einsum("nqk,nck->ncq", weight, v).reshape(n, c, *sides)
            h = (at.conv(made, f"{p}.proj") + h) * gain
        return h

    sides = sorted({int(name.split(".")[1].split("x")[0]) for name in state if name.startswith("enc.")}, reverse=True)
    blocks = 1 + max(int(n.split("_block")[1].split(".")[0]) for n in state if n.startswith("enc.") and "_block" in n)
    h, image, kept = x, x, []
    for s in sides:
        p = f"enc.{s}x{s}"
        h = at.conv(h, f"{p}_conv") if s == sides[0] else block(h, f"{p}_down")
        if at.has(f"{p}_aux_residual.weight"):
            f = state[f"{p}_aux_residual.resample_filter"].to(x)
            c = image.shape[1]
            image = F.conv2d(image, f.expand(c, 1, -1, -1), groups=c, padding=1 + (f.shape[-1] - 1) // 2)
            image = h = (at.conv(image, f"{p}_aux_residual", stride=2, padding=0) + h) / math.sqrt(2)
        kept.append(h)
        for j in range(blocks):
            h = block(h, f"{p}_block{j}")
            kept.append(h)
    for s in reversed(sides):
        p = f"dec.{s}x{s}"
        if s == sides[-1]:
            h = block(block(h, f"{p}_in0"), f"{p}_in1")
        else:
            h = block(h, f"{p}_up")
        for j in range(blocks + 1):
            h = block(torch.cat([h, kept.pop()], 1), f"{p}_block{j}")
    end = (
        ("out_norm", "out_conv")
        if adm
        else (f"dec.{sides[0]}x{sides[0]}_aux_norm", f"dec.{sides[0]}x{sides[0]}_aux_conv")
    )
    return at.conv(F.silu(at.norm(h, end[0])), end[1])


def edm2(state: State, x: Tensor, noise: Tensor, y: Tensor) -> Tensor:
    """EDM2's U-Net."""
    state = {name.removeprefix("unet."): value for name, value in state.items()}

    def unit(v: Tensor, dim: Any) -> Tensor:
        size = torch.linalg.vector_norm(v, dim=dim, keepdim=True)
        return v / (1e-4 + size * math.sqrt(size.numel() / v.numel()))

    def layer(v: Tensor, name: str, gain: Any = 1) -> Tensor:
        w = state[f"{name}.weight"].to(v)
        w = unit(w, list(range(1, w.ndim))) * (gain / math.sqrt(w[0].numel()))
        return F.linear(v, w) if w.ndim == 2 else F.conv2d(v, w, padding=w.shape[-1] // 2)

    def silu(v: Tensor) -> Tensor:
        return F.silu(v) / 0.596

    def added(a: Tensor, b: Tensor, t: float) -> Tensor:
        return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)

    def joined(a: Tensor, b: Tensor) -> Tensor:
        c = math.sqrt((a.shape[1] + b.shape[1]) / 0.5)
        return torch.cat([v * (c / math.sqrt(v.shape[1]) * 0.5) for v in (a, b)], 1)

    told = torch.cos(noise[:, None] * state["emb_fourier.freqs"].to(x) + state["emb_fourier.phases"].to(x)) * math.sqrt(
        2
    )
    hot = F.one_hot(y, state["emb_label.weight"].shape[1]).to(x)
    emb = silu(added(layer(told, "emb_noise"), layer(hot * math.sqrt(hot.shape[1]), "emb_label"), 0.5))

    def block(v: Tensor, p: str) -> Tensor:
        encodes = p.startswith("enc")
        v = F.avg_pool2d(v, 2) if p.endswith("_down") else v
        v = F.interpolate(v, scale_factor=2, mode="nearest") if p.endswith("_up") else v
        if encodes:
            v = unit(layer(v, f"{p}.conv_skip") if f"{p}.conv_skip.weight" in state else v, [1])
        h = layer(silu(v), f"{p}.conv_res0")
        h = silu(h * (layer(emb, f"{p}.emb_linear", state[f"{p}.emb_gain"].to(x)) + 1)[:, :, None, None])
        h = layer(h, f"{p}.conv_res1")
        if not encodes and f"{p}.conv_skip.weight" in state:
            v = layer(v, f"{p}.conv_skip")
        v = added(v, h, 0.3)
        if f"{p}.attn_qkv.weight" in state:
            n, c, *sides = v.shape
            heads = max(c // 64, 1)
            q, k, w = unit(layer(v, f"{p}.attn_qkv").reshape(n, heads, -1, 3, math.prod(sides)), 2).unbind(3)
            weight = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2])).softmax(3)
            h = torch.einsum("nhqk,nhck->nhcq", weight, w).reshape(v.shape)
            v = added(v, layer(h, f"{p}.attn_proj"), 0.3)
        return v.clip(-256, 256)

    sides = sorted({int(name.split(".")[1].split("x")[0]) for name in state if name.startswith("enc.")}, reverse=True)
    blocks = 1 + max(int(n.split("_block")[1].split(".")[0]) for n in state if n.startswith("enc.") and "_block" in n)
    h, kept = torch.cat([x, torch.ones_like(x[:, :1])], 1), []
    for s in sides:
        h = layer(h, f"enc.{s}x{s}_conv") if s == sides[0] else block(h, f"enc.{s}x{s}_down")
        kept.append(h)
        for j in range(blocks):
            h = block(h, f"enc.{s}x{s}_block{j}")
            kept.append(h)
    for s in reversed(sides):
        p = f"dec.{s}x{s}"
        h = block(block(h, f"{p}_in0"), f"{p}_in1") if s == sides[-1] else block(h, f"{p}_up")
        for j in range(blocks + 1):
            h = block(joined(h, kept.pop()), f"{p}_block{j}")
    return layer(h, "out_conv", state["out_gain"].to(x))


def uvit(state: State, x: Tensor, t: Tensor, y: Tensor | None, heads: int) -> Tensor:
    """U-ViT."""
    at, patch = Layers(state), state["patch_embed.proj.weight"].shape[-1]
    n, channels, side = x.shape[:3]
    h = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch).flatten(2).mT
    count, width = h.shape[1:]
    sin, cos = waves(t, width)
    h = torch.cat([torch.cat([cos, sin], 1).to(x)[:, None], h], 1)
    if y is not None:
        h = torch.cat([state["label_emb.weight"][y][:, None], h], 1)
    h = h + state["pos_embed"]

    def norm(h: Tensor, name: str) -> Tensor:
        return F.layer_norm(h, (width,), state[f"{name}.weight"], state[f"{name}.bias"])

    def block(h: Tensor, p: str, skip: Tensor | None = None) -> Tensor:
        h = h if skip is None else at.linear(torch.cat([h, skip], -1), f"{p}.skip_linear")
        qkv = at.linear(norm(h, f"{p}.norm1"), f"{p}.attn.qkv").reshape(n, -1, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        made = ((q @ k.mT) / math.sqrt(width // heads)).softmax(-1) @ v
        h = h + at.linear(made.transpose(1, 2).reshape(n, -1, width), f"{p}.attn.proj")
        return h + at.linear(F.gelu(at.linear(norm(h, f"{p}.norm2"), f"{p}.mlp.fc1")), f"{p}.mlp.fc2")

    depth, kept = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("in_blocks")), []
    for i in range(depth):
        h = block(h, f"in_blocks.{i}")
        kept.append(h)
    h = block(h, "mid_block")
    for i in range(depth):
        h = block(h, f"out_blocks.{i}", kept.pop())
    h = at.linear(norm(h, "norm"), "decoder_pred")[:, -count:]
    rows = side // patch
    h = h.reshape(n, rows, rows, patch, patch, channels).permute(0, 5, 1, 3, 2, 4).reshape(n, channels, side, side)
    return at.conv(h, "final_layer")


def score_sde(state: State, x: Tensor, level: Tensor, plan: str) -> Tensor:
    """DDPM++ and NCSN++ (residual or skips): layers are taken one after the other, as `plan` has them.

    b a block, d and u one that halves or doubles the side, a attention, p and c the image on the way down, o an output;
    the middle stands between | and /.
    """
    number = iter(range(len(plan) + 20))
    at = Layers({name.removeprefix("all_modules."): value for name, value in state.items()}, eps=1e-6)
    fourier = at.has("0.W")
    if fourier:
        angle = level.double()[:, None] * at.state[f"{next(number)}.W"].double() * 2 * math.pi
        emb = torch.cat([angle.sin(), angle.cos()], 1).to(x)
    else:
        emb = torch.cat(waves(level, at.state["0.weight"].shape[1], 1), 1).to(x)
    emb = at.linear(F.silu(at.linear(emb, str(next(number)))), str(next(number)))
    taps = torch.tensor([1.0, 3, 3, 1] if fourier else [1.0, 1]).to(x)
    f = torch.outer(taps, taps) / taps.sum() ** 2

    def resampled(h: Tensor, way: str) -> Tensor:
        c, pad = h.shape[1], (len(taps) - 1) // 2
        if way == "d":
            return F.conv2d(h, f.expand(c, 1, -1, -1), groups=c, stride=2, padding=pad)
        return F.conv_transpose2d(h, (4 * f).expand(c, 1, -1, -1), groups=c, stride=2, padding=pad)

    def block(h: Tensor, p: str, way: str) -> Tensor:
        x, h = h, F.silu(at.norm(h, f"{p}.GroupNorm_0"))
        if way in "du":
            h, x = resampled(h, way), resampled(x, way)
        h = at.conv(h, f"{p}.Conv_0") + at.linear(F.silu(emb), f"{p}.Dense_0")[:, :, None, None]
        h = at.conv(F.silu(at.norm(h, f"{p}.GroupNorm_1")), f"{p}.Conv_1")
        x = at.conv(x, f"{p}.Conv_2") if at.has(f"{p}.Conv_2.weight") else x
        return (x + h) / math.sqrt(2)

    def nin(h: Tensor, p: str) -> Tensor:
        return torch.einsum("nchw,cd->ndhw", h, at.state[f"{p}.W"]) + at.state[f"{p}.b"][:, None, None]

    def look(x: Tensor, p: str) -> Tensor:
        h = at.norm(x, f"{p}.GroupNorm_0")
        q, k, v = (nin(h, f"{p}.NIN_{i}").flatten(2) for i in range(3))
        weight = (q.mT @ k / math.sqrt(q.shape[1])).softmax(-1)
        return (x + nin((v @ weight.mT).reshape(x.shape), f"{p}.NIN_3")) / math.sqrt(2)

    image, pyramid, part = x, None, 0
    h = at.conv(x, str(next(number)))
    kept = [h]
    for i, letter in enumerate(plan):
        if letter in "|/":
            part += 1
            continue
        p = str(next(number))
        if letter in "bdu":
            h = block(torch.cat([h, kept.pop()], 1) if part == 2 and letter == "b" else h, p, letter)
        elif letter == "a":
            h = look(h, p)
        elif letter == "p":
            c = image.shape[1]
            image = F.conv2d(image, f.expand(c, 1, -1, -1), groups=c, padding=1 + (len(taps) - 1) // 2)
            image = h = (at.conv(image, f"{p}.Conv2d_0", stride=2, padding=0) + h) / math.sqrt(2)
        elif letter == "c":
            image = resampled(image, "d")
            h = h + at.conv(image, f"{p}.Conv_0")
        else:
            made = at.conv(F.silu(at.norm(h, p)), str(next(number)))
            pyramid = made if pyramid is None else resampled(pyramid, "u") + made
        if part == 0 and plan[i + 1] not in "apc":
            kept.append(h)
    assert pyramid is not None
    return pyramid


def ncsnv2(state: State, x: Tensor, names: tuple[str, ...]) -> Tensor:
    """The RefineNet of NCSNv2, without the division by σ."""
    at = Layers(state)

    def norm(x: Tensor, p: str) -> Tensor:
        mean = x.mean((2, 3))
        centred = (mean - mean.mean(1, keepdim=True)) / torch.sqrt(mean.var(1, keepdim=True) + 1e-5)
        h = F.instance_norm(x) + (centred * state[f"{p}.alpha"])[:, :, None, None]
        return state[f"{p}.gamma"][:, None, None] * h + state[f"{p}.beta"][:, None, None]

    def conv(x: Tensor, p: str, dilation: int = 1) -> Tensor:
        if at.has(f"{p}.conv.weight"):  # then the mean of four
            return F.avg_pool2d(at.conv(x, f"{p}.conv"), 2)
        side = state[f"{p}.weight"].shape[-1]
        return at.conv(x, p, padding=dilation * (side // 2), dilation=dilation)

    def block(x: Tensor, p: str, dilation: int) -> Tensor:
        h = conv(F.elu(norm(x, f"{p}.normalize1")), f"{p}.conv1", dilation)
        h = conv(F.elu(norm(h, f"{p}.normalize2")), f"{p}.conv2", dilation)
        short = any(at.has(f"{p}.shortcut{end}.weight") for end in ("", ".conv"))
        return h + (conv(x, f"{p}.shortcut", dilation) if short else x)

    def units(x: Tensor, p: str) -> Tensor:
        u = 1
        while at.has(f"{p}.{u}_1_conv.weight"):
            h = at.conv(F.elu(x), f"{p}.{u}_1_conv")
            x = x + at.conv(F.elu(h), f"{p}.{u}_2_conv")
            u += 1
        return x

    h, made = at.conv(2 * x - 1, "begin_conv"), []
    for i, name in enumerate(names):
        for j in range(2):
            h = block(h, f"res{name}.{j}", {len(names) - 2: 2, len(names) - 1: 4}.get(i, 1))
        made.append(h)
    below: Tensor | None = None
    for name in names:
        p, here = f"refine{name}", made.pop()
        paths = [units(v, f"{p}.adapt_convs.{k}") for k, v in enumerate([here] if below is None else [here, below])]
        if below is not None:
            sums = [at.conv(v, f"{p}.msf.convs.{k}") for k, v in enumerate(paths)]
            side = sums[0].shape[2:]
            paths = [sum(F.interpolate(v, size=side, mode="bilinear", align_corners=True) for v in sums)]
        h = path = F.elu(paths[0])
        for k in range(2):
            path = at.conv(F.max_pool2d(path, 5, stride=1, padding=2), f"{p}.crp.convs.{k}")
            h = path + h
        below = units(h, f"{p}.output_convs")
    assert below is not None
    return at.conv(F.elu(norm(below, "normalizer")), "end_conv")


class _Style:
    """StyleGAN2's layers of a file."""

    def __init__(self, state: State, prefix: str) -> None:
        self.state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.f = torch.outer(taps, taps) / 64

    def dense(self, x: Tensor, p: str, rate: float = 1.0, act: bool = False) -> Tensor:
        weight = self.state[f"{p}.weight"]
        made = F.linear(x, weight * rate / math.sqrt(weight.shape[1]), self.state[f"{p}.bias"] * rate)
        return F.leaky_relu(made, 0.2) * math.sqrt(2) if act else made

    def mapping(self, z: Tensor | None, y: Tensor | None) -> Tensor:
        unit = lambda v: v * (v.square().mean(1, keepdim=True) + 1e-8).rsqrt()  # noqa: E731
        parts = [] if z is None else [unit(z)]
        if y is not None:
            hot = F.one_hot(y, self.state["mapping.embed.weight"].shape[1]).float()
            parts.append(unit(self.dense(hot, "mapping.embed")))
        w, i = torch.cat(parts, 1), 0
        while f"mapping.fc{i}.weight" in self.state:
            w, i = self.dense(w, f"mapping.fc{i}", 0.01, True), i + 1
        return w

    def filtered(self, x: Tensor, pad: tuple[int, int], gain: float = 1.0) -> Tensor:
        c = x.shape[1]
        x = F.pad(x, (pad[0], pad[1], pad[0], pad[1]))
        return F.conv2d(x, (self.f * gain).expand(c, 1, 4, 4), groups=c)

    def twice(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        spread = F.pad(x.reshape(n, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1)).reshape(n, c, 2 * h, 2 * w)
        return self.filtered(spread, (2, 1), 4.0)

    def modulated(self, x: Tensor, w: Tensor, p: str, up: bool = False, rgb: bool = False) -> Tensor:
        weight, style = self.state[f"{p}.weight"], self.dense(w, f"{p}.affine")
        ins, k = weight.shape[1:3]
        each = weight * (style / math.sqrt(ins * k**2) if rgb else style)[:, None, :, None, None]
        each = each if rgb else each * (each.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        made = []
        for item, own in zip(x, each, strict=True):
            if up:
                h = F.conv_transpose2d(item[None], own.transpose(0, 1), stride=2)
                made.append(self.filtered(h, (1, 1), 4.0))
            else:
                made.append(F.conv2d(item[None], own, padding=k // 2))
        return torch.cat(made) + self.state[f"{p}.bias"][:, None, None]


def stylegan2(state: State, z: Tensor, y: Tensor | None) -> Tensor:
    """Images of StyleGAN2-ADA's averaged generator, without noise."""
    at = _Style(state, "G_ema.")
    w = at.mapping(z, y)
    at.state = {name.removeprefix("synthesis."): value for name, value in at.state.items()}
    h, image, side = at.state["b4.const"].expand(len(z), -1, -1, -1), None, 4
    while f"b{side}.conv1.weight" in at.state:
        p = f"b{side}"
        for layer in ("conv0", "conv1"):
            if f"{p}.{layer}.weight" in at.state:
                h = F.leaky_relu(at.modulated(h, w, f"{p}.{layer}", layer == "conv0"), 0.2) * math.sqrt(2)
        shown = at.modulated(h, w, f"{p}.torgb", rgb=True)
        image = shown if image is None else at.twice(image) + shown
        side *= 2
    assert image is not None
    return image


def stylegan2_score(state: State, x: Tensor, y: Tensor | None, group: int) -> Tensor:
    """What StyleGAN2-ADA's discriminator says of images."""
    at = _Style(state, "D.")

    def conv(x: Tensor, p: str, act: bool = True, down: bool = False) -> Tensor:
        weight = at.state[f"{p}.weight"]
        weight = weight / math.sqrt(weight[0].numel())
        k = weight.shape[-1]
        x = at.filtered(x, (1 + k // 2, 1 + k // 2)) if down else x
        made = F.conv2d(x, weight, at.state.get(f"{p}.bias"), stride=2 if down else 1, padding=0 if down else k // 2)
        return F.leaky_relu(made, 0.2) * math.sqrt(2) if act else made

    side = x.shape[-1]
    h = conv(x, f"b{side}.fromrgb")
    while side > 4:
        p = f"b{side}"
        made = conv(conv(h, f"{p}.conv0"), f"{p}.conv1", down=True)
        if f"{p}.skip.weight" in at.state:
            made = (made + conv(h, f"{p}.skip", act=False, down=True)) / math.sqrt(2)
        h, side = made, side // 2
    n, c, *sides = h.shape
    group = min(group, n)
    spread = h.reshape(group, -1, 1, c, *sides)
    spread = (spread - spread.mean(0)).square().mean(0).add(1e-8).sqrt().mean((2, 3, 4)).reshape(-1, 1, 1, 1)
    h = torch.cat([h, spread.repeat(group, 1, *sides)], 1)
    h = at.dense(conv(h, "b4.conv").flatten(1), "b4.fc", act=True)
    said = at.dense(h, "b4.out")
    if y is not None:
        row = at.mapping(None, y)
        said = (said * row).sum(1, keepdim=True) / math.sqrt(row.shape[1])
    return said
