"""What training keeps for the backward pass, against depth: steps of an ODE with and without the adjoint, blocks of a RevNet.

    python -m benchmarks.flow_memory     docs/pictures/flow-memory.png, and a table in docs/quality.json

Counted are the bytes of all tensors that hang on a loss when the forward pass is over, each storage once, by hooks of autograd:
of an FFJORD of points by `rk4`, four evaluations of the field a step, and of a RevNet of 32 channels on 16×16 images. With the
adjoint, and where activations are worked out again, the line is flat.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality import FACTS, stored
from gencli import files
from gencli.core import Field, Rng, Spec, Turn
from gencli.models.flow.ffjord import Ffjord
from gencli.networks.revnet import Revnet

STEPS, BLOCKS = (5, 10, 20, 40, 80), (2, 4, 8, 16, 32)
ITEMS = 64
PICTURE = FACTS.parent / "pictures" / "flow-memory.png"


class Kept:
    """A tensor that a graph keeps, for as long as the graph lives."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept(loss_of: Callable[[], Tensor]) -> int:
    """Bytes that a loss keeps."""
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        alive.add(holder := Kept(tensor))
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        loss = loss_of()
    gc.collect()
    assert loss.requires_grad, "nothing to differentiate"
    storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in alive}
    return sum(storages.values())


def ode(gradient: str, steps: int) -> int:
    """Of a loss of FFJORD."""
    torch.manual_seed(0)
    net = {"name": "ode-net", "width": 64, "layers": 3}
    model = Ffjord.make(
        {"net": net, "solver": "rk4", "steps": steps, "gradient": gradient}, Spec(Field("points", (2,)))
    )
    x = torch.randn(ITEMS, 2)
    return kept(lambda: model({"x": x}, Turn("main", 0, 1, Rng.batch("memory", total=ITEMS)))["loss"])


def revnet(store: bool, blocks: int) -> int:
    """Of the features of a RevNet of one stage."""
    torch.manual_seed(0)
    net = Revnet(Revnet.Config(widths=(32,), blocks=blocks, store=store), Field("image", (1, 16, 16)), 10)
    x = torch.randn(ITEMS, 1, 16, 16)
    return kept(lambda: net(x).logsumexp(1).mean())


LINES: dict[str, tuple[tuple[int, ...], Callable[[int], int]]] = {
    "FFJORD, all kept": (STEPS, lambda depth: ode("direct", depth)),
    "FFJORD, adjoint": (STEPS, lambda depth: ode("adjoint", depth)),
    "RevNet, all kept": (BLOCKS, lambda depth: revnet(True, depth)),
    "RevNet": (BLOCKS, lambda depth: revnet(False, depth)),
}


def measured() -> dict[str, dict[str, Any]]:
    """A row a line: megabytes by depth, and how many times those of the least depth the greatest takes."""
    made = {}
    for name, (depths, of) in LINES.items():
        held = [of(depth) / 1e6 for depth in depths]
        made[name] = {
            "depths": list(depths),
            "megabytes": [round(value, 3) for value in held],
            "times": held[-1] / held[0],
            "deeper": depths[-1] / depths[0],
        }
    return made


def drawn(rows: dict[str, dict[str, Any]]) -> bytes:
    """The lines as a picture."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, kind, across in zip(figure.subplots(1, 2), ("FFJORD", "RevNet"), ("steps of rk4", "blocks"), strict=True):
        for name, row in rows.items():
            if name.startswith(kind):
                style = {"marker": "s", "linestyle": "--"} if "all kept" in name else {"marker": "o", "linestyle": "-"}
                axes.plot(row["depths"], row["megabytes"], label=name, **style)
        axes.set(xscale="log", yscale="log", xlabel=across, ylabel="MB kept for the backward pass")
        axes.set_xticks(row_depths(rows, kind), [str(depth) for depth in row_depths(rows, kind)])
        axes.minorticks_off()
        axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def row_depths(rows: dict[str, dict[str, Any]], kind: str) -> list[int]:
    """Where a panel has marks."""
    return next(row["depths"] for name, row in rows.items() if name.startswith(kind))


def main() -> None:
    rows = measured()
    facts = stored()
    facts["flow-memory"] = rows
    files.atomic_json(FACTS, facts)
    files.atomic_write(PICTURE, drawn(rows))
    for name, row in rows.items():
        print(
            f"{name:20} {row['megabytes']} MB at {row['depths']}: {row['times']:.2f} times at {row['deeper']:g} times the depth"
        )


if __name__ == "__main__":
    main()
