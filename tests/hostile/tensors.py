"""Safetensors: a length that lies, headers that are no JSON, offsets, shapes and types that do not fit, NaN."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import Case, Maker

from hostile.stock import Stock, damaged
from hostile.texts import in_json

TYPES = (
    "BOOL",
    "U8",
    "I8",
    "F8_E4M3",
    "I16",
    "F16",
    "BF16",
    "I32",
    "F32",
    "F64",
    "I64",
    "U64",
    "C64",
    "F4",
    "X",
    "f32",
    "",
)
SHAPES: tuple[list[Any], ...] = (
    *([], [0], [-1], [2**40], [2**63], [2**64], [0, 2**40], [1] * 65, [2**32, 2**32], [1.5], ["3"]),
    *([None], [True], [[1]], [0] * 1000),
)
LENGTHS = (0, 1, 2, 7, 8, 10**6, 10**8 + 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
READERS = (
    *("dcgan", "dit", "edm", "edm2", "guided-diffusion", "image-gpt", "improved-diffusion", "ldm", "lora", "ncsnv2"),
    *("openai-ddpm", "score-sde", "stylegan2-ada", "taming-vqgan", "u-vit", "pt"),
)


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def whole(header: bytes, body: bytes, length: int | None = None) -> bytes:
    """A file."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def framed(data: bytes) -> bool:
    """Whether the length is right and the header is a JSON object."""
    try:
        return len(data) >= 8 + struct.unpack("<Q", data[:8])[0] and isinstance(parts(data)[0], dict)
    except (ValueError, struct.error, RecursionError):
        return False


def spoilt(random: Random, data: bytes) -> tuple[bytes, str]:
    """A file with one thing wrong, and which."""
    header, body = parts(data)
    way = random.choice(list(WAYS))
    return WAYS[way](random, header, body), way


def _text(header: Any) -> bytes:
    return json.dumps(header).encode()


def _length(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    return whole(_text(header), body, random.choice(LENGTHS))


def _noise(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    return damaged(random, whole(_text(header), body))


def _header(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    made = in_json(random, header)
    return whole(made, body)


def _one(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    return header[random.choice([key for key in header if key != "__metadata__"])]


def _offsets(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    low, high = (entry := _one(random, header))["data_offsets"]
    entry["data_offsets"] = random.choice(
        (
            *([high, low], [low - 4, high], [low, high + 4], [0, len(body)], [len(body), len(body)], [-4, high]),
            *([low, 2**63], [2**63, 2**64], [low, high + 2**40], [low], [low, high, high], [0.0, 4.0], None, "0,4"),
        )
    )
    return whole(_text(header), body)


def _shape(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    _one(random, header)["shape"] = random.choice(SHAPES)
    return whole(_text(header), body)


def _kind(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    _one(random, header)["dtype"] = random.choice(TYPES)
    return whole(_text(header), body)


def _empty(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    """No numbers, but a shape that promises an enormous layer."""
    low = (entry := _one(random, header))["data_offsets"][0]
    lost = entry["data_offsets"][1] - low
    for other in header.values():
        if "data_offsets" in other and other["data_offsets"][0] > low:
            other["data_offsets"] = [offset - lost for offset in other["data_offsets"]]
    entry |= {"shape": random.choice(([0, 2**40], [2**31, 0], [0], [0, 10**6, 10**6])), "data_offsets": [low, low]}
    return whole(_text(header), body[:low] + body[low + lost :])


def _typed(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    """All of another type, with as many bytes as it takes."""
    kind, size = random.choice((("F64", 8), ("I64", 8), ("F16", 2), ("BF16", 2), ("BOOL", 1), ("U8", 1), ("I32", 4)))
    for key, entry in header.items():
        if key != "__metadata__":
            entry["dtype"], entry["data_offsets"] = kind, [offset * size // 4 for offset in entry["data_offsets"]]
    fill = random.randbytes if random.random() < 0.5 else bytes
    return whole(_text(header), fill(len(body) * size // 4))


def _numbers(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    """Not finite, or enormous."""
    each = random.choice((float("nan"), float("inf"), -float("inf"), 3e38, 1e-44, 1e20, -1.0))
    made = bytearray(body)
    for at in range(0, len(body) - 3, 4 * random.choice((1, 1, 7, 1000))):
        made[at : at + 4] = struct.pack("<f", each)
    return whole(_text(header), bytes(made))


def _names(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    key = random.choice([key for key in header if key != "__metadata__"])
    entry = header.pop(key)
    way = random.randrange(5)
    if way == 1:
        header["\x1b[31m" + key + "\n\0"] = entry
    elif way == 2:
        header["../../" + key] = entry
    elif way == 3:
        header["n" * 10**5] = entry
    elif way == 4:
        text = _text({**header, key: entry})
        return whole(text[:-1] + b"," + json.dumps(key).encode() + b":" + _text(entry) + b"}", body)
    return whole(_text(header), body)


def _metadata(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    meta = header.get("__metadata__") or {"step": "0"}
    if random.random() < 0.5 and "gencli" in meta:
        meta["gencli"] = in_json(random, json.loads(meta["gencli"])).decode("utf-8", "replace")
    else:
        inner = random.choice(
            ("x", 3, None, ["a"], {"step": 3}, {"step": "1" * 5000}, {"gencli": "{}"}, {"gencli": "[" * 9000})
        )
        return whole(_text({**header, "__metadata__": inner}), body)
    return whole(_text({**header, "__metadata__": meta}), body)


WAYS = {
    "length": _length,
    "noise": _noise,
    "header": _header,
    "offsets": _offsets,
    "shape": _shape,
    "type": _kind,
    "empty": _empty,
    "all of another type": _typed,
    "numbers": _numbers,
    "names": _names,
    "metadata": _metadata,
}


def makers(stock: Stock) -> dict[str, Maker]:
    """Weights of a run, and files to be converted."""

    def weights(random: Random, cwd: Path) -> Case:
        folder = stock.run(cwd, kind := random.choice(("vae", "vae", "ddpm")))
        file = folder / "model.safetensors"
        data, what = spoilt(random, file.read_bytes())
        file.unlink()
        file.write_bytes(data)
        args = [
            ("sample", "r", "-n", "1"),
            ("sample", "r", "-n", "2", "--npz", "--json"),
            ("convert", "r", "--to", "pt"),
        ]
        args += [("train", stock.recipe(cwd, kind), "--from", "r", "--steps", "1")]
        args += [("eval", "fid", "-c", "r", "-n", "16", "--features", "random", "--batch-size", "16")]
        args += (
            [("sample", "r", "--between", "1,2", "-n", "2")]
            if kind == "vae"
            else [("sample", "r", "--print-timesteps")]
        )
        return Case(random.choice(args), framed(data), f"weights: {what}")

    def converted(random: Random, cwd: Path) -> Case:
        data, what = spoilt(random, stock.bytes("file.safetensors"))
        (cwd / "f.safetensors").write_bytes(data)
        own = ("convert", "f.safetensors", "--from", "safetensors")
        if random.random() < 0.5:
            return Case(own, framed(data), f"file: {what}")
        if random.random() < 0.5:
            shutil.copytree(stock.folder / "vae", cwd / "checkpoints" / "r")
            return Case((*own, "--like", "r"), framed(data), f"file: {what}")
        other = random.choice(READERS)
        more = ("--like", "r") if other == "lora" and stock.run(cwd) else ()
        return Case(("convert", "f.safetensors", "--from", other, *more), framed(data), f"file: {what}")

    return {"safetensors-run": weights, "safetensors-file": converted}
