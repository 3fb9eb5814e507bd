"""MaskGIT: the passport of the catalogue, and that its loss is what it says."""

import math

import pytest
import torch
from torch.nn import functional as F

from gencli import recipe
from gencli.config import choose
from gencli.core import Field, Rng, Spec, TokenDenoiser, Turn
from gencli.errors import GencliError
from gencli.models.masked.maskgit import MaskGIT, draw_counts, draw_masks

CODES = Field("codes", (4, 4), vocab=6)
LABEL = {"label": Field("label", (), vocab=3)}
NET = {"name": "bidirectional-transformer", "width": 16, "depth": 2, "heads": 2, "dropout": 0.0}


def tiny(field=CODES, cond=LABEL, **settings):
    model = MaskGIT.make({"net": NET, **settings}, Spec(field, cond)).double()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * (0.4 if p.ndim > 1 else 0.3)
    return model.eval()


def batch_of(n, field=CODES):
    x = torch.randint(field.vocab, (n, *field.shape), generator=torch.Generator().manual_seed(1))
    return {"x": x, "label": torch.arange(n) % 3}


def turn(n, rows=None):
    return Turn("main", 0, 1, Rng.batch(0, total=n, rows=rows))


def watched(model):
    """The inputs and outputs of the network, as they come."""
    seen = []

    def keep(module, given, made):
        made.retain_grad()
        seen.append((given[0], made))

    model.net.register_forward_hook(keep)
    return seen


def test_two_over_pi_of_the_tokens_are_masked_on_average_from_one_to_all_and_all_alike():
    counts = draw_counts(Rng.batch(0, total=100_000), 100_000, 256)
    assert (counts / 256).mean().item() == pytest.approx(2 / math.pi, abs=0.005)
    assert counts.min() == 1 and counts.max() == 256
    assert (counts <= 128).double().mean().item() == pytest.approx(1 / 3, abs=0.01)  # cos(πr/2) ≤ ½ for a third of r
    rng = Rng.batch(1, total=5000)
    masks = draw_masks(rng, 5000, 64)
    assert torch.equal(masks.sum(1), draw_counts(rng, 5000, 64))
    assert (masks.double().mean(0) - masks.double().mean()).abs().max() < 0.03, "every place alike"
    pairs = torch.corrcoef(masks[draw_counts(rng, 5000, 64) == 32].double().T).fill_diagonal_(0).mean()
    assert abs(pairs.item()) < 0.05, "places are drawn apart from each other"


def test_only_masked_targets_have_a_gradient_and_the_network_sees_the_others_alone():
    model = tiny()
    seen, batch = watched(model), batch_of(8)
    model.loss(batch, turn(8))["loss"].backward()
    (given, logits), tokens = seen[0], batch["x"].flatten(1)
    masked = draw_masks(turn(8).rng, 8, 16)
    assert torch.equal(given, tokens.masked_fill(masked, 6)) and 0 < masked.sum() < masked.numel()
    assert not logits.grad[~masked].any() and (logits.grad[masked].abs().amax(-1) > 0).all()
    assert all(p.grad is not None for p in model.parameters())


def test_the_loss_is_smoothed_cross_entropy_of_the_masked_over_all_tokens():
    model = tiny()
    batch, masked = batch_of(8), draw_masks(turn(8).rng, 8, 16)
    tokens = batch["x"].flatten(1)
    log = model.logits_at(tokens.masked_fill(masked, 6), label=batch["label"]).log_softmax(-1)
    smooth = 0.9 * F.one_hot(tokens, 6) + 0.1 / 6
    expected = -(smooth * log).sum(-1).where(masked, 0.0).sum(1) / 16
    losses = model.loss(batch, turn(8))
    torch.testing.assert_close(losses["each"], expected)
    torch.testing.assert_close(losses["loss"], expected.mean())
    right = (((log.argmax(-1) == tokens) & masked).sum(1) / masked.sum(1)).mean()
    torch.testing.assert_close(losses["masked_accuracy"], right)


def test_logits_of_an_all_masked_input_depend_on_the_class_only():
    model, blank = tiny(), torch.full((4, 16), 6)
    logits = model.logits_at(blank, label=torch.tensor([0, 1, 0, 1]), image=torch.randn(4, 3))
    assert torch.equal(logits[:2], logits[2:]) and ((logits[0] - logits[1]).abs().amax(-1) > 1e-6).all()
    part = blank.clone()
    part[:, 5] = torch.arange(4)
    assert ((model.logits_at(part)[0] - model.logits_at(blank)[0]).abs().amax(-1) > 1e-6).all()


def test_labels_are_dropped_in_training_only_and_as_often_as_asked():
    model, batch = tiny(label_dropout=0.25), batch_of(400)
    kept = model.loss(batch, turn(400))["each"]
    null = model.loss({"x": batch["x"]}, turn(400))["each"]
    mixed = model.train().loss(batch, turn(400))["each"]
    dropped = (mixed - kept).abs() > 1e-9
    torch.testing.assert_close(mixed[dropped], null[dropped])
    assert 0.17 < dropped.double().mean() < 0.33


def test_pixels_of_few_levels_are_tokens_too():
    field = Field("image", (3, 2, 4), vocab=4)
    model = tiny(field, {})
    assert torch.isfinite(model.loss(batch_of(5, field), turn(5))["loss"])
    assert model.logits_at(torch.full((2, 24), 4)).shape == (2, 24, 4)
    assert isinstance(model, TokenDenoiser) and not hasattr(model, "log_prob")


def test_the_paper_recipe_has_the_released_settings_and_parameters():
    table = recipe.load("maskgit-imagenet256")
    part = choose("models", table["model"])
    spec = Spec(Field("codes", (16, 16), vocab=1024), {"label": Field("label", (), vocab=1000)})
    with torch.device("meta"):
        model = part.build(spec)
    assert sum(p.numel() for p in model.parameters()) == 172_457_193
    assert (part.config.label_smoothing, part.config.label_dropout, part.config.net.config.dropout) == (0.1, 0.0, 0.1)
    train = table["train"]
    assert (train["lr"], train["betas"], train["weight_decay"]) == (1e-4, [0.9, 0.96], 0.045)


def test_continuous_data_are_refused():
    with pytest.raises(GencliError, match="latent of shape"):
        tiny(Field("latent", (4, 4)))
