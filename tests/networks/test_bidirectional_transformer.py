"""The bidirectional transformer: the released counts, torch's own post-norm layer, everything sees everything."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.bidirectional_transformer import BidirectionalTransformer

CODES = Field("codes", (3, 4), vocab=7)
LABEL = {"label": Field("label", (), vocab=3)}
TINY = {"width": 16, "depth": 2, "heads": 2, "dropout": 0.0}


def tiny(cond=LABEL, **settings):
    net = BidirectionalTransformer.make({**TINY, **settings}, CODES, 7, cond).double()
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * (0.4 if p.ndim > 1 else 0.3)
    return net.eval()


@pytest.mark.parametrize(("side", "count"), [(16, 172_457_193), (32, 173_047_017)])
def test_counts_are_those_of_the_released_checkpoints(side, count):
    with torch.device("meta"):
        net = BidirectionalTransformer.make(
            {"width": 768, "depth": 24, "heads": 16},
            Field("codes", (side, side), vocab=1024),
            1024,
            {"label": Field("label", (), vocab=1000)},
        )
    assert sum(p.numel() for p in net.parameters()) == count


def test_logits_equal_torchs_post_norm_encoder_with_the_same_weights():
    net = tiny()
    layers = []
    for block in net.blocks:
        gelu = lambda x: F.gelu(x, approximate="tanh")  # noqa: E731
        layer = nn.TransformerEncoderLayer(16, 2, 64, 0.0, gelu, 1e-12, batch_first=True).double().eval()
        pairs = {
            "self_attn.in_proj": block.qkv, "self_attn.out_proj": block.proj, "linear1": block.up,
            "linear2": block.down, "norm1": block.norm1, "norm2": block.norm2,
        }  # fmt: skip
        state = {}
        for key, module in pairs.items():
            dot = "_" if key.endswith("in_proj") else "."
            state |= {f"{key}{dot}weight": module.weight.data, f"{key}{dot}bias": module.bias.data}
        layer.load_state_dict(state)
        layers.append(layer)
    tokens, label = torch.randint(8, (5, 12), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, 1])
    rows = torch.cat([7 + label[:, None], tokens + (tokens == 7) * 3], 1)  # 7 values, 3 classes, the mask
    h = F.layer_norm(net.table.weight[rows] + net.positions, (16,), net.norm.weight, net.norm.bias, 1e-12)
    for layer in layers:
        h = layer(h)
    h = F.gelu(h[:, 1:] @ net.dense.weight.T + net.dense.bias, approximate="tanh")
    h = F.layer_norm(h, (16,), net.last_norm.weight, net.last_norm.bias, 1e-12)
    expected = (h @ net.table.weight.T + net.bias)[..., :7]
    torch.testing.assert_close(net(tokens, label=label), expected, rtol=1e-9, atol=1e-9)


def test_every_logit_depends_on_every_visible_token_and_on_the_class():
    net = tiny()
    tokens = torch.randint(7, (1, 12), generator=torch.Generator().manual_seed(2))
    before = net(tokens, label=torch.tensor([0]))
    assert ((net(tokens, label=torch.tensor([1])) - before).abs().amax(-1) > 1e-6).all()
    for j in range(12):
        changed = tokens.clone()
        changed[0, j] = (changed[0, j] + 1) % 7
        assert ((net(changed, label=torch.tensor([0])) - before).abs().amax(-1) > 1e-6).all(), j


def test_an_absent_label_is_the_null_label():
    net, tokens = tiny(), torch.randint(8, (2, 12), generator=torch.Generator().manual_seed(3))
    assert torch.equal(net(tokens), net(tokens, label=torch.tensor([3, 3])))
    assert not torch.allclose(net(tokens), net(tokens, label=torch.tensor([0, 1])))
    assert tiny(cond={})(tokens).shape == (2, 12, 7)


def test_dropout_of_attention_changes_nothing_on_average_and_is_off_in_evaluation():
    net, tokens = tiny(dropout=0.2), torch.randint(8, (1, 12), generator=torch.Generator().manual_seed(4))
    assert torch.equal(net(tokens), tiny()(tokens)), "off: the same as without"
    h = torch.randn(1, 13, 16, generator=torch.Generator().manual_seed(5)).double()
    block = net.blocks[0]
    still = block._attention(h)
    block.train()
    torch.manual_seed(0)
    mean = torch.stack([block._attention(h) for _ in range(2000)]).mean(0)
    assert not torch.equal(block._attention(h), still)
    torch.testing.assert_close(mean, still, atol=0.1, rtol=0)


def test_what_it_cannot_do_is_refused_with_the_value():
    with pytest.raises(GencliError, match="width 16 is not divisible by 3 heads"):
        tiny(heads=3)
    with pytest.raises(GencliError, match="12,288 tokens"):
        BidirectionalTransformer.make(TINY, Field("image", (3, 64, 64), vocab=256), 256, {})
    with pytest.raises(GencliError, match="'image'"):
        tiny(cond={"image": Field("image", (1, 4, 4), range=(-1.0, 1.0))})
