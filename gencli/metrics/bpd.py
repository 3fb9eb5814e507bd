"""Bits per dimension of held-out data: the negative log-likelihood on one scale, with its type named.

Offers: image, likelihood

bpd = −(log p + log |d encode / d data|) / (D ln 2), with D the number of values in a raw item; the mean over items, its
standard error, and a 95 % interval (Student's t). A model that knows nothing of 8-bit images scores exactly 8.

One rule decides what `log_prob` is. A model with `mass = True` gives probabilities of grid values (autoregressive models
over tokens; DDPM, whose decoder integrates over a grey level's bin), and nothing is added. A model with `mass = False`
gives a density in model space, and the codecs' `log_det` makes it one over raw data with grey levels one apart, which for
dequantised data bounds the probability. A model that says nothing has `mass = True` exactly if its data are whole numbers
(a vocabulary and no range).

`method = ode` asks the probability-flow ODE of any denoiser instead of the model (arXiv:2011.13456), `samples` being
the probes of its divergence, or all directions with `divergence = exact`.

What a bound is stands in the note: a model says by `estimate(samples)` what its `log_prob` of that many draws is (`ELBO`,
`IWAE-64`); a density of dequantised data is averaged over `draws` of the noise, `dequantised bound, 4 draws`. The interval is
over items and holds the noise of the draws.

A learned codec, and one that loses information (fewer grey levels than the data's), leave only the likelihood of what
remains: bits of the codes per dimension of the data. The result is then called `bpd[codes]`, its kind is `codes`, and it is
no likelihood of the data, however exact. Codes and latents are known by the kind of the field that the model sees; whether
another codec loses anything is measured: items are encoded, decoded and compared. Bits of codes are comparable between
priors over the same codec only, whose hash is among the facts.

Raises: GencliError for a model without a likelihood, and for one that is not a number somewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Denoiser, Items, Likelihood, Rng
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
from gencli.samplers._likelihood import flow_log_prob, spread_over_bins


class Bpd(ModelMetric):
    """Negative log-likelihood in bits per dimension of the raw data."""

    needs: ClassVar[type[Any]] = Likelihood

    @dataclass(frozen=True)
    class Config:
        samples: int = opt(
            1,
            "draws inside each item's bound: importance samples of a VAE (IWAE-k), steps of a chain, probes of an ODE",
            low=1,
        )
        draws: int = opt(1, "draws of the dequantisation noise, averaged, for densities of dequantised data", low=1)
        method: Literal["model", "ode"] = opt("model", "the model's own likelihood, or the ODE of any denoiser")
        divergence: Literal["hutchinson", "exact"] = opt(
            "hutchinson", "of the ODE: by random probes, or all directions"
        )

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> Value:
        judged = self.judged(run)
        seed, scores = base_seed(rng, "bpd"), []
        coded = lossy = is_coded(run)
        for indices in spread(len(data), n).split(batch_size):
            raw = data.batch(indices)
            bits, same = self.bits(run, raw, item_rows(seed, indices, run.model), judged)
            scores.append(bits)
            lossy = lossy or not same
        each = torch.cat(scores)
        if not torch.isfinite(each).all():
            bad = int((~torch.isfinite(each)).sum())
            raise GencliError(f"the likelihood of {bad} of {len(each)} items is not finite", "check the run")
        mean, error, interval = mean_with_error(each.numpy())
        estimate, size = self.estimate(judged), raw["x"][0].numel()
        words = ["bits of the codes, not of the data" + (f": {_of_codes(run, mean * size)}" if coded else "")] * lossy
        return Value(
            name="bpd[codes]" if lossy else "bpd",
            value=mean,
            interval=interval,
            n=len(each),
            unit="bits of codes/dim" if lossy else "bits/dim",
            better="lower",
            kind="codes" if lossy else kind_of(judged),
            note=". ".join(filter(None, [estimate, *words])),
            facts={
                "standard_error": error,
                "likelihood": judged.likelihood,
                "estimate": estimate,
                "mass": is_mass(judged),
                "lossy": lossy,
                "samples": self.config.samples,
                "draws": self.config.draws,
                "dimensions": size,
                **(_facts(run, mean * size) if coded else {}),
            },
        )

    def judged(self, run: Run) -> Any:
        """What is asked for likelihoods: the model, or its ODE; a model without either is refused."""
        if self.config.method == "model":
            self.check(run)
            return run.model
        if not isinstance(run.model, Denoiser):
            raise GencliError(
                f"bpd by the ODE needs a denoiser, {type(run.model).__name__} is none", "leave out --bpd.method"
            )
        return ByOde(run.model, self.config.divergence)

    def estimate(self, model: Any) -> str:
        """What the numbers are, in words; empty for an exact likelihood."""
        own = model.estimate(self.config.samples) if hasattr(model, "estimate") else ""
        draws = f"{self.config.draws} draw" + ("s" if self.config.draws > 1 else "")
        return ", ".join(filter(None, [own, f"dequantised bound, {draws}" if _dequantised(model) else ""]))

    def bits(self, run: Run, raw: Batch, rng: Rng, judged: Any = None) -> tuple[Tensor, bool]:
        """Bits per dimension `(N,)` in float64, and whether the codecs keep every item exactly."""
        judged = self.judged(run) if judged is None else judged
        draws = self.config.draws if _dequantised(judged) else 1
        made = [self._nats(run, judged, raw, rng.at("draw", i) if i else rng) for i in range(draws)]
        nats = torch.stack([nats for nats, _ in made]).mean(0)
        return -nats / (raw["x"][0].numel() * math.log(2)), all(same for _, same in made)

    @torch.no_grad()
    def _nats(self, run: Run, judged: Any, raw: Batch, rng: Rng) -> tuple[Tensor, bool]:
        batch, volume = encode_with_volume(run, raw, rng.at("encode"))
        same = torch.equal(_exact(run.decode(batch)["x"], raw["x"]), raw["x"])
        given = conditions(run, batch)
        nats = judged.log_prob(batch["x"], rng.at("log-prob"), samples=self.config.samples, **given).double()
        return (nats if is_mass(judged) else nats + volume.to(nats)).cpu(), same


class ByOde:
    """The density of a denoiser's probability-flow ODE; data on a grid are spread over their bins."""

    likelihood = "exact"
    mass = False

    def __init__(self, model: Any, divergence: Literal["hutchinson", "exact"]) -> None:
        self.model, self.spec, self.divergence = model, model.spec, divergence

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """`(N,)` nats."""
        spread_out = spread_over_bins(x, self.spec.x, rng.at("dequantise"))
        return flow_log_prob(self.model, spread_out, rng, cond, samples, self.divergence)[0]

    def estimate(self, samples: int) -> str:
        """How the divergence was found."""
        found = (
            "exact divergence" if self.divergence == "exact" else f"{samples} Hutchinson probe" + "s" * (samples > 1)
        )
        return f"probability-flow ODE, {found}"


