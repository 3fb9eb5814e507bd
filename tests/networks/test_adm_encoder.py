"""The classifier of noisy images: official sizes, and its attention pool against an independent implementation."""

import pytest
import torch
from diffused import randomised
from torch import nn
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.adm_encoder import AdmEncoder

TINY = {"width": 8, "mults": (1, 2), "blocks": 1, "attention": (4,), "head_width": 4}


def image(side, channels=1):
    return Field("image", (channels, side, side), vocab=256, range=(-1.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "side", "official"),
    [
        ({}, 64, 65_438_568),
        ({"mults": (1, 1, 2, 3, 4), "blocks": 2}, 128, 42_568_040),
        ({"mults": (1, 1, 2, 2, 4, 4), "blocks": 2}, 256, 54_096_360),
        ({"mults": (0.5, 1, 1, 2, 2, 4, 4), "blocks": 2}, 512, 54_448_360),
    ],
)
def test_parameter_counts_are_the_official_ones(settings, side, official):
    with torch.device("meta"):
        net = AdmEncoder.make(settings, image(side, 3), 1000)
    assert sum(p.numel() for p in net.parameters()) == official


def test_the_pool_is_multi_head_attention_of_the_mean_token():
    net = randomised(AdmEncoder.make(TINY, image(8), 5))
    h = torch.randn(3, 16, 4, 4)
    peer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    with torch.no_grad():
        peer.in_proj_weight.copy_(net.pool.qkv.weight)
        peer.in_proj_bias.copy_(net.pool.qkv.bias)
        peer.out_proj.weight.copy_(torch.eye(16))
        peer.out_proj.bias.zero_()
        tokens = torch.cat([h.mean((2, 3))[:, :, None], h.flatten(2)], dim=2).transpose(1, 2) + net.pool.positions
        seen = peer(tokens, tokens, tokens, need_weights=False)[0][:, 0]
        expected = F.linear(seen, net.pool.out.weight, net.pool.out.bias)
        assert expected.std() > 0.1
        assert (net.pool(h) - expected).abs().max() < 1e-5


def test_every_parameter_moves_the_logits_and_they_depend_on_the_level():
    net = randomised(AdmEncoder.make(TINY, image(8), 5))
    x, level = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 5.0, 999.0])
    logits = net(x, level)
    assert logits.shape == (3, 5) and (net(x, level + 100) - logits).abs().amax(1).min() > 1e-3
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_an_item_does_not_depend_on_its_batch_mates():
    net = randomised(AdmEncoder.make(TINY, image(8), 5))
    x, level = torch.randn(7, 1, 8, 8), torch.arange(7) * 100.0
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1]) for i in range(7)])
    assert (net(x, level) - alone).abs().max() < 1e-5


def test_images_of_another_size_and_what_cannot_be_built_are_refused():
    net = AdmEncoder.make(TINY, image(8), 5)
    with pytest.raises(AssertionError, match="16 pixels, got 36"):
        net(torch.zeros(1, 1, 12, 12), torch.zeros(1))
    with pytest.raises(GencliError, match=r"7×7.*stride 2"):
        AdmEncoder.make(TINY, image(7), 5)
    with pytest.raises(GencliError, match=r"adm-encoder.*points"):
        AdmEncoder.make(TINY, Field("points", (2,)), 5)
    with pytest.raises(GencliError, match=r"8 channels.*head-width 64"):
        AdmEncoder.make({**TINY, "head_width": 64}, image(4), 5)
