"""Reconstruction figures against scikit-image and by hand."""

import math

import pytest
import torch

from gencli.bundle import Run
from gencli.codecs.pixels import Pixels
from gencli.core import Field, Model, Rng, Spec
from gencli.data.digits import Digits
from gencli.errors import GencliError
from gencli.metrics.reconstruction import Reconstruction, codebook_use, mse, psnr, ssim


def pair(n=5, channels=1, side=28):
    g = torch.Generator().manual_seed(0)
    a = torch.rand(n, channels, side, side, generator=g).cumsum(-1) / side * 255
    b = a + 20 * torch.randn(a.shape, generator=g)
    return a.round().to(torch.uint8), b.round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 20), (1, 11)])
def test_ssim_and_psnr_are_those_of_scikit_image(channels, side):
    metrics = pytest.importorskip("skimage.metrics")
    a, b = pair(4, channels, side)
    for i in range(len(a)):
        x, y = a[i].numpy(), b[i].numpy()
        expected = metrics.structural_similarity(
            x, y, channel_axis=0, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(ssim(a, b)[i]) == pytest.approx(expected, abs=1e-7)
        assert float(psnr(a, b)[i]) == pytest.approx(metrics.peak_signal_noise_ratio(x, y, data_range=255))


def test_equal_images_reach_the_ends_of_the_scales():
    a, _ = pair()
    assert torch.all(mse(a, a) == 0) and torch.allclose(ssim(a, a), torch.ones(5, dtype=torch.float64))
    assert torch.all(psnr(a, a) == 100)


def test_images_smaller_than_the_window_are_compared_with_a_smaller_one():
    a, b = pair(3, 1, 8)
    assert torch.all(ssim(a, b) < 1) and torch.allclose(ssim(a, a), torch.ones(3, dtype=torch.float64))


def test_codebook_use_counts_codes_and_their_evenness():
    assert codebook_use(torch.tensor([5, 5, 5, 5])) == pytest.approx((1.0, 4.0))
    assert codebook_use(torch.tensor([9, 0, 0, 0])) == pytest.approx((0.25, 1.0))
    used, perplexity = codebook_use(torch.tensor([3, 1, 0, 0]))
    assert used == 0.5 and perplexity == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


class Coarse(Model):
    """Codes every pixel by one of 8 grey levels."""

    latent = Field("codes", (1, 16, 16), vocab=8)

    def __init__(self, spec):
        super().__init__(None, spec)
        self.dummy = torch.nn.Parameter(torch.zeros(1))

    def loss(self, batch, turn):
        raise NotImplementedError

    def encode(self, x):
        return ((x + 1) / 2 * 7).round().long()

    def decode(self, z):
        return z.float() / 7 * 2 - 1


def coarse_run(data):
    codec = Pixels.make()
    spec = codec.spec(data.spec)
    return Run(Coarse(spec), [codec], spec, data.spec)


def test_a_run_is_judged_on_what_a_person_would_see():
    data = Digits.make({"unconditional": True})
    made = Reconstruction.make()(coarse_run(data), data.split("test"), Rng.batch("t", total=1), batch_size=50)
    found = {value.name: value for value in made}
    x = torch.from_numpy(data.split("test").x)
    y = ((x.float() / 255 * 7).round() / 7 * 255).round().to(torch.uint8)
    assert found["mse"].value == pytest.approx(float(mse(x, y).mean()), rel=1e-6)
    assert found["psnr"].value == pytest.approx(float(psnr(x, y).mean()), rel=1e-6)
    assert found["psnr"].interval[0] < found["psnr"].value < found["psnr"].interval[1]
    assert found["codebook-usage"].value == 1.0 and 2 < found["codebook-perplexity"].value < 8
    assert found["codebook-perplexity"].facts["counted"] == x.numel()


def test_the_batch_size_changes_nothing():
    data = Digits.make({"unconditional": True})
    one, all_ = (
        Reconstruction.make()(coarse_run(data), data.split("test"), Rng.batch("t", total=1), n=9, batch_size=size)
        for size in (1, 64)
    )
    assert [v.value for v in one] == pytest.approx([v.value for v in all_])


def test_points_are_refused():
    spec = Spec(Field("points", (2,)))

    class Items:
        def __len__(self):
            return 3

        def batch(self, indices):
            return {"x": torch.zeros(len(indices), 2)}

    with pytest.raises(GencliError, match="uint8 images"):
        Reconstruction.make()(Run(Coarse(spec), [], spec, spec), Items(), Rng.batch("t", total=1))
