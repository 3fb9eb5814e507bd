"""The transformer: torch's own layers, causality, caches, counts, what it refuses."""

import pytest
import torch
from autoregressive_laws import GRIDS, LABEL, largest_gap, later_tokens_change_nothing, lively
from torch import nn
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.metrics._torchvision import import_torchvision
from gencli.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from gencli.networks.transformer import Block, Transformer
from gencli.nn import masks

SIZE = {"width": 16, "depth": 2, "heads": 2, "clip": 3}
CODES = Field("codes", (4, 5), vocab=6)
MASKS = {
    "full": {},
    "window": {"span": 3},
    "local-1d": {"block": [6], "memory": [3]},
    "local-2d": {"block": [2, 3], "memory": [1, 2]},
    "strided": {},
    "fixed": {"span": 3},
}
POSITIONS = ["learned", "sinusoidal", "sinusoidal-2d", "rotary", "rotary-2d", "relative", "none"]


def model(field=CODES, cond=None, dtype=torch.float64, **settings):
    """Any autoregressive image model takes the network."""
    return lively(GatedPixelCNN, field, {"name": "transformer", **SIZE, **settings}, cond, dtype=dtype)


def net(field=CODES, **settings):
    torch.manual_seed(0)
    return Transformer.make({**SIZE, **settings}, field, field.vocab)


def settings(**kwargs):
    return Transformer.make({"width": 16, "heads": 2, **kwargs}, CODES, 6).config


@pytest.mark.parametrize("first", [True, False])
def test_a_block_is_torchs_own_layer_with_the_same_weights(first):
    block = Block(settings(norm_at="before" if first else "after")).double().eval()
    theirs = nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, lambda x: F.gelu(x, approximate="tanh"), batch_first=True, norm_first=first
    ).double()
    for p in block.parameters():
        p.data = torch.randn_like(p) * 0.4
    pairs = {"linear1": block.up, "linear2": block.down, "norm1": block.norm1, "norm2": block.norm2}
    for name, ours in pairs.items():
        getattr(theirs, name).load_state_dict(ours.state_dict())
    attention = block.attention
    theirs.self_attn.in_proj_weight.data = attention.qkv.weight.data
    theirs.self_attn.in_proj_bias.data = attention.qkv.bias.data
    theirs.self_attn.out_proj.load_state_dict(attention.proj.state_dict())
    x = torch.randn(2, 9, 16).double()
    want = theirs(x, src_mask=~masks.causal(9))
    torch.testing.assert_close(block(x, None, None), want, rtol=0, atol=1e-10)


def test_the_network_is_gpt2_with_the_same_weights():
    """transformers' GPT-2, told the prefix as an embedding; its linear layers are stored transposed."""
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=7, n_positions=12, n_embd=16, n_layer=3, n_head=4, bos_token_id=None, eos_token_id=None
        )
    ).double()
    field = Field("codes", (3, 4), vocab=7)
    ours = Transformer.make({"width": 16, "depth": 3, "heads": 4, "tied": True}, field, 7, {}).double().eval()
    for p in ours.parameters():
        p.data = torch.randn_like(p) * 0.4
    state = {"transformer.wte.weight": ours.table.weight, "transformer.wpe.weight": ours.learned.weight}
    names = {"norm1": "ln_1", "norm2": "ln_2", "attention.qkv": "attn.c_attn", "attention.proj": "attn.c_proj"}
    names |= {"up": "mlp.c_fc", "down": "mlp.c_proj"}
    for i, block in enumerate(ours.blocks):
        for mine, its in names.items():
            layer = block.get_submodule(mine)
            linear = isinstance(layer, torch.nn.Linear)
            state[f"transformer.h.{i}.{its}.weight"] = layer.weight.T if linear else layer.weight
            state[f"transformer.h.{i}.{its}.bias"] = layer.bias
    state |= {f"transformer.ln_f.{key}": value for key, value in ours.norm.state_dict().items()}
    missing, extra = theirs.load_state_dict(state, strict=False)
    assert not extra and missing == ["lm_head.weight"], "the output is tied to the table"
    tokens = torch.randint(7, (2, 12), generator=torch.Generator().manual_seed(0))
    told = torch.cat([ours.sos.expand(2, 1, -1), ours.table(tokens[:, :-1])], dim=1)
    with torch.no_grad():
        expected = theirs.eval()(inputs_embeds=told).logits
        assert torch.allclose(ours(tokens.view(2, 3, 4)).view(2, 12, 7), expected, atol=1e-10)


