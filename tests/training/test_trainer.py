"""Laws of the one trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tiny import POINTS, Points, bare, of_run, shaken, table, trainer
from torch import Tensor, nn

from gencli.config import NoSettings, opt
from gencli.core import Batch, Losses, Model, Phase, Turn
from gencli.errors import GencliError
from gencli.training import optim
from gencli.training.ema import Average, gamma_of
from gencli.training.faults import NotFinite
from gencli.training.settings import TrainConfig

MODELS = ["ddpm", "vqvae", "gated-pixelcnn", "pixelcnn"]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


# ----------------------------------------------------------------------------------------------------- splitting the batch


class Seen(Model):
    """Records the items and the noise of every micro-batch."""

    def __init__(self) -> None:
        super().__init__(NoSettings(), POINTS)
        self.net = nn.Linear(3, 3)
        self.rows: list[tuple[Tensor, Tensor]] = []

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        noise = turn.rng.at("noise").normal(batch["x"].shape)
        self.rows.append((batch["x"], noise))
        each = (self.net(batch["x"] + noise) - batch["x"]).square().sum(1)
        return {"loss": each.mean(), "each": each}


@pytest.mark.parametrize("name", MODELS)
def test_one_batch_of_eight_equals_two_and_four_micro_batches(name: str) -> None:
    made = {}
    for parts in (1, 2, 4):
        one = trainer(table(name, grad_accum=parts, lr=0.0))  # Adam would blow up the rounding of tiny gradients
        shaken(one.model)
        losses, grads = [], []
        for _ in range(3):
            losses.append(float(one.take_step().losses["loss"]))
            grads.append({key: p.grad.clone() for key, p in one.model.named_parameters()})
        made[parts] = losses, grads, weights(one.model)
    assert max(float(g.abs().max()) for g in made[1][1][0].values()) > 1e-3
    for parts in (2, 4):
        assert made[parts][0] == pytest.approx(made[1][0], rel=1e-5)
        for ours, whole in zip([*made[parts][1], made[parts][2]], [*made[1][1], made[1][2]], strict=True):
            for key, value in whole.items():
                torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_micro_batches_hold_the_same_items_and_the_same_noise() -> None:
    rows = {}
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        one = of_run(bare(Seen()), Points(), TrainConfig(steps=9, batch_size=8, grad_accum=parts, seed=3))
        for _ in range(9):
            one.take_step()
        assert len(one.model.rows) == 9 * parts
        rows[parts] = [torch.cat(part) for part in zip(*one.model.rows, strict=True)]
    for parts in (2, 4):
        assert torch.equal(rows[parts][0], rows[1][0]) and torch.equal(rows[parts][1], rows[1][1])
    noise = rows[1][1]
    assert len(torch.unique(noise, dim=0)) == len(noise), "steps must not repeat noise"


def test_every_item_comes_once_an_epoch_and_epochs_differ_in_order() -> None:
    one = of_run(bare(Seen()), Points(24), TrainConfig(steps=9, batch_size=8))
    for _ in range(6):
        one.take_step()
    seen = torch.cat([x for x, _ in one.model.rows])
    for epoch in (seen[:24], seen[24:]):
        assert torch.equal(epoch.sort(dim=0).values, Points(24).x.sort(dim=0).values)
    assert not torch.equal(seen[:24], seen[24:])


class Weighted(Model):
    """A loss that is a mean over a number of terms which differs between micro-batches."""

    def __init__(self) -> None:
        super().__init__(NoSettings(), POINTS)
        self.net = nn.Linear(3, 1)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        kept = batch["x"][:, 0] > 0
        each = self.net(batch["x"]).square().sum(1)[kept]
        return {"loss": each.sum() / kept.sum().clamp(min=1), "weight": kept.sum().float()}


def test_a_loss_with_its_own_weight_is_averaged_over_terms_not_over_micro_batches() -> None:
    made = {}
    for parts in (1, 4):
        torch.manual_seed(0)
        one = of_run(bare(Weighted()), Points(), TrainConfig(steps=5, batch_size=16, grad_accum=parts, lr=0.0))
        losses = [float(one.take_step().losses["loss"]) for _ in range(5)]
        made[parts] = losses, one.model.net.weight.grad
    assert made[4][0] == pytest.approx(made[1][0], rel=1e-5)
    torch.testing.assert_close(made[4][1], made[1][1], rtol=1e-4, atol=1e-6)
    x = one._micro_batches()  # the next step's items
    assert sum(len(rows) for rows, _, _ in x) == 16
    plain = Weighted()
    plain.load_state_dict(one.model.state_dict())
    whole = {"x": torch.cat([batch["x"] for _, _, batch in x])}
    plain.loss(whole, one._turn(one.phases[0], range(16)))["loss"].backward()
    one.take_step()
    torch.testing.assert_close(one.model.net.weight.grad, plain.net.weight.grad, rtol=1e-4, atol=1e-6)


def test_a_batch_that_cannot_be_split_is_refused_with_both_numbers() -> None:
    with pytest.raises(GencliError, match=r"batch size 8 .* 3 micro-batches") as caught:
        trainer(table("ddpm", grad_accum=3))
    assert "multiple of 3" in caught.value.hint


# ------------------------------------------------------------------------------------------------------------------ phases


@dataclass(frozen=True)
class PairConfig:
    bias: float = opt(0.0, "unused")


class Pair(Model):
    """A critic that is trained every step, a generator every second step with its own rate, and a frozen tail."""

    Config: ClassVar[type[Any]] = PairConfig
    improves = "critic/loss"

    def __init__(self) -> None:
        super().__init__(PairConfig(), POINTS)
        self.net = nn.Linear(3, 3)
        self.critic = nn.Linear(3, 1)
        self.tail = nn.Linear(1, 1).requires_grad_(False)
        self.turns: list[tuple[str, int, int]] = []
        self.after: list[str] = []
        self.awake: list[set[str]] = []
        self.moved: list[set[str]] = []
        self._before = weights(self)

    def phases(self) -> list[Phase]:
        optim = {"lr": 0.02, "warmup": 2, "betas": (0.0, 0.9)}
        return [Phase("critic", (self.critic, self.tail)), Phase("generator", (self.net,), every=2, optim=optim)]

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        self.turns.append((turn.phase, turn.step, turn.steps))
        self.awake.append({name for name, p in self.named_parameters() if p.requires_grad})
        made = self.net(turn.rng.normal(batch["x"].shape))
        if turn.phase == "generator":
            return {"loss": -self.tail(self.critic(made)).mean()}
        return {"loss": (self.critic(made) - self.critic(batch["x"])).mean() + self.critic.weight.square().sum()}

    def after_step(self, turn: Turn) -> None:
        now = weights(self)
        self.moved.append({name for name in now if not torch.equal(now[name], self._before[name])})
        self.after.append(turn.phase)
        self._before = now


def test_each_phase_moves_its_own_parameters_only_and_keeps_its_own_turns() -> None:
    torch.manual_seed(0)
    one = of_run(bare(Pair()), Points(), TrainConfig(steps=5, batch_size=8, lr=0.1))
    steps = [one.take_step() for _ in range(5)]
    model = one.model
    assert model.after == ["critic", "generator", "critic", "critic", "generator", "critic", "critic", "generator"]
    for phase, moved in zip(model.after, model.moved, strict=True):
        prefix = {"critic": "critic.", "generator": "net."}[phase]
        assert moved and all(name.startswith(prefix) for name in moved), (phase, moved)
    for (phase, _, _), awake in zip(model.turns, model.awake, strict=True):
        prefix = {"critic": "critic.", "generator": "net."}[phase]
        assert awake == {f"{prefix}weight", f"{prefix}bias"}, "the others need no gradient meanwhile"
    assert [t for t in model.turns if t[0] == "generator"] == [("generator", i, 3) for i in range(3)]
    assert [t for t in model.turns if t[0] == "critic"] == [("critic", i, 5) for i in range(5)]
    critic, generator = ({f"{phase}/loss", f"{phase}/grad_norm"} for phase in ("critic", "generator"))
    assert set(steps[0].losses) == critic | generator and set(steps[1].losses) == critic


def test_a_phases_schedule_counts_its_own_turns_and_its_own_settings_win() -> None:
    one = of_run(bare(Pair()), Points(), TrainConfig(steps=6, batch_size=8, lr=0.1, schedule="cosine"))
    rates: dict[str, list[float]] = {"critic": [], "generator": []}
    for step in range(6):
        one.take_step()
        for phase in rates if step % 2 == 0 else ["critic"]:
            rates[phase].append(one.optimisers[phase].param_groups[0]["lr"])
    critic = [0.1 * 0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    generator = [0.02 * 0.5, 0.02, 0.02]  # a warm-up of 2 of the phase's own 3 turns; the cosine starts after it
    assert rates["critic"] == pytest.approx(critic)
    assert rates["generator"] == pytest.approx(generator)
    assert one.optimisers["generator"].param_groups[0]["betas"] == (0.0, 0.9)
    assert one.optimisers["critic"].param_groups[0]["betas"] == (0.9, 0.999)


def test_a_frozen_parameter_of_a_phase_never_moves() -> None:
    one = of_run(bare(Pair()), Points(), TrainConfig(steps=4, batch_size=8, weight_decay=0.5, optimizer="adamw"))
    before = weights(one.model.tail)
    for _ in range(4):
        one.take_step()
    torch.testing.assert_close(weights(one.model.tail), before, rtol=0, atol=0)
    assert not any(p.requires_grad for p in one.model.tail.parameters())


class Shared(Model):
    """A regulariser that steps another phase's optimiser, as lazy R1 does."""

    def __init__(self) -> None:
        super().__init__(NoSettings(), POINTS)
        self.net = nn.Linear(3, 1)
        self.watch = 0

    def phases(self) -> list[Phase]:
        return [Phase("main", (self.net,)), Phase("lazy", (self.net,), every=3, shares="main"), Phase("count")]

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if turn.phase == "count":
            self.watch += 1
            return {"loss": batch["x"].new_zeros(())}
        return {"loss": (self.net(batch["x"]) - 1).square().mean()}


