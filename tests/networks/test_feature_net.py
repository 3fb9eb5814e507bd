"""The feature network: any size in, protocols offered, refusals."""

import pytest
import torch
from PIL import Image

from gencli.core import Classifier, Features
from gencli.errors import GencliError
from gencli.metrics._features import random_network
from gencli.networks.feature_net import FeatureNet, canvas


def images(n=3, channels=1, height=16, width=16):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


def test_it_offers_features_and_classes_of_images_of_any_size():
    net = random_network().eval()
    assert isinstance(net, Features) and isinstance(net, Classifier)
    for shape in ((1, 8, 8), (1, 28, 28), (3, 64, 48)):
        x = images(3, *shape)
        assert net.features(x).shape == (3, 64) and net.class_logits(x).shape == (3, 20)


def test_the_canvas_is_pillow_s_antialiased_bilinear_resize():
    x = images(1, 1, 50, 37)
    theirs = torch.tensor(list(Image.fromarray(x[0, 0].numpy()).resize((28, 28), Image.Resampling.BILINEAR).getdata()))
    assert torch.allclose(canvas(x)[0, 0].flatten(), theirs, atol=2e-6)


def test_colour_becomes_luma_and_grey_stays():
    x = images(2)
    assert torch.allclose(canvas(x.expand(2, 3, 16, 16)), canvas(x), atol=1e-6)
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 28, 28)
    assert torch.allclose(canvas(red), torch.full((1, 1, 28, 28), 0.299))


def test_the_logits_are_a_linear_function_of_the_features():
    net = random_network().eval()
    x = images()
    assert torch.allclose(net.head(net.features(x)), net.class_logits(x))


def test_other_numbers_of_channels_and_noisy_images_are_refused():
    with pytest.raises(GencliError, match="these have 4"):
        FeatureNet.make().features(images(1, 4))
    with pytest.raises(AssertionError, match="clean images"):
        FeatureNet.make().class_logits(images(), torch.ones(3))
