"""Reconstruction of held-out images by an autoencoder: mean squared error, PSNR, SSIM, and codebook use.

Offers: image, encode

MSE is over grey levels 0 … 255; PSNR = 10 log₁₀(255² / MSE) of each image, 100 dB at most so that a perfect image does not
make the mean infinite; SSIM (Wang et al., 2004) with an 11×11 Gaussian window of deviation 1.5, K₁ = 0.01, K₂ = 0.03,
averaged over windows that lie inside the image, a smaller odd window where the image is smaller. All compare the uint8
images that a person would see. For discrete latents: the share of the codebook that is used, and the perplexity
exp(−Σ p ln p) of the codes, both over all items together, since they depend on how many codes are counted.

With `lpips`, the path of its weights, LPIPS too (Zhang et al., 2018; `metrics/_lpips.py` names the files): by AlexNet, which
its authors advise for measuring, or VGG-16; the two are not comparable. Lower is nearer, 0 for equal images.

Raises: GencliError for a model that does not reconstruct, for data that are not images, and for LPIPS without its weights
or of images smaller than 31 (AlexNet) or 16 pixels (VGG-16).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.config import opt
from gencli.core import Autoencoder, Items, Rng
from gencli.errors import GencliError
from gencli.metrics._base import Better, ModelMetric, Run, Value, base_seed, item_rows, mean_with_error, spread
from gencli.metrics._lpips import read
from gencli.networks.lpips import Lpips

WINDOW, SIGMA = 11, 1.5
MOST_DB = 100.0


class Reconstruction(ModelMetric):
    """How near an autoencoder's images come to its inputs."""

    needs: ClassVar[type[Any]] = Autoencoder

    @dataclass(frozen=True)
    class Config:
        lpips: str = opt("", "LPIPS weights: a folder of the published files, or a safetensors file; empty = no LPIPS")
        network: Literal["alex", "vgg"] = opt("alex", "the network that LPIPS looks with")

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> list[Value]:
        self.check(run)
        c, model = self.config, cast(Any, run.model)
        net, sha256 = read(Path(c.lpips).expanduser(), c.network) if c.lpips else (None, "")
        vocab = model.latent.vocab
        counts = torch.zeros(vocab or 0, dtype=torch.long)
        rows: list[Tensor] = []
        seed = base_seed(rng, "reconstruction")
        for indices in spread(len(data), n).split(batch_size):
            raw = data.batch(indices)["x"]
            if raw.dtype != torch.uint8 or raw.ndim != 4:
                raise GencliError(
                    f"reconstruction compares uint8 images, the data are {raw.dtype} {tuple(raw.shape[1:])}",
                    "evaluate it on a data set of images",
                )
            with torch.no_grad():
                batch = run.encode({"x": raw}, item_rows(seed, indices, run.model))
                z = model.encode(batch["x"])
                made = run.decode({"x": model.decode(z)})["x"].cpu()
            columns = [mse(raw, made), psnr(raw, made), ssim(raw, made)]
            if net is not None:
                columns.append(lpips(net.to(run.model.device), raw, made))
            rows.append(torch.stack(columns, 1))
            if vocab:
                counts += torch.bincount(z.cpu().flatten().long(), minlength=vocab)
        each = torch.cat(rows).numpy()
        named = {f"lpips[{c.network}]": {"weights": sha256}} if c.lpips else {}
        return [*_distances(each, named), *(_codebook(counts, len(each)) if vocab else [])]


def _distances(each: np.ndarray, perceptual: dict[str, dict[str, str]]) -> list[Value]:
    """The means of the columns; of perceptual distances, which are the last ones, with the facts given."""
    rows: list[tuple[str, str, Better, dict[str, str]]] = [
        ("mse", "grey levels²", "lower", {}),
        ("psnr", "dB", "higher", {}),
        ("ssim", "", "higher", {}),
        *((name, "", "lower", facts) for name, facts in perceptual.items()),
    ]
    made = []
    for column, (name, unit, better, facts) in enumerate(rows):
        mean, error, interval = mean_with_error(each[:, column])
        made.append(Value(name, mean, interval, len(each), better, unit, facts={"standard_error": error, **facts}))
    return made


def _codebook(counts: Tensor, n: int) -> list[Value]:
    facts = {"codes": len(counts), "counted": int(counts.sum())}
    used, perplexity = codebook_use(counts)
    return [
        Value("codebook-usage", used, None, n, "higher", facts=facts),
        Value("codebook-perplexity", perplexity, None, n, "higher", f"of {len(counts)}", facts=facts),
    ]


def codebook_use(counts: Tensor) -> tuple[float, float]:
    """Share of codes that occur, and perplexity, from how often each occurs."""
    p = counts.double() / counts.sum()
    seen = p[p > 0]
    return len(seen) / len(p), float((-(seen * seen.log()).sum()).exp())


def mse(a: Tensor, b: Tensor) -> Tensor:
    """`(N,)` mean squared difference of uint8 images."""
    return ((a.double() - b.double()) ** 2).flatten(1).mean(1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """`(N,)` in dB, at most 100."""
    least = 255.0**2 / 10 ** (MOST_DB / 10)
    return 10 * torch.log10(255.0**2 / mse(a, b).clamp(min=least))


def lpips(net: Lpips, a: Tensor, b: Tensor) -> Tensor:
    """`(N,)` perceptual distance of uint8 images of 1 or 3 channels."""
    channels, least = a.shape[1], net.trunk.least
    if channels not in (1, 3) or min(a.shape[-2:]) < least:
        raise GencliError(
            f"LPIPS by {net.trunk.name} takes images of 1 or 3 channels and {least} pixels or more, these are "
            f"{tuple(a.shape[1:])}",
            "leave --reconstruction.lpips out, or use another --reconstruction.network",
        )
    with torch.no_grad():
        return net(*(x.to(net.shift.device).float() / 127.5 - 1 for x in (a, b))).double().cpu()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """`(N,)` structural similarity of uint8 images `(N, C, H, W)`, the mean over windows and channels."""
    side = min(WINDOW, *a.shape[-2:])
    side -= 1 - side % 2
    steps = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(steps**2) / (2 * SIGMA**2))
    line = line / line.sum()

    def blur(x: Tensor) -> Tensor:
        flat = x.reshape(-1, 1, *x.shape[-2:])
        return F.conv2d(F.conv2d(flat, line[None, None, :, None]), line[None, None, None, :])

    x, y = a.double(), b.double()
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return score.reshape(len(a), -1).mean(1)