def test_a_phase_may_share_an_optimiser_and_one_without_modules_has_none() -> None:
    one = of_run(bare(Shared()), Points(), TrainConfig(steps=4, batch_size=8))
    for _ in range(4):
        one.take_step()
    assert set(one.optimisers) == {"main"} and one.model.watch == 4
    (state,) = {int(s["step"]) for s in one.optimisers["main"].state.values()}
    assert state == 4 + 2


# ----------------------------------------------------------------------------------------------------------------- averages


def test_gamma_is_the_inverse_of_the_profiles_relative_width() -> None:
    for sigma in (0.01, 0.05, 0.1, 0.2, 0.28):
        g = gamma_of(sigma)
        assert math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(sigma, rel=1e-9)
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01) and gamma_of(0.1) == pytest.approx(6.94, abs=0.01)


class Two(Model):
    """A float parameter, a float buffer, an integer buffer, and batch statistics."""

    training_only = ("hidden",)

    def __init__(self) -> None:
        super().__init__(NoSettings(), POINTS)
        self.net = nn.Parameter(torch.zeros(2))
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("book", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("hidden", torch.zeros(1))

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        return {"loss": self.net.sum()}


def test_the_power_average_has_the_asked_width_whatever_the_length_of_the_run() -> None:
    for steps in (200, 2000):
        model, made = Two(), []
        average = Average(model, 0.1, 0.0)
        profile = torch.zeros(steps, dtype=torch.float64)
        for t in range(1, steps + 1):
            profile *= average.beta(t)
            profile[t - 1] += 1 - average.beta(t)
        place = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        mean = float((profile * place).sum())
        made.append(math.sqrt(float((profile * (place - mean) ** 2).sum())))
        assert float(profile.sum()) == pytest.approx(1)
        assert made[0] == pytest.approx(0.1, abs=0.003), steps


def test_averages_cover_buffers_copy_integers_and_batch_statistics_and_leave_out_training_state() -> None:
    model = Two()
    average = Average(model, 0.0, 0.5)
    assert "hidden" not in average.state
    expected = 0.0
    for t in range(1, 4):
        model.net.data.fill_(t)
        model.book.fill_(t)
        model.norm.running_mean.fill_(t)
        model.count.fill_(t)
        average.update(model, t)
        beta = min(0.5, (1 + t) / (10 + t))
        expected = beta * expected + (1 - beta) * t
    assert average.state["net"].tolist() == pytest.approx([expected] * 2)
    assert average.state["book"].tolist() == pytest.approx([expected] * 2)
    assert average.state["norm.running_mean"].tolist() == [3, 3] and int(average.state["count"]) == 3
    with average.worn_by(model):
        assert model.net.tolist() == pytest.approx([expected] * 2) and not model.training
    assert model.net.tolist() == [3, 3] and model.training


def test_a_constant_decay_is_warmed_up_and_reaches_its_value() -> None:
    average = Average(Two(), 0.1, 0.999)
    assert average.beta(1) == pytest.approx(2 / 11) and average.beta(90) == pytest.approx(91 / 100)
    assert average.beta(100_000) == 0.999


def test_without_an_average_the_weights_themselves_are_kept() -> None:
    one = trainer(table("ddpm", ema=0.0))
    for _ in range(3):
        one.take_step()
    for name, value in one.average.state.items():
        assert torch.equal(value, one.model.state_dict()[name]), name


# ------------------------------------------------------------------------------------------------------ rates and optimisers


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate_curve_is_the_same_for_every_grad_accum(schedule: str) -> None:
    curves = []
    for parts in (1, 2, 4):
        one = of_run(
            bare(Seen()),
            Points(),
            TrainConfig(steps=8, batch_size=8, lr=0.5, warmup=3, schedule=schedule, grad_accum=parts),
        )
        curve = []
        for _ in range(8):
            one.take_step()
            curve.append(one.optimisers["main"].param_groups[0]["lr"])
        curves.append(curve)
    assert curves[0] == curves[1] == curves[2]
    assert curves[0][:3] == pytest.approx([0.5 / 3, 1 / 3, 0.5])
    last = 0.5 if schedule == "constant" else 0.25 * (1 + math.cos(math.pi * 4 / 5))
    assert curves[0][-1] == pytest.approx(last)


class Mixed(Model):
    """A matrix, a bias and an embedding, none of which gets a gradient from the loss."""

    def __init__(self) -> None:
        super().__init__(NoSettings(), POINTS)
        self.net = nn.Linear(3, 3)
        self.names = nn.Embedding(4, 3)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        return {"loss": sum(p.sum() for p in self.parameters()) * 0.0}


def test_weight_decay_skips_vectors_and_embeddings() -> None:
    one = of_run(
        bare(Mixed()), Points(), TrainConfig(steps=1, batch_size=8, lr=0.1, weight_decay=0.5, optimizer="adamw")
    )
    before = weights(one.model)
    one.take_step()
    after = weights(one.model)
    torch.testing.assert_close(after["net.weight"], before["net.weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(after["net.bias"], before["net.bias"])
    assert torch.equal(after["names.weight"], before["names.weight"])


def test_gradients_are_clipped_to_the_asked_norm() -> None:
    one = of_run(bare(Seen()), Points(), TrainConfig(steps=1, batch_size=8, grad_accum=2, clip=0.01))
    shown = one.take_step().losses
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in one.model.parameters()))
    assert float(shown["grad_norm"]) > 0.01 and norm == pytest.approx(0.01, rel=1e-3)


# ------------------------------------------------------------------------------------------------------- randomness, faults


def test_dropout_depends_on_the_step_alone() -> None:
    tables = table("ddpm", {"model": {"net": {"dropout": 0.5}}})
    whole = trainer(tables)
    for _ in range(3):
        whole.take_step()
    again = trainer(tables)
    again.take_step()
    torch.manual_seed(999)  # whatever else the process draws
    torch.rand(7)
    again.take_step()
    again.take_step()
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(again.model)[name]), name
    other = trainer(table("ddpm", {"model": {"net": {"dropout": 0.0}}}))
    for _ in range(3):
        other.take_step()
    assert not torch.equal(next(other.model.parameters()), next(whole.model.parameters())), "dropout must be on"


