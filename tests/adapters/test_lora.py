"""LoRA: the same model at the start, thin matrices alone trained, and W₀ + B A folded into plain weights."""

import copy

import pytest
import torch
from tiny import POINTS, opened, session, shaken, smoke, trained
from torch import nn

from gencli.adapters._base import folded
from gencli.adapters.lora import Lora
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Rng, Turn
from gencli.errors import GencliError

MODELS = ("ddpm", "gpt", "vae")


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))


def adapted(model, **settings):
    Lora.make(settings).apply(model, POINTS)
    return model


def learned(model, seed=1):
    """B away from zero."""
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            if "lora_b" in name:
                p.normal_(generator=torch.Generator().manual_seed(seed + i))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_at_the_start_the_model_is_the_one_that_it_was(name):
    tables = smoke(name)
    torch.manual_seed(0)
    run = Run.build(tables, opened(tables["data"]).spec)
    shaken(run.model)
    batch = run.encode(opened(tables["data"]).split("train").batch(torch.arange(6)), Rng.rows(range(6)))

    def loss():
        return run.model(batch, Turn("main", 0, 1, Rng.batch(0, total=6)))["loss"]

    before = loss()
    adapted(run.model, rank=2)
    assert torch.equal(loss(), before)


def test_the_formula_for_linear_layers_and_convolutions():
    plain = layers()
    thin = learned(adapted(copy.deepcopy(plain), rank=2, scale=0.5))
    x = torch.randn(4, 3, 4, 4)
    by_hand = copy.deepcopy(plain)
    with torch.no_grad():
        for i in (0, 3):
            delta = 0.5 * thin[i].lora_b @ thin[i].lora_a
            by_hand[i].weight += delta.view_as(by_hand[i].weight)
    assert torch.allclose(thin(x), by_hand(x), atol=1e-5) and not torch.allclose(thin(x), plain(x), atol=0.1)


def test_folded_it_is_a_plain_model_with_the_same_outputs():
    thin = learned(adapted(layers(), rank=3))
    x = torch.randn(4, 3, 4, 4)
    before = thin(x)
    Lora.make({}).fold(thin)
    assert type(thin[0]) is nn.Conv2d and type(thin[3]) is nn.Linear
    assert torch.allclose(thin(x), before, atol=1e-5) and set(thin.state_dict()) == set(layers().state_dict())


def test_merged_it_gives_the_same_and_unmerged_the_first_weights_are_back_bit_for_bit():
    plain = layers()
    thin = learned(adapted(copy.deepcopy(plain), rank=3, scale=3.0))
    x = torch.randn(4, 3, 4, 4)
    before = thin(x)
    for _ in range(2):  # a second time changes nothing
        Lora.merge(thin)
    assert torch.allclose(thin(x), before, atol=1e-5) and not torch.equal(thin[0].weight, plain[0].weight)
    assert torch.allclose(nn.functional.linear(torch.eye(128), thin[3].weight).T, thin[3].whole)
    for _ in range(2):
        Lora.unmerge(thin)
    assert all(torch.equal(thin[i].weight, plain[i].weight) for i in (0, 3)) and torch.equal(thin(x), before)
    Lora.merge(thin)
    Lora.make({}).fold(thin)
    assert type(thin[0]) is nn.Conv2d and torch.allclose(thin(x), before, atol=1e-5)


def test_what_is_trained_is_r_times_in_and_out_of_each_layer_and_nothing_else():
    thin = adapted(layers(), rank=2)
    assert sum(p.numel() for p in thin.parameters() if p.requires_grad) == 2 * (27 + 8) + 2 * (128 + 5)
    assert {name for name, p in thin.named_parameters() if p.requires_grad} == {
        f"{i}.lora_{k}" for i in (0, 3) for k in "ab"
    }
    one = adapted(layers(), rank=2, layers="^3")
    assert [name for name, p in one.named_parameters() if p.requires_grad] == ["3.lora_a", "3.lora_b"]


def test_gpt_2_mediums_queries_and_values_at_rank_4_are_393_216_numbers():
    with torch.device("meta"):
        blocks = nn.ModuleList(nn.ModuleDict({key: nn.Linear(1024, 1024) for key in "qkvo"}) for _ in range(24))
    adapted(blocks, rank=4, layers=r"\.(q|v)$")
    assert sum(p.numel() for p in blocks.parameters() if p.requires_grad) == 393_216


def test_a_run_learns_beside_weights_that_stay_bit_for_bit_and_is_loaded_and_resumed(tmp_path):
    base = Run.load(trained(tmp_path, smoke("ddpm"), name="base"))
    tables = merge(smoke("ddpm"), {"train": {"steps": 4, "lr": 0.01, "warmup": 0, "save_every": 2}})
    tables["adapters"] = [{"name": "lora", "rank": 2}]
    made = session(tmp_path, tables, begun=base.path, name="thin")
    for _ in made.events():
        pass
    run = Run.load(made.folder)
    own, theirs = run.model.state_dict(), base.model.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in theirs)
    assert any(value.any() for key, value in own.items() if key.endswith("lora_b"))
    assert run.config["adapters"] == ["lora"]
    cond, rng = {"label": torch.arange(4)}, Rng.rows(range(4))
    drawn = [
        one.sample(rng, cond, one.sampler("ddim", {"steps": 2}))["x"]
        for one in (base, run, folded(Run.load(made.folder)))
    ]
    assert not torch.equal(drawn[0], drawn[1]) and (drawn[1].int() - drawn[2].int()).abs().max() <= 1


def test_what_it_cannot_do_is_one_line():
    with pytest.raises(GencliError, match="no linear layer or convolution has a name with 'attention'"):
        adapted(layers(), layers="attention")
    with pytest.raises(GencliError, match=r"layers is '\('"):
        Lora.make({"layers": "("})
