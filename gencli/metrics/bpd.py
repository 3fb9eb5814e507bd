"""Bits per dimension of held-out data: the negative log-likelihood on one scale, with its type named.

Offers: image, likelihood

bpd = −(log p + log |d encode / d data|) / (D ln 2), with D the number of values in a raw item; the mean over items, its
standard error, and a 95 % interval (Student's t). A model that knows nothing of 8-bit images scores exactly 8.

One rule decides what `log_prob` is. A model with `mass = True` gives probabilities of grid values (autoregressive models
over tokens; DDPM, whose decoder integrates over a grey level's bin), and nothing is added. A model with `mass = False`
gives a density in model space, and the codecs' `log_det` makes it one over raw data with grey levels one apart, which for
dequantised data bounds the probability. A model that says nothing has `mass = True` exactly if its data are whole numbers
(a vocabulary and no range).

What a bound is stands in the note: a model says by `estimate(samples)` what its `log_prob` of that many draws is (`ELBO`,
`IWAE-64`); a density of dequantised data is averaged over `draws` of the noise, `dequantised bound, 4 draws`. The interval is
over items and holds the noise of the draws.

Codecs that lose information (a learned codec; fewer grey levels than the data's) leave only the likelihood of what
remains: bits of the codes per dimension of the data. The result is then called `bpd[codes]`, and is no likelihood of the
data. Whether they do is measured: items are encoded, decoded and compared.

Raises: GencliError for a model without a likelihood, and for one that is not a number somewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Items, Likelihood, Model, Rng
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


class Bpd(ModelMetric):
    """Negative log-likelihood in bits per dimension of the raw data."""

    needs: ClassVar[type[Any]] = Likelihood

    @dataclass(frozen=True)
    class Config:
        samples: int = opt(1, "draws inside each item's bound: importance samples of a VAE (IWAE-k)", low=1)
        draws: int = opt(1, "draws of the dequantisation noise, averaged, for densities of dequantised data", low=1)

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> Value:
        self.check(run)
        seed, scores, lossy = base_seed(rng, "bpd"), [], False
        for indices in spread(len(data), n).split(batch_size):
            raw = data.batch(indices)
            bits, same = self.bits(run, raw, item_rows(seed, indices, run.model))
            scores.append(bits)
            lossy = lossy or not same
        each = torch.cat(scores)
        if not torch.isfinite(each).all():
            bad = int((~torch.isfinite(each)).sum())
            raise GencliError(f"the likelihood of {bad} of {len(each)} items is not finite", "check the run")
        mean, error, interval = mean_with_error(each.numpy())
        model: Any = run.model
        estimate = self.estimate(model)
        return Value(
            name="bpd[codes]" if lossy else "bpd",
            value=mean,
            interval=interval,
            n=len(each),
            unit="bits/dim",
            better="lower",
            kind=kind_of(run.model),
            note=". ".join(filter(None, [estimate, "codes, not data: the codec loses information" if lossy else ""])),
            facts={
                "standard_error": error,
                "likelihood": model.likelihood,
                "estimate": estimate,
                "mass": is_mass(run.model),
                "lossy": lossy,
                "samples": self.config.samples,
                "draws": self.config.draws,
                "dimensions": raw["x"][0].numel(),
            },
        )

    def estimate(self, model: Any) -> str:
        """What the numbers are, in words; empty for an exact likelihood."""
        own = model.estimate(self.config.samples) if hasattr(model, "estimate") else ""
        draws = f"{self.config.draws} draw" + ("s" if self.config.draws > 1 else "")
        return f"dequantised bound, {draws}" if _dequantised(model) else own

    def bits(self, run: Run, raw: Batch, rng: Rng) -> tuple[Tensor, bool]:
        """Bits per dimension `(N,)` in float64, and whether the codecs keep every item exactly."""
        draws = self.config.draws if _dequantised(run.model) else 1
        made = [self._nats(run, raw, rng.at("draw", i) if i else rng) for i in range(draws)]
        nats = torch.stack([nats for nats, _ in made]).mean(0)
        return -nats / (raw["x"][0].numel() * math.log(2)), all(same for _, same in made)

    @torch.no_grad()
    def _nats(self, run: Run, raw: Batch, rng: Rng) -> tuple[Tensor, bool]:
        batch, volume = encode_with_volume(run, raw, rng.at("encode"))
        same = torch.equal(_exact(run.decode(batch)["x"], raw["x"]), raw["x"])
        model: Any = run.model
        given = conditions(run, batch)
        nats = model.log_prob(batch["x"], rng.at("log-prob"), samples=self.config.samples, **given).double()
        return (nats if is_mass(model) else nats + volume.to(nats)).cpu(), same


def is_mass(model: Model) -> bool:
    """Whether `log_prob` is the log of a probability, not of a density: the model's word, else from its data."""
    x = model.spec.x
    return bool(getattr(model, "mass", x.vocab is not None and x.range is None))


def _dequantised(model: Any) -> bool:
    """Whether a density scores data that lie on a grid."""
    return not is_mass(model) and model.spec.x.vocab is not None


def kind_of(model: Any) -> str:
    """`exact` or `bound`: a density of discrete data scores them by dequantisation, which can only be a bound."""
    return "bound" if _dequantised(model) else str(model.likelihood)


def encode_with_volume(run: Run, raw: Batch, rng: Rng) -> tuple[Batch, Tensor]:
    """What `run.encode` gives, and the codecs' log volume change `(N,)` on the way."""
    batch, volume = raw, torch.zeros(len(raw["x"]), dtype=torch.float64)
    for codec in run.codecs:
        volume = volume + codec.log_det(batch).double().cpu()
        batch = codec.draw(codec.encode(batch), rng)
    return on_device(batch, run.model), volume


def _exact(decoded: Tensor, raw: Tensor) -> Tensor:
    """Decoded items where they can be compared with raw ones; floats count as equal to within rounding."""
    decoded = decoded.cpu().reshape(raw.shape).to(raw.dtype)
    if not raw.is_floating_point():
        return decoded
    return torch.where(torch.isclose(decoded, raw, rtol=1e-4, atol=1e-5), raw, decoded)
