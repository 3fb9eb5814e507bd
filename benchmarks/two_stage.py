"""Priors over the codes of an autoencoder of Fashion-MNIST: what the whole chain makes, and what it completes.

    python -m benchmarks.two_stage [--runs DIR] [ROW …]

    gencli train vqgan-fashion-mnist; gencli train maskgit-fashion-mnist --codec vqgan-fashion-mnist; gencli sample … --class 3

Runs are looked for in DIR (`checkpoints`) and trained where they are missing. Of each prior: the codec's PSNR and the
perplexity of its codes over 1,000 held-out images; the share of 200 samples of each class that a network which was no part of
training sees as asked, and of dresses alone; the FID in the bundled features of 1,024 samples of balanced classes against as
many held-out images, and of the same samples with the codes of each place shuffled among them, which keeps what a place
holds and loses how places hang together; and the share of completed top halves of 200 held-out images that the network still
sees as the original's class: with its class given, without, and from another image's half. Rows stand in
`docs/quality.json`; `python -m benchmarks.quality page` prints them.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks import judge
from benchmarks.quality import once, trained
from gencli.bundle import Run
from gencli.core import Batch, Rng
from gencli.data import open_table
from gencli.evaluation.completion import Completion
from gencli.evaluation.generate import Request, labels_for, resolved, samples
from gencli.evaluation.inputs import Inputs, keep_of
from gencli.metrics._features import extractor
from gencli.metrics.fid import distance
from gencli.metrics.reconstruction import Reconstruction

DATA: Final = "fashion-mnist"
CODEC, CLASSES, DRESS = "vqgan-fashion-mnist", 10, 3
N_FID, N_CLASS, N_HELD, N_COMPLETED = 1024, 200, 1000, 200
ROWS: dict[str, tuple[str, ...]] = {
    "maskgit": ("maskgit-fashion-mnist",),
    "gpt": ("gpt", "--data", DATA, "--steps", "1500", "--batch-size", "128"),
}


# --------------------------------------------------------------------------------------------------------------- the codec


def codec_row(run: Run) -> dict[str, Any]:
    """How near it comes, and how much of its codebook it uses."""
    held = open_table(run.config["recipe"]["data"]).split("test")
    values = Reconstruction.make()(run, held, Rng.batch("evaluate", 0, "reconstruction", total=1), N_HELD)
    found = {value.name: value.value for value in values}
    latent: Any = run.model
    return {"psnr": found["psnr"], "perplexity": found["codebook-perplexity"], "codes": latent.latent.vocab}


# ----------------------------------------------------------------------------------------------------------------- samples


def codes(run: Run, seeds: range, labels: Tensor) -> Tensor:
    """The prior's draws `(N, h, w)` for classes `(N,)`."""
    made = []
    for rows in torch.arange(len(seeds)).split(128):
        rng = Rng.rows([seeds[int(i)] for i in rows])
        made.append(run.draw(rng, {"label": labels[rows]}, run.guidance)["x"])
    return torch.cat(made)


def decoded(run: Run, tokens: Tensor) -> Tensor:
    """Images of codes."""
    with torch.no_grad():
        return torch.cat([run.decode({"x": part})["x"] for part in tokens.split(128)])


def shuffled(tokens: Tensor) -> Tensor:
    """The codes of each place, among the samples."""
    order = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)).argsort(0)
    return tokens.gather(0, order)


def fid(images: Tensor) -> float:
    """In the bundled features, against as many held-out images."""
    by, real = extractor("gencli"), judge.real(DATA, "test")[0][: len(images)]
    return distance(*(by.extract(part.split(128)).x for part in (real, images)))


# ------------------------------------------------------------------------------------------------------------- completions


def completed(run: Run, shown: Tensor, labels: Tensor | None, seed: int = 0) -> Tensor:
    """Images `(N, 1, H, W)` whose top half is kept, one completion each, with or without a class."""
    keep = keep_of("top-half", *shown.shape[2:])
    given = Completion.of(run, Inputs(shown, tuple(map(str, range(len(shown))))), keep, each=1)
    cond: Batch = given.rows({} if labels is None else {"label": labels})
    seeds = [seed + i for i in range(len(shown))]
    return given.pasted(samples(run, resolved(run, Request(seeds, cond, micro=100))))


def completions(run: Run) -> dict[str, float]:
    """What is kept of the original's class, after what must hold of every completion."""
    images, labels = (part[:N_COMPLETED] for part in judge.real(DATA, "test"))
    made, again = completed(run, images, labels), completed(run, images, labels, seed=N_COMPLETED)
    rows = images.shape[2] // 2
    assert torch.equal(made[:, :, :rows], images[:, :, :rows]), "the kept half is bit-identical"
    assert not torch.equal(made, again), "two seeds differ"
    others = [images[labels != label] for label in labels]
    other = torch.stack([some[i % len(some)] for i, some in enumerate(others)])
    return {
        "kept_class": judge.judge(made, labels, DATA),
        "kept_unasked": judge.judge(completed(run, images, None), labels, DATA),
        "kept_other_half": judge.judge(completed(run, other, labels), labels, DATA),
        "real": judge.judge(images, labels, DATA),
    }


# -------------------------------------------------------------------------------------------------------------------- rows


def row(run: Run, codec: Run) -> dict[str, Any]:
    """Everything about a prior and its codec."""
    seeds = range(N_FID)
    labels = labels_for(run, seeds, None)["label"]
    tokens = codes(run, seeds, labels)
    asked = torch.arange(CLASSES).repeat_interleave(N_CLASS)
    seen = judge.classify(decoded(run, codes(run, range(N_FID, N_FID + len(asked)), asked)), DATA) == asked
    return {
        **codec_row(codec),
        "asked": float(seen.double().mean()),
        "dress": float(seen[asked == DRESS].double().mean()),
        "fid": fid(decoded(run, tokens)),
        "fid_shuffled": fid(decoded(run, shuffled(tokens))),
        **completions(run),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=" or ".join(ROWS))
    parser.add_argument("--runs", type=Path, default=Path("checkpoints"), help="where runs are, and are made")
    given = parser.parse_args()
    codec = trained(CODEC, given.runs)
    for name in given.rows or ROWS:
        recipe, *flags = ROWS[name]
        called = f"{name}-over-{CODEC}"
        run = trained(recipe, given.runs, "--codec", str(given.runs / CODEC), *flags, called=called)
        print(name, once("two-stage", name, run, partial(row, run, codec)), flush=True)


if __name__ == "__main__":
    main()
