"""The masked network: what an output depends on, and its hidden units' numbers."""

from itertools import pairwise

import pytest
import torch

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.made import Made


def lively(field, **settings):
    torch.manual_seed(0)
    net = Made(Made.Config(**{"hidden": (60, 60), **settings}), field, field.vocab).double()
    for p in net.parameters():
        p.data = torch.randn_like(p)
    return net.eval()


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("field", [Field("image", (3, 2, 2), vocab=3), Field("codes", (2, 4), vocab=5)])
def test_an_output_depends_on_positions_earlier_in_its_order_and_on_no_other(field, direct):
    net = lively(field, direct=direct, masks=2)
    size = field.size
    orders = torch.stack([torch.randperm(size, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    net.arrange(orders)
    assert net.kinds == 4 and torch.equal(net.order, orders[0])
    for kind in range(4):
        degrees = net.degrees(kind)
        weights = [layer.weight.detach() for layer in net.stack]
        masks = [(b[:, None] >= a).double() for a, b in pairwise(degrees)]
        paths = (degrees[-1][:, None] > degrees[-2]).double() @ masks[1] @ masks[0]
        if direct:
            paths = paths + (degrees[-1][:, None] > degrees[0]).double()
        assert weights[0].shape == masks[0].shape
        there = (paths > 0).view(size, field.vocab, size, -1).any(3).any(1)
        rank = orders[kind // 2].argsort()
        earlier = rank[:, None] > rank
        assert not (there & ~earlier).any(), "no path from a position that is not earlier"
        assert torch.equal(there, earlier) if direct else (there & earlier).sum() > 0.8 * earlier.sum()


def test_the_gradient_says_the_same_as_the_masks():
    field = Field("image", (1, 3, 3), vocab=4)
    net = lively(field)
    net.arrange(torch.tensor([[4, 0, 8, 2, 6, 1, 3, 5, 7]]))
    found = torch.zeros(9, 9, dtype=torch.bool)
    for seed in range(3):
        x = torch.randn(1, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
        net.read.forward = lambda tokens, dtype, x=x: x
        made = net.of(torch.zeros(1, 1, 3, 3, dtype=torch.long), 0).view(9, 4)
        for i in range(9):
            (grad,) = torch.autograd.grad(made[i, 0], x, retain_graph=True)
            found[i] |= grad[0] != 0
    rank = net.ranks[0]
    assert torch.equal(found, rank[:, None] > rank)


def test_hidden_numbers_lie_between_those_below_and_the_last_and_are_those_of_the_seed():
    field = Field("image", (1, 4, 4), vocab=2)
    net = lively(field, masks=3, hidden=(50, 40))
    for kind in range(3):
        _, first, second, _ = net.degrees(kind)
        assert first.min() >= 1 and second.min() >= first.min() and max(first.max(), second.max()) <= 15
        assert len(first.unique()) > 10
    assert not torch.equal(net.degrees(0)[1], net.degrees(1)[1])
    assert torch.equal(net.degrees(2)[1], lively(field, masks=3, hidden=(50, 40)).degrees(2)[1])
    assert not torch.equal(net.degrees(2)[1], lively(field, masks=3, hidden=(50, 40), seed=1).degrees(2)[1])


def test_no_hidden_layer_is_refused():
    with pytest.raises(GencliError, match="hidden layers are"):
        lively(Field("image", (1, 2, 2), vocab=2), hidden=())
