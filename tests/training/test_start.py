"""Beginning from another run: the same weights, what is new, and what is said."""

import pytest
import torch
from tiny import opened, session, smoke, trained

from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.training.start import begin


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Run.load(trained(tmp_path_factory.mktemp("base"), smoke("ddpm"), name="base"))


def built(tables):
    run = Run.build(tables, opened(tables["data"]).spec)
    run.config["recipe"] = tables
    return run


def test_all_weights_are_taken_where_all_fit(base):
    new = built(smoke("ddpm"))
    done = begin(new.model, base.path)
    assert (
        not done.anew
        and not done.left
        and done.notes == [f"begun from base: {len(done.taken)} of {len(done.taken)} tensors"]
    )
    theirs = base.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in new.model.state_dict().items())
    assert done.facts["run"] == "base" and done.facts["weights"] == base.weights_hash()


def test_a_head_for_other_classes_begins_anew_and_is_named(base):
    fewer = built(merge(smoke("ddpm"), {"data": {"unconditional": True}}))
    done = begin(fewer.model, base.path)
    assert done.left and all("label" in key for key in done.left) and not done.anew
    assert "left out: " in done.notes[-1]
    assert not any("label" in key for key in fewer.model.state_dict())


def test_what_nothing_fits_is_refused(base):
    with pytest.raises(GencliError, match="no tensor of run base fits"):
        begin(torch.nn.Linear(2, 2), base.path)


def test_a_run_begins_with_the_other_ones_samples_and_goes_on_from_there(base, tmp_path):
    """With a learning rate of 0 it draws what the other draws; a run from nothing does not."""
    still = merge(smoke("ddpm"), {"train": {"lr": 0.0, "steps": 1, "warmup": 0}})
    made = session(tmp_path, still, begun=base.path, name="same")
    assert [event.kind for event in made.events()][-1] == "done"
    same, anew = Run.load(made.folder), Run.load(trained(tmp_path, still, name="anew"))

    def drawn(run):
        return run.sample(Rng.rows(range(4)), {"label": torch.arange(4)}, run.sampler("ddim", {"steps": 3}))["x"].int()

    assert (drawn(same) - drawn(base)).abs().max() <= 1 and not torch.equal(drawn(anew), drawn(base))
    assert same.config["from"]["run"] == "base" and same.config["from"]["weights"] == base.weights_hash()


def test_without_a_saved_state_it_says_how_to_begin_again(base, tmp_path):
    made = session(tmp_path, smoke("ddpm"), begun=base.path, name="early")
    again = session(tmp_path, smoke("ddpm"), folder=made.folder)
    with pytest.raises(GencliError, match="began from base and has saved nothing since"):
        list(again.events())
