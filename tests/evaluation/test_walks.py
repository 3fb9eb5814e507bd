"""Walks through latents: their ends, their shape, their order, and what is refused."""

import math

import pytest
import torch
from tiny import table, trained

from gencli.bundle import Run
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.evaluation.walks import around, between, ends, resampled, straight, traverse
from gencli.report.latents import of_items, over_training, picture
from gencli.training.latents import carried


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.load(trained(tmp_path_factory.mktemp("walks"), table("vae", steps=30, save_every=30, lr=0.01)))


def test_the_way_around_keeps_the_length_and_the_straight_one_does_not():
    a, b = torch.eye(4, dtype=torch.float64)[:1] * 2, torch.eye(4, dtype=torch.float64)[1:2] * 2
    for t in (0.0, 0.3, 0.5, 1.0):
        assert float(around(a, b, t).norm()) == pytest.approx(2)
        angle = math.acos(float((around(a, b, t) * a).sum()) / 4)
        assert angle == pytest.approx(t * math.pi / 2, abs=1e-7)
    assert float(straight(a, b, 0.5).norm()) == pytest.approx(math.sqrt(2))
    for far in (a, 3 * a, -a):  # no plane to turn in
        torch.testing.assert_close(around(a, far, 0.25), 0.75 * a + 0.25 * far)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 1, 8, 8, generator=g)
    assert torch.allclose(around(x, y, 0.0), x, atol=1e-6) and torch.allclose(around(x, y, 1.0), y, atol=1e-6)


def test_a_walk_between_seeds_ends_in_their_samples(run):
    x = between(run, ends(run, "3,7", 2, "--between"), 5)
    made = run.sample(Rng.rows([3, 7]))["x"]
    assert x.shape == (2, 5, 1, 8, 8) and x.dtype == torch.uint8
    for way in x:
        assert torch.equal(way[0], made[0]) and torch.equal(way[-1], made[1])
    assert not torch.equal(x[0, 2], x[1, 2])


def test_a_walk_between_images_ends_in_their_reconstructions(run):
    from gencli.data import open_table

    two = ends(run, "test:2,9", 2, "--between")
    raw = open_table(run.config["recipe"]["data"]).split("test").batch(torch.tensor([2, 9]))["x"]
    with torch.no_grad():
        back = run.decode({"x": run.model.reconstruct(run.encode({"x": raw}, Rng.rows([0, 1]))["x"])})["x"]
    x = between(run, two, 3)
    assert two.names == ("test:2", "test:9") and torch.equal(x[0, [0, -1]], back) and torch.equal(x[1, [0, -1]], back)


def test_a_traversal_moves_one_number_a_row_those_that_carry_most_first(run):
    from gencli.data import open_table

    items = open_table(run.config["recipe"]["data"]).split("test")
    one = ends(run, "5", 1, "--traverse")
    made = traverse(run, one, 3, items)
    nats = carried(run, items)
    assert made.numbers == nats.argsort(descending=True).tolist() and made.nats == sorted(nats.tolist(), reverse=True)
    drawn = run.model.prior(256, Rng.rows(range(256)).at("prior"))
    for row, number in enumerate(made.numbers):
        z = one.z.repeat(3, 1)
        middle, reach = drawn.mean(0)[number], 2.5 * drawn.std(0)[number]
        z[:, number] = torch.stack([middle - reach, middle, middle + reach])
        expected = run.decode({"x": run.model.decode(z)})["x"]
        assert (made.x[row].int() - expected.int()).abs().max() <= 1
    by_change = traverse(run, one, 3, None)
    moved = by_change.x.double().std(1).flatten(1).mean(1)
    assert by_change.nats is None and (moved.diff() <= 0).all()


