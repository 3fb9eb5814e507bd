"""Probabilistic PCA as a VAE: a model whose posterior and density have closed forms."""

import torch
from torch.distributions import MultivariateNormal

from gencli.core import Field, Spec
from gencli.models.vae.vae import VAE

POINTS = Spec(Field("points", (5,)))
AFFINE = {"encoder": {"name": "mlp", "layers": 0}, "decoder": {"name": "mlp", "layers": 0}}


def pca(dim=2, noise=0.4):
    """A linear-Gaussian VAE in float64 whose encoder is its exact posterior, and the exact density of x.

    The decoder's columns are orthogonal, so that the posterior's covariance s² (WᵀW + s²)⁻¹ is diagonal.
    """
    model = VAE.make({"dim": dim, "likelihood": "gaussian", "scale": noise, **AFFINE}, POINTS).double()
    g = torch.Generator().manual_seed(3)
    columns = torch.linalg.qr(torch.randn(5, dim, generator=g, dtype=torch.float64))[0]
    weight = columns * torch.linspace(0.8, 1.5, dim, dtype=torch.float64)
    shift = torch.randn(5, generator=g, dtype=torch.float64)
    inverse = 1 / (weight.square().sum(0) + noise**2)
    to_mean, log_var = inverse[:, None] * weight.T, (noise**2 * inverse).log()
    with torch.no_grad():
        decoder, encoder = model.decoder.body[0], model.encoder.body[0]
        decoder.weight.copy_(weight)
        decoder.bias.copy_(shift)
        encoder.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        encoder.bias.copy_(torch.cat([-to_mean @ shift, log_var]))
    return model, MultivariateNormal(shift, weight @ weight.T + noise**2 * torch.eye(5, dtype=torch.float64))


def perturbed(model, seed, size=0.3):
    """The same decoder with another encoder."""
    with torch.no_grad():
        for i, p in enumerate(model.encoder.parameters()):
            p += size * torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + i), dtype=p.dtype)
    return model
