"""Adversarial training on two kinds of image, bright on the left or on the right, and a control that no critic leads."""

import torch

from gencli.core import Field, Rng, Spec, Turn


def turn(phase="critic", n=8, key=0):
    """One micro-batch of `n` in a phase."""
    return Turn(phase, 0, 10, Rng.batch("t", key, total=n))


def spec_of(side):
    """Grey images of that side."""
    return Spec(Field("image", (1, side, side), vocab=256, range=(-1.0, 1.0)))


def distance(model, pattern):
    """Of samples: the mean squared distance to the nearer kind, and the share of the first."""
    with torch.no_grad():
        x = model.decode(model.prior(64, Rng.rows(range(64))))
    each = torch.stack([(x - sign * pattern).square().mean((1, 2, 3)) for sign in (1, -1)])
    return float(each.min(0).values.mean()), float((each.argmin(0) == 0).float().mean())


def learned(build, side, after=lambda model: None):
    """The distances of a model that is trained, and of a generator that learns from a critic that does not.

    `build(spec)` makes the model, `after(model)` is called after each step.
    """
    pattern = torch.full((1, side, side), 0.8)
    pattern[:, :, side // 2 :] = -0.8
    found = {}
    for name, phases in (("trained", ("critic", "generator")), ("deaf", ("generator",))):
        torch.manual_seed(0)
        model = build(spec_of(side))
        steps = {key: torch.optim.Adam(getattr(model, key).parameters(), 1e-2, betas=(0.0, 0.99)) for key in phases}
        for step in range(120):
            sign = (torch.rand(16, generator=torch.Generator().manual_seed(step)) < 0.5).float()
            x = (2 * sign - 1)[:, None, None, None] * pattern
            for phase in phases:
                steps[phase].zero_grad()
                model({"x": x}, turn(phase, n=16, key=step))["loss"].backward()
                steps[phase].step()
            after(model)
        found[name] = distance(model, pattern)
    return found
