"""Laws that every registered sampler keeps with the models that it fits.

Samplers of denoisers speak one language with all of them, so each meets two models, one with a table of levels and one of
any level, and each model meets its recipe's own sampler and `ddim`; all other samplers meet every model that they fit.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch
from tiny import opened, shaken, smoke
from torch import Tensor

from gencli import registry
from gencli.bundle import Run
from gencli.core import Denoiser, Rng
from gencli.errors import GencliError
from gencli.evaluation.conditions import conditions_for
from gencli.evaluation.generate import Request, samples
from gencli.operators.inpaint import half

SAMPLERS = {name: registry.load("samplers", name) for name in registry.entries("samplers")}
MODELS = {name: registry.load("models", name) for name in registry.entries("models")}
STANDARD = ("ddpm", "edm")  # a table of levels; any level


def own_sampler(model: str) -> str:
    """What the model's recipe samples by."""
    return registry.public_name(smoke(model).get("sample", {}).get("name", "ddim"))


def pairs() -> list[tuple[str, str]]:
    """Who meets whom."""
    made = []
    for name, sampler in SAMPLERS.items():
        for model, cls in MODELS.items():
            if not sampler.fits(cls):
                continue
            if sampler.interface is Denoiser:
                meets = model in STANDARD or name in ("ddim", own_sampler(model))
                if not meets or run_of(model).model.meaning not in sampler.accepts:
                    continue
            made.append((name, model))
    return made


@cache
def run_of(model: str, kind: torch.dtype = torch.float32) -> Run:
    """An untrained run with random non-zero weights."""
    tables = smoke(model)
    torch.manual_seed(0)
    run = Run.build(tables, opened(tables["data"]).spec)
    shaken(run.model, 0.1)
    run.config["recipe"] = tables
    run.model.eval().requires_grad_(False).to(kind)
    return run


def sampler_of(run: Run, name: str) -> Any:
    """The sampler with the run's own settings but few steps: long ones of Langevin dynamics, which few short ones do not
    carry out of the noise, and rough ones of solvers."""
    table = getattr(run.model, "levels", None)  # a score at one level has one
    steps = {"steps": 4 if table is None else min(4, len(table))}
    few = {**steps, "inner": 2, "step_size": 1.0, "solver": "bosh3", "rtol": 0.1, "atol": 0.1}
    few["operator"] = {"name": "inpaint", "mask": "top-half"}
    fields = SAMPLERS[name].Config.__dataclass_fields__
    return run.sampler(name, {key: value for key, value in few.items() if key in fields})


def given(run: Run, name: str, n: int) -> dict[str, Tensor]:
    """Conditions, and what the sampler takes besides: an image, of which the upper half stays, or what was measured of one."""
    cond, takes = conditions_for(run, range(n)), SAMPLERS[name].takes
    image = Rng.rows(range(n)).at("image").normal((n, *run.spec.x.shape)).clamp(-1, 1)
    keep = half("top-half", *image.shape[2:]).expand(image.shape) if takes else None
    made = {"known": image, "keep": keep, "measured": image * keep if takes else None}
    return cond | {key: made[key] for key in takes}


def drawn(run: Run, name: str, n: int, **kwargs: Any) -> Tensor:
    return samples(run, Request(range(n), given(run, name, n), sampler_of(run, name), **kwargs))


def apart(some: Tensor, others: Tensor) -> float:
    """In grey levels of pictures; relative to the size of points."""
    if some.dtype == torch.uint8:
        return float((some.int() - others.int()).abs().max())
    return float((some - others).abs().max() / others.abs().max())


PAIRS = pairs()


def test_every_sampler_and_every_model_that_is_drawn_from_is_met() -> None:
    assert {sampler for sampler, _ in PAIRS} == {*SAMPLERS}
    drawn_from = {model for model, cls in MODELS.items() if any(s.fits(cls) for s in SAMPLERS.values())}
    assert {model for _, model in PAIRS} == drawn_from


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_image_i_is_the_same_whatever_the_batch(name: str, model: str) -> None:
    run = run_of(model)
    seven = drawn(run, name, 7)
    image = run.data_spec.x.kind == "image"
    assert seven.shape == (7, *run.data_spec.x.shape) and (seven.dtype == torch.uint8) == image
    assert len({item.numpy().tobytes() for item in seven}) == 7, "seeds differ"
    limit = 1 if image else 1e-4
    if batch_matters(run, name) > limit:  # random weights may blow up rounding, but it must be rounding
        assert batch_matters(run_of(model, torch.float64), name) <= limit


