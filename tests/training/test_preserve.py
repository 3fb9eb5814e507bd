"""What a fine-tune remembers: nothing of it at weight 0, the loss at any other, and classes that drift less."""

import pytest
import torch
from tiny import hashes, of_run, resumed, session, smoke, trained
from torch import Tensor

from gencli.bundle import Run, read_tensors
from gencli.config import choose, merge
from gencli.core import Field, Spec
from gencli.errors import GencliError
from gencli.evaluation.generate import Request, samples
from gencli.training import preserve
from gencli.training.preserve import Preserved
from gencli.training.session import refuse_changes
from gencli.training.settings import TrainConfig


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Run.load(trained(tmp_path_factory.mktemp("base"), smoke("ddpm"), name="base"))


def tables(**train):
    settings = {"steps": 4, "save_every": 2, "lr": 0.01, "warmup": 0, "schedule": "constant", "preserve_items": 12}
    return merge(smoke("ddpm"), {"train": {**settings, **train}})


def tuned(root, base, name, adapters=(), **train):
    made = session(root, {**tables(**train), "adapters": list(adapters)}, begun=base.path, name=name)
    return made, list(made.events())


def test_at_weight_0_it_is_the_plain_fine_tune_bit_for_bit_and_above_it_is_not(base, tmp_path):
    plain = hashes(tuned(tmp_path, base, "plain")[0].folder)
    none, some = (tuned(tmp_path, base, f"at-{weight:g}", preserve=weight)[0].folder for weight in (0.0, 1.0))
    assert hashes(none) == plain and not (none / "train" / preserve.FILE).exists()
    assert hashes(some)["model.safetensors"] != plain["model.safetensors"]


def test_of_images_of_one_class_the_others_are_preserved(base, tmp_path):
    made = session(tmp_path, tables(preserve=1.0), begun=base.path, name="threes")
    train = made.data.split("train")
    few = train.only((train.cond["label"] == 3).nonzero()[:20, 0].numpy())
    kept = preserve.ready(made.run, few, made.folder, made.train, True)
    assert kept.raw["label"].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 0, 1, 2]


@pytest.mark.parametrize("adapters", [(), ({"name": "lora", "rank": 2},)], ids=["all", "lora"])
def test_what_is_preserved_are_samples_of_the_other_run_without_guidance(base, tmp_path, adapters):
    made, _ = tuned(tmp_path, base, "kept", adapters, preserve=0.5)
    kept, _ = read_tensors(made.folder / "train" / preserve.FILE)
    labels = torch.arange(12) % 10
    assert torch.equal(kept["label"], labels)
    assert torch.equal(kept["x"], samples(base, Request(range(12), {"label": labels}, guidance=1.0)))


def test_the_loss_is_the_one_on_the_data_and_lambda_times_the_one_on_what_is_preserved(base, tmp_path):
    seen = {}
    for weight in (0.0, 0.5, 2.0):
        made = session(tmp_path, tables(preserve=weight), begun=base.path, name=f"loss-{weight:g}")
        trainer = made.trainer(made.train)
        list(made.begin(trainer))
        seen[weight] = {key: float(value) for key, value in trainer.take_step().losses.items()}
    also = seen[0.5]["preserved"]
    assert also > 0 and also == pytest.approx(seen[2.0]["preserved"], rel=1e-6) and "preserved" not in seen[0.0]
    for weight in (0.5, 2.0):
        assert seen[weight]["loss"] == pytest.approx(seen[0.0]["loss"] + weight * also, rel=1e-6)


def test_a_resumed_run_remembers_the_same(base, tmp_path):
    whole = tuned(tmp_path, base, "whole", preserve=1.0)[0].folder
    half = session(tmp_path, tables(preserve=1.0), begun=base.path, name="half")
    for event in half.events():
        if event.kind == "step" and event.step == 2:
            half.asked = 15
    resumed(half.folder)
    assert hashes(half.folder) == hashes(whole)


def test_a_batch_in_two_parts_is_the_same_batch(base, tmp_path):
    one, two = (tuned(tmp_path, base, f"accum-{n}", preserve=1.0, grad_accum=n)[0].run.model for n in (1, 2))
    for name, value in one.state_dict().items():
        assert (two.state_dict()[name].double() - value.double()).abs().max() < 1e-4, name


# ------------------------------------------------------------------------------------------------------------ less is forgotten


SPEC = Spec(Field("points", (2,)), {"label": Field("label", (), vocab=2)})
AT = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])


class Blobs:
    """Points of small Gaussians: of both classes, or a few of the first class, elsewhere."""

    encoded = True

    def __init__(self, few: bool) -> None:
        n = 20 if few else 400
        self.label = torch.zeros(n).long() if few else torch.arange(n) % 2
        centre = torch.tensor([[0.0, 2.0]]).expand(n, 2) if few else AT[self.label]
        self.x = centre + 0.1 * torch.randn(n, 2, generator=torch.Generator().manual_seed(int(few)))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        return {"x": self.x[rows], "label": self.label[rows]}


def denoiser():
    table = {"name": "ddpm", "timesteps": 50, "net": {"name": "denoising-mlp", "width": 32, "layers": 2}}
    torch.manual_seed(0)
    model = choose("models", table).build(SPEC)
    return Run(model, [], SPEC, SPEC, {"recipe": {"model": table, "sample": {"name": "ddim", "steps": 10}}})


def fitted(run, items, steps, lr, preserved=None):
    one = of_run(run, items, TrainConfig(steps=steps, batch_size=64, lr=lr, ema=0.0))
    one.preserved = preserved
    for _ in one:
        pass
    run.model.eval()


def test_the_other_class_drifts_less_with_prior_preservation_and_the_new_one_is_learned_as_well():
    begun = denoiser()
    fitted(begun, Blobs(few=False), 300, 3e-3)
    raw = {"label": torch.ones(200).long()}
    raw["x"] = samples(begun, Request(range(200), raw, guidance=1.0))
    started = begun.model.state_dict()

    def after(preserved):
        run = denoiser()
        run.model.load_state_dict(started)
        fitted(run, Blobs(few=True), 100, 2e-3, preserved)

        def made(run, label):
            return samples(run, Request(range(64), {"label": torch.full((64,), label)}, guidance=1.0))

        drift = float((made(run, 1) - made(begun, 1)).norm(dim=1).mean())
        missed = float((made(run, 0).mean(0) - torch.tensor([0.0, 2.0])).norm())
        return drift, missed

    (kept, missed), (lost, missed_without) = after(Preserved(raw, 1.0)), after(None)
    assert kept < 0.4 * lost and lost > 0.5, (kept, lost)
    assert missed < 0.5 and missed_without < 0.5, (missed, missed_without)


# ------------------------------------------------------------------------------------------------------------ what is refused


def test_what_cannot_be_preserved_is_one_line(base, tmp_path):
    with pytest.raises(GencliError, match="this one begins from nothing") as caught:
        trained(tmp_path, tables(preserve=1.0), name="alone")
    assert "--from" in caught.value.hint
    fewer = merge(tables(preserve=1.0), {"data": {"unconditional": True}})
    with pytest.raises(GencliError, match=r"what run base makes is not .* as net\.label.* does not fit"):
        list(session(tmp_path, fewer, begun=base.path, name="fewer").events())


def test_a_changed_weight_is_refused_when_a_run_is_resumed(base, tmp_path):
    made, _ = tuned(tmp_path, base, "changed", preserve=1.0)
    new = merge(made.config["recipe"], {"train": {"preserve": 2.0}})
    with pytest.raises(GencliError, match="--preserve 1"):
        refuse_changes(made.config["recipe"], new, "changed")