def test_a_loss_that_is_not_finite_names_the_step_the_items_and_the_first_layer() -> None:
    one = trainer(table("ddpm"))
    one.take_step()
    names = dict(one.model.net.named_modules())
    victim = next(name for name, m in names.items() if isinstance(m, nn.Conv2d) and "." in name)
    names[victim].register_forward_hook(lambda module, inputs, output: output / 0)
    before = weights(one.model)
    with pytest.raises(NotFinite, match="not finite at step 2") as caught:
        one.take_step()
    bundle = caught.value.bundle
    assert bundle["step"] == 2 and len(bundle["items"]) == 8 and bundle["seed"] == 0 and bundle["phase"] == "main"
    assert victim in bundle["layer"] and "Conv2d" in bundle["layer"] and victim in caught.value.message
    assert caught.value.code == 1
    assert all(torch.equal(value, before[name]) for name, value in weights(one.model).items()), "no step was taken"


def test_a_weight_that_is_not_finite_is_named() -> None:
    one = trainer(table("ddpm"))
    name, parameter = next(iter(one.model.named_parameters()))
    parameter.data.flatten()[0] = math.nan
    with pytest.raises(NotFinite) as caught:
        one.take_step()
    assert caught.value.bundle["layer"] == f"{name} (weights)"


def test_optimiser_state_goes_through_tensors_and_back() -> None:
    one = trainer(table("ddpm"))
    one.take_step()
    params = one.params["main"]
    stored = optim.state_tensors(one.optimisers["main"], params)
    fresh = optim.make(one.train, params, one.model)
    optim.load_state(fresh, params, stored)
    assert {k.split("/")[0] for k in stored} == {"step", "exp_avg", "exp_avg_sq"} and len(stored) == 3 * len(params)
    for parameter in params.values():
        for key, value in one.optimisers["main"].state[parameter].items():
            assert torch.equal(fresh.state[parameter][key], value)
