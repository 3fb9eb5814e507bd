"""FiLM: the identity, shifts in space, features apart, and the norms of other papers that it is a part of."""

import pytest
import torch
from torch.nn import functional as F

from gencli.networks._resample_blocks import ResBlock, Style
from gencli.networks.stylegan_generator import adapted
from gencli.nn.film import film


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


H, GAMMA, BETA = rand(3, 8, 5, 6), rand(3, 8, seed=1), rand(3, 8, seed=2)


def test_gamma_1_and_beta_0_are_the_identity():
    assert torch.equal(film(H, torch.ones(3, 8, dtype=torch.float64), torch.zeros(3, 8, dtype=torch.float64)), H)


def test_it_is_the_formula_number_by_number_for_maps_tokens_and_rows():
    maps = film(H, GAMMA, BETA)
    assert float((maps[1, 4] - (GAMMA[1, 4] * H[1, 4] + BETA[1, 4])).abs().max()) == 0
    tokens = film(H.flatten(2).mT, GAMMA, BETA, dim=-1)
    assert torch.equal(tokens.mT.unflatten(2, (5, 6)), maps)
    assert torch.equal(film(H[:, :, 0, 0], GAMMA, BETA), maps[:, :, 0, 0])
    assert torch.equal(film(H, GAMMA[:, :, None, None], BETA[:, :, None, None]), maps)


@pytest.mark.parametrize("by", [(1, 0), (0, 2), (3, 4)])
def test_it_commutes_with_shifts_in_space_and_not_with_shifts_of_features(by):
    assert torch.equal(film(H.roll(by, (2, 3)), GAMMA, BETA), film(H, GAMMA, BETA).roll(by, (2, 3)))
    assert not torch.allclose(film(H.roll(1, 1), GAMMA, BETA), film(H, GAMMA, BETA).roll(1, 1), atol=0.1)


def test_after_a_norm_it_is_adms_scale_shift_group_norm():
    """ADM's own way: a group norm whose weight and bias are an item's own, written out item by item."""
    torch.manual_seed(0)
    block = ResBlock(8, 8, Style(embedding=7, scale_shift=True)).double()
    with torch.no_grad():
        for p in block.parameters():
            p.normal_()
    x, told = rand(3, 8, 5, 6), rand(3, 7, seed=3)
    seen = []
    block.conv2.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    block(x, told)
    h = block.conv1(F.silu(block.norm1(x)))
    scale, shift = block.level(told).chunk(2, 1)
    for i in range(3):
        weight, bias = block.norm2.weight * (1 + scale[i]), block.norm2.bias * (1 + scale[i]) + shift[i]
        wanted = F.silu(F.group_norm(h[i : i + 1], block.norm2.num_groups, weight, bias, block.norm2.eps))
        assert (seen[0][i : i + 1] - wanted).abs().max() < 1e-6
        without = F.silu(block.norm2(h[i : i + 1]))
        assert (seen[0][i : i + 1] - without).abs().max() > 0.1
    assert torch.equal(seen[0], F.silu(film(block.norm2(h), 1 + scale, shift)))


def test_after_an_instance_norm_it_is_stylegans_adaptive_one():
    made = adapted(H, GAMMA, BETA)
    assert (made - film(F.instance_norm(H, eps=1e-8), GAMMA, BETA)).abs().max() < 1e-6
