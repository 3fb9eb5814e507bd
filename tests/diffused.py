"""Tiny denoisers and what they are asked, for the tests of diffusion models."""

import torch
from torch import nn

from gencli import recipe
from gencli.config import choose
from gencli.core import Field, Spec

LABEL = Field("label", (), vocab=10)
SPEC = Spec(Field("image", (1, 4, 4), vocab=256, range=(-1.0, 1.0)), {"label": LABEL})
NET = {"name": "unet", "width": 8, "mults": (1, 2), "blocks": 1, "attention": (2,)}
POINTS = Spec(Field("points", (2,)))
MLP = {"name": "denoising-mlp", "width": 8, "layers": 1}
CIFAR = Spec(Field("image", (3, 32, 32), vocab=256, range=(-1.0, 1.0)))


class Told(nn.Module):
    """A network that gives what it was told and remembers what it was asked."""

    def __init__(self, answer, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.answer, self.asked = answer, None

    def forward(self, x, level, **cond):
        self.asked = (x, level, cond)
        return self.answer if torch.is_tensor(self.answer) else self.answer(x, level, **cond)


def counted(name, spec):
    """Parameters of a recipe's model, and numbers in its network's buffers, without memory."""
    with torch.device("meta"):
        model = choose("models", recipe.load(name)["model"]).build(spec)
    return sum(p.numel() for p in model.parameters()), sum(b.numel() for b in model.net.buffers())


def randomised(net, seed=0):
    """Random weights everywhere: layers that start at zero would hide what comes before them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            scale = 1.0 if weight.ndim == 1 else weight[0].numel() ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return net.eval()
