"""The codebook: what it returns, what moves what, and that it neither explodes nor dies."""

import copy
import threading

import pytest
import torch

from gencli import core
from gencli.core import Rng, World
from gencli.nn.quantise import Quantiser, kmeans, perplexity


def normal(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def clusters(count, each, dim=2, seed=0):
    """Tight clusters on a circle of radius 5."""
    angle = torch.arange(count) * (2 * torch.pi / count)
    centres = torch.zeros(count, dim)
    centres[:, 0], centres[:, 1] = 5 * angle.cos(), 5 * angle.sin()
    return (centres[:, None] + normal(count, each, dim, seed=seed, scale=0.02)).flatten(0, 1)


def as_items(rows, n):
    """`(M, D)` as n items `(n, D, M/n)`."""
    return rows.view(n, -1, rows.shape[1]).movedim(-1, 1)


def step(quantiser, z, key=0):
    made = quantiser(z, Rng.batch("test", key, total=len(z)))
    quantiser.update()
    return made


def test_values_are_exactly_the_nearest_codes_and_the_gradient_goes_straight_through():
    quantiser = Quantiser(7, 5).eval()
    z = normal(3, 5, 2, 4).requires_grad_()
    made = quantiser(z)
    distances = (z.movedim(1, -1)[..., None, :] - quantiser.codebook).square().sum(-1)
    assert torch.equal(made.codes, distances.argmin(-1))
    assert torch.equal(made.values, quantiser.lookup(made.codes))
    weight = normal(3, 5, 2, 4, seed=1)
    (made.values * weight).sum().backward()
    assert torch.equal(z.grad, weight)


def test_quantising_twice_changes_nothing():
    quantiser = Quantiser(64, 6).eval()
    once = quantiser(normal(4, 6, 8))
    twice = quantiser(once.values)
    assert torch.equal(once.codes, twice.codes)
    assert torch.equal(once.values, twice.values)


def test_commitment_moves_the_encoder_only_and_the_codebook_loss_the_codes_only():
    quantiser = Quantiser(7, 5, "gradient")
    z = normal(3, 5, 4).requires_grad_()
    made = quantiser(z)
    assert torch.autograd.grad(made.commitment.sum(), [quantiser.codebook], allow_unused=True, retain_graph=True) == (
        None,
    )
    assert torch.autograd.grad(made.codebook.sum(), [z], allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(made.commitment.sum(), z, retain_graph=True)[0].abs().min() > 0
    used = made.codes.unique()
    pull = torch.autograd.grad(made.codebook.sum(), quantiser.codebook)[0]
    assert pull[used].abs().min() > 0
    assert torch.equal(made.commitment, made.codebook)


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_the_first_step_is_one_k_means_step(decay):
    """With decay 0 every step is; with any decay the first, because the averages are debiased."""
    quantiser = Quantiser(6, 3, decay=decay, restart=0)
    before = quantiser.codebook.clone()
    z = normal(8, 3, 20)
    codes = quantiser.eval().nearest(z)
    step(quantiser.train(), z)
    rows, flat = z.movedim(1, -1).flatten(0, 1), codes.flatten()
    for k in range(6):
        expected = rows[flat == k].mean(0) if (flat == k).any() else before[k]
        torch.testing.assert_close(quantiser.codebook[k], expected, rtol=1e-4, atol=1e-5)


def test_decay_zero_forgets_every_earlier_step():
    quantiser = Quantiser(4, 2, decay=0.0, restart=0)
    for i in range(5):
        step(quantiser, normal(4, 2, 30, seed=i))
    z = normal(4, 2, 30, seed=9)
    codes = quantiser.nearest(z).flatten()
    step(quantiser, z)
    rows = z.movedim(1, -1).flatten(0, 1)
    for k in codes.unique():
        torch.testing.assert_close(quantiser.codebook[k], rows[codes == k].mean(0), rtol=1e-4, atol=1e-4)


def test_averages_stay_raw_so_smoothing_never_accumulates():
    quantiser = Quantiser(8, 2, decay=0.9, restart=0, epsilon=0.5)
    expected = torch.zeros(8)
    for i in range(20):
        z = normal(4, 2, 10, seed=i)
        codes = quantiser.nearest(z)
        step(quantiser, z)
        expected = 0.9 * expected + 0.1 * torch.bincount(codes.flatten(), minlength=8)
    torch.testing.assert_close(quantiser.statistics.counts, expected)
    assert quantiser.statistics.counts.sum().item() == pytest.approx(40 * (1 - 0.9**20), rel=1e-5)


def test_a_code_that_nothing_took_keeps_its_place():
    quantiser = Quantiser(3, 2, restart=0)
    quantiser.codebook[2] = 100.0
    for i in range(5):
        step(quantiser, normal(4, 2, 10, seed=i))
    assert torch.equal(quantiser.codebook[2], torch.full((2,), 100.0))


def test_512_codes_on_small_encoder_outputs_neither_explode_nor_die():
    """TRAPS 45: smoothing stored back into the counts threw codes from 0.002 to 193 and lost a third of them."""
    quantiser = Quantiser(512, 8)
    quantiser.codebook.mul_(0.002)
    largest = 0.0
    for i in range(300):
        step(quantiser, normal(16, 8, 32, seed=i, scale=0.05), i)
        largest = max(largest, quantiser.codebook.abs().max().item())
    assert largest < 0.5
    quantiser.statistics.tally.zero_()
    for i in range(10):
        step(quantiser, normal(16, 8, 32, seed=1000 + i, scale=0.05), 1000 + i)
    assert quantiser.usage()[1] > 0.97
    assert quantiser.usage()[0] > 256


def test_512_codes_on_eight_distinct_vectors_stay_finite_and_hit_all_eight():
    rows = normal(8, 4).repeat(16, 1)
    quantiser = Quantiser(512, 4)
    quantiser.initialise(rows, Rng.batch("init", total=1))
    for i in range(150):
        made = step(quantiser, as_items(rows, 8), i)
    assert quantiser.codebook.isfinite().all()
    assert quantiser.codebook.abs().max() < 2 * rows.abs().max()
    assert made.commitment.max() < 1e-5


@pytest.mark.parametrize("restart", [0.1, 0.0])
def test_dead_codes_restart_on_clustered_data_and_without_restarts_they_do_not(restart):
    quantiser = Quantiser(16, 2, decay=0.9, restart=restart)
    quantiser.codebook.copy_(torch.tensor([50.0, 50.0]) + torch.arange(16)[:, None])  # all far away: one code wins
    rows = clusters(16, 32)
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    quantiser.statistics.epoch.fill_(len(rows) * 20)
    for i in range(400):
        step(quantiser, as_items(shuffled, 8), i)
    found = perplexity(torch.bincount(quantiser.nearest(as_items(rows, 8)).flatten(), minlength=16))
    assert (found > 12) if restart else (found < 2)


def test_gradient_codebook_also_restarts_dead_codes():
    quantiser = Quantiser(8, 2, "gradient", decay=0.5)
    with torch.no_grad():
        quantiser.codebook.copy_(torch.arange(8.0)[:, None] + 50)
    for i in range(30):
        step(quantiser, as_items(clusters(8, 8), 8), i)
    assert (quantiser.codebook.abs() < 6).all(dim=1).sum() >= 7


def test_micro_batches_do_not_change_codes_averages_or_restarts():
    z = normal(8, 4, 16, seed=3)
    whole, split = Quantiser(32, 4, decay=0.5), None
    whole.codebook[16:] += 100.0  # half of the codes are dead from the start
    split = copy.deepcopy(whole)
    before = whole.codebook.clone()
    for i in range(4):
        step(whole, z, i)
        for rows in (range(0, 4), range(4, 8)):
            split(z[rows.start : rows.stop], Rng.batch("test", i, total=8, rows=rows))
        split.update()
        torch.testing.assert_close(whole.codebook, split.codebook)
    assert (whole.codebook[16:] < 50).all() and not torch.equal(whole.codebook, before)


def two_processes(monkeypatch, work):
    """Run `work(rank)` in two threads whose `core.all_reduce` really adds up."""
    local, barrier, slots, failures = threading.local(), threading.Barrier(2, timeout=10), {}, []

    def all_reduce(x):
        slots[local.rank] = x.clone()
        barrier.wait()
        total = slots[0] + slots[1]
        barrier.wait()
        return x.copy_(total)

    def run(rank):
        local.rank = rank
        try:
            work(rank)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    monkeypatch.setattr(core, "world", lambda: World(local.rank, 2))
    monkeypatch.setattr(core, "all_reduce", all_reduce)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_two_processes_keep_one_codebook_equal_to_that_of_one_process(monkeypatch):
    """TRAPS 47: counts, sums and restarts."""
    start = Quantiser(24, 4, decay=0.5)
    start.codebook[12:] += 100.0
    alone, ranks = copy.deepcopy(start), [copy.deepcopy(start) for _ in range(2)]
    z = normal(8, 4, 16, seed=5)
    for i in range(4):
        step(alone, z, i)

    def work(rank):
        rows = range(4 * rank, 4 * rank + 4)
        for i in range(4):
            ranks[rank](z[rows.start : rows.stop], Rng.batch("test", i, total=8, rows=rows))
            ranks[rank].update()

    two_processes(monkeypatch, work)
    for key, value in ranks[0].state_dict().items():
        assert torch.equal(value, ranks[1].state_dict()[key]), key
        torch.testing.assert_close(value, alone.state_dict()[key])
    assert (ranks[0].codebook < 50).all()


def test_perplexity_is_counted_over_an_epoch_so_it_does_not_depend_on_the_batch():
    """TRAPS 46."""
    z = normal(32, 3, 4)
    found, single = [], []
    for size in (2, 16, 32):
        torch.manual_seed(0)
        quantiser = Quantiser(16, 3, "gradient", restart=0)  # an unmoving codebook: nothing optimises it
        quantiser.statistics.epoch.fill_(128)
        for part in z.split(size):
            codes = step(quantiser, part).codes
            single.append(perplexity(torch.bincount(codes.flatten(), minlength=16)).item())
        found.append(quantiser.usage()[0].item())
    assert found[0] == found[1] == found[2]
    assert min(single) < 0.8 * found[0]
    assert 1 <= found[0] <= 16


def test_a_new_epoch_forgets_the_old_one():
    quantiser = Quantiser(4, 2, "gradient", restart=0)
    quantiser.statistics.epoch.fill_(40)
    with torch.no_grad():
        quantiser.codebook.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]) * 10)
    step(quantiser, normal(4, 2, 10))
    for _ in range(2):
        step(quantiser, torch.full((4, 2, 10), 5.0) * torch.tensor([1.0, 0])[:, None])
    assert quantiser.usage()[0].item() == pytest.approx(1.0)