def batch_matters(run: Run, name: str) -> float:
    """How far images are from themselves in smaller batches."""
    seven = drawn(run, name, 7)
    others = (drawn(run, name, 2, micro=1), drawn(run, name, 7, micro=3))
    return max(apart(other, seven[: len(other)]) for other in others)


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_exact_images_are_bit_equal_whatever_the_number(name: str, model: str) -> None:
    run = run_of(model)
    seven = drawn(run, name, 7, exact=True, micro=8)
    for n in (1, 9):
        other = drawn(run, name, n, exact=True, micro=8)
        assert torch.equal(other[:7], seven[: len(other)])


@pytest.mark.parametrize("n", [1, 7, 8, 17])
def test_exact_means_that_the_network_always_sees_batches_of_one_size(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], Run.frames

    def watched(self: Run, rng: Rng, cond: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({len(rng), *(len(value) for value in cond.values())})
        return real(self, rng, cond, *args, **kwargs)

    monkeypatch.setattr(Run, "frames", watched)
    assert len(drawn(run_of("ddpm"), "ddim", n, exact=True, micro=8)) == n
    assert seen == [{8}] * -(-n // 8)


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_the_frames_are_numbered_and_the_last_is_the_sample(name: str, model: str) -> None:
    run = run_of(model)
    sampler, cond = sampler_of(run, name), given(run, name, 2)
    guidance = run.guidance if run.model.spec.cond else 1.0
    for every in (True, False):
        frames = list(run.frames(Rng.rows([0, 1]), cond, sampler, guidance, every=every))
        total = frames[0][0].total
        assert [frame.index for frame, _ in frames] == list(range(total)) and {f.total for f, _ in frames} == {total}
        assert torch.equal(frames[-1][1], drawn(run, name, 2))
        if every and "noisy" in frames[0][0].info:
            assert all(frame.info["noisy"].shape == picture.shape for frame, picture in frames)
            assert torch.equal(frames[-1][0].info["noisy"], frames[-1][1]), "at the end nothing is left of the noise"
    levels = [float(frame.info["sigma"]) for frame, _ in frames if "sigma" in frame.info]
    rises = sum(
        after > before for before, after in itertools.pairwise(levels)
    )  # back towards noise: the network is not asked
    calls = sampler.evaluations(run.model, run.spec)
    assert calls + rises >= total or (calls == 0 and name == "classical"), "all but one ask the network at each step"


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_sampling_leaves_the_global_generator_alone(name: str, model: str) -> None:
    run = run_of(model)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = drawn(run, name, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(drawn(run, name, 2), first)


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_guidance_changes_the_image_where_there_is_a_condition(name: str, model: str) -> None:
    run = run_of(model)
    if SAMPLERS[name].unguided:
        with pytest.raises(GencliError, match="guidance 4 means nothing"):
            drawn(run, name, 3, guidance=4.0)
        return
    plain, guided = (drawn(run, name, 3, guidance=scale) for scale in (1.0, 4.0))
    assert torch.equal(plain, guided) == (not run.model.spec.cond), "without a condition there is nothing to guide by"


@pytest.mark.parametrize("model", MODELS)
def test_a_sampler_that_does_not_fit_a_model_says_why(model: str) -> None:
    run = run_of(model)
    for name, sampler in SAMPLERS.items():
        fits = sampler.fits(MODELS[model])
        if fits and (sampler.interface is not Denoiser or run.model.meaning in sampler.accepts):
            sampler_of(run, name)
            continue
        with pytest.raises(GencliError) as caught:
            sampler_of(run, name)
        why = f"kind '{run.model.meaning}'" if fits else f"needs a model that offers {sampler.interface.__name__}"
        assert why in caught.value.message and "gencli list samplers" in caught.value.hint, (name, caught.value.message)
