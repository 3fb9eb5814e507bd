"""Denoisers whose right answers are known, for the tests of samplers."""

import torch

from gencli.models.diffusion import _schedules as schedules

SPACINGS = ("leading", "trailing", "linspace", "quad")


class Exact:
    """E[x0 | x] for data N(mean, std²)."""

    meaning = "mean"
    device = torch.device("cpu")

    def __init__(self, mean=0.0, std=1.0, total=1000):
        self.mean, self.std = mean, std
        self.levels = (1 / schedules.linear(total) - 1).sqrt().flip(0)

    def denoise(self, x, sigma, **cond):
        return (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)

    def start(self, noise, sigma):
        return noise * (1 + sigma**2).sqrt()


def eps_network(x, t):
    """Any function of a variance-preserving x and an integer t will do for a comparison."""
    return torch.tanh(1.3 * x + 0.2) * 0.8 + 0.3 * x * torch.cos(torch.tensor(t / 300.0))


class FromEps(Exact):
    """The denoiser made of `eps_network`."""

    def denoise(self, x, sigma, **cond):
        t = int((self.levels.flip(0) - sigma).abs().argmin())
        return x - sigma * eps_network(x / (1 + sigma**2).sqrt(), t)