def test_perplexity_of_even_and_of_single_use():
    assert perplexity(torch.full((9,), 3)).item() == pytest.approx(9, rel=1e-6)
    assert perplexity(torch.tensor([0, 5, 0])).item() == pytest.approx(1, rel=1e-6)


def test_evaluation_gathers_nothing_and_pending_statistics_are_not_saved():
    quantiser = Quantiser(4, 2).eval()
    before = copy.deepcopy(quantiser.state_dict())
    step(quantiser, normal(4, 2, 10))
    assert all(torch.equal(before[key], value) for key, value in quantiser.state_dict().items())
    quantiser.train()(normal(4, 2, 10))
    assert quantiser.state_dict().keys() == before.keys()


def test_saved_and_loaded_between_steps_it_goes_on_bit_for_bit():
    one = Quantiser(16, 3, decay=0.7)
    for i in range(10):
        step(one, normal(8, 3, 4, seed=i), i)
    other = Quantiser(16, 3, decay=0.7)
    other.load_state_dict(one.state_dict())
    for i in range(10, 20):
        z = normal(8, 3, 4, seed=i)
        step(one, z, i), step(other, z, i)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_k_means_finds_separated_clusters_even_with_fewer_vectors_than_codes():
    rows = clusters(6, 20)
    centres = kmeans(rows, 6, Rng.batch("k", total=1), rounds=20)
    assert torch.cdist(rows, centres).min(1).values.max() < 0.2
    assert kmeans(rows[:4], 9, Rng.batch("k", total=1)).isfinite().all()


