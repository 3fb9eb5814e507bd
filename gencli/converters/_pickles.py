"""Pickles of whole modules, read without running anything that is in them.

NVIDIA's files carry the source of their classes, which their own reader executes. Here a class is never looked up: every module
becomes a `Holder`, which keeps what it is given, and what may be called is a short list of our own functions that rebuild
tensors. A name outside the list is refused before it is called, as `pt.py` does; bytes of a storage are read with
`weights_only`, and persistent ids are refused.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gencli.converters import _knots
from gencli.converters.pt import unreadable
from gencli.errors import GencliError

INERT = {  # kept as holders: settings beside the weights
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("torch", "device"),
    ("torch", "Size"),
}
MODULES = "torch.nn.modules."
PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("dnnlib.util", "EasyDict"): dict,
}


class Holder:
    """What was an object: the arguments it was made of, and its state."""

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def kind(self) -> str:
        """The name of the class that a persistent object had."""
        return str(self.meta.get("class_name", ""))

    @property
    def meta(self) -> Mapping[str, Any]:
        """What a persistent object says of itself."""
        given = getattr(self, "given", ())
        return given[0] if given and isinstance(given[0], Mapping) else {}

    @property
    def fields(self) -> Mapping[str, Any]:
        """Its attributes."""
        state = self.meta.get("state", getattr(self, "state", {}))
        return state if isinstance(state, Mapping) else {}

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by name, as a module's `state_dict` has them."""
        for kind in ("_parameters", "_buffers"):
            values = self.fields.get(kind, {})
            yield from ((prefix + name, value) for name, value in values.items() if isinstance(value, Tensor))
        for name, inner in self.fields.get("_modules", {}).items():
            if isinstance(inner, Holder):
                yield from inner.tensors(f"{prefix}{name}.")


class _Reader(pickle.Unpickler):
    """Builds plain values, tensors and holders."""

    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        super().__init__(file)
        self.path = path
        self.known: dict[tuple[str, str], Callable[..., Any]] = {
            **PLAIN,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch.storage", "_load_from_bytes"): _storage,
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): lambda meta: Holder(meta),
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.known:
            return self.known[module, name]
        if (module, name) in INERT or (module.startswith(MODULES) and name.isidentifier()):
            return type("Held", (Holder,), {})
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise GencliError(
            f"{self.path} holds code, not only tensors: it calls {module}.{name}; nothing of it was run",
            "ask for the plain weights: torch.save(model.state_dict(), …), or better a safetensors file",
        )

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside")


def _storage(held: bytes) -> Any:
    return torch.load(io.BytesIO(held), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    flat = torch.tensor([], dtype=storage.dtype)
    return flat.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


def read(path: Path) -> Any:
    """What a pickle holds."""
    _knots.refuse(path)
    try:
        with path.open("rb") as file:
            return _Reader(file, path).load()
    except GencliError:
        raise
    except Exception as error:  # of bytes that anybody wrote
        raise unreadable(path, error) from None


def module_in(held: Any, key: str, path: Path) -> Holder:
    """The module called `key` in what a pickle holds."""
    found = held.get(key) if isinstance(held, Mapping) else None
    if not isinstance(found, Holder):
        has = f"a dict with {', '.join(map(str, held))}" if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise GencliError(f"{path} holds {has}: no module under '{key}'", "give the file as it was released")
    return found


def expect(module: Holder, kind: str, path: Path) -> None:
    """Refuse a module that is not of the class called `kind`."""
    if module.kind != kind:
        raise GencliError(
            f"{path} holds a {module.kind or 'module without a name'}, not a {kind}",
            "choose another --from (`gencli list converters`)",
        )
