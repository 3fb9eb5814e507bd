"""Pickles with code in them, by every opcode that calls or looks up; and pickles of tensors that lie about their size.

The code makes a folder `canary`. It must never be there.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from fuzzing import Case, Maker
from saved import Creates

from hostile.stock import Stock, damaged

ALLOWED = (
    frozenset(  # what a pickle of another program may name; everything else is refused, and none of these is called
        {
            *("collections.OrderedDict", "builtins.set", "__builtin__.set", "dnnlib.util.EasyDict"),
            *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.storage._load_from_bytes"),
            *("torch_utils.persistence._reconstruct_persistent_obj", "torch.device", "torch.Size"),
            *("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar"),
            *("numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar"),
        }
    )
)
CALLS = (
    *(
        ("os", "mkdir"),
        ("posix", "mkdir"),
        ("builtins", "exec"),
        ("builtins", "eval"),
        ("os", "system"),
        ("nt", "system"),
    ),
    *(("subprocess", "Popen"), ("subprocess", "check_output"), ("pathlib", "Path.mkdir"), ("builtins", "__import__")),
    *(
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.serialization", "load"),
        ("torch.jit", "load"),
        ("torch._utils", "_import_dotted_name"),
    ),
    *(
        ("numpy", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("pickle", "loads"),
        ("_pickle", "loads"),
        ("runpy", "run_path"),
    ),
    *(("torch.nn.modules.module", "os.mkdir"), ("torch.nn.modules", "__builtins__"), ("torch._utils", "__builtins__")),
    *(
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("builtins", "getattr"),
        ("shutil", "rmtree"),
        ("gencli.files", "atomic_write"),
    ),
    *(("argparse", "Namespace"), ("collections", "OrderedDict.__reduce__"), ("os\nX", "mkdir"), ("", ""), ("os", "")),
)
ARGUMENTS = {
    "exec": "import os; os.mkdir('canary')",
    "eval": "__import__('os').mkdir('canary')",
    "system": "mkdir canary",
}


def _text(value: str) -> bytes:
    held = value.encode()
    return b"X" + struct.pack("<I", len(held)) + held


def _global(name: tuple[str, str]) -> bytes:
    return f"c{name[0]}\n{name[1]}\n".encode()


def _reduce(name: tuple[str, str], given: bytes) -> bytes:
    return _global(name) + given + b"\x85R."


def _stack_global(name: tuple[str, str], given: bytes) -> bytes:
    return b"\x80\4" + _text(name[0]) + _text(name[1]) + b"\x93" + given + b"\x85R."


def _inst(name: tuple[str, str], given: bytes) -> bytes:
    return b"(" + given + f"i{name[0]}\n{name[1]}\n.".encode()


def _obj(name: tuple[str, str], given: bytes) -> bytes:
    return b"(" + _global(name) + given + b"o."


def _newobj(name: tuple[str, str], given: bytes) -> bytes:
    return b"\x80\2" + _global(name) + given + b"\x85\x81."


def _newobj_ex(name: tuple[str, str], given: bytes) -> bytes:
    return b"\x80\4" + _global(name) + given + b"\x85}\x92."


def _build(name: tuple[str, str], given: bytes) -> bytes:
    """A state whose setter is the call."""
    made = _global(("collections", "OrderedDict")) + b")R"
    return made + b"}" + _text("__setstate__") + _global(name) + b"sb" + given + b"b."


def _extension(name: tuple[str, str], given: bytes) -> bytes:
    return b"\x80\2" + b"\x82\1" + given + b"\x85R."


def _persistent(name: tuple[str, str], given: bytes) -> bytes:
    return b"(" + _text("storage") + _global(name) + _text("0") + _text("cpu") + b"K\1tQ."


def _list_like(name: tuple[str, str], given: bytes) -> bytes:
    """What is appended to is an object of the caller's."""
    return _global(name) + b")R(" + given + b"e."


OPCODES: dict[str, Callable[[tuple[str, str], bytes], bytes]] = {
    **{
        "REDUCE": _reduce,
        "STACK_GLOBAL": _stack_global,
        "INST": _inst,
        "OBJ": _obj,
        "NEWOBJ": _newobj,
        "NEWOBJ_EX": _newobj_ex,
    },
    **{"BUILD": _build, "EXT1": _extension, "BINPERSID": _persistent, "APPENDS": _list_like},
}