def test_another_implementation_takes_the_same_codes_and_gives_the_same_gradient():
    other = pytest.importorskip("vector_quantize_pytorch").VectorQuantize(
        dim=4, codebook_size=16, commitment_weight=0.25, rotation_trick=False
    )
    made = Quantiser(16, 4)
    made.codebook.copy_(normal(16, 4))
    other._codebook.embed.data.copy_(made.codebook[None])
    z, pull = normal(3, 4, 5, 6, seed=1), normal(3, 4, 5, 6, seed=2)
    grads = []
    for ours in (True, False):
        into = z.clone().requires_grad_()
        if ours:
            quantised = made(into)
            values, codes, loss = quantised.values, quantised.codes, 0.25 * quantised.commitment.mean()
        else:
            values, codes, loss = other(into.movedim(1, -1).flatten(1, 2), freeze_codebook=True)
            values, codes = values.movedim(-1, 1).view_as(z), codes.view(3, 5, 6)
        ((values * pull).sum() + 100 * loss.sum()).backward()
        grads.append((values.detach(), codes, loss.detach().sum(), into.grad))
    assert torch.equal(grads[0][1], grads[1][1]) and len(grads[0][1].unique()) > 8
    for one, two in zip(grads[0], grads[1], strict=True):
        torch.testing.assert_close(one, two)
