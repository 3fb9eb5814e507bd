"""The table of bounds: figures in pairs, what seeds have in common, and recipes made binary."""

import math

import numpy as np
import pytest
import torch
from tiny import opened, smoke, trained

from benchmarks import latents, page
from gencli import recipe, registry
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Rng
from gencli.metrics.mig import Mig


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    codecs = [{"name": "binarise"}]
    tables = merge({**smoke("vae"), "codecs": codecs}, {"model": {"likelihood": "bernoulli"}, "train": {"steps": 30}})
    return Run.load(trained(tmp_path_factory.mktemp("runs"), tables))


def test_bounds_are_of_the_same_images_bits_and_first_draw(run):
    items = opened(run.config["recipe"]["data"]).split("test")
    one, many = (latents.nats(run, items, 12, k) for k in (1, 40))
    assert np.array_equal(one, latents.nats(run, items, 12, 1)) and many.mean() > one.mean()
    made = latents.row(run, 12, 40)
    assert made["elbo"] == pytest.approx(one.mean()) and made["apart"] == pytest.approx((many - one).mean())
    assert made["iwae_bits"] == pytest.approx(-many.mean() / (64 * math.log(2))) and made["images"] == 12
    assert made["below"] == (many < one).mean() and made["k"] == 40
    assert made["apart_error"] == pytest.approx((many - one).std(ddof=1) / math.sqrt(12))


def test_the_whole_has_ten_times_the_images_and_its_memory(run):
    made = latents.whole(run, 2, 3)
    assert made["images"] == 20 and made["k"] == 3 and 50 < made["megabytes"] < 1e5


def test_the_difference_of_a_pair_is_taken_seed_by_seed():
    def each(values):
        return [{"iwae": value, "elbo": value - 1, "k": 9, "parameters": 5} for value in values]

    made = latents.over_seeds({"vae": each([1.0, 5.0, 9.0]), "nf-vae": each([2.0, 6.5, 9.5])})
    assert made["vae"]["iwae"] == 5 and made["vae"]["iwae_sd"] == 4 and "apart" not in made["vae"]
    assert made["nf-vae"]["against"] == "vae" and made["nf-vae"]["apart"] == pytest.approx(1.0)
    assert made["nf-vae"]["apart_sd"] == pytest.approx(0.5), "of the differences, not of both models"


def test_every_row_has_its_recipe_and_every_pair_its_other(tmp_path):
    for table, rows in latents.ROWS.items():
        for name, (source, *flags) in rows.items():
            model = registry.load("models", recipe.load(source)["model"]["name"])
            assert name.startswith(model.public_name()) or name == "vae-deep", (table, name)
            assert len(flags) == sum(2 - (flag == "--unconditional") for flag in flags if flag.startswith("--"))
    assert set(latents.AGAINST) | set(latents.AGAINST.values()) == set(latents.ROWS["seeds"])
    assert {f"latents-{table}" for table in latents.ROWS} <= set(page.HEADS)
    made = recipe.load(latents.binarised("nf-vae", tmp_path))
    assert made == {**recipe.load("nf-vae"), "codecs": [{"name": "binarise"}], "recipe": "nf-vae-binarised"}
    assert latents.binarised("nvil", tmp_path) == "nvil"


def test_sprites_have_a_gap_for_each_factor(tmp_path):
    table = merge(smoke("beta-vae-sprites"), {"data": {"vary": ["scale", "orientation", "x", "y"]}})
    made = latents.disentangled(Run.load(trained(tmp_path, table)), 20)
    assert 0 <= made["mig"] <= 1 and {"scale", "orientation", "x", "y", "elbo"} <= set(made)
    torch.testing.assert_close(
        made["mig"], float(np.mean([made[key] for key in ("scale", "orientation", "x", "y")])), atol=1e-5, rtol=0
    )
    whole = latents.spreads(
        {"beta-vae, β = 1": [made | {"minutes": 1.0}, made | {"minutes": 3.0, "mig": made["mig"] + 0.2}]}
    )
    assert (
        whole["beta-vae, β = 1"]["mig_sd"] == pytest.approx(0.2 / math.sqrt(2))
        and whole["beta-vae, β = 1"]["minutes"] == 2
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["beta-vae", "beta-tcvae"])
def test_two_minutes_of_sprites_part_the_factors_more_than_an_untrained_model(model, tmp_path):
    run = latents.made("sprites", f"{model}, β = 2", tmp_path)
    torch.manual_seed(0)
    table = run.config["recipe"]
    control = Run.build(table, opened(table["data"]).spec)
    data = opened(table["data"]).split("test")
    rng = Rng.batch("evaluate", 0, "mig", total=1)
    mig, none = (Mig.make()(one, data, rng, n=10_000, batch_size=250).value for one in (run, control))
    assert mig > none + 0.05, (mig, none)
