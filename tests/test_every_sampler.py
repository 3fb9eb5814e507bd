"""Laws that every registered sampler keeps with every model that it fits."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tiny import opened, shaken, smoke
from torch import Tensor

from gencli import registry
from gencli.bundle import Run
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.evaluation.generate import Request, labels_for, samples

PAIRS = [
    (sampler, model)
    for sampler in registry.entries("samplers")
    for model in registry.entries("models")
    if registry.load("samplers", sampler).fits(registry.load("models", model))
]


@cache
def run_of(model: str) -> Run:
    """An untrained run with random non-zero weights."""
    tables = smoke(model)
    torch.manual_seed(0)
    run = Run.build(tables, opened(tables["data"]).spec)
    shaken(run.model, 0.3)
    run.model.eval().requires_grad_(False)
    return run


def sampler_of(run: Run, name: str) -> Any:
    fields = registry.load("samplers", name).Config.__dataclass_fields__
    return run.sampler(name, {"steps": 4} if "steps" in fields else {})


def drawn(run: Run, name: str, n: int, **kwargs: Any) -> Tensor:
    seeds = range(n)
    return samples(run, Request(seeds, labels_for(run, seeds, None), sampler_of(run, name), **kwargs))


def test_every_sampler_fits_some_model() -> None:
    assert {sampler for sampler, _ in PAIRS} == set(registry.entries("samplers"))


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_image_i_is_the_same_whatever_the_batch(name: str, model: str) -> None:
    run = run_of(model)
    seven = drawn(run, name, 7)
    assert seven.shape == (7, *run.data_spec.x.shape) and seven.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in seven}) == 7, "seeds differ"
    for other in (drawn(run, name, 1), drawn(run, name, 7, micro=3), drawn(run, name, 7, micro=1)):
        assert (other.int() - seven[: len(other)].int()).abs().max() <= 1


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_exact_images_are_bit_equal_whatever_the_number(name: str, model: str) -> None:
    run = run_of(model)
    seven = drawn(run, name, 7, exact=True, micro=8)
    for n in (1, 4, 17):
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
    sampler, cond = sampler_of(run, name), labels_for(run, range(2), None)
    guidance = run.guidance if cond else 1.0
    for every in (True, False):
        frames = list(run.frames(Rng.rows([0, 1]), cond, sampler, guidance, every=every))
        total = frames[0][0].total
        assert [frame.index for frame, _ in frames] == list(range(total)) and {f.total for f, _ in frames} == {total}
        assert torch.equal(frames[-1][1], drawn(run, name, 2))
    assert sampler.evaluations(run.model, run.spec) >= total


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
def test_guidance_changes_the_image_and_scale_one_does_not(name: str, model: str) -> None:
    run = run_of(model)
    plain, one, two = (drawn(run, name, 3, guidance=scale) for scale in (1.0, 1.0, 4.0))
    assert torch.equal(plain, one)
    assert torch.equal(plain, two) == (not run.model.spec.cond), "without a condition there is nothing to guide by"


@pytest.mark.parametrize("name", sorted(registry.entries("samplers")))
@pytest.mark.parametrize("model", sorted(registry.entries("models")))
def test_a_model_that_does_not_fit_is_refused(name: str, model: str) -> None:
    if (name, model) in PAIRS:
        sampler_of(run_of(model), name)
        return
    with pytest.raises(GencliError, match="needs a model that offers") as caught:
        sampler_of(run_of(model), name)
    assert "gencli list samplers" in caught.value.hint
