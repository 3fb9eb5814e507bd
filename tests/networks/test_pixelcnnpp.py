"""The PixelCNN++ network: what a pixel sees, its filters, and its start from data."""

import pytest
import torch
from torch.nn import functional as F

from gencli.core import Field
from gencli.networks._shifted import Grown, Shifted, settling
from gencli.networks.pixelcnnpp import PixelCNNPP


def lively(field, **settings):
    """Random weights everywhere, in float64."""
    torch.manual_seed(0)
    config = PixelCNNPP.Config(**{"width": 4, "blocks": 1, "mixtures": 2, "dropout": 0.0, **settings})
    net = PixelCNNPP(config, field, field.vocab).double()
    for name, p in net.named_parameters():
        p.data = torch.randn_like(p) * 0.3 + name.endswith("magnitude")
    return net.eval()


@pytest.mark.parametrize(("shape", "levels"), [((1, 5, 6), 3), ((3, 4, 4), 2), ((1, 4, 5), 1)])
def test_a_pixels_mixture_depends_on_all_earlier_pixels_and_on_no_other(shape, levels):
    net = lively(Field("image", shape, vocab=4), levels=levels, blocks=3)
    channels, high, wide = shape
    found = torch.zeros(high * wide, high * wide, dtype=torch.bool)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((1, channels + 1, high, wide), generator=generator, dtype=torch.float64).requires_grad_()
        _, made = net.body(*net.entry(x), x.new_zeros(1, 0))
        said = net.head(F.elu(made))
        mixed = (said * torch.randn(said.shape[1], 1, 1, generator=generator, dtype=torch.float64)).sum(1).flatten()
        for i, value in enumerate(mixed):
            (grad,) = torch.autograd.grad(value, x, retain_graph=True)
            found[i] |= (grad[0] != 0).any(0).flatten()
    assert torch.equal(found, torch.ones_like(found).tril(-1))


@pytest.mark.parametrize(("kernel", "left"), [((2, 3), False), ((2, 2), True), ((1, 3), False), ((2, 1), True)])
def test_a_shifted_convolution_is_a_masked_one_with_torchs_weight_norm(kernel, left):
    mine = Shifted(3, 5, kernel, left)
    torch.nn.init.uniform_(mine.magnitude, 0.5, 2.0)
    theirs = torch.nn.Conv2d(3, 5, kernel)
    theirs.weight.data, theirs.bias.data = mine.direction.data.permute(0, 3, 1, 2).contiguous(), mine.bias.data
    torch.nn.utils.parametrizations.weight_norm(theirs, dim=0)
    theirs.parametrizations.weight.original0.data = mine.magnitude.data.view(-1, 1, 1, 1)
    masked = torch.zeros(5, 3, 3, 3)  # centred on the pixel itself
    rows, columns = slice(2 - kernel[0], 2), slice(2 - kernel[1], 2) if left else slice(0, 3)
    masked[:, :, rows, columns] = theirs.weight
    x = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mine(x), F.conv2d(x, masked, mine.bias, padding=1))


def test_growing_is_a_transposed_convolution_cut_to_size_and_row_by_row_the_same():
    for kernel, left in (((2, 3), False), ((2, 2), True)):
        grown, like = Grown(3, 3, kernel, left).double(), torch.zeros(1, 3, 6, 8)
        y = torch.randn(1, 3, 3, 4, dtype=torch.float64)
        made = grown(y, like)
        assert made.shape == like.shape
        full = F.conv_transpose2d(y, grown.weight.permute(3, 0, 1, 2), grown.bias, 2)
        torch.testing.assert_close(made, full[:, :, :6, grown.skipped : grown.skipped + 8])
        for row in range(6):
            torch.testing.assert_close(grown.row(y[:, :, row // 2], row % 2, 8), made[:, :, row])


def test_settling_gives_every_layer_the_spread_it_asks_for():
    torch.manual_seed(0)
    field = Field("image", (1, 8, 8), vocab=17)
    net = PixelCNNPP(PixelCNNPP.Config(width=8, blocks=1, dropout=0.5), field, 17)
    tokens = torch.randint(17, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    seen = {}
    with settling(net):
        hooks = [
            layer.register_forward_hook(lambda layer, _, made, name=name: seen.update({name: (layer, made.detach())}))
            for name, layer in net.named_modules()
            if isinstance(layer, Shifted | Grown)
        ]
        net.eval()(tokens, raw=True)
    for hook in hooks:
        hook.remove()
    assert len(seen) == sum(isinstance(layer, Shifted | Grown) for layer in net.modules()) == 57
    for name, (layer, made) in seen.items():
        made = made.movedim(1, 0).flatten(1)
        torch.testing.assert_close(made.mean(1), torch.zeros(len(made)), rtol=0, atol=1e-4, msg=name)
        torch.testing.assert_close(made.std(1), torch.full((len(made),), layer.size), rtol=2e-3, atol=0, msg=name)
