"""Image Transformer: memory blocks, their order, equality with full attention when the memory holds the image."""

import pytest
import torch
from autoregressive_laws import GRIDS, LABEL, largest_gap, later_tokens_change_nothing, lively

from gencli import recipe
from gencli.config import choose
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.models.autoregressive.image_transformer import ImageTransformer
from gencli.nn import masks

NET = {"name": "transformer", "width": 16, "depth": 2, "heads": 2, "norm_at": "after", "activation": "relu"}
NET = {**NET, "positions": "sinusoidal-2d"}
LINE = {"mask": "local-1d", "block": [4], "memory": [4]}
PLANE = {"mask": "local-2d", "block": [2, 2], "memory": [1, 1]}


def tiny(field=GRIDS[0], cond=LABEL, **net):
    return lively(ImageTransformer, field, {**NET, **net}, cond)


@pytest.mark.parametrize("local", [LINE, PLANE], ids=["1-D", "2-D"])
@pytest.mark.parametrize("field", GRIDS, ids=lambda f: f"{f.kind}{f.shape}")
def test_steps_equal_teacher_forcing_and_nothing_leaks(field, local):
    model = tiny(field, **local)
    assert largest_gap(model, model, label=torch.tensor([0, 1, 3])) < 1e-10
    assert later_tokens_change_nothing(model, label=torch.tensor([0, 2]))


@pytest.mark.parametrize(("local", "everything"), [(LINE, {"memory": [20]}), (PLANE, {"memory": [4, 5]})])
def test_memory_that_holds_the_image_is_full_attention_in_the_same_order(local, everything):
    model, x = tiny(**{**local, **everything}), torch.randint(4, (2, 20))
    full = tiny(**local)
    full.load_state_dict(model.state_dict())
    assert not torch.allclose(full.logits(x), model.logits(x))
    full.net.mask0.copy_(masks.causal(20))
    torch.testing.assert_close(full.logits(x), model.logits(x), rtol=0, atol=1e-10)


def test_a_layers_gradient_is_zero_outside_of_the_memory_block():
    model = tiny(cond={}, depth=1, **PLANE)
    h = model.net._embed(torch.randint(4, (1, 20)), {}).detach().requires_grad_()
    out = model.net.blocks[0](h, *model.net._view(0, 20))
    order = model.order.tolist()
    for i in range(20):
        (grad,) = torch.autograd.grad(out[0, i].sum(), h, retain_graph=True)
        (row, column), reach = divmod(order[i], 5), grad[0].abs().sum(1) > 0
        top, left = row // 2 * 2, column // 2 * 2
        for j in range(20):
            r, c = divmod(order[j], 5)
            inside = top - 1 <= r < top + 2 and left - 1 <= c < left + 3 and j <= i
            assert bool(reach[j]) == inside


def test_images_are_read_block_by_block_and_come_out_upright():
    model = tiny(GRIDS[1], mask="local-2d", block=[2, 6], memory=[1, 3])  # six sub-pixels are two pixels
    columns = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9], [10, 11]]
    assert model.order.tolist() == [p + 12 * c for block in columns for p in block for c in range(3)]
    x = torch.randint(4, (2, 3, 3, 4))
    log = model.logits(x.flatten(1)[:, model.order]).log_softmax(-1)
    picked = log.gather(-1, x.flatten(1)[:, model.order][..., None]).sum((1, 2))
    torch.testing.assert_close(model.log_prob(x, Rng.batch(0, total=2)), picked)


@pytest.mark.parametrize(
    "local",
    [LINE, PLANE, {"mask": "full", "positions": "rotary-2d", "attention": 24, "width": 6}],
    ids=["1-D", "2-D", "full"],
)
@pytest.mark.parametrize("field", GRIDS[:2], ids=lambda f: f"{f.kind}{f.shape}")
def test_whole_pixels_tell_their_channels_one_after_the_other(field, local):
    model = tiny(field, name="pixel-transformer", mixtures=3, **local)
    assert largest_gap(model, model, label=torch.tensor([0, 1, 3])) < 1e-10
    assert later_tokens_change_nothing(model, label=torch.tensor([0, 2]))
    x, label = torch.randint(field.vocab, (2, *field.shape)), torch.tensor([1, 3])
    flat = x.flatten(1)[:, model.order]
    picked = model.logits(flat, label=label).log_softmax(-1).gather(-1, flat[..., None]).sum((1, 2))
    torch.testing.assert_close(model.log_prob(x, Rng.batch(0, total=2), label=label), picked, rtol=0, atol=1e-10)
    torch.testing.assert_close(model._within(flat[:, :5], {"label": label}), model.logits(flat, label=label)[:, :5])


def test_every_image_of_whole_pixels_together_has_probability_one():
    model = tiny(Field("image", (3, 1, 2), vocab=3), {}, name="pixel-transformer", mixtures=2, mask="full")
    x = torch.cartesian_prod(*[torch.arange(3)] * 6).view(-1, 3, 1, 2)
    total = model.log_prob(x, Rng.batch(0, total=len(x))).exp().sum()
    assert abs(total.item() - 1) < 1e-10


def test_codes_have_no_order_for_a_mixture():
    with pytest.raises(GencliError, match=r"pixel-transformer tells images, whose values have an order, got codes"):
        tiny(GRIDS[2], name="pixel-transformer", **LINE)


def test_the_cifar_recipe_has_the_released_codes_layers():
    table = recipe.load("image-transformer-cifar10")
    with torch.device("meta"):
        model = choose("models", table["model"]).build(Spec(Field("image", (3, 32, 32), vocab=256)))
    block = 4 * 512 * 512 + 4 * 512 + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
    assert sum(p.numel() for p in model.parameters()) == 12 * block + 768 * 512 + 512 * 256 + 512
    assert model.net.mask0.shape == (3072, 3072)


def test_the_cifar_recipe_of_mixtures_has_the_released_codes_layers():
    table = recipe.load("image-transformer-cifar10-dmol")
    with torch.device("meta"):
        model = choose("models", table["model"]).build(Spec(Field("image", (3, 32, 32), vocab=256)))
    block = 4 * 256 * 512 + 3 * 512 + 256 + 2 * 256 * 512 + 512 + 256 + 4 * 256
    ends = 768 * 256 + 256 * 100 + 1024 * 256 + 256  # ten mixtures of ten numbers; places; the start
    assert sum(p.numel() for p in model.parameters()) == 12 * block + ends
    assert model.net.mask0.shape == (1024, 1024)


def test_blocks_of_the_wrong_dimension_are_refused_by_name():
    with pytest.raises(GencliError, match=r"mask local-2d needs 2 numbers for block, got \[4\]"):
        tiny(**{**LINE, "mask": "local-2d"})
