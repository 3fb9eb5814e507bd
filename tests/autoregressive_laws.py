"""What the tests of autoregressive image models share: lively random weights, dependency maps, step-by-step walks."""

import torch
from torch.utils._pytree import tree_leaves

from gencli.core import Field, Spec

LABEL = {"label": Field("label", (), vocab=3)}
GRIDS = [
    Field("image", (1, 4, 5), vocab=4),
    Field("image", (3, 3, 4), vocab=4),
    Field("codes", (4, 4), vocab=6),
]


def lively(kind, field, net, cond=None, seed=0, dtype=torch.float64, **settings):
    """A model with weights large enough that logits differ by about one."""
    torch.manual_seed(seed)
    model = kind.make({"net": net, **settings}, Spec(field, cond or {})).to(dtype)
    for p in model.parameters():
        p.data = torch.randn_like(p) * (1.5 / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else 0.3)
    return model.eval()


def dependencies(net, draws=4):
    """`(L, L)`: whether the logits of token i depend on the input at token j, both in sampling order, by autograd."""
    channels, high, wide = net.channels, net.height, net.breadth
    length = channels * high * wide
    found = torch.zeros(length, length, dtype=torch.bool)
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((1, channels, high, wide), generator=generator, dtype=torch.float64).requires_grad_()
        h = torch.randn((1, getattr(net, "cond", None).width if hasattr(net, "cond") else 0), dtype=torch.float64)
        made = net.head(net.features(x, h)).unflatten(1, (channels, net.vocab))
        mixed = (made * torch.randn(net.vocab, 1, 1, generator=generator, dtype=torch.float64)).sum(2)
        for i, value in enumerate(mixed[0].movedim(0, -1).flatten()):
            (grad,) = torch.autograd.grad(value, x, retain_graph=True)
            found[i] |= grad[0].movedim(0, -1).flatten() != 0
    return found


def later_tokens_change_nothing(model, **cond):
    """Exactly: replacing all tokens from j on leaves the logits up to j as they are."""
    length, vocab = model.spec.x.size, model.vocab
    tokens = torch.randint(vocab, (2, length), generator=torch.Generator().manual_seed(1))
    before = model.logits(tokens, **cond)
    for j in range(length):
        changed = tokens.clone()
        changed[:, j:] = (changed[:, j:] + 1) % vocab
        after = model.logits(changed, **cond)
        if not torch.allclose(before[:, : j + 1], after[:, : j + 1], rtol=0, atol=1e-12):
            return False
        if j == 0 and torch.allclose(before, after):
            return False  # nothing at all depends on the past
    return True


def largest_gap(model, walk, n=3, **cond):
    """The largest difference between step-by-step and teacher-forced logits; fails if a given state was changed."""
    length = model.spec.x.size
    tokens = torch.randint(model.vocab, (n, length), generator=torch.Generator().manual_seed(2))
    whole = model.logits(tokens, **cond)
    state, gap = walk.start(n, **cond), 0.0
    for i in range(length):
        before = [leaf.clone() for leaf in tree_leaves(state)]
        given = tokens[:, i - 1] if i else None
        if i:
            walk.next((tokens[:, i - 1] + 1) % model.vocab, state)  # a branch not taken leaves no trace
        logits, after = walk.next(given, state)
        assert all(torch.equal(a, b) for a, b in zip(before, tree_leaves(state), strict=True))
        gap = max(gap, (logits - whole[:, i]).abs().max().item())
        state = after
    assert all(leaf.shape[0] == n for leaf in tree_leaves(state))
    return gap
