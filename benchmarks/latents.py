"""Bounds of every variational autoencoder on the same held-out images, seed by seed where a claim is made, and MIG of sprites.

    python -m benchmarks.latents digits         [--runs DIR] [ROW …]   16×16, binarised by chance, all 169 held-out images
    python -m benchmarks.latents fashion-mnist  [--runs DIR] [ROW …]   28×28, 256 grey levels, 1,000 held-out images
    python -m benchmarks.latents whole          [--runs DIR]           of vae all 10,000 held-out images, and the memory taken
    python -m benchmarks.latents seeds          [--runs DIR] [ROW …]   flow posteriors and ladders on digits, three seeds
    python -m benchmarks.latents sprites        [--runs DIR] [ROW …]   MIG, three weights of KL or TC, three seeds of each

Runs are looked for in DIR (`checkpoints`), trained by their laptop recipes where they are missing, and continued where they
ended early; a figure of the same weights is kept. Figures stand in `docs/quality.json`. Digits have Bernoulli decoders, and the
same zeros and ones for all models; Fashion-MNIST has logistic ones of learned scale, and 16 latents as in `vae-fashion-mnist`,
where the model has the setting, and 3,000 steps; `whole` has the 8,000 of that recipe.

ELBO and IWAE-k see one image with the same noise in the first draw: the difference is of pairs, `below` the share of images
where it is negative, which one draw's chance makes possible image by image, but not in the mean. `cvae` is told the class: its
bound is of log p(x|y).

`seeds` sets `nf-vae` against `vae` with the same warm-up, and `ladder-vae` against `vae-deep`, a `vae` with as many hidden
layers, latents and steps, which has them in one layer: mean and standard deviation over seeds of IWAE-k and of its difference.
`sprites` varies scale, orientation, x and y of a heart, the four factors of Chen et al. (2018), and trains two minutes a run.
At 32×32 an image has a quarter of the pixels that the papers' have, so that a weight of 1 is about their 4.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._frame import KIB
from benchmarks.pixels import trained_for, with_error
from benchmarks.quality import FACTS, once, stored, trained
from gencli import files, recipe
from gencli.bundle import Run
from gencli.core import Items, Rng
from gencli.data import open_table
from gencli.metrics._base import base_seed, item_rows, spread
from gencli.metrics.bpd import Bpd
from gencli.metrics.mig import Mig

Flags = tuple[str, ...]

ITEMS, SAMPLES, SEEDS = 1000, 1000, (0, 1, 2)
MICRO = 250  # images in a call
BITS: Flags = ("--likelihood", "bernoulli")
GREY: Flags = ("--data", "fashion-mnist", "--scale", "0")
SHORT: Flags = ("--steps", "3000")
LIKE_VAE: Flags = (*GREY, "--dim", "16", *SHORT)
ROWS: dict[str, dict[str, Flags]] = {
    "digits": {
        "vae": ("vae", *BITS),
        "vae-iwae": ("vae", *BITS, "--objective", "iwae"),
        **{f"vae-{prior}": ("vae", *BITS, "--prior", prior) for prior in ("mixture", "vampprior", "flow", "autoregressive")},
        "beta-vae": ("beta-vae", *BITS),
        "beta-tcvae": ("beta-tcvae", *BITS),
        "cvae": ("cvae", *BITS),
        "nf-vae": ("nf-vae", *BITS),
        "ladder-vae": ("ladder-vae", *BITS),
        "nvae": ("nvae", *BITS),
        "lsgm": ("lsgm", *BITS),
        "nvil": ("nvil",),
    },
    "fashion-mnist": {
        "vae": ("vae", *GREY, *SHORT),
        "vae-iwae": ("vae", *GREY, *SHORT, "--objective", "iwae"),
        "vae-vampprior": ("vae", *GREY, *SHORT, "--prior", "vampprior"),
        "beta-vae": ("beta-vae", *LIKE_VAE),
        "beta-tcvae": ("beta-tcvae", *LIKE_VAE),
        "cvae": ("cvae", *LIKE_VAE),
        "nf-vae": ("nf-vae", *LIKE_VAE),
        "ladder-vae": ("ladder-vae", *GREY, *SHORT),
        "nvae": ("nvae", *GREY),
    },
    "whole": {"vae": ("vae", *GREY)},
    "seeds": {
        "vae": ("vae", *BITS, "--kl-warmup", "300"),
        "nf-vae": ("nf-vae", *BITS),
        "vae-deep": ("vae", *BITS, "--kl-warmup", "500", "--steps", "2500", "--dim", "28", "--encoder", "residual-mlp",
                     "--encoder.width", "256", "--encoder.blocks", "3", "--decoder", "residual-mlp", "--decoder.width", "256",
                     "--decoder.blocks", "3"),
        "ladder-vae": ("ladder-vae", *BITS),
    },
    "sprites": {
        f"{model}, β = {beta}": (
            f"{model}-sprites", "--beta", beta, "--vary", "scale,orientation,x,y", "--unconditional", "--encoder.width",
            "400", "--decoder.width", "400", "--batch-size", "128", "--lr", "1e-3", "--steps", "5000",
        )
        for model in ("beta-vae", "beta-tcvae") for beta in ("1", "2", "4")
    },
}  # fmt: skip
AGAINST = {"nf-vae": "vae", "ladder-vae": "vae-deep"}
"""What is compared with what, seed by seed."""


# ------------------------------------------------------------------------------------------------------------------- runs


def made(table: str, name: str, folder: Path, seed: int = 0, *more: str) -> Run:
    """The run of a row, trained to its end."""
    source, *flags = ROWS[table][name]
    called = f"{name.replace(', β = ', '-beta-')}-{table}-latents" + (f"-{seed}" if seed else "")
    if table in ("digits", "seeds"):
        source = binarised(source, folder)
    run = trained(source, folder, *flags, "--seed", str(seed), *more, called=called)
    if run.step < run.config["recipe"]["train"]["steps"]:
        model = run.config["recipe"]["model"]["name"]
        subprocess.run([sys.executable, "-m", "gencli", "train", model, "--resume", str(run.path)], check=True)
        run = Run.load(folder / called)
    return run


def binarised(name: str, folder: Path) -> str:
    """A recipe whose images become zeros and ones by chance: the path of a file in `folder`."""
    if recipe.load(name).get("codecs"):
        return name
    path = folder / "recipes" / f"{name}-binarised.toml"
    text = recipe.names()[name].read_text(encoding="utf-8").replace("laptop = true\n", "")
    files.atomic_write(path, f'{text}\n[[codecs]]\nname = "binarise"\n'.encode())
    return str(path)


# ----------------------------------------------------------------------------------------------------------------- bounds


def nats(run: Run, items: Items, count: int, samples: int) -> np.ndarray:
    """The bound of log p `(count,)` of held-out images; image i has the same noise whatever model and `samples`."""
    metric, seed = Bpd.make({"samples": samples}), base_seed(Rng.batch("latents", 0, total=1), "bound")
    parts = []
    for indices in spread(len(items), count).split(MICRO):
        raw = items.batch(indices)
        bits = metric.bits(run, raw, item_rows(seed, indices, run.model))[0]
        parts.append(-bits * raw["x"][0].numel() * math.log(2))
    return torch.cat(parts).numpy()


def row(run: Run, count: int, samples: int) -> dict[str, Any]:
    """A model's bounds in nats and bits per dimension, their difference in pairs, and what it took."""
    items = open_table(run.config["recipe"]["data"]).split("test")
    elbo, iwae = (nats(run, items, min(count, len(items)), k) for k in (1, samples))
    per_dim = run.data_spec.x.size * math.log(2)
    (low, low_error), (high, high_error), (apart, apart_error) = map(with_error, (elbo, iwae, iwae - elbo))
    return {
        "elbo": low,
        "elbo_error": low_error,
        "iwae": high,
        "iwae_error": high_error,
        "elbo_bits": -low / per_dim,
        "iwae_bits": -high / per_dim,
        "apart": apart,
        "apart_error": apart_error,
        "below": float((iwae < elbo).mean()),
        "images": len(elbo),
        "k": samples,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        **trained_for(run),
    }