def test_the_picture_of_a_latent_and_of_its_training_can_be_drawn(run):
    from gencli.data import open_table

    items = open_table(run.config["recipe"]["data"]).split("test")
    seen = of_items(run, items, 100)
    assert seen.means.shape == seen.draws.shape == seen.prior.shape == (100, 4) and seen.unit == "nats"
    assert len(seen.labels) == 100 and picture(seen).startswith(b"\x89PNG")
    rows = [{"step": 1, "kl": [0.0, 0.1]}, {"step": 2, "kl": [2.0, 0.5]}]
    image, words = over_training(rows)
    assert "from step 1 to 2" in words and "(2.00)" in words and image.width > 10
    top, low = image.getpixel((image.width - 6, 5)), image.getpixel((5, 5))
    assert sum(top) > sum(low), "the number that carries most ends bright on top"
    assert over_training([]) is None


@pytest.mark.parametrize(
    ("text", "count", "said"),
    [("3", 2, "1 of the 2"), ("1,2", 1, "2 of the 1"), ("test:1", 2, "1 of the 2"), ("no.png,other.png", 2, "no.png")],
)
def test_what_is_no_pair_or_no_image_is_refused(run, text, count, said):
    with pytest.raises(GencliError, match=said):
        ends(run, text, count, "--between")


def test_models_without_a_latent_or_without_an_encoder_are_refused(tmp_path):
    gan = Run.load(trained(tmp_path, table("wgan-gp", {"data": {"image_size": 16}}, steps=1)))
    assert between(gan, ends(gan, "0,1", 2, "--between"), 3).shape == (2, 3, 1, 16, 16)
    assert len(traverse(gan, ends(gan, "0", 1, "--traverse"), 3, None).numbers) == 8
    with pytest.raises(GencliError, match="finds no latent of an image"):
        ends(gan, "test:0,1", 2, "--between")
    with pytest.raises(GencliError, match="no latents of items"):
        of_items(gan, [None] * 3)
    made = Run.load(trained(tmp_path, table("ddpm", steps=1)))
    with pytest.raises(GencliError, match="no latent to walk in"):
        ends(made, "0,1", 2, "--between")


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    over = {"model": {"scales": 3, "norm": "none"}, "data": {"image_size": 8}}
    run = Run.load(trained(tmp_path_factory.mktemp("flow"), table("realnvp", over, steps=8, save_every=8, lr=0.02)))
    return run


def test_a_walk_of_a_flow_ends_in_the_images_themselves_and_in_cooled_samples(flow):
    from gencli.data import open_table

    raw = open_table(flow.config["recipe"]["data"]).split("test").batch(torch.tensor([2, 9]))["x"]
    x = between(flow, ends(flow, "test:2,9", 2, "--between"), 3)
    assert torch.equal(x[0, [0, -1]], raw) and torch.equal(x[1, [0, -1]], raw) and not torch.equal(x[0, 1], x[1, 1])
    made = flow.sample(Rng.rows([3, 7]), sampler=flow.sampler("prior", {"temperature": 0.6}))["x"]
    cooled = between(flow, ends(flow, "3,7", 2, "--between", temperature=0.6), 2)
    assert torch.equal(cooled[0], made) and not torch.equal(
        between(flow, ends(flow, "3,7", 2, "--between"), 2)[0], made
    )


def test_levels_of_a_flows_latent_are_drawn_anew_the_finest_first(flow):
    level = flow.model.levels_of_latent()
    assert level.shape == (1, 8, 8) and torch.bincount(level.flatten()).tolist() == [32, 16, 16]
    one = ends(flow, "test:2", 1, "--resample")
    x = resampled(flow, one, 4)
    assert x.shape == (3, 4, 1, 8, 8)
    assert all(torch.equal(row[0], x[0, 0]) for row in x), "each row begins with the whole"
    new = flow.model.prior(3, Rng.rows(range(3)).at("resample"))
    for k, row in enumerate(x):
        expected = flow.decode({"x": flow.model.decode(torch.where(level <= k, new, one.z))})["x"]
        assert torch.equal(row[1:], expected)
    assert not torch.equal(x[0, 1], x[2, 1])


def test_a_latent_of_one_level_is_not_resampled(run):
    with pytest.raises(GencliError, match="--resample draws levels anew, the latent of run vae-digits has one level"):
        resampled(run, ends(run, "3", 1, "--resample"), 3)
