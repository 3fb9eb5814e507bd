"""VQ-VAE-2: the passport of the catalogue, the common code's count, the levels."""

import pytest
import torch

from gencli.core import Autoencoder, Field, Levels, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.vqvae2 import VQVAE2

IMAGES = Spec(Field("image", (1, 16, 16), vocab=256, range=(-1.0, 1.0)))
LARGE = Spec(Field("image", (3, 256, 256), vocab=256, range=(-1.0, 1.0)))
TINY = {"codes": 16, "dim": 4, "width": 8, "residual_width": 4, "residual_blocks": 1, "downsamples": 1}


def tiny(seed=0, spec=IMAGES, **settings):
    torch.manual_seed(seed)
    model = VQVAE2.make({**TINY, **settings}, spec).double()
    for p in model.parameters():
        p.data = torch.randn_like(p) * (1.5 / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else 0.3)
    return model


def images(n, seed=0):
    return torch.rand((n, 1, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def turn(n):
    return Turn("main", 0, 10, Rng.batch("t", total=n))


def count(module):
    return sum(p.numel() for p in module.parameters())


def placed(**settings):
    """With codes where the vectors are."""
    model = tiny(**settings)
    model.initialise(iter([{"x": images(64, i)} for i in range(8)]), 64, Rng.batch("i", total=1))
    return model.eval()


def test_the_network_has_the_parameters_of_the_common_code():
    with torch.device("meta"):
        model = VQVAE2.make({"residual_width": 32}, LARGE)
    assert count(model) - count(model.guesses) == 1_388_867


def test_256_pixels_become_32x32_and_64x64_codes_of_512():
    model = VQVAE2.make({**TINY, "codes": 512, "downsamples": 2}, LARGE)
    z = model.encode(torch.rand(1, 3, 256, 256))
    assert model.levels == {"top": Field("codes", (32, 32), vocab=512), "bottom": Field("codes", (64, 64), vocab=512)}
    assert z.shape == (1, *model.latent.shape) and isinstance(model, Autoencoder) and isinstance(model, Levels)
    assert z.shape[1] * 9 / (3 * 256 * 256) == pytest.approx(0.234, abs=5e-4)
    with torch.device("meta"):
        three = VQVAE2.make({"levels": 3, "downsamples": 3}, Spec(Field("image", (3, 1024, 1024), range=(-1.0, 1.0))))
    assert [field.shape for field in three.levels.values()] == [(32, 32), (64, 64), (128, 128)]


@pytest.mark.parametrize("levels", [2, 3])
def test_the_codes_of_the_levels_split_and_join(levels):
    model = placed(levels=levels)
    z = model.encode(images(3))
    parts = model.split(z)
    assert [*parts] == [*model.levels] and torch.equal(model.join(parts), z) and z.max() < model.latent.vocab
    for name, codes in parts.items():
        assert codes.shape == (3, *model.levels[name].shape) and codes.min() >= 0 and codes.max() < 16
        assert len(codes.unique()) > 4, "k-means put the codes where the vectors are"


def test_the_pieces_are_put_together_as_in_the_paper():
    """By hand: bottom vectors from its features beside the decoded top; the picture from the bottom and the risen top."""
    model, x = placed(), images(2)
    low = model.encoders["bottom"](x)
    top = model.quantisers["top"].nearest(model.projections["top"](model.encoders["top"](low)))
    e_top = model.quantisers["top"].codebook[top].movedim(-1, 1)
    z = model.projections["bottom"](torch.cat([model.contexts["bottom"](e_top), low], 1))
    e_bottom = model.quantisers["bottom"].codebook[model.quantisers["bottom"].nearest(z)].movedim(-1, 1)
    picture = model.decoder(torch.cat([model.rises["bottom"](e_top), e_bottom], 1))
    torch.testing.assert_close(model.reconstruct(x), picture)
    assert torch.equal(model.split(model.encode(x))["top"], top)


@pytest.mark.parametrize("levels", [2, 3])
def test_the_picture_changes_with_every_code_of_every_level_and_lower_codes_with_upper_ones(levels):
    model = placed(levels=levels)
    z = model.encode(images(1))
    for name, codes in model.split(z).items():
        for i in range(codes.numel()):
            other = codes.flatten().clone()
            other[i] = (other[i] + 1) % 16
            changed = model.join({**model.split(z), name: other.view_as(codes)})
            assert not torch.allclose(model.decode(changed), model.decode(z)), (name, i)
    model.quantisers["top"].codebook.copy_(model.quantisers["top"].codebook.roll(1, 0).neg())  # other vectors above
    assert not torch.equal(model.split(model.encode(images(1)))["bottom"], model.split(z)["bottom"])


def test_the_gradient_reaches_every_encoder_straight_through():
    model = tiny().train()
    losses = model({"x": images(4)}, turn(4))
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert {"perplexity_top", "perplexity_bottom", "usage_top", "batch_perplexity_bottom"} <= losses.keys()


def test_guessing_moves_nothing_else():
    made = []
    for seed in (1, 2):
        model = tiny().train()
        for p in model.guesses.parameters():
            p.data.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
        model({"x": images(4)}, turn(4))["loss"].backward()
        made.append({key: p.grad for key, p in model.named_parameters()})
    for key, grad in made[0].items():
        assert torch.equal(grad, made[1][key]) != key.startswith("guesses."), key


def test_levels_left_out_become_the_codes_nearest_to_what_is_guessed():
    model = placed(levels=3)
    parts = model.split(model.encode(images(2)))
    last = model.guesses["bottom"][-1]
    last.weight.data.zero_()
    last.bias.data.copy_(model.quantisers["bottom"].codebook[5])
    filled = model.split(model.join({"top": parts["top"], "middle": parts["middle"]}))
    assert (filled["bottom"] == 5).all() and torch.equal(filled["middle"], parts["middle"])
    guessed = model.split(model.join({"top": parts["top"]}))
    assert torch.equal(guessed["top"], parts["top"]) and len(guessed["middle"].unique()) > 1


def test_a_guess_is_judged_by_the_vectors_of_the_codes():
    """By hand: the mean squared distance of what the top tells to the bottom codes' vectors."""
    model, x = placed(), images(3)
    codes = model.split(model.encode(x))
    e_top, e_bottom = (model.quantisers[name].codebook[codes[name]].movedim(-1, 1) for name in ("top", "bottom"))
    guess = (model.guesses["bottom"](model.contexts["bottom"](e_top)) - e_bottom).square().mean()
    losses = model({"x": x}, turn(3))
    torch.testing.assert_close(losses["guess"], guess.detach())
    torch.testing.assert_close(losses["loss"], losses["recon"] + 0.25 * losses["commitment"] + guess)


@pytest.mark.parametrize("levels", [2, 3])
def test_coarse_items_are_made_from_the_upper_levels_alone(levels):
    """Decoded as what `join` fills in: of two levels all of them, of three half from the top and half from two."""
    model, x = placed(levels=levels, coarse=1.0), images(64)
    parts = model.split(model.encode(x))
    some = [model.join({name: parts[name] for name in [*parts][:kept]}) for kept in range(1, levels)]
    errors = torch.stack([(model.decode(z) - x).square().flatten(1).mean(1) for z in some])
    losses = model({"x": x}, turn(64))
    chosen = model._kept(64, turn(64).rng.at("coarse")).flatten() - 1
    torch.testing.assert_close(losses["recon"], (errors.gather(0, chosen[None]).mean() / model.variance).detach())
    assert torch.bincount(chosen, minlength=levels - 1).min() >= 16
    part = tiny(levels=levels, coarse=0.25)._kept(4000, Rng.batch("k", total=4000))
    assert 0.22 < (part < levels).double().mean() < 0.28


def test_the_first_vectors_have_unit_variance():
    model = placed()
    z = model.projections["top"](model._features(images(64))["top"])
    torch.testing.assert_close(z.mean((0, 2, 3)).abs().max().item(), 0.0, atol=1e-6, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4).double())


def test_what_is_no_image_and_sides_that_do_not_fit_are_refused():
    with pytest.raises(GencliError, match="vqvae2 needs images with a range, got image"):
        tiny(spec=Spec(Field("image", (1, 16, 16), vocab=256)))
    with pytest.raises(GencliError, match=r"vqvae2 needs images \(channels, height, width\), got points"):
        tiny(spec=Spec(Field("points", (3,), range=(-1.0, 1.0))))
    with pytest.raises(GencliError, match="28×28 is not divisible by the network's stride 8"):
        tiny(spec=Spec(Field("image", (1, 28, 28), range=(-1.0, 1.0))), downsamples=2)
