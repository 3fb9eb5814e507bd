"""Attention: equal to torch's own, blind where it must be, the same by any kernel."""

import pytest
import torch
from torch import nn

from gencli.nn import masks
from gencli.nn.attention import SelfAttention, attend, attend_where, weigh

WIDTH, HEADS, TOKENS = 12, 3, 10


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heads(seed, dtype=torch.float64):
    return (drawn(2, HEADS, TOKENS, 16, seed=seed + i).to(dtype) for i in range(3))


def layer(**kwargs):
    torch.manual_seed(0)
    made = SelfAttention(WIDTH, HEADS, **kwargs).double()
    for p in made.parameters():
        p.data = torch.randn_like(p) * 0.5
    return made


EVERYTHING = torch.ones(TOKENS, TOKENS, dtype=torch.bool)


@pytest.mark.parametrize("seen", [EVERYTHING, None], ids=["all", "past"])
def test_it_equals_torchs_multi_head_attention_with_the_same_weights(seen):
    made, theirs = layer(), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = made.qkv.weight.data, made.qkv.bias.data
    theirs.out_proj.load_state_dict(made.proj.state_dict())
    x = drawn(2, TOKENS, WIDTH)
    hidden = None if seen is not None else ~masks.causal(TOKENS)
    want, weights = theirs(x, x, x, attn_mask=hidden, average_attn_weights=False)
    torch.testing.assert_close(made(x, seen), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(made.weights(x, seen), weights, rtol=0, atol=1e-10)


def test_without_positions_and_masks_it_knows_no_order():
    made, x, order = layer(), drawn(2, TOKENS, WIDTH), torch.randperm(TOKENS)
    torch.testing.assert_close(made(x[:, order], EVERYTHING), made(x, EVERYTHING)[:, order], rtol=0, atol=1e-12)
    assert not torch.allclose(made(x[:, order], None), made(x, None)[:, order])


PATTERNS = {
    "past": masks.causal(TOKENS),
    "window": masks.window(TOKENS, 3),
    "local-1d": masks.local_1d(TOKENS, 4, 2),
    "local-2d": masks.local_2d(2, 5, (1, 3), (1, 1)),
    "strided": masks.strided(TOKENS, 3)[1],
    "fixed": masks.fixed(TOKENS, 3)[1],
}


@pytest.mark.parametrize("clip", [0, 2], ids=["plain", "relative"])
@pytest.mark.parametrize("name", PATTERNS)
def test_the_gradient_is_exactly_zero_outside_of_the_mask_and_nowhere_inside(name, clip):
    made, seen = layer(clip=clip), PATTERNS[name]
    x = drawn(1, TOKENS, WIDTH).requires_grad_()
    out = made(x, None if name == "past" else seen)
    for i in range(TOKENS):
        (grad,) = torch.autograd.grad(out[0, i].sum(), x, retain_graph=True)
        assert torch.equal(grad[0].abs().sum(1) > 0, seen[i]), i


@pytest.mark.parametrize("name", PATTERNS)
def test_a_mask_is_dense_attention_with_minus_infinity_outside(name):
    (q, k, v), seen = heads(0), PATTERNS[name]
    scores = torch.einsum("nhid,nhjd->nhij", q, k) / 4 + torch.where(seen, 0.0, -torch.inf)
    want = torch.einsum("nhij,nhjd->nhid", scores.softmax(-1), v)
    torch.testing.assert_close(attend_where(q, k, v, seen), want, rtol=0, atol=1e-12)


def test_the_plain_kernel_and_the_fused_one_agree():
    q, k, v = heads(3, torch.bfloat16)  # on a CPU, bfloat16 goes the plain way
    wide = [x.double() for x in (q, k, v)]
    for seen in (None, PATTERNS["strided"]):
        made, want = attend_where(q, k, v, seen), attend_where(*wide, seen)
        torch.testing.assert_close(made.double(), want, rtol=0, atol=0.03)
    torch.testing.assert_close(attend(q, k, v).double(), attend(*wide), rtol=0, atol=0.03)
    assert not torch.allclose(attend(*wide), attend_where(*wide, None))
    torch.testing.assert_close(weigh(wide[0], wide[1], None).sum(-1), torch.ones(2, HEADS, TOKENS).double())


def test_memory_that_holds_the_whole_image_is_full_attention():
    made, x = layer(), drawn(2, TOKENS, WIDTH)
    torch.testing.assert_close(made(x, masks.local_1d(TOKENS, 4, TOKENS)), made(x, None), rtol=0, atol=1e-12)
    assert not torch.allclose(made(x, masks.local_1d(TOKENS, 4, 1)), made(x, None))


@pytest.mark.parametrize("clip", [0, 4], ids=["plain", "relative"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_long_walk_with_a_cache_equals_the_whole_and_leaves_old_caches_alone(grad, clip):
    made, x = layer(clip=clip), drawn(2, 140, WIDTH)  # more than twice what a cache has room for at first
    whole, old = made(x, None), [made.empty(x)]
    with torch.set_grad_enabled(grad):
        for i in range(140):
            out, cache = made.step(x[:, i : i + 1], old[-1], None)
            torch.testing.assert_close(out[:, 0], whole[:, i], rtol=0, atol=1e-10)
            old.append(cache)
        assert [one.length for one in old] == list(range(141))
        kept = [[part.clone() for part in one] for one in old]
        for at in (0, 1, 40, 64, 139):  # each was continued before: its branch must not reach the others
            out, branch = made.step(x[:, at : at + 1] + 1, old[at], None)
            again, _ = made.step(x[:, at : at + 1], old[at], None)
            torch.testing.assert_close(again[:, 0], whole[:, at], rtol=0, atol=1e-10)
            more, _ = made.step(x[:, :1], branch, None)
            want = made(torch.cat([x[:, :at], x[:, at : at + 1] + 1, x[:, :1]], 1), None)
            torch.testing.assert_close(torch.cat([out, more], 1), want[:, -2:], rtol=0, atol=1e-10)
        for one, then in zip(old, kept, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, then, strict=True))


def test_a_walk_writes_into_its_room_instead_of_copying():
    made, x = layer(), drawn(2, 60, WIDTH)
    with torch.no_grad():
        cache, places = made.empty(x), set()
        for i in range(60):
            _, cache = made.step(x[:, i : i + 1], cache, None)
            places.add(cache.keys.data_ptr())
    assert len(places) == 1
