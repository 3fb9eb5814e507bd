"""Laws of the random numbers, and of the types that everything shares."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from gencli import core
from gencli.core import Field, Frozen, Rng, Spec, mix

DRAWS = {
    "normal": lambda rng, n: rng.normal((n, 3, 2)),
    "normal in float64": lambda rng, n: rng.normal((n, 5), torch.float64),
    "uniform": lambda rng, n: rng.uniform((n, 4)),
    "integers": lambda rng, n: rng.integers((n, 4), 1000),
    "stratified": lambda rng, n: rng.stratified(n),
    "multinomial": lambda rng, n: rng.multinomial(torch.tensor([[0.2, 0.5, 0.3]]).expand(n, 3)),
}
each_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


@each_draw
def test_one_batch_of_64_is_two_of_32_and_four_of_16(draw) -> None:
    whole = draw(Rng.batch(7, "main", 3, total=64), 64)
    for parts in (2, 4):
        size = 64 // parts
        made = [draw(Rng.batch(7, "main", 3, total=64, rows=range(i, i + size)), size) for i in range(0, 64, size)]
        assert torch.equal(torch.cat(made), whole)


@each_draw
def test_a_row_of_its_own_seed_is_the_same_in_any_batch(draw) -> None:
    whole = draw(Rng.rows(range(10, 26)), 16)
    for i in (0, 5, 15):
        assert torch.equal(draw(Rng.rows([10 + i]), 1)[0], whole[i])
    mixed = draw(Rng.rows([25, 3, 10]), 3)
    assert torch.equal(mixed[0], whole[15]) and torch.equal(mixed[2], whole[0])


@each_draw
def test_the_same_keys_give_the_same_stream_and_others_do_not(draw) -> None:
    for make in (lambda: Rng.batch(1, "main", total=16), lambda: Rng.rows(range(16))):
        first = draw(make().at("noise", 2), 16)
        assert torch.equal(draw(make().at("noise", 2), 16), first)
        assert torch.equal(draw(make().at("noise").at(2), 16), first), "keys add up"
        for other in (
            make(),
            make().at("noise", 3),
            make().at("noise"),
            make().at(2, "noise"),
            make().at("noise", "2"),
        ):
            assert not torch.equal(draw(other, 16), first)


def test_drawing_from_one_stream_does_not_move_another() -> None:
    rng = Rng.rows([1, 2])
    expected = rng.at("b").normal((2, 4))
    rng.normal((2, 100))
    rng.at("a").normal((2, 7))
    assert torch.equal(rng.at("b").normal((2, 4)), expected)


def test_a_stream_moves_on() -> None:
    for rng in (Rng.rows([1, 2]), Rng.batch(1, total=2)):
        assert not torch.equal(rng.normal((2, 4)), rng.normal((2, 4)))


def test_seeds_and_phases_and_steps_give_uncorrelated_numbers() -> None:
    keys = [(s, phase, step) for s in range(3) for phase in ("main", "critic") for step in range(3)]
    drawn = torch.stack([Rng.batch(*key, total=1).normal((1, 4000))[0] for key in keys])
    apart = drawn.corrcoef() - torch.eye(len(keys))
    assert apart.abs().max() < 5 / 4000**0.5
    rows = Rng.rows(range(16)).normal((16, 4000)).corrcoef() - torch.eye(16)
    assert rows.abs().max() < 5 / 4000**0.5


def test_the_seed_of_keys_is_the_same_on_every_machine() -> None:
    assert mix(0, "weights") == mix(0, "weights") != mix("0", "weights")
    assert mix(1, 23) != mix(12, 3) and 0 <= mix("any") < 2**63
    assert mix(0, "main", 1) == 5625994252565690731


def test_the_number_of_rows_must_be_that_of_the_rng() -> None:
    with pytest.raises(AssertionError, match="asked for 3 rows of an Rng of 2"):
        Rng.rows([1, 2]).normal((3, 2))
    with pytest.raises(AssertionError):
        Rng.batch(1, total=8, rows=range(2, 4)).normal((8, 2))
    assert Rng.rows([]).normal((0, 3)).shape == (0, 3)
    assert len(Rng.batch(1, total=8, rows=range(2, 4))) == 2


def test_stratified_numbers_of_a_batch_are_evenly_spaced_and_uniform_over_steps() -> None:
    drawn = torch.stack([Rng.batch(step, total=10).stratified(10) for step in range(2000)])
    assert torch.allclose(drawn.sort(1).values.diff(dim=1), torch.full((2000, 9), 0.1), atol=1e-6)
    for row in drawn[:, :3].T:  # each row's own number is uniform
        deciles = (row * 10).long().bincount(minlength=10) / 200 - 1
        assert row.min() >= 0 and row.max() < 1 and float((deciles.square() * 200).sum()) < 27.9  # p = 0.001
    alone = Rng.rows(range(2000)).stratified(2000)
    assert len(alone.unique()) > 1990 and abs(float(alone.mean()) - 0.5) < 0.03


def test_rows_know_their_places_in_the_global_batch() -> None:
    assert Rng.batch(1, total=8, rows=range(2, 5)).places.tolist() == [2, 3, 4]
    assert Rng.rows([7, 9]).at("x").places.tolist() == [0, 1]


def test_a_categorical_draw_has_exactly_the_frequencies_of_its_probabilities() -> None:
    p = torch.tensor([0.1, 0.0, 0.25, 0.65])
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = Rng.batch(0, total=1000).multinomial(p.expand(1000, 4), u)
    assert drawn.bincount(minlength=4).tolist() == [100, 0, 250, 650]
    assert Rng.batch(0, total=1000).multinomial(7 * p.expand(1000, 4), u).equal(drawn), "weights need no normalising"


def test_a_value_of_probability_zero_is_never_drawn() -> None:
    p = torch.tensor([[0.0, 0.0, 0.3, 0.0, 0.7, 0.0]])
    almost = torch.tensor([0.0, 0.3, 0.7, torch.nextafter(torch.tensor(1.0).double(), torch.tensor(0.0).double()), 1.0])
    drawn = Rng.batch(0, total=5).multinomial(p.expand(5, 6), almost.double())
    assert {*drawn.tolist()} <= {2, 4} and drawn[0] == 2 and drawn[-1] == 4
    tiny = torch.full((1, 3000), 1e-9)
    tiny[:, 1500:] = 0
    ends = torch.tensor([1.0], dtype=torch.float64)
    assert Rng.batch(0, total=1).multinomial(tiny, ends).item() == 1499


def test_random_draws_pass_a_chi_square_test() -> None:
    p = torch.tensor([0.05, 0.15, 0.3, 0.5])
    for drawn in (
        Rng.batch(3, total=8000).multinomial(p.expand(8000, 4)),
        Rng.rows(range(8000)).multinomial(p.expand(8000, 4)),
    ):
        expected = p * 8000
        assert float(((drawn.bincount(minlength=4) - expected) ** 2 / expected).sum()) < 16.3  # p = 0.001, 3 degrees


# --------------------------------------------------------------------------------------------------------------- types


def test_a_field_knows_its_size_and_does_not_change() -> None:
    assert Field("image", (3, 8, 8)).size == 192 and Field("label", (), vocab=10).size == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        Spec(Field("label", ())).x = None  # type: ignore[misc, assignment]


def test_frozen_modules_belong_to_nobody() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.teacher = nn.Linear(2, 2), Frozen(net=nn.Linear(3, 3))

    owner = Owner()
    assert [name for name, _ in owner.named_parameters()] == ["own.weight", "own.bias"]
    assert all(not p.requires_grad for p in owner.teacher.net.parameters()) and not owner.teacher.net.training
    assert copy.deepcopy(owner).teacher is owner.teacher and not any("teacher" in key for key in owner.state_dict())
    assert owner.teacher.to("meta").net.weight.is_meta
    with pytest.raises(AttributeError):
        owner.teacher.absent  # noqa: B018


def test_full_precision_switches_autocast_off() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with core.full_precision():
            assert (x @ x).dtype == torch.float32


def test_rows_broadcast_over_whatever_follows() -> None:
    like = torch.zeros(4, 3, 2, 2)
    assert core.as_rows(torch.arange(4.0), like).shape == (4, 1, 1, 1)
    assert (core.as_rows(torch.tensor(2.0), like) + like).shape == like.shape


def test_one_process_is_a_world_of_one() -> None:
    assert core.world() == core.World(0, 1) and core.world().main
    assert torch.equal(core.all_reduce(torch.ones(3)), torch.ones(3))
