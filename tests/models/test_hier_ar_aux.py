"""Auxiliary decoders: the passport of the catalogue, tiny distributions, sampling by quantiles."""

import itertools

import pytest
import torch

from gencli.core import Autoencoder, Field, LatentVariable, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.hier_ar_aux import HierArAux

IMAGES = Spec(Field("image", (1, 4, 4), vocab=6), {"label": Field("label", (), vocab=3)})
CONV = {"width": 8, "residual_width": 4, "residual_blocks": 1, "downsamples": 1}
PIXEL = {"name": "gated-pixelcnn", "width": 6, "layers": 2, "kernel": 3, "first": 3, "head": 8}
PARTS = {"encoder": {"name": "conv-encoder", **CONV}, "decoder": {"name": "conv-decoder", **CONV}}


def tiny(spec=IMAGES, seed=0, **settings):
    torch.manual_seed(seed)
    model = HierArAux.make({"codes": 8, "dim": 4, **PARTS, "net": PIXEL, "prior_net": PIXEL, **settings}, spec).double()
    for p in model.parameters():
        p.data = torch.randn_like(p) * (1.5 / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else 0.3)
    model.initialise(iter([{"x": images(64, i, spec)} for i in range(40)]), 64, Rng.batch("i", total=1))
    return model.eval()


def images(n, seed=0, spec=IMAGES):
    return torch.randint(spec.x.vocab, (n, *spec.x.shape), generator=torch.Generator().manual_seed(seed))


def turn(n):
    return Turn("main", 0, 10, Rng.batch("t", total=n))


def test_the_encoder_hears_the_auxiliary_decoder_and_never_the_autoregressive_one():
    grads = []
    for shift in (0.0, 1.0):
        model = tiny().train()
        for part in (model.over_codes, model.over_image):
            for p in part.parameters():
                p.data.add_(shift * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        model({"x": images(4), "label": torch.arange(4) % 3}, turn(4))["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        grads.append({key: p.grad for key, p in model.named_parameters()})
    for key, grad in grads[0].items():
        assert torch.equal(grad, grads[1][key]) == key.startswith("auxiliary."), key
    model = tiny()
    codes = model.encode(images(4))
    parts = model._log_probs(images(4), codes, {})
    (-(parts[0] + parts[1]).sum()).backward()
    assert all(p.grad is None for p in model.auxiliary.parameters())


def test_the_joint_is_the_sum_over_the_levels():
    model, x, label = tiny(), images(5), torch.tensor([0, 1, 2, 0, 1])
    codes = model.encode(x)
    over_codes = model.over_codes.logits(codes.flatten(1), label=label).log_softmax(-1)
    over_image = model.over_image.logits(x.flatten(1), label=label, codes=codes).log_softmax(-1)
    by_hand = over_codes.gather(2, codes.flatten(1)[..., None]).sum((1, 2))
    by_hand = by_hand + over_image.gather(2, x.flatten(1)[..., None]).sum((1, 2))
    torch.testing.assert_close(model.log_prob(x, Rng.rows(()), label=label), by_hand, atol=1e-10, rtol=0)
    losses = model({"x": x, "label": label}, turn(5))
    torch.testing.assert_close(losses["bits_per_dim"], -by_hand.mean().detach() / 16 / torch.tensor(2.0).log().double())


def test_the_joint_bounds_the_image():
    """All 16 binary images of 2×2: summed over codes the joint is at most 1, over one code per image less."""
    spec = Spec(Field("image", (1, 2, 2), vocab=2))
    model = tiny(spec, codes=3)
    every = torch.tensor(list(itertools.product((0, 1), repeat=4))).view(16, 1, 2, 2)
    whole = torch.stack([sum(model._log_probs(every, torch.full((16, 1, 1), c), {})).exp() for c in range(3)]).sum(0)
    assert whole.sum().item() == pytest.approx(1, abs=1e-6)
    own = model.log_prob(every, Rng.rows(())).exp()
    assert (own <= whole).all() and own.sum() < 1


def test_samples_follow_the_joint():
    spec = Spec(Field("image", (1, 2, 2), vocab=2))
    model = tiny(spec, codes=3)
    z = model.prior(4000, Rng.batch("z", total=4000))
    drawn = model.decode(z).flatten(1) @ torch.tensor([8, 4, 2, 1])
    every = torch.tensor(list(itertools.product((0, 1), repeat=4))).view(16, 1, 2, 2)
    exact = torch.stack([sum(model._log_probs(every, torch.full((16, 1, 1), c), {})).exp() for c in range(3)]).sum(0)
    found = torch.bincount(drawn, minlength=16) / 4000
    assert (found - exact).abs().sum() < 0.08 < (exact - 1 / 16).abs().sum()


def test_codes_decode_by_the_auxiliary_decoder_and_normal_numbers_by_the_others():
    model, x = tiny(), images(2)
    assert isinstance(model, Autoencoder) and isinstance(model, LatentVariable)
    codes = model.encode(x)
    assert codes.shape == (2, *model.latent.shape) == (2, 2, 2)
    grey = (model.auxiliary.decode(codes) + 1) * 2.5
    assert torch.equal(model.decode(codes), grey.round().clamp(0, 5).long())
    z, label = model.prior(3, Rng.rows([1, 2, 3])), torch.tensor([0, 1, 2])
    made = model.decode(z, label=label)
    assert made.dtype == torch.long and made.shape == (3, 1, 4, 4)
    assert torch.equal(made[1:2], model.decode(model.prior(1, Rng.rows([2])), label=label[1:2]))
    rough, fine = model.stages(z, label=label)
    assert torch.equal(fine, made) and rough.shape == fine.shape and not torch.equal(rough, fine)


def test_other_data_are_refused():
    with pytest.raises(GencliError, match=r"images of whole numbers, got image of shape \(1, 4, 4\) with values in"):
        tiny(Spec(Field("image", (1, 4, 4), vocab=6, range=(-1.0, 1.0))))
    with pytest.raises(GencliError, match="images of whole numbers, got codes"):
        tiny(Spec(Field("codes", (4, 4), vocab=6)))
