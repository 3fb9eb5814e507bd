"""RevNet: its inverse, its gradients against stored activations, memory that does not grow with depth."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.revnet import Pair, Revnet

IMAGES = Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0))


def made(blocks=3, store=False, widths=(8, 12), seed=0):
    torch.manual_seed(seed)
    net = Revnet(Revnet.Config(widths=widths, blocks=blocks, store=store), IMAGES, 10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return net.double()


def images(n=6, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
def test_a_row_of_blocks_is_undone(training):
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Pair(8, 8, 1) for _ in range(8))).train(training)
    x = torch.randn(4, 8, 5, 5)
    with torch.no_grad():
        y = blocks(x)
        back = y
        for block in reversed(blocks):
            back = block.inverse(back)
    assert (back - x).abs().max() < 1e-5 * y.abs().max() < (y - x).abs().max()


def gradients(net, x):
    net.train()
    x = x.clone().requires_grad_()
    (net(x).logsumexp(1).mean() + net.features(x).square().sum()).backward()
    return {"x": x.grad, **{name: p.grad for name, p in net.named_parameters()}}


def test_gradients_are_those_of_stored_activations():
    again, stored = made(), made(store=True)
    found, truth = gradients(again, images()), gradients(stored, images())
    assert set(found) == set(truth)
    for name, value in truth.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, msg=name)
    for (name, a), (_, b) in zip(again.named_buffers(), stored.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=f"{name}: statistics are gathered once a batch")
    assert int(again.last.num_batches_tracked) == 2


def test_gradients_under_autocast_are_those_of_stored_activations():
    again, stored = made().float(), made(store=True).float()
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        found, truth = gradients(again, x), gradients(stored, x)
    whole = torch.cat([value.flatten() for value in truth.values()])
    apart = torch.cat([(found[name] - value).flatten() for name, value in truth.items()])
    assert apart.norm() < 0.1 * whole.norm()


class Kept:
    def __init__(self, tensor):
        self.tensor = tensor


def kept(blocks, store):
    """Bytes of activations that a forward pass keeps for the backward pass."""
    net, alive = made(blocks, store).train(), weakref.WeakSet()
    own = {p.untyped_storage().data_ptr() for p in [*net.parameters(), *net.buffers()]}

    def pack(tensor):
        alive.add(holder := Kept(tensor))
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        loss = net(images(16)).sum()
    gc.collect()
    assert loss.requires_grad
    sizes = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in alive}
    return sum(size for place, size in sizes.items() if place not in own)


def test_memory_does_not_grow_with_depth():
    assert kept(32, store=False) < 1.1 * kept(4, store=False)
    assert kept(32, store=True) > 5 * kept(4, store=True), "as it does where activations are kept"


def test_in_evaluation_it_is_the_same_network():
    again, stored = made().eval(), made(store=True).eval()
    torch.testing.assert_close(again(images()), stored(images()), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(again(images()), stored(images()), rtol=0, atol=0)
    assert again.features(images()).shape == (6, 12)
    copy.deepcopy(again).load_state_dict(stored.state_dict())


def test_the_papers_network_has_its_size():
    with torch.device("meta"):
        net = Revnet(Revnet.Config(), Field("image", (3, 32, 32)), 10)
    assert sum(p.numel() for p in net.parameters()) == 448_074
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 1 + 3 * 3 * 4  # and the linear layer: 38


def test_what_it_cannot_take_is_refused():
    with pytest.raises(GencliError, match=r"at least 4 pixels a side, got image \(1, 2, 2\)"):
        Revnet(Revnet.Config(), Field("image", (1, 2, 2)), 10)
    with pytest.raises(GencliError, match=r"got widths \[8, 7\]"):
        Revnet(Revnet.Config(widths=(8, 7)), IMAGES, 10)
