"""Beginning from another run: the same weights, what is new, and what is said."""

import pytest
import torch
from tiny import hashes, opened, resumed, session, smoke, trained

from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.training import posthoc
from gencli.training.ema import gamma_of
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


@pytest.mark.parametrize("adapters", [[], [{"name": "lora", "rank": 2}]], ids=["all", "lora"])
def test_at_step_0_the_average_is_the_other_run_and_draws_the_same_bit_for_bit(base, tmp_path, adapters):
    made = session(tmp_path, {**smoke("ddpm"), "adapters": adapters}, begun=base.path, name="zero")
    trainer = made.trainer(made.train)
    list(made.begin(trainer))
    theirs, cond = base.model.state_dict(), {"label": torch.arange(4)}
    assert all(torch.equal(trainer.average.state[key], theirs[key]) for key in theirs)
    assert {key for key in trainer.average.state if key not in theirs} == {
        key for key in made.run.model.state_dict() if "lora" in key
    }
    with trainer.average.worn_by(made.run.model), torch.no_grad():
        drawn = [
            one.sample(Rng.rows(range(4)), cond, one.sampler("ddim", {"steps": 3}))["x"] for one in (made.run, base)
        ]
    assert torch.equal(*drawn)


def test_the_average_is_restarted_at_the_weights_it_was_given(base, tmp_path):
    """The given weights are the first of k + 1 steps; a run from nothing forgets what it was initialised with at once."""
    tables = merge(
        smoke("ddpm"), {"train": {"steps": 5, "lr": 0.01, "warmup": 0, "ema": 0.2, "ema_profiles": [0.1, 0.25]}}
    )
    made = session(tmp_path, tables, begun=base.path, name="goes-on")
    trainer = made.trainer(made.train)
    list(made.begin(trainer))
    name = "net.conv_in.weight"
    seen = [made.run.model.state_dict()[name].double().clone()]
    for step in trainer:
        seen.append(made.run.model.state_dict()[name].double().clone())
        edges = torch.linspace(0, 1, step.step + 2, dtype=torch.float64) ** (gamma_of(0.2) + 1)
        wanted = sum(share * one for share, one in zip(edges.diff(), seen, strict=True))
        assert (trainer.average.state[name] - wanted).abs().max() < 1e-6
        if step.step == 1:
            assert (trainer.average.state[name] - seen[1]).abs().max() > 1e-4, "the given weights have a part"
    posthoc.keep(made.folder, 5, trainer.profiles)
    found = posthoc.reconstruct(made.folder, made.run.model, 0.1, 1)
    assert (found.state[name] - trainer.profiles.averages[0.1].state[name]).abs().max() < 1e-6
    other = trainer_of_nothing(tmp_path, tables)
    other.take_step()
    assert torch.equal(other.average.state[name], other.model.state_dict()[name])


def trainer_of_nothing(root, tables):
    made = session(root, tables, name="anew")
    trainer = made.trainer(made.train)
    list(made.begin(trainer))
    return trainer


def test_a_fine_tune_that_is_resumed_keeps_its_average(base, tmp_path):
    tables = merge(
        smoke("ddpm"), {"train": {"steps": 4, "save_every": 2, "lr": 0.01, "warmup": 0, "schedule": "constant"}}
    )
    folders = []
    for name in ("whole", "halves"):
        made = session(tmp_path, tables, begun=base.path, name=name)
        for event in made.events():
            if name == "halves" and event.kind == "step" and event.step == 2:
                made.asked = 15
        folders.append(made.folder)
    resumed(folders[1])
    assert hashes(folders[0])["model.safetensors"] == hashes(folders[1])["model.safetensors"]


def test_without_a_saved_state_it_says_how_to_begin_again(base, tmp_path):
    made = session(tmp_path, smoke("ddpm"), begun=base.path, name="early")
    again = session(tmp_path, smoke("ddpm"), folder=made.folder)
    with pytest.raises(GencliError, match="began from base and has saved nothing since"):
        list(again.events())
