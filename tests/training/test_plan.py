"""Plans: bytes by hand and by the files that training then writes; what is too large is refused; nothing is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shell import Shell, empty
from tiny import POINTS, TABLES, hashes, opened, session, smoke, table, trained
from torch import nn

from gencli import recipe as recipes
from gencli.bundle import Run
from gencli.config import NoSettings, choose, parse
from gencli.core import Batch, Field, Losses, Model, Phase, Spec, Turn, World
from gencli.errors import GencliError
from gencli.models.vae.vqvae import VQVAE
from gencli.training import memory, plan
from gencli.training.session import resolve
from gencli.training.settings import TrainConfig


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    with empty(tmp_path / "here", capsys) as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CYCLES", (1, 2))


def planned(tmp_path: Path, tables: dict[str, Any], **kwargs: Any) -> plan.Plan:
    made = resolve(tables)
    return plan.plan(made, opened(made["data"]), tmp_path, **kwargs)


def flags(model: str, **train: Any) -> list[str]:
    """The command line of a run in miniature."""
    return ["train", model, "--smoke", *(part for key, value in train.items() for part in (f"--{key}", str(value)))]


# ------------------------------------------------------------------------------------------------------------ bytes by hand


class Duel(Model):
    """Two networks, trained in turn; the second is for training only."""

    training_only = ("critic.",)
    Config = NoSettings

    def __init__(self) -> None:
        super().__init__(NoSettings(), POINTS)
        self.net = nn.Linear(3, 5)  # 20 numbers
        self.critic = nn.Linear(3, 1, bias=False)  # 3 numbers
        self.twin = self.net  # tied: counts once
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(7), persistent=False)

    def phases(self) -> list[Phase]:
        return [
            Phase("critic", (self.critic,), optim={"optimizer": "rmsprop"}),
            Phase("net", (self.net,), every=5),
            Phase("again", (self.net,), shares="net"),
        ]

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        return {"loss": self.net(batch["x"]).mean()}


def test_what_is_held_is_counted_as_by_hand() -> None:
    needs = memory.held(Duel(), TrainConfig())
    assert (needs.parameters, needs.training_only) == (23, 3)
    assert needs.weights == 4 * (20 + 3 + 2 + 7)
    assert needs.gradients == 4 * 23
    assert needs.optimiser == 4 * (3 + 1) + 4 * (2 * 20 + 2)  # RMSprop and Adam, each with a step a tensor
    assert needs.averages == 4 * (20 + 2)
    assert needs.total == needs.weights + needs.gradients + needs.optimiser + needs.averages


def test_what_autograd_keeps_is_counted_as_by_hand() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    x = torch.ones(4, 3)
    with memory.kept_for_backward(net) as found:
        loss = net(x).sum()
        assert found.now == 4 * (4 * 3 + 4 * 5), "the input, and the activation that two layers keep, once"
        loss.backward()
        assert found.now == 0 and found.most == 128
        net(x).sum().backward()
        assert found.most == 128, "one after the other takes no more than one"
        both = net(x).sum() + net(x + 1).sum()
        assert found.now == 2 * 128
        both.backward()
    plain = nn.Sequential(net[0], net[1], net[2])
    plain.zero_grad()
    plain(x).sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with memory.kept_for_backward(net):
        net(x).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, net.parameters(), strict=True)), "counting changes nothing"


def test_counting_works_through_a_penalty_on_gradients() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def penalty() -> list[torch.Tensor]:
        x = torch.linspace(-1, 1, 12).view(4, 3).requires_grad_()
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        net.zero_grad()
        (slope.square().sum(1).sqrt() - 1).square().sum().backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    want = penalty()
    with memory.kept_for_backward(net) as found:
        assert all(torch.equal(a, b) for a, b in zip(want, penalty(), strict=True))
    assert found.most > 0


# ------------------------------------------------------------------------------------------------ against what training does


@pytest.mark.parametrize(("model", "optimizer"), [*((model, "adam") for model in TABLES), ("vqvae", "rmsprop")])
def test_what_is_held_is_what_the_saved_files_hold(tmp_path: Path, model: str, optimizer: str) -> None:
    tables = table(model, steps=1, optimizer=optimizer)
    made = session(tmp_path / "planned", tables)
    needs = memory.held(memory.blueprint(made.recipe, made.data.spec, None), made.train)
    state = max((trained(tmp_path, tables) / "train").glob("step-*"))

    def size(name: str) -> int:
        return sum(value.nbytes for value in load_file(state / f"{name}.safetensors").values())

    assert (needs.optimiser, needs.averages) == (size("optim"), size("average"))
    assert needs.weights >= size("raw") and needs.parameters == made.config["parameters"]


OF_CODES = {name: Field("codes", (16, 16), vocab=1024) for name in ("maskgit-imagenet256", "gpt-faceshq256")}
"""Recipes that need --codec at their own size, and what it makes of the data."""


def spec_of(table: dict[str, Any]) -> Spec:
    """What the data of a recipe are; of a folder, which only a person has, ImageNet at the recipe's size, or colour pairs."""
    if "folder" not in (table["name"], table.get("of")) and table["name"] != "pairs":
        return choose("data", table).build().spec
    side = int(table["image_size"])
    image = Field("image", (3, side, side), vocab=256)
    if table["name"] == "reduced":
        small = side // table["factor"]
        return Spec(image, {"image": Field("image", (3, small, small), vocab=256)})
    return Spec(image, {"image": image} if table["name"] == "pairs" else {"label": Field("label", (), vocab=1000)})


