"""Image GPT: the released code's sizes and first loss, its features, colours of a palette."""

import math

import pytest
import torch
from autoregressive_laws import GRIDS, LABEL, largest_gap, later_tokens_change_nothing, lively
from tiny import smoke

from gencli import recipe
from gencli.bundle import Run
from gencli.config import choose, merge
from gencli.core import Features, Field, Rng, Spec, Turn
from gencli.data import open_table
from gencli.errors import GencliError
from gencli.models.autoregressive.imagegpt import ImageGPT

NET = {"name": "transformer", "width": 16, "depth": 4, "heads": 2, "norm": "rms", "activation": "quick-gelu"}
NET = {**NET, "bias": False, "init": "imagegpt"}
COLOURS = Field("codes", (4, 5), vocab=12)


@pytest.mark.parametrize(
    ("size", "count"), [("s", 76_571_648), ("m", 455_157_760), ("l", 1_362_250_752)], ids=["S", "M", "L"]
)
def test_the_parameters_are_those_of_the_released_code(size, count):
    table = recipe.load(f"imagegpt-imagenet32-{size}")
    with torch.device("meta"):
        model = choose("models", table["model"]).build(Spec(Field("codes", (32, 32), vocab=512)))
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_block_is_the_released_codes():
    one = lively(ImageGPT, COLOURS, {**NET, "depth": 1}).net
    block, x = one.blocks[0], torch.randint(12, (2, 4, 5))

    def norm(h, gain):
        return h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    h = torch.cat([one.sos.expand(2, 1, 16), one.table.weight[x.flatten(1)[:, :-1]]], 1) + one.learned.weight
    q, k, v = (norm(h, block.norm1.weight) @ w.T for w in block.attention.qkv.weight.chunk(3))
    made = []
    for part in (slice(0, 8), slice(8, 16)):
        scores = (q[..., part] @ k[..., part].mT / math.sqrt(8)).masked_fill(~torch.ones(20, 20).tril().bool(), -1e10)
        made.append(scores.softmax(-1) @ v[..., part])
    h = h + torch.cat(made, -1) @ block.attention.proj.weight.T
    inner = norm(h, block.norm2.weight) @ block.up.weight.T
    h = h + (inner * torch.sigmoid(1.702 * inner)) @ block.down.weight.T
    want = norm(h, one.norm.weight) @ one.head.weight.T
    torch.testing.assert_close(one(x).flatten(1, 2), want, rtol=0, atol=1e-8)


def test_the_first_loss_is_that_of_a_uniform_guess():
    field = Field("codes", (8, 8), vocab=512)
    torch.manual_seed(0)
    model = ImageGPT.make({"net": NET}, Spec(field))
    losses = model({"x": torch.randint(512, (4, 8, 8))}, Turn("main", 0, 1, Rng.batch(0, total=4)))
    assert losses["loss"].item() / 64 == pytest.approx(math.log(512), rel=0.05)
    weights = dict(model.net.named_parameters())
    assert weights["blocks.0.attention.qkv.weight"].std().item() == pytest.approx(0.25, rel=0.1)
    assert weights["blocks.0.attention.proj.weight"].std().item() == pytest.approx(0.125, rel=0.15)


@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
def test_steps_equal_teacher_forcing_and_nothing_leaks(field):
    model = lively(ImageGPT, field, NET)
    assert largest_gap(model, model) < 1e-10 and later_tokens_change_nothing(model)


def test_labels_are_no_part_of_it():
    model = lively(ImageGPT, COLOURS, NET, LABEL)
    x = torch.randint(12, (2, 20))
    assert not model.spec.cond
    assert torch.equal(model.logits(x, label=torch.tensor([0, 1])), model.logits(x))


def test_features_are_the_mean_of_what_a_middle_block_reads():
    model, x = lively(ImageGPT, COLOURS, NET), torch.randint(12, (3, 4, 5))
    assert isinstance(model, Features)
    made = model.features(x)
    assert made.shape == (3, 16)
    torch.testing.assert_close(made, model.net.hidden(x, 2).mean(1))
    last = lively(ImageGPT, COLOURS, NET, layer=4)
    torch.testing.assert_close(last.features(x) @ last.net.head.weight.T, last.net(x).mean((1, 2)))
    with pytest.raises(GencliError, match="there is no block 5"):
        lively(ImageGPT, COLOURS, NET, layer=5).features(x)


def test_a_palettes_colours_are_its_tokens():
    tables = merge(smoke("palette"), {"data": {"name": "digits", "image_size": 8}})
    data = open_table(tables["data"])
    colours = Run.build(tables, data.spec)
    colours.model.quantiser.codebook.copy_(torch.linspace(-1, 1, 6)[:, None])
    run = Run.build({"model": {"name": "imagegpt", "net": NET}}, data.spec, colours)
    assert (run.spec.x.kind, run.spec.x.shape, run.spec.x.vocab) == ("codes", (8, 8), 6)
    made = run.sample(Rng.rows([0, 1, 2]))["x"]
    assert made.dtype == torch.uint8 and made.shape == (3, 1, 8, 8) and 1 < len(made.unique()) <= 6
