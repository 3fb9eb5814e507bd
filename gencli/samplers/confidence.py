"""MaskGIT: Masked Generative Image Transformer (Chang et al., 2022). arXiv:2202.04200

Offers: sampler of TokenDenoiser

    all L tokens masked;  for t = 1 … T:  x_i ~ softmax(ℓ_i(x) / heat) wherever masked,  c_i = log p_i(x_i) + τ (1 − t/T) g_i,
    and the ⌊cos(πt / 2T) L⌋ least confident are masked again

with g Gumbel noise and τ the `choice_temperature`: the paper's Algorithm with the released code's counts. At least one
token is fixed a step and at least one is left before the last, which leaves none; more steps than tokens are never taken.
A fixed token never changes. p is the model's own, guided, before temperature and truncation (`samplers/_tokens.py`).
Guidance s interpolates logits as in `next-token`; the method itself has none.

Kept tokens (`known`, `keep`) count as fixed, and L is the number of the others: in-painting, or with another class the
paper's class-conditional edit.

Every row draws its numbers for all tokens at every step, each token by inversion in float64, so that a row's sample does
not depend on its batch. A frame a step shows all tokens as the model would have them now. Its `info`, `(N, *spec.x.shape)`:
`order`, the step that fixed a token (0 = given, −1 = still masked); `confidence`, the p it was fixed with (1 if given, 0
while masked); `entropy`, of the distribution it was fixed from, in nats (0 if given or masked).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Model, Rng, Spec, TokenDenoiser
from gencli.guidance._base import PLAIN, Guidance
from gencli.samplers._base import Frame, Sampler, without_guidance
from gencli.samplers._tokens import Given, Truncation


class Confidence(Sampler):
    """All tokens at once, the surest first."""

    interface = TokenDenoiser

    @dataclass(frozen=True)
    class Config(Truncation):
        steps: int = opt(8, "rounds of predicting all masked tokens", low=1)
        choice_temperature: float = opt(
            4.5, "noise on the confidence, falling to 0 at the last step; 0 = always the most confident", low=0
        )

    def frames(
        self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float | Guidance = PLAIN
    ) -> Iterator[Frame]:
        self.check(model)
        taken = {key: value for key, value in cond.items() if key in model.spec.cond}
        predict = _predictor(model, taken, Guidance.of(guidance).only_scale("confidence"))
        mask, size, steps = spec.x.vocab, spec.x.size, self.evaluations(model, spec)
        assert mask is not None, "tokens have a vocab"
        exact = torch.device("cpu") if model.device.type == "mps" else model.device  # float64 is needed
        known, keep = Given.of(cond, n, spec.x.shape, exact)
        tokens = known.masked_fill(~keep, mask)
        order, sure, unsure = keep.long() - 1, keep.double(), torch.zeros_like(keep, dtype=torch.float64)
        for step in range(1, steps + 1):
            # Draw every masked token.
            masked = tokens == mask
            logits = predict(tokens.to(model.device)).to(exact)[masked].double()  # (M, V)
            chance = rng.at("token", step).uniform((n, size), torch.float64).to(exact)[masked]
            drawn = rng.multinomial(self.config.probabilities(logits), chance)
            guess = tokens.masked_scatter(masked, drawn)
            # Mask the least confident again.
            log_p = logits.log_softmax(-1)
            each = torch.zeros_like(sure).masked_scatter(masked, log_p.gather(1, drawn[:, None]))
            heat = self.config.choice_temperature * (1 - step / steps)
            score = each + heat * _gumbel(rng.at("choice", step), n, size).to(exact) if heat else each
            left = count_left((~keep).sum(1), masked.sum(1), step, steps)
            rank = score.masked_fill(~masked, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
            again = rank < left[:, None]
            # Fix the others.
            fixed = masked & ~again
            tokens = guess.masked_fill(again, mask)
            entropy = torch.zeros_like(sure).masked_scatter(masked, torch.special.entr(log_p.exp()).sum(-1))
            order = torch.where(fixed, step, order)
            sure, unsure = torch.where(fixed, each.exp(), sure), torch.where(fixed, entropy, unsure)
            info = {"order": order, "confidence": sure, "entropy": unsure}
            shape = (n, *spec.x.shape)
            yield Frame(
                guess.to(model.device).view(shape),
                step - 1,
                steps,
                {key: value.view(shape) for key, value in info.items()},
            )

    def evaluations(self, model: Model, spec: Spec) -> int:
        return min(self.config.steps, spec.x.size)


def count_left(free: Tensor, masked: Tensor, step: int, steps: int) -> Tensor:
    """How many tokens of each row stay masked after a step, of `free` to be drawn in all and `masked` before it."""
    if step == steps:
        return torch.zeros_like(masked)
    share = math.cos(math.pi / 2 * step / steps)
    wanted = (free.double() * share).floor().long()
    return torch.minimum(torch.minimum(wanted, masked - 1).clamp(min=1), masked)


def _predictor(model: Model, cond: Batch, scale: float) -> Callable[[Tensor], Tensor]:
    """`tokens -> logits` with conditions and guidance inside."""
    logits_at = cast(TokenDenoiser, model).logits_at
    kept = without_guidance(cond, model.spec.cond)
    scale = scale if len(cond) > len(kept) else 1.0  # with and without nothing are the same

    def predict(tokens: Tensor) -> Tensor:
        if scale == 1.0:
            return logits_at(tokens, **cond)
        without = logits_at(tokens, **kept)
        return without if scale == 0.0 else torch.lerp(without, logits_at(tokens, **cond), scale)

    return predict


def _gumbel(rng: Rng, n: int, size: int) -> Tensor:
    return -(-rng.uniform((n, size), torch.float64).log()).log()