@pytest.mark.parametrize("name", recipes.names())
def test_every_model_can_be_sized_before_it_is_made(name: str) -> None:
    for tables in (resolve(recipes.load(name)), smoke(name)):
        spec = spec_of(tables["data"])
        if spec.x.shape == (3, 256, 256) and name in OF_CODES:
            spec = Spec(OF_CODES[name], spec.cond)
        model = memory.blueprint(tables, spec, None)
        held = [*model.parameters()] or [*model.buffers()]  # a palette has no parameters
        assert {tensor.device.type for tensor in held} == {"meta"}
        needs = memory.held(model, parse(TrainConfig, tables["train"]))
    assert needs == memory.held(Run.build(tables, spec).model, parse(TrainConfig, tables["train"]))


@pytest.mark.parametrize("model", TABLES)
def test_two_small_batches_tell_what_a_large_one_keeps(tmp_path: Path, model: str) -> None:
    made = session(tmp_path, table(model, batch_size=32, grad_accum=2))
    foretold, _ = plan._activations(made)
    assert foretold == pytest.approx(plan._kept(made, 16), rel=0.02)
    assert plan._activations(session(tmp_path, table(model, batch_size=2)))[0] == plan._kept(made, 2)


@pytest.mark.parametrize("model", ["ddpm", "vqvae"])
def test_the_disk_is_what_the_run_then_takes(tmp_path: Path, model: str) -> None:
    tables = table(model, steps=7, save_every=2, sample_every=3)
    disk = planned(tmp_path, tables).disk
    folder = trained(tmp_path, tables)
    found = {p.stat().st_ino: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    assert disk.total == pytest.approx(sum(found.values()), rel=0.06), "the curve of a few points differs a little"
    state = max((folder / "train").glob("step-*"))
    assert disk.state == pytest.approx(sum(p.stat().st_size for p in state.iterdir()), rel=0.01)
    assert (disk.states, disk.while_saving) == (2, disk.total + disk.state)
    assert disk.free > disk.total


def test_one_save_is_one_state(tmp_path: Path) -> None:
    disk = planned(tmp_path, table("vqvae", steps=2, save_every=9, keep=5)).disk
    assert disk.states == 1 and disk.while_saving == disk.total


@pytest.mark.parametrize(("save_every", "sample_every"), [(3, 2), (7, 0), (100, 100)])
def test_saves_and_pictures_are_as_many_as_training_makes(tmp_path: Path, save_every: int, sample_every: int) -> None:
    tables = table("vqvae", steps=7, save_every=save_every, sample_every=sample_every)
    time = planned(tmp_path, tables).time
    events = [event.kind for event in session(tmp_path, tables).events()]
    assert (time.saves, time.pictures) == (events.count("saved"), events.count("picture"))
    parts = time.start + 7 * time.step + time.saves * time.save + time.pictures * time.picture
    assert time.total == pytest.approx(parts) and min(time.step, time.save, time.picture) > 0


def test_occasions_are_counted_without_walking_through_the_steps() -> None:
    for done in range(9):
        for last in range(1, 12):
            for every in range(1, 13):
                want = sum(step % every == 0 or step == last for step in range(done + 1, last + 1))
                assert plan._occasions(done, last, every) == want, (done, last, every)


def test_phases_of_different_periods_are_probed_in_whole_cycles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def phases(self: VQVAE) -> list[Phase]:
        return [Phase("in", (self.encoder,), every=2), Phase("out", (self.decoder,), every=3)]

    monkeypatch.setattr(VQVAE, "phases", phases)
    made = session(tmp_path, table("vqvae", steps=50))
    plan._activations(made)
    probe = plan._Probe(made)
    assert probe.steps == 6
    assert len(probe.trainer.params["in"]) == len(list(made.run.model.encoder.parameters())), (
        "the small steps froze none"
    )
    probe.cycle()
    assert probe.trainer.step == 6 and len(probe.log) == 6


def test_a_run_shorter_than_its_probe_is_gone_through_again(tmp_path: Path) -> None:
    made = planned(tmp_path, table("ddpm", steps=2))
    assert made.steps == 2 and math.isfinite(made.time.total)


# -------------------------------------------------------------------------------------------------------- on the command line


def test_a_plan_keeps_nothing_and_says_what_to_do_next(shell: Shell) -> None:
    done = shell.fine(*flags("ddpm", steps=40, keep=3), "--plan")
    assert not list(Path.cwd().iterdir())
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert lines[0] == ["part", "what", "value"] and {len(line) for line in lines} == {3}
    said = {what: value for _, what, value in lines}
    assert said["parameters"].replace(",", "").isdigit() and ":" in said["in all"]
    assert done.err.splitlines()[-1] == f"next: gencli {' '.join(flags('ddpm', steps=40, keep=3))}"


def test_a_plan_as_json_is_one_document(shell: Shell) -> None:
    made = shell.fine(*flags("vqvae", steps=40), "--plan", "--json").document
    assert made["plan"]["steps"] == 40 and made["plan"]["memory"]["peak"] > made["plan"]["memory"]["weights"] > 0
    assert set(made["plan"]["time"]) == {"start", "step", "save", "saves", "picture", "pictures", "total"}
    assert not list(Path.cwd().iterdir())


def test_a_resumed_run_is_planned_from_where_it_stands(shell: Shell) -> None:
    shell.fine(*flags("vqvae", steps=3))
    folder = Path("checkpoints/vqvae-digits")
    before = hashes(folder), sorted(folder.rglob("*"))
    line = ["train", "vqvae", "--resume", "--plan", "--json"]
    assert shell.fine(*line, "--steps", "10").document["plan"]["steps"] == 7
    done = shell.fine(*line).document["plan"]
    assert (done["steps"], done["time"]["saves"], done["time"]["pictures"]) == (0, 0, 0)
    assert (hashes(folder), sorted(folder.rglob("*"))) == before
    assert list(Path("checkpoints").iterdir()) == [folder]
    shell("train", "vqvae", "--resume", "--lr", "9", "--plan").fails("--lr", "resumed")


def test_a_prior_is_planned_over_its_codec(shell: Shell) -> None:
    shell.fine(*flags("vqvae"))
    before = sorted(Path("checkpoints").rglob("*"))
    made = shell.fine(*flags("gated-pixelcnn"), "--codec", "vqvae", "--plan", "--json").document["plan"]
    assert made["memory"]["data"] > 0
    assert sorted(Path("checkpoints").rglob("*")) == before


def test_one_process_is_planned(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "world", lambda: World(rank=0, size=2))
    shell(*flags("ddpm"), "--plan").fails("--plan measures one process", "launcher")


@pytest.mark.parametrize("flag", [[], ["--plan"]])
def test_a_network_larger_than_memory_is_refused_before_it_is_made(shell: Shell, flag: list[str]) -> None:
    line = ["train", "ddpm", "--net.width", "50000", *flag]
    shell(*line).fails("training ddpm needs", "TB", "of memory left", "make the network smaller")
    assert not list(Path.cwd().iterdir()), "no run is begun"


def test_the_bound_is_what_is_left(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = smoke("vqvae")
    needs = memory.held(
        memory.blueprint(tables, opened(tables["data"]).spec, None), parse(TrainConfig, tables["train"])
    )
    enough = math.ceil(needs.total / memory.SHARE)
    monkeypatch.setattr(memory, "available", lambda device: enough - 2)
    shell(*flags("vqvae")).fails("training vqvae needs")
    assert not Path("checkpoints").exists()
    monkeypatch.setattr(memory, "available", lambda device: enough)
    shell.fine(*flags("vqvae"))
    monkeypatch.setattr(memory, "available", lambda device: None)  # a system that does not tell
    shell.fine(*flags("vqvae"), "--plan")


def test_a_batch_larger_than_memory_is_refused_with_a_split_that_fits(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = ["train", "vqvae", "--smoke", "--batch-size", "512", "--plan"]
    made = shell.fine(*line, "--json").document["plan"]
    left = made["memory"]["activations"] * 0.9
    monkeypatch.setattr(memory, "available", lambda device: int(left))
    done = shell(*line)
    done.fails("a micro-batch of 512 needs", "--grad-accum", "the same result in less memory")
    splits = done.err.split("--grad-accum ")[1].split()[0]
    shell.fine(*line, "--grad-accum", splits)
    monkeypatch.setattr(
        memory, "available", lambda device: round(memory.held(made_model(), TrainConfig()).total / 0.89)
    )
    shell("train", "vqvae", "--smoke", "--batch-size", "64", "--plan").fails("micro-batch of 64", "smaller")


def made_model() -> Model:
    tables = smoke("vqvae")
    return memory.blueprint(tables, opened(tables["data"]).spec, None)


@pytest.mark.parametrize("names", memory.LIMITS, ids=["v2", "v1"])
def test_a_container_has_no_more_than_its_limit(
    names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, (inside, limit, used) = torch.device("cpu"), names
    meminfo, container = tmp_path / "meminfo", tmp_path / inside
    container.mkdir(exist_ok=True)
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    meminfo.write_text("MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    4000 kB\n")
    assert memory.available(device) == 4000 * 1024, "what caches hold can be had"
    (container / used).write_text("700\n")
    (container / "memory.stat").write_text("anon 100\ninactive_file 500\n")
    (container / limit).write_text("max\n")
    assert memory.available(device) == 4000 * 1024
    (container / limit).write_text("1000\n")
    assert memory.available(device) == 1000 - 700 + 500


def test_nine_tenths_of_what_is_left_may_be_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = memory.held(made_model(), TrainConfig())
    monkeypatch.setattr(memory, "available", lambda device: round(needs.total / 0.89))
    memory.refuse_too_large("vqvae", needs, torch.device("cpu"))
    monkeypatch.setattr(memory, "available", lambda device: round(needs.total / 0.91))
    with pytest.raises(GencliError, match="training vqvae needs"):
        memory.refuse_too_large("vqvae", needs, torch.device("cpu"))


def test_the_peak_is_that_of_the_whole_process() -> None:
    before = plan.peak()
    assert before is not None
    held = torch.ones(before // 4)  # as much as ever was in use, beside what is in use now
    after = plan.peak()
    assert after is not None and before < held.nbytes + 20e6 < after < 2.2 * before


def test_whether_compiling_pays_is_not_claimed_without_measuring(shell: Shell) -> None:
    assert "would not pay" in shell.fine(*flags("vqvae"), "--plan").err
    assert "may pay" in shell.fine(*flags("vqvae", steps=10_000_000), "--plan").err
    assert "pay" not in json.dumps(shell.fine(*flags("vqvae"), "--plan", "--json").document)


# ------------------------------------------------------------------------------------------------------------------- work


def test_the_work_of_a_step_is_that_of_its_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers (2 → 8 → 2) on 16 points: forward 2·16·2·8 each; backward the same for weights, and once for the hidden."""

    class Small(Model):
        Config = NoSettings

        def __init__(self, config: NoSettings, spec: Spec) -> None:
            super().__init__(config, spec)
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

        def loss(self, batch: Batch, turn: Turn) -> Losses:
            each = (self.net(batch["x"]) - batch["x"]).square().mean(1)
            return {"loss": each.mean(), "each": each}

    def build(*args: Any, **kwargs: Any) -> Run:
        return Run(Small(NoSettings(), POINTS), [], POINTS, POINTS, {"recipe": args[0]})

    made = resolve({**table("ddpm", {"data": {"name": "toy2d"}}, batch_size=16)})
    made["model"] = {"name": "ddpm", "net": {"name": "denoising-mlp"}}
    monkeypatch.setattr(Run, "build", build)
    flop, seconds = plan.work(made, opened(made["data"]))
    once = 2 * 16 * 2 * 8
    assert flop == 2 * once + 2 * once + once and seconds > 0


def test_the_work_of_attention_on_this_device_is_counted() -> None:
    q = torch.randn(2, 4, 16, 8, requires_grad=True)
    with plan.FlopCounterMode(display=False, custom_mapping=plan.ON_CPU) as counter:
        nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    product = 2 * 2 * 4 * 16 * 16 * 8
    assert counter.get_total_flops() == 2 * product + 5 * product


def test_what_two_items_cannot_keep_is_refused_while_it_is_counted(tmp_path, monkeypatch):
    """Memory for weights, gradients, optimiser and averages, and a little more: refused before the backward pass."""
    made = session(tmp_path, table("ddpm", batch_size=4))
    needs = memory.held(made.run.model, made.train)
    monkeypatch.setattr(memory, "available", lambda device: needs.total - needs.weights + 10_000)
    with pytest.raises(GencliError, match="a micro-batch of 4 needs more than 10"):
        plan._activations(made)
    monkeypatch.setattr(memory, "available", lambda device: needs.total + 500_000_000)
    plan._activations(made)
