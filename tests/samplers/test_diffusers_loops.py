"""Whole loops of our samplers against the schedulers of diffusers: the same non-linear network, start and noise.

Every state is compared, the first and the last included, for networks that predict eps, x0 and v. The levels are those of the
scheduler, so that only steps are compared; where its spacing is also ours, that is asserted. It is not

- for `linspace` of one step, where theirs is the cleanest level and ours the noisiest;
- for `linspace` of Euler and Heun, whose timesteps are fractions: the network is then called, on both sides, at the trained
  timestep nearest to the level, instead of at a fraction that no model was trained at;
- for `linspace` and `leading` of DPM-Solver++, UniPC and DEIS, which space one step more and leave out the cleanest.

What else differs: DDIMScheduler with `linspace` steps to the timestep t − 1000 // steps, which is not the next that it visits
(there our steps are taken between the same two levels); DDPMScheduler adds noise in the last step if that does not start at
timestep 0 (`trailing`), which is nothing with the small variance and is added here to our last state with the large one; DEIS
ends at the least trained level instead of 0; UniPC of order 3 takes its last step but one with order 2, so that the last two
states are left out. Theirs compute some steps in float32.
"""

import itertools
import sys

import pytest
import torch
from denoisers import Predicting, walked

from gencli import registry
from gencli.core import Rng
from gencli.models.diffusion import _schedules as schedules
from gencli.samplers._levels import spaced

pytest.importorskip("diffusers")

KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SPACINGS = ("leading", "trailing", "linspace")
SDE = {"algorithm_type": "sde-dpmsolver++"}
# our sampler, its settings, their scheduler, its settings, the spacings that both have
CASES = {
    "ddpm small": ("ancestral", {"variance": "small"}, "DDPM", {"variance_type": "fixed_small"}, SPACINGS),
    "ddpm large": ("ancestral", {"variance": "large"}, "DDPM", {"variance_type": "fixed_large"}, SPACINGS),
    "ddim": ("ddim", {}, "DDIM", {}, SPACINGS),
    "euler": ("euler", {}, "EulerDiscrete", {}, SPACINGS[:2]),
    "euler ancestral": ("euler-ancestral", {}, "EulerAncestralDiscrete", {}, SPACINGS[:2]),
    "heun": ("heun", {}, "HeunDiscrete", {}, SPACINGS[:2]),
    "dpm-solver++ 2m": ("dpmpp-2m", {}, "DPMSolverMultistep", {}, SPACINGS[1:2]),
    "sde-dpm-solver++ 2m": ("dpmpp-2m-sde", {}, "DPMSolverMultistep", SDE, SPACINGS[1:2]),
    "unipc 1": ("unipc", {"order": 1}, "UniPCMultistep", {"solver_order": 1}, SPACINGS[1:2]),
    "unipc 2": ("unipc", {}, "UniPCMultistep", {"solver_order": 2}, SPACINGS[1:2]),
    "unipc 3": ("unipc", {"order": 3}, "UniPCMultistep", {"solver_order": 3}, SPACINGS[1:2]),
    "deis 2": ("deis", {"order": 2}, "DEISMultistep", {"solver_order": 2, "lower_order_final": False}, ()),
    "deis 3": ("deis", {"order": 3}, "DEISMultistep", {"solver_order": 3, "lower_order_final": False}, ()),
}
EXPLODING = {f"{name}DiscreteScheduler" for name in ("Euler", "EulerAncestral", "Heun")}  # x = x0 + σ n, as here
UNKNOWN = {("euler ancestral", "x0")}  # not implemented there
COUNT = 8


def scheduler_of(name, settings, kind, spacing, steps):
    """A scheduler with numbers in float64, and the levels that it visits."""
    import diffusers

    clip = {"clip_sample": False} if name in ("DDPM", "DDIM") else {}
    made = getattr(diffusers, f"{name}Scheduler")(
        prediction_type=KINDS[kind], timestep_spacing=spacing, beta_start=1e-4, beta_end=0.02, **clip, **settings
    )
    made.alphas_cumprod = schedules.linear(1000)
    made.set_timesteps(steps)
    if name in ("DDPM", "DDIM"):
        visited = (1 / made.alphas_cumprod[made.timesteps] - 1).sqrt()
        return made, torch.cat([visited, visited.new_zeros(1)])
    made.sigmas = made.sigmas.double()
    levels = made.sigmas
    return made, torch.cat([levels[:1], levels[1:-1:2], levels[-1:]]) if name == "HeunDiscrete" else levels