def whole(run: Run, count: int, samples: int) -> dict[str, Any]:
    """The same of ten times as many images, and the most memory that this process had at once."""
    return {
        **row(run, 10 * count, samples),
        "megabytes": KIB * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Over seeds."""
    return float(np.mean(values)), float(np.std(values, ddof=1))


def over_seeds(rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of every model with all its seeds the mean and deviation of its IWAE-k, and of the difference to its other."""
    made = {}
    for name, each in rows.items():
        found = {"seeds": len(each), "k": each[0]["k"], "parameters": each[0]["parameters"]}
        for key in ("elbo", "iwae"):
            found[key], found[f"{key}_sd"] = mean_and_deviation([one[key] for one in each])
        other = rows.get(AGAINST.get(name, ""))
        if other is not None:
            apart = [mine["iwae"] - theirs["iwae"] for mine, theirs in zip(each, other, strict=True)]
            found["against"], (found["apart"], found["apart_sd"]) = AGAINST[name], mean_and_deviation(apart)
        made[name] = found
    return made


# ---------------------------------------------------------------------------------------------------------------- sprites


def disentangled(run: Run, count: int) -> dict[str, Any]:
    """MIG of held-out sprites, the gap of each factor, and the bound that it was bought with."""
    data = open_table(run.config["recipe"]["data"])
    items, rng = data.split("test"), Rng.batch("evaluate", 0, "mig", total=1)
    found = Mig.make()(run, items, rng, n=10 * count, batch_size=MICRO)
    bound = nats(run, items, count, 1)
    return {"mig": found.value, "elbo": float(bound.mean()), **found.facts["gaps"], **trained_for(run)}


def spreads(rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean and deviation over seeds of MIG and ELBO, and the mean gap of each factor."""
    made = {}
    for name, each in rows.items():
        found: dict[str, Any] = {"seeds": len(each), "minutes": float(np.mean([one["minutes"] for one in each]))}
        for key in ("mig", "elbo"):
            found[key], found[f"{key}_sd"] = mean_and_deviation([one[key] for one in each])
        for factor in ("scale", "orientation", "x", "y"):
            found[factor] = float(np.mean([one[factor] for one in each]))
        made[name] = found
    return made


# ------------------------------------------------------------------------------------------------------------------- main


def measured(table: str, names: list[str], runs: Path, count: int = ITEMS, samples: int = SAMPLES, *more: str) -> None:
    """Every row that is not there yet; of seeds and sprites each seed by itself, then what they have in common."""
    measure = {"whole": whole, "sprites": disentangled}.get(table, row)
    one = partial(measure, count=count, **({} if table == "sprites" else {"samples": samples}))
    alone = table not in ("seeds", "sprites")
    for name in names or ROWS[table]:
        for seed in (0,) if alone else SEEDS:
            run = made(table, name, runs, seed, *more)
            place = (f"latents-{table}", name) if alone else (f"latents-{table}-runs", f"{name} / {seed}")
            print(place[1], once(*place, run, partial(one, run)), flush=True)
    if alone:
        return
    facts = stored()
    rows = {name: [facts[f"latents-{table}-runs"].get(f"{name} / {seed}") for seed in SEEDS] for name in ROWS[table]}
    finished = {name: each for name, each in rows.items() if all(each)}
    facts[f"latents-{table}"] = (spreads if table == "sprites" else over_seeds)(finished)
    files.atomic_json(FACTS, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tuple(ROWS))
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--runs", type=Path, default=Path("checkpoints"), help="where runs are, and are made")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS[given.table]):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS[given.table])}")
    measured(given.table, given.rows, given.runs)


if __name__ == "__main__":
    main()
