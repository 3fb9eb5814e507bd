"""Laws that every registered model keeps, checked on its recipe in miniature; a new model needs no change here."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import of_run, opened, resumed, session, shaken, smoke
from torch import Tensor, nn

from gencli import registry
from gencli.bundle import DEFAULT_SAMPLERS, Run
from gencli.config import merge, parse
from gencli.core import Autoencoder, Batch, Classifier, Rng, Turn
from gencli.evaluation.conditions import conditions_for
from gencli.evaluation.generate import Request, samples
from gencli.training.settings import TrainConfig
from gencli.training.trainer import Trainer

MODELS = sorted(registry.entries("models"))
N = 8


class Few:
    """The first items of a split."""

    def __init__(self, items: Any, n: int = N) -> None:
        self.items, self.n = items, n

    def __len__(self) -> int:
        return self.n

    def batch(self, indices: Tensor) -> Batch:
        return self.items.batch(indices)


def trainer(name: str, shake: bool = True, **train: Any) -> Trainer:
    """A prepared trainer on eight items."""
    tables = merge(smoke(name), {"train": {"batch_size": N, "schedule": "constant", "warmup": 0, **train}})
    data = opened(tables["data"])
    torch.manual_seed(0)
    run = Run.build(tables, data.spec)
    if shake:
        shaken(run.model)
    items = Few(data.split("train"))
    return of_run(run, items, parse(TrainConfig, tables["train"], "train"))


def turn(phase: str, rows: range = range(N), key: int = 0) -> Turn:
    return Turn(phase, 0, 10, Rng.batch("law", key, total=N, rows=rows))


def batch_of(one: Trainer) -> Batch:
    return one._encode(torch.arange(N), Rng.batch("law", total=N))


@cache
def finished(name: str, root: Path) -> Path:
    made = session(root, smoke(name))
    events = list(made.events())
    assert events[-1].kind == "done"
    return made.folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


# ---------------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_finite_and_is_the_mean_over_items(name: str) -> None:
    one = trainer(name)
    for phase in one.phases:
        losses = one.model.loss(batch_of(one), turn(phase.name))
        for key, value in losses.items():
            assert torch.isfinite(value).all(), (phase.name, key)
        assert losses["loss"].ndim == 0
        if "each" in losses:
            assert losses["each"].shape == (N,)
            torch.testing.assert_close(losses["each"].mean(), losses["loss"])


@pytest.mark.parametrize("name", MODELS)
def test_all_randomness_comes_from_the_turn(name: str) -> None:
    one = trainer(name)
    for module in one.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the one thing that may use the global generator, which the trainer seeds at every turn
    batch = batch_of(one)
    for phase in one.phases:
        made = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            made.append(copy.deepcopy(one.model).loss(batch, turn(phase.name))["loss"])
        assert torch.equal(*made), f"{phase.name} draws from the global generator"


@pytest.mark.parametrize("name", MODELS)
def test_an_items_loss_does_not_depend_on_the_others(name: str) -> None:
    one = trainer(name)
    if one.model.couples:
        pytest.skip("declares that its items are coupled")
    batch = batch_of(one)
    for phase in one.phases:
        whole = copy.deepcopy(one.model).loss(batch, turn(phase.name))
        if "each" not in whole:
            continue
        half = {key: value[N // 2 :] for key, value in batch.items()}
        part = copy.deepcopy(one.model).loss(half, turn(phase.name, range(N // 2, N)))
        torch.testing.assert_close(part["each"], whole["each"][N // 2 :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_one_batch_equals_two_micro_batches(name: str) -> None:
    made = []
    for parts in (1, 2):
        one = trainer(name, lr=0.0, clip=0.0, weight_decay=0.0, grad_accum=parts)
        if one.model.couples:
            pytest.skip("declares that its items are coupled")
        for module in one.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        shown = one.take_step().losses
        grads = {key: p.grad for key, p in one.model.named_parameters() if p.grad is not None}
        made.append({"loss": shown["loss"], **grads, **one.model.state_dict()} if "loss" in shown else grads)
    assert made[0].keys() == made[1].keys()
    for key, value in made[0].items():
        torch.testing.assert_close(made[1][key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


# ------------------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", MODELS)
def test_every_trainable_parameter_has_a_gradient_and_nothing_else_moves(name: str) -> None:
    one = trainer(name, lr=0.01)
    mine = {key for params in one.params.values() for key in params}
    assert mine == {key for key, p in one.model.named_parameters() if p.requires_grad}, "each belongs to a phase"
    for phase in one.phases:
        before = {key: p.detach().clone() for key, p in one.model.named_parameters()}
        for p in one.model.parameters():
            p.grad = None
        batches = one._micro_batches()
        one._take_turn(phase, batches)
        params = one.params[phase.name]
        missing = [key for key, p in params.items() if p.grad is None]
        assert not missing, f"no gradient in phase {phase.name}: {missing[:5]}"
        moved = {key for key, p in one.model.named_parameters() if not torch.equal(p.detach(), before[key])}
        assert moved <= set(params), f"phase {phase.name} moved {sorted(moved - set(params))[:5]}"
        assert moved or not params


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_loss_on_a_fixed_batch(name: str) -> None:
    one = trainer(name, shake=False, steps=40, lr=3e-3, ema=0.0, ema_decay=0.0)
    improves = getattr(one.model, "improves", "loss" if len(one.phases) == 1 else None)
    assert improves is not None, "a model of several phases says by `improves` which of its terms falls"
    batch, phase = batch_of(one), one.phases[0].name

    def measured() -> float:
        with torch.no_grad():
            drawn = [copy.deepcopy(one.model).loss(batch, turn(phase, key=key)) for key in range(4)]
        return sum(float(losses[improves.rsplit("/", 1)[-1]]) for losses in drawn)

    before = measured()
    for _ in range(40):
        one.take_step()
    assert measured() < 0.95 * before


# --------------------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("name", MODELS)
def test_the_smoke_recipe_trains_saves_and_loads_to_equal_outputs(name: str, root: Path) -> None:
    folder = finished(name, root)
    loaded, again = Run.load(folder), Run.load(folder)
    shown = session_outputs(loaded)
    assert shown and all(torch.equal(a, b) for a, b in zip(shown, session_outputs(again), strict=True))
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = loaded.model.state_dict()
    for key, value in stored.items():
        assert torch.equal(state[key], value), key
        assert torch.isfinite(value).all(), key
    assert not any(key.startswith(tuple(loaded.model.training_only)) for key in stored if loaded.model.training_only)
    assert (
        sum(p.numel() for p in loaded.model.parameters())
        == json.loads((folder / "config.json").read_text())["parameters"]
    )
    assert list((folder / "samples").glob("*.png")), "training shows a picture of itself"


def session_outputs(run: Run) -> list[Tensor]:
    """What a person gets from a run: samples, reconstructions, or classes."""
    made = []
    if any(isinstance(run.model, interface) for interface, _ in DEFAULT_SAMPLERS):
        seeds = range(2)
        made.append(samples(run, Request(seeds, conditions_for(run, seeds))))
    if isinstance(run.model, Autoencoder):
        shape = run.model.spec.x.shape
        x = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            made.append(run.model.decode(run.model.encode(x)))
    if isinstance(run.model, Classifier):
        x = torch.rand((2, *run.model.spec.x.shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            made.append(run.model.class_logits(x))
            if not getattr(run.model, "clean_only", False):
                made.append(run.model.class_logits(x, torch.tensor(3.0)))
    return made


@pytest.mark.parametrize("name", MODELS)
def test_a_finished_smoke_run_goes_on(name: str, root: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(finished(name, root), tmp_path / name))
    steps = smoke(name)["train"]["steps"]
    events = resumed(folder, steps=steps + 1)
    assert f"resumed at step {steps}" in [event.text for event in events]
    assert events[-1].kind == "done" and events[-1].step == steps + 1


# ------------------------------------------------------------------------------------------------------------------- what it is


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_says_it_offers_is_what_it_has(name: str) -> None:
    entry, cls = registry.entry("models", name), registry.load("models", name)
    offers = " ".join(entry.offers)
    known = {s: registry.load("samplers", s) for s in registry.entries("samplers")}
    fitting = [s for s, sampler in known.items() if sampler.fits(cls) and not sampler.takes]
    assert ("sample" in entry.offers) == bool(fitting), (entry.offers, fitting)
    assert ("encode" in offers) == hasattr(cls, "encode") and ("reconstruct" in offers) == hasattr(cls, "reconstruct")
    kinds = {"exact": "exact density", "bound": "bound"}
    likelihood = getattr(cls, "likelihood", None)
    assert [kind for kind, word in kinds.items() if word in offers] == ([likelihood] if likelihood else [])
    assert entry.title and entry.authors and entry.year
    unnumbered = name in ("imagegpt", "beta-vae", "cvae") or int(entry.year) <= 2011
    assert entry.arxiv or unnumbered, "only papers from before arXiv was the custom, and these three, have no number"


@pytest.mark.parametrize("name", MODELS)
def test_an_autoencoders_latents_are_what_it_declares(name: str) -> None:
    model = trainer(name).model.eval()
    if not isinstance(model, Autoencoder):
        pytest.skip("encodes nothing")
    x = torch.rand((3, *model.spec.x.shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = model.encode(x)
        assert z.shape == (3, *model.latent.shape) and model.decode(z).shape == x.shape
    if model.latent.vocab:
        assert z.dtype == torch.long and int(z.min()) >= 0 and int(z.max()) < model.latent.vocab