def is_mass(model: Any) -> bool:
    """Whether `log_prob` is the log of a probability, not of a density: the model's word, else from its data."""
    x = model.spec.x
    return bool(getattr(model, "mass", x.vocab is not None and x.range is None))


def is_coded(run: Run) -> bool:
    """Whether the model sees a learned codec's codes or latents, so that no number is a likelihood of the data."""
    return run.spec.x.kind in ("codes", "latent")


def _facts(run: Run, bits: float) -> dict[str, Any]:
    """Of codes: how many, of how many values, what one takes, and which codec made them."""
    made = {"codes": run.spec.x.size, "vocab": run.spec.x.vocab, "bits_of_codes": bits}
    learned = [codec.run for codec in run.codecs if hasattr(codec, "run")]
    return {**made, "codec": [inner.weights_hash() for inner in learned if inner.path is not None]}


def _of_codes(run: Run, bits: float) -> str:
    """`16 codes take 60.0 bits, 3.75 each of at most 4` for a reader who would take the number for bits of pixels."""
    x = run.spec.x
    if x.vocab is None:
        return f"{x.size} numbers of a latent take {bits:.1f} bits"
    return (
        f"{x.size} codes take {bits:.1f} bits, {bits / x.size:.2f} each; {math.log2(x.vocab):.2f} where all are alike"
    )


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
