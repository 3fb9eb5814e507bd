"""Denoisers whose right answers are known, for the tests of samplers."""

import itertools
import math

import torch

from gencli.core import Field, Rng, Spec
from gencli.models.diffusion import _schedules as schedules
from gencli.models.diffusion._family import FORMULATIONS

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


class AnyLevel(Exact):
    """`Exact` trained at any level, with the ends of EDM."""

    sigma_min, sigma_max = 0.002, 80.0

    def __init__(self, mean=0.0, std=1.0):
        super().__init__(mean, std)
        self.levels = None

    def start(self, noise, sigma):
        return noise * sigma


class Mixed(AnyLevel):
    """E[x0 | x] for two Gaussians on a line: weights 0.3 and 0.7 at ±0.6, four standard deviations apart."""

    weights, means, stds = (torch.tensor(pair, dtype=torch.float64) for pair in ((0.3, 0.7), (-0.6, 0.6), (0.3, 0.3)))

    def denoise(self, x, sigma, **cond):
        variance = self.stds**2 + sigma**2
        share = (self.weights.log() - 0.5 * ((x - self.means) ** 2 / variance + variance.log())).softmax(-1)
        return (share * (self.stds**2 * x + sigma**2 * self.means) / variance).sum(-1, keepdim=True)

    def carried(self, x, here, there):
        """Where the probability-flow ODE carries x `(N, 1)`: on a line it keeps every point's quantile."""
        wanted, low, high = self._below(x, here), torch.full_like(x, -1e3), torch.full_like(x, 1e3)
        for _ in range(80):
            middle = (low + high) / 2
            left = self._below(middle, there) < wanted
            low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        return (low + high) / 2

    def _below(self, x, sigma):
        spread = (self.stds**2 + sigma**2).sqrt()
        return (self.weights * torch.erfc((self.means - x) / spread / math.sqrt(2)) / 2).sum(-1, keepdim=True)


class Gaussian(Mixed):
    """`Mixed` with both components at 0.3, of standard deviation 0.5."""

    means, stds = torch.full((2,), 0.3, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)


class Predicting(FromEps):
    """The same denoiser from a network that predicts something else: eps, x0 or v."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.formulation = kind, FORMULATIONS[kind](lambda sigma: sigma)

    def network(self, x, sigma):
        """From the variance-preserving x, as the network of a scheduler would be called."""
        eps = eps_network(x, int((self.levels.flip(0) - sigma).abs().argmin()))
        alpha = 1 / (1 + sigma**2).sqrt()
        x0 = (x - alpha * sigma * eps) / alpha
        return {"eps": eps, "x0": x0, "v": alpha * eps - alpha * sigma * x0}[self.kind]

    def denoise(self, x, sigma, **cond):
        way = self.formulation
        return way.skip(sigma) * x + way.out(sigma) * self.network(way.into(sigma) * x, sigma)


POINTS = Spec(Field("points", (1,)))


def sampled(sampler, model, count=16, seed=0):
    """What `count` seeds give."""
    *_, last = sampler.frames(model, POINTS, count, Rng.batch(seed, total=count), {})
    return last.x


def walked(sampler, denoise, x, levels, seed=0):
    """x after every step from wherever it is, with the start before them."""
    states = [x]
    for frame in sampler.run(denoise, x, levels, Rng.batch(seed, total=len(x))):
        states.append(frame.info["noisy"] * (1 + frame.info["sigma"] ** 2).sqrt())
    return states


def even(levels, steps, low=0.002, high=80.0):
    """`steps + 1` levels from `high` to `low`, evenly in σ^(1/7), log σ or σ."""
    into, back = {
        "karras": (lambda s: s ** (1 / 7), lambda u: u**7),
        "logsnr": (math.log, torch.exp),
        "sigma": (float, lambda u: u),
    }[levels]
    return back(torch.linspace(into(high), into(low), steps + 1, dtype=torch.float64))


def slope(errors):
    """The order that errors have whose number of steps doubles."""
    return sum(math.log2(a / b) for a, b in itertools.pairwise(errors)) / (len(errors) - 1)
