"""How exactly a normalising flow is inverted, and whether the volume that it reports is its own, on held-out data.

Offers: image, likelihood

`roundtrip` is the largest |x − f⁻¹(f(x))| over all numbers of all items, in grey levels of data on a grid, in the model's own
numbers otherwise; `roundtrip-mean` the mean over items of each item's largest. `log-det` is the largest difference in nats
between the log-determinant that comes with f(x) and that of its Jacobian, by automatic differentiation of `jacobians` items in
float64: a derivative for each of an item's numbers, so 0 leaves it out, as more than 1,024 numbers do. Everything else is
computed in the precision that the model has.

Errors: a model that is no flow; a round trip that is not finite.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Field, Invertible, Items, Rng
from gencli.errors import GencliError
from gencli.metrics._base import (
    ModelMetric,
    Run,
    Value,
    base_seed,
    conditions,
    item_rows,
    mean_with_error,
    on_device,
    spread,
)

MOST = 1024  # numbers of an item whose Jacobian is taken


class Roundtrip(ModelMetric):
    """The honesty of a flow."""

    needs: ClassVar[type[Any]] = Invertible

    @dataclass(frozen=True)
    class Config:
        jacobians: int = opt(2, "items whose log-determinant is compared with that of the Jacobian", low=0)

    def __call__(
        self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64
    ) -> list[Value] | Value:
        self.check(run)
        seed, worst = base_seed(rng, "roundtrip"), []
        grey, unit = _scale(run.spec.x)
        for indices in spread(len(data), n).split(batch_size):
            batch = on_device(run.encode(data.batch(indices), item_rows(seed, indices, run.model)), run.model)
            worst.append(grey * apart(run.model, batch["x"], conditions(run, batch)))
        each = torch.cat(worst)
        if not torch.isfinite(each).all():
            bad = int((~torch.isfinite(each)).sum())
            raise GencliError(f"the round trip of {bad} of {len(each)} items is not finite", "check the run")
        mean, error, interval = mean_with_error(each.numpy())
        made = [
            Value("roundtrip", float(each.max()), None, len(each), "lower", unit, note="the largest error"),
            Value("roundtrip-mean", mean, interval, len(each), "lower", unit, facts={"standard_error": error}),
        ]
        count = min(self.config.jacobians, len(each))
        if count and run.spec.x.size <= MOST:
            few = {key: value[:count] for key, value in batch.items()}
            found = mismatch(run.model, few["x"], conditions(run, few))
            note = "the largest, against the Jacobian in float64"
            made.append(Value("log-det", float(found.max()), None, len(found), "lower", "nats", note=note))
        return made


def _scale(x: Field) -> tuple[float, str]:
    """What one number of model space is in the unit that is shown, and the unit."""
    if x.vocab is None or x.range is None:
        return 1.0, ""
    return (x.vocab - 1) / (x.range[1] - x.range[0]), "grey levels"


@torch.no_grad()
def apart(model: Any, x: Tensor, cond: Batch) -> Tensor:
    """`(N,)` the largest difference between an item's numbers and what comes back."""
    z, _ = model.forward_flow(x, **cond)
    return (model.inverse(z, **cond) - x).abs().flatten(1).amax(1).double().cpu()


def mismatch(model: Any, x: Tensor, cond: Batch) -> Tensor:
    """`(N,)` |log-determinant reported − that of the Jacobian|, of a copy of the model in float64 on the CPU."""
    wide = copy.deepcopy(model).cpu().double().eval()
    found = []
    for i in range(len(x)):
        one = {key: value[i : i + 1].cpu() for key, value in cond.items()}
        item = x[i : i + 1].double().cpu()
        reported = wide.forward_flow(item, **one)[1].detach()

        def there(row: Tensor, one: Batch = one) -> Tensor:
            return wide.forward_flow(row, **one)[0].flatten()

        jacobian = torch.autograd.functional.jacobian(there, item).reshape(item.numel(), item.numel())
        found.append((reported - torch.linalg.slogdet(jacobian).logabsdet).abs())
    return torch.cat(found)