def with_code(random: Random) -> tuple[bytes, str]:
    """A pickle that calls something."""
    opcode, name = random.choice(list(OPCODES)), random.choice(CALLS)
    given = _text(ARGUMENTS.get(name[1], "canary"))
    made = OPCODES[opcode](name, given)
    if random.random() < 0.3:  # beside tensors' worth of plain values
        made = b"}(" + _text("model") + made[2:-1].lstrip(b"\4") + b"u." if made[:1] != b"\x80" else made
    return made, f"{opcode} of {'.'.join(name)}"


def _laughs(random: Random) -> bytes:
    """Small, and enormous when it is written out."""
    made = b"\x80\2]q\0" + b"".join(
        b"(" + b"h" + bytes([i]) * 1 + (b"h" + bytes([i])) * 9 + b"lq" + bytes([i + 1]) for i in range(30)
    )
    return made + random.choice((b".", b"\x85.", b"}" + b"h\x1eK\1s."))


def _keys(random: Random) -> bytes:
    """A dict whose key is a nest of tuples that doubles at every level."""
    made = b"\x80\2)q\0" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(60)
    )
    return made + b"}h\x3cK\1s."


def _sizes(random: Random) -> bytes:
    """Lengths that are not so."""
    return random.choice(
        (
            *(
                b"\x80\4\x95" + b"\xff" * 8 + b"N.",
                b"\x80\4\x8e" + struct.pack("<Q", 2**40) + b".",
                b"X\xff\xff\xff\x7f.",
                b"\x8b\xff\xff\xff\x7f.",
            ),
            *(
                b"\x80\4r\xff\xff\xff\x7f.",
                b"Nr\xff\xff\xff\x7f.",
                b"(" * 10**6 + b".",
                b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
                b"I" + b"9" * 9000 + b"\n.",
            ),
            *(b"\x80\xff.", b"", b".", b"N", b"0.", b"}}}s.", b"h\5.", b"(lp0\n.", b"L1" + b"0" * 5000 + b"L\n."),
        )
    )


def _storage(count: int, kind: str = "FloatStorage") -> bytes:
    return (
        b"("
        + _text("storage")
        + _global(("torch", kind))
        + _text("0")
        + _text("cpu")
        + b"\x8a\x08"
        + struct.pack("<q", count)
        + b"tQ"
    )


def _number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def _tensor(random: Random) -> bytes:
    """A tensor over a storage of a few numbers, of any size, stride and offset."""
    some = (0, 1, 4, -1, 2**20, 2**31, 2**40, 2**62)
    count, offset, size, stride = (random.choice(some) for _ in range(4))
    shape = b"(" + _number(size) * random.choice((1, 1, 2)) + b"t"
    made = _storage(
        count, random.choice(("FloatStorage", "DoubleStorage", "ByteStorage", "QInt8Storage", "UntypedStorage"))
    )
    made = (
        _global(("torch._utils", "_rebuild_tensor_v2"))
        + b"("
        + made
        + _number(offset)
        + shape
        + b"("
        + _number(stride)
        + b"t"
    )
    made += b"\x89" + _global(("collections", "OrderedDict")) + b")RtR"
    return b"\x80\2}" + _text("w") + made + b"s."