def theirs(scheduler, model, x, levels, noises):
    """Their x after every step; Heun's every second call ends a step."""
    states, calls, later = [x], len(scheduler.timesteps), iter(noises)
    per_step = 1 if calls == len(levels) - 1 else 2
    given = "variance_noise" if "sde" in getattr(scheduler.config, "algorithm_type", "") else None
    for i, t in enumerate(scheduler.timesteps):
        output = model.network(scheduler.scale_model_input(x, t), levels[(i + 1) // 2 if per_step == 2 else i])
        x = scheduler.step(output, t, x, **({given: next(later)} if given else {})).prev_sample.double()
        if per_step == 1 or i % 2 == 1 or i == calls - 1:
            states.append(x)
    return states


def ours(sampler, model, x, scheduler, levels, noises):
    """Our x after every step in their coordinates, where they take the same steps; else see above."""
    name, last, scales = type(scheduler).__name__, scheduler.timesteps[-1], (1 + levels**2).sqrt()
    if name == "DDIMScheduler" and scheduler.config.timestep_spacing == "linspace":
        ends = [torch.zeros((), dtype=torch.float64), *model.levels.flip(0)]
        before = scheduler.timesteps - 1000 // len(scheduler.timesteps)
        return apart(sampler, model, x, zip(levels, [ends[max(int(t), -1) + 1] for t in before], strict=False))
    states = walked(sampler, model.denoise, x * scales[0], levels, "peer")
    if name in EXPLODING:
        return states
    states = [state / scale for state, scale in zip(states, scales, strict=True)]
    if name == "DDPMScheduler" and scheduler.config.variance_type == "fixed_large" and last > 0:
        states[-1] = states[-1] + (1 - scheduler.alphas_cumprod[last]).sqrt() * noises[-1]
    return states


def apart(sampler, model, x, pairs):
    """Variance-preserving states of steps that each have a start and an end of their own."""
    states = [x]
    for here, there in pairs:
        start = states[-1] * (1 + here**2).sqrt()
        states.append(walked(sampler, model.denoise, start, torch.stack([here, there]))[-1] / (1 + there**2).sqrt())
    return states


def gaps(case, kind, spacing, steps, monkeypatch):
    """The relative difference of each state."""
    own, settings, name, their_settings, shared = CASES[case]
    sampler, model = registry.load("samplers", own).make(settings), Predicting(kind)
    scheduler, levels = scheduler_of(name, their_settings, kind, spacing, steps)
    if spacing in shared and (steps, spacing) != (1, "linspace"):
        assert torch.allclose(levels, spaced(model, steps, spacing, own), rtol=1e-6)
    rng = Rng.batch("peer", total=COUNT)
    noises = [rng.at("step", i).normal((COUNT, 1)).double() for i in range(steps)]
    later, x = iter(noises), rng.at("start").normal((COUNT, 1)).double()
    draw = lambda *args, **kwargs: next(later)  # noqa: E731
    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", draw, raising=False)
    start = x * (1 + levels[0] ** 2).sqrt() if type(scheduler).__name__ in EXPLODING else x
    found = theirs(scheduler, model, start, levels, noises)
    made = ours(sampler, model, x, scheduler, levels, noises)
    assert len(found) == len(made) == steps + 1
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(made, found, strict=True)]


@pytest.mark.parametrize(
    ("case", "kind"), [(case, kind) for case in CASES for kind in KINDS if (case, kind) not in UNKNOWN]
)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_state_of_the_loop_equals_theirs(case, kind, spacing, monkeypatch):
    for steps in (1, 2, 5, 20):
        found = gaps(case, kind, spacing, steps, monkeypatch)
        assert max(found[:-2] if case == "unipc 3" and steps > 2 else found) <= 1e-5, steps


def test_the_three_networks_differ_but_their_denoiser_does_not():
    sigma, x = torch.tensor(2.0, dtype=torch.float64), torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    models = [Predicting(kind) for kind in KINDS]
    for a, b in itertools.combinations(models, 2):
        assert (a.network(x, sigma) - b.network(x, sigma)).abs().max() > 0.1
        assert (a.denoise(x, sigma) - b.denoise(x, sigma)).abs().max() < 1e-12
