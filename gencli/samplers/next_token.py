"""Sampling one token after the other.

Offers: sampler of NextToken

    x_{o(i)} ~ softmax(ℓ_i / T),   ℓ_i = ℓ(x_<i) + s (ℓ(x_<i | c) − ℓ(x_<i))

`top_k` and `top_p` cut what is drawn from (`samplers/_tokens.py`). Guidance s interpolates logits: 1 is conditional and
costs no second network, 0 is unconditional; without a condition that the model takes, s has no effect. Tokens that are
kept (`known`, `keep`) stay as they are: the others are drawn given those before them, by the numbers they always have.

Every row draws all of its uniform numbers at once and each token by inversion in float64, so that a row's sample does not
depend on its batch. There is a frame for each row of an image; `info["entropy"]` is the predictive entropy in nats of
every token drawn so far, before temperature and truncation, with zeros where nothing is drawn (yet).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gencli.core import Batch, Model, NextToken, Rng, Spec
from gencli.guidance._base import PLAIN, Guidance
from gencli.samplers._base import Frame, Sampler, without_guidance
from gencli.samplers._tokens import Given, Truncation


class NextTokenSampler(Sampler):
    """The chain rule, read forwards."""

    interface = NextToken

    @dataclass(frozen=True)
    class Config(Truncation):
        """Those of every sampler of tokens."""

    def frames(
        self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float | Guidance = PLAIN
    ) -> Iterator[Frame]:
        self.check(model)
        known = {key: value for key, value in cond.items() if key in model.spec.cond}
        walk = _walk(model, n, known, Guidance.of(guidance).only_scale("next-token"))
        places, shape = cast(NextToken, model).order.tolist(), spec.x.shape
        exact = torch.device("cpu") if model.device.type == "mps" else model.device  # float64 is needed
        chance = rng.at("token").uniform((n, len(places)), torch.float64).to(exact)
        given, keep = Given.of(cond, n, shape, model.device)
        x = given.clone()
        entropy = torch.zeros(n, len(places), dtype=torch.float64, device=exact)
        ends = _ends(shape)
        token: Tensor | None = None
        for i, place in enumerate(places):
            logits = walk(token).to(exact, torch.float64)
            drawn = rng.multinomial(self.config.probabilities(logits), chance[:, i]).to(model.device)
            token = torch.where(keep[:, place], given[:, place], drawn)
            x[:, place] = token
            unsure = torch.special.entr(logits.softmax(-1)).sum(-1)
            entropy[:, place] = unsure.masked_fill(keep[:, place].to(exact), 0.0)
            if i + 1 in ends:
                info = {"entropy": entropy.view(n, *shape).clone()}
                yield Frame(x.view(n, *shape).clone(), ends.index(i + 1), len(ends), info)

    def evaluations(self, model: Model, spec: Spec) -> int:
        return spec.x.size


def _walk(model: Any, n: int, cond: Batch, scale: float) -> Callable[[Tensor | None], Tensor]:
    """`token -> logits` with the state, conditions and guidance inside."""
    kept = without_guidance(cond, model.spec.cond)
    scale = scale if len(cond) > len(kept) else 1.0  # with and without nothing are the same
    states = [model.start(n, **cond)] if scale != 0.0 else []
    if scale != 1.0:
        states.append(model.start(n, **kept))

    def advance(token: Tensor | None) -> Tensor:
        made = []
        for i, state in enumerate(states):
            logits, states[i] = model.next(token, state)
            made.append(logits)
        return made[0] if len(made) == 1 else torch.lerp(made[1], made[0], scale)

    return advance


def _ends(shape: tuple[int, ...]) -> list[int]:
    """After how many tokens a frame is due: each row of an image, each token of a sequence."""
    size = int(torch.Size(shape).numel())
    rows = shape[-2] if len(shape) > 1 else size
    return [size // rows * (i + 1) for i in range(rows)]