def in_zip(data: bytes, random: Random, root: str = "archive") -> bytes:
    """As torch writes it, with a storage of four numbers."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(f"{root}/data.pkl", data)
        archive.writestr(f"{root}/byteorder", random.choice((b"little", b"little", b"big", b"x")))
        archive.writestr(f"{root}/data/0", bytes(16))
        archive.writestr(f"{root}/version", random.choice((b"3\n", b"3\n", b"99999999999999999999\n", b"x")))
    return held.getvalue()


def _script(random: Random) -> bytes:
    """What a TorchScript archive looks like, with code."""
    held = io.BytesIO()
    code = "def forward(self, x):\n  return ops.aten.save(x, 'canary')\n"
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("m/constants.pkl", b"\x80\2).")
        archive.writestr("m/data.pkl", with_code(random)[0])
        archive.writestr("m/code/__torch__.py", f"class M(Module):\n  __parameters__ = []\n  {code}")
        archive.writestr("m/version", b"3\n")
    return held.getvalue()


def _nested(random: Random) -> bytes:
    inner = io.BytesIO()
    torch.save({"w": Creates(Path("canary"))}, inner)
    return in_zip(pickle.dumps({"file": inner.getvalue()}, 2), random)


def _legacy(random: Random) -> bytes:
    held = io.BytesIO()
    torch.save({"w": torch.zeros(3), "x": 3}, held, _use_new_zipfile_serialization=False)
    return damaged(random, held.getvalue()) if random.random() < 0.7 else held.getvalue()


def _good(random: Random) -> bytes:
    held = io.BytesIO()
    odd = random.choice(
        (
            *(
                {"w": torch.zeros(0, 2**40)},
                {"model": {"w": torch.zeros(2, dtype=torch.complex64)}},
                {},
                [],
                3,
                {3: torch.zeros(2)},
                None,
            ),
            *(
                {"w": torch.zeros(2).to_sparse()},
                {"state_dict": {}},
                {"config": 3, "state_dict": {"w": torch.zeros(1)}},
                torch.zeros(3),
            ),
            *(
                {"config": "[" * 9000, "state_dict": {"w": torch.zeros(1)}},
                {"config": "{}", "state_dict": {"w": torch.zeros(1)}},
            ),
            *(
                {"w": torch.zeros(1).expand(2**20)},
                {"w": torch.full((3,), float("nan"))},
                {"\x1b[31m\n": torch.zeros(2)},
                {"w" * 10**5: torch.zeros(1)},
            ),
            *({"ema": {"w": torch.zeros(2, device="meta")}}, {"w": torch.zeros(2, dtype=torch.bool)}),
        )
    )
    torch.save(odd, held)
    return held.getvalue()


def made(random: Random, stock: Stock) -> tuple[bytes, str]:
    """A file, and what it is."""
    way = random.randrange(10)
    if way < 3:
        data, what = with_code(random)
        return (in_zip(data, random) if random.random() < 0.6 else data), what
    if way == 3:
        data = random.choice((_laughs, _keys, _sizes))(random)
        return (in_zip(data, random) if random.random() < 0.6 else data), "sizes"
    if way == 4:
        return in_zip(_tensor(random), random), "a tensor that lies"
    if way == 5:
        return random.choice((_script, _nested))(random), "an archive"
    if way == 6:
        return _legacy(random), "an old file"
    if way == 7:
        return damaged(random, stock.bytes("file.pt")), "noise"
    return _good(random), "plain values"


def framed(data: bytes) -> bool:
    """Whether it is a whole zip, or a pickle whose first opcode is one."""
    from hostile.archives import framed as zipped

    if data[:2] == b"PK":
        return zipped(data)
    codes = {opcode.code for opcode in __import__("pickletools").opcodes}
    return len(data) > 1 and chr(data[0]) in codes and data[-1:] == b"."


READERS = {
    **{
        "pt": ".pt",
        "edm": ".pkl",
        "edm2": ".pkl",
        "stylegan2-ada": ".pkl",
        "dcgan": ".pth",
        "dit": ".pt",
        "ldm": ".ckpt",
    },
    **{"score-sde": ".pth", "ncsnv2": ".pth", "guided-diffusion": ".pt", "openai-ddpm": ".ckpt", "u-vit": ".pth"},
    **{"taming-vqgan": ".ckpt", "image-gpt": ".pt", "improved-diffusion": ".pt"},
}


def makers(stock: Stock) -> dict[str, Maker]:
    """Files of weights of other programs."""

    def pickles(random: Random, cwd: Path) -> Case:
        data, what = made(random, stock)
        reader = random.choice(("pt", "pt", *READERS))
        name = f"f{READERS[reader] if random.random() < 0.9 else '.bin'}"
        (cwd / name).write_bytes(data)
        args: tuple[str, ...] = ("convert", name, "--from", reader)
        if reader == "pt" and random.random() < 0.6:
            stock.run(cwd)
            args = (*args, "--like", "r")
        if random.random() < 0.1:
            args = (
                "eval",
                "fid",
                "--samples",
                stock.recipe(cwd),
                "--data",
                "digits",
                "--features",
                "inception",
                "--weights",
                name,
            )
        return Case(args, framed(data), f"pickle: {what}")

    return {"pickle": pickles}