def test_the_whole_is_what_its_parts_say():
    one = model(depth=1)
    made, tokens = one.net, torch.randint(6, (2, 4, 5))
    flat = tokens.flatten(1)
    h = torch.cat([made.sos.expand(2, 1, 16), F.embedding(flat[:, :-1], made.table.weight)], 1) + made.learned.weight
    block = made.blocks[0]
    a = F.layer_norm(h, (16,), block.norm1.weight, block.norm1.bias)
    h = h + block.attention(a, masks.causal(20))
    b = F.layer_norm(h, (16,), block.norm2.weight, block.norm2.bias)
    h = h + block.down(F.gelu(block.up(b), approximate="tanh"))
    want = F.layer_norm(h, (16,), made.norm.weight, made.norm.bias) @ made.head.weight.T
    torch.testing.assert_close(made(tokens).flatten(1, 2), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(made.hidden(tokens, 0), a, rtol=0, atol=1e-10)
    torch.testing.assert_close(made.hidden(tokens, 1) @ made.head.weight.T, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
def test_cached_steps_equal_teacher_forcing_with_any_positions(field, positions):
    one = model(field, LABEL, positions=positions)
    with torch.no_grad():
        assert largest_gap(one, one, label=torch.tensor([0, 1, 3])) < 1e-10
    assert largest_gap(one, one, label=torch.tensor([0, 1, 3])) < 1e-10


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cond", [LABEL, {}], ids=["label", "free"])
def test_cached_steps_equal_teacher_forcing_with_any_mask(mask, cond):
    given = {"label": torch.tensor([0, 1, 3])} if cond else {}
    for field in GRIDS:
        one = model(field, cond, mask=mask, positions="rotary", **MASKS[mask])
        assert largest_gap(one, one, **given) < 1e-10
    one = model(CODES, cond, torch.float32, mask=mask, **MASKS[mask])
    assert largest_gap(one, one, **given) < 1e-4


@pytest.mark.parametrize("mask", MASKS)
def test_later_tokens_change_no_earlier_logits(mask):
    assert later_tokens_change_nothing(model(GRIDS[1], mask=mask, **MASKS[mask]))


@pytest.mark.parametrize("mask", MASKS)
def test_one_layer_depends_on_exactly_what_its_mask_shows(mask):
    one = model(mask=mask, depth=1, **MASKS[mask])
    found = torch.zeros(20, 20, dtype=torch.bool)
    tokens = torch.randint(6, (1, 20), generator=torch.Generator().manual_seed(0))
    before = one.logits(tokens)
    for j in range(20):
        changed = tokens.clone()
        changed[:, j] = (changed[:, j] + 1) % 6
        found[:, j] = (one.logits(changed) - before).abs().amax((0, 2)) > 0
    seen = masks.causal(20) if mask == "full" else one.net.mask0
    assert torch.equal(found[:, :-1], seen[:, 1:] & masks.causal(20)[:, 1:])  # position j + 1 has read token j
    assert not found[:, -1].any()


def test_the_class_is_in_sight_of_every_token_whatever_the_mask():
    one = model(cond=LABEL, mask="window", span=2, depth=1)
    tokens = torch.randint(6, (1, 20))
    a, b, null = (one.logits(tokens, **k) for k in ({"label": torch.tensor([0])}, {"label": torch.tensor([1])}, {}))
    assert ((a - b).abs().amax(-1) > 1e-9).all()
    assert torch.equal(null, one.logits(tokens, label=torch.tensor([3])))


@pytest.mark.parametrize("positions", ["rotary", "relative", "rotary-2d"])
def test_weights_of_relative_positions_serve_a_larger_grid_and_a_window_is_the_same_anywhere(positions):
    small = net(Field("codes", (4, 5), vocab=6), positions=positions, mask="window", span=4, depth=1)
    large = net(Field("codes", (9, 5), vocab=6), positions=positions, mask="window", span=4, depth=1).double()
    for i, p in enumerate(small.parameters()):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.4
    large.load_state_dict(small.state_dict())
    grid = torch.randint(6, (1, 9, 5), generator=torch.Generator().manual_seed(3))
    made, part = large(grid).flatten(1, 2), small.double()(grid[:, 4:8]).flatten(1, 2)
    torch.testing.assert_close(made[:, 24:40], part[:, 4:], rtol=0, atol=1e-5)
    assert not torch.allclose(made[:, 20:24], part[:, :4])  # they see the beginning of the small grid


def test_the_order_of_blocks_is_the_order_of_sampling():
    one = model(mask="local-2d", **MASKS["local-2d"])
    assert torch.equal(one.order, masks.block_order(4, 5, (2, 3)))
    x = torch.randint(6, (2, 4, 5))
    made = one.net(x).flatten(1, 2)[:, one.order]
    torch.testing.assert_close(one.net(x.flatten(1)[:, one.order], ordered=True), made, rtol=0, atol=1e-12)
    head = one.net(x.flatten(1)[:, one.order][:, :7], ordered=True)
    torch.testing.assert_close(head, made[:, :7], rtol=0, atol=1e-10)


def test_channels_have_tables_of_their_own_and_follow_one_another():
    field = Field("image", (3, 2, 2), vocab=4)
    one = model(field)
    assert one.net.order.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert one.net.table.weight.shape == (12, 16)
    x = torch.zeros(1, 12, dtype=torch.long)
    before = one.logits(x)
    one.net.table.weight.data[4:8] += torch.randn(4, 16)  # green
    changed = (one.logits(x) - before).abs().amax(-1)[0] > 1e-9
    assert not changed[:2].any() and changed[2:].all()


def test_attention_maps_are_distributions_over_what_is_seen_and_tell_the_output():
    for kwargs in ({}, {"mask": "strided"}, {"positions": "relative"}, {"norm_at": "after"}):
        one = model(**kwargs)
        x = torch.randint(6, (2, 4, 5))
        maps = one.net.attention(x)
        assert maps.shape == (2, 2, 2, 20, 20)
        torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2, 2, 20).double())
        assert torch.equal(maps > 0, masks.causal(20).expand_as(maps)) == (kwargs != {"mask": "strided"})
        h = one.net.hidden(x, 1)
        attention = one.net.blocks[1].attention
        torch.testing.assert_close(attention.weights(h, getattr(one.net, "mask1", None)), maps[:, 1])


