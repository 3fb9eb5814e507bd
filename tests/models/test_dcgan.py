"""DCGAN's discriminator given data and samples in one batch: what it sees that it is blind to in two."""

import pytest
import torch
from tiny import opened, smoke
from torch.nn.functional import softplus

from gencli.core import Field, Rng, Spec, Turn
from gencli.models.gan.dcgan import DcGan

SPEC = Spec(Field("image", (1, 16, 16), vocab=256, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=10)})
NETS = {
    "generator": {"name": "dcgan-generator", "width": 8, "upsamples": 2, "kernel": 4},
    "critic": {"name": "dcgan-critic", "width": 8, "downsamples": 2, "kernel": 4, "norm": "batch"},
}


def made(together, seed=0, **settings):
    torch.manual_seed(seed)
    return DcGan.make({"latent": 8, "together": together, **NETS, **settings}, SPEC)


def digits(n):
    return torch.from_numpy(opened({"name": "digits"}).split("train").x[:n]).float() / 127.5 - 1


@pytest.mark.parametrize("seed", range(4))
def test_a_grey_level_that_samples_have_in_common_is_seen_in_one_batch_and_hardly_in_two(seed):
    x = digits(128)

    def told(together):
        model = made(together, seed)
        with torch.no_grad():
            (real, fake), (before, same) = (model.scores(x[:64], x[64:] + grey) for grey in (0.2, 0.0))
        return float((fake.mean() - real.mean() - same.mean() + before.mean()).abs() / torch.cat([before, same]).std())

    assert told(True) > 3 * told(False), "both are digits, and one lot is lighter"


def test_in_one_batch_both_turns_are_of_one_pass_and_of_its_halves():
    model, x, label = made(True, classes=True), digits(8), torch.arange(8)
    for phase in ("critic", "generator"):
        turn = Turn(phase, 0, 10, Rng.batch("t", total=8))
        model.zero_grad()
        losses = model({"x": x, "label": label}, turn)
        samples = model.samples(x, turn.rng, label=label)
        both = model.critic(torch.cat([x, samples]), label=label.repeat(2)).flatten()
        expected = softplus(-both[:8]) + softplus(both[8:]) if phase == "critic" else softplus(-both[8:])
        torch.testing.assert_close(losses["each"], expected)
        losses["loss"].backward()
        assert all(p.grad is not None for p in getattr(model, phase).parameters())
    torch.testing.assert_close(made(False).scores(x, x.flip(0))[0], made(False).score(x))


def test_the_recipe_of_digits_sees_both_at_once_and_the_released_one_does_not():
    assert smoke("dcgan")["model"]["together"] and not smoke("dcgan-64")["model"]["together"]