def test_the_parameters_are_those_of_the_released_code():
    with torch.device("meta"):
        field = Field("codes", (16, 32), vocab=1024)
        big = Transformer.make({"width": 1024, "depth": 24, "heads": 16}, field, 1024)
    # taming-transformers' FacesHQ prior; ours has a first vector where theirs has coordinates
    assert sum(p.numel() for p in big.parameters()) - 1024 == 304_932_864


def test_initial_weights_are_gpt2s():
    one = net(Field("codes", (16, 16), vocab=200), width=64, depth=8)
    measured = {name: p.std().item() for name, p in one.named_parameters() if p.ndim > 1}
    for name, std in measured.items():
        want = 0.005 if name.endswith(("proj.weight", "down.weight")) else 0.01 if name == "learned.weight" else 0.02
        assert std == pytest.approx(want, rel=0.08), name
    assert all(p.abs().sum() == 0 for name, p in one.named_parameters() if name.endswith("bias"))


def test_a_tied_output_is_the_table():
    one = model(tied=True)
    assert one.net.head.weight is one.net.table.weight
    assert "net.head.weight" not in dict(one.named_parameters())
    with pytest.raises(GencliError, match="tied needs one channel, the data have 3"):
        model(GRIDS[1], tied=True)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"heads": 3}, "width 16 cannot be shared by 3 heads"),
        ({"heads": 8, "positions": "rotary-2d"}, "with rotary-2d positions"),
        ({"mask": "local-2d", "block": [4]}, r"needs 2 numbers for block, got \[4\]"),
        ({"mask": "local-1d", "block": [4]}, r"needs 1 numbers for memory, got \[\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(kwargs, says):
    with pytest.raises(GencliError, match=says):
        net(**kwargs)


def test_points_and_other_conditions_are_refused_by_name():
    with pytest.raises(GencliError, match="got points"):
        net(Field("points", (2,), vocab=4))
    with pytest.raises(GencliError, match="'image'"):
        model(cond={"image": Field("image", (1, 4, 4), range=(-1.0, 1.0))})
