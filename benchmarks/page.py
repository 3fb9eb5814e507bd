"""docs/quality.md, from what is stored: what stands in which table, and why."""

from __future__ import annotations

from typing import Any

from benchmarks.quality import N_MATRIX, WORST, samplers

BITS_COLUMNS = ("steps", "parameters", "minutes", "bits", "error", "kind", "apart", "apart_error", "mark", "falling")
PIXELS = (
    "Bits per dimension without classes, by `python -m benchmarks.pixels`, which says how. `apart` is the mean difference, "
    "image by image, of Gated PixelCNN to PixelCNN and of PixelCNN++ to Gated PixelCNN after as many epochs, marked where it "
    "has the wrong sign (its curve: `pictures/pixelcnns.png`); `falling` what the loss still lost of itself in the last tenth. "
    "Minutes are of one thread of a machine that did other things too. "
)
FLOWS = (
    "Normalising flows by their laptop recipes, by `python -m benchmarks.flows`, which says how. Of dequantised images, the "
    "mean of four draws of the noise, the same for all rows: `apart` is the mean difference to the control, a Gaussian of full "
    "covariance of the same dequantised training images, image by image; `round trip` the largest error in grey levels, "
    "`log-det` in nats. "
)
FLOW_COLUMNS = (
    "steps", "parameters", "minutes", "density", "bits", "error", "apart", "apart_error", "round trip", "log-det", "falling",
)  # fmt: skip
GANS = (
    "By `python -m benchmarks.gans`, which says how; `beats`: a FID below both controls, an entropy of 2.0 nats and a "
    "recall of 0.2. Steps are turns of the discriminator. "
)
GAN_COLUMNS = ("steps", "parameters", "minutes", "fid", "precision", "recall", "entropy", "least", "most", "beats")
LATENTS = (
    "By `python -m benchmarks.latents`, which says how: the same held-out images for all, in nats with the standard error over "
    "images; `apart` is IWAE-k − ELBO in pairs, `below` the share of images where one draw made it negative. "
)
BOUNDS = ("steps", "parameters", "minutes", "elbo", "elbo_error", "iwae", "iwae_error", "elbo_bits", "iwae_bits", "apart",
          "apart_error", "below", "images", "k", "falling")  # fmt: skip
HEADS = {
    "points": ("Points", "Sliced Wasserstein distance of 4,096 points to real ones, the median of three seeds; the bar is 1.5 "
               "times the 95th percentile of real against real.", ("steps", "distance", "bar", "gaussian", "passes")),
    "digits": ("Digits", "500 samples at guidance 1, seen by a support vector machine that was no part of training. Class-"
               "conditional models pass with 0.9 classified as asked and a spread within classes of 0.7 of the real one, "
               "others with recall 0.4, entropy 2.0 and 0.6 recognisable.",
               ("steps", "asked", "spread", "recall", "entropy", "recognisable", "novelty", "passes")),
    "bits": ("Bits per dimension", "Of the 169 held-out digits at 8×8, 17 grey levels.",
             ("steps", "bits", "error", "kind", "note")),
    "memorisation": ("Memorisation", "By `python -m benchmarks.memorising`: 500 samples of one recipe trained on 16 to 4,096 "
                     "images, and of the shipped models. How much oftener than by chance they are nearer to training items "
                     "than to as many new ones (0 is by chance, 1 always), with a 95 % interval, in the bundled features and "
                     "in pixels; `share` is of samples nearer than the nearest 5 % of new items.",
                     ("steps", "training_items", "features", "features_from", "features_to", "features_share", "pixels",
                      "pixels_from", "pixels_to", "pixels_share", "alarm")),
    "restoring": ("Inverse problems on digits", "By `python -m benchmarks.restoring`: 16 held-out digits measured with noise "
                  "0.05, 8 restorations each by the shipped `ddpm-digits` without classes: PSNR in dB of one and of the mean "
                  "of the 8, beside the Wiener filter of the training images and bicubic enlargement; the residual over σ√m; "
                  "and the share that a support vector machine sees as the original's class.",
                  ("psnr", "mean_psnr", "wiener_psnr", "bicubic_psnr", "residual", "class_kept")),
    "pixels-digits": ("Autoregressive models of digits", PIXELS + "8×8, 17 grey levels.", BITS_COLUMNS),
    "pixels-fashion-mnist": ("Autoregressive models of Fashion-MNIST", PIXELS + "28×28, 256 grey levels.", BITS_COLUMNS),
    "two-stage": ("Priors over the codes of a VQGAN of Fashion-MNIST", "By `python -m benchmarks.two_stage`, which says how: "
                  "what an independent network sees of 2,000 samples by class and of completed top halves (with the class, "
                  "without, and from another image's half; `real` is what it sees of the originals), and the FID in the "
                  "bundled features with its control, the codes of each place shuffled among samples.",
                  ("steps", "psnr", "perplexity", "codes", "asked", "dress", "fid", "fid_shuffled", "kept_class",
                   "kept_unasked", "kept_other_half", "real")),
    "gans-digits": ("GANs of digits", GANS + "16×16, against all 1,797 digits.", GAN_COLUMNS),
    "gans-fashion-mnist": ("GANs of Fashion-MNIST", GANS + "28×28, against 2,048 held-out images.", GAN_COLUMNS),
    "flows-points": ("Flows of points", "Normalising flows of eight Gaussians, by `python -m benchmarks.flows`: `above` is how "
                     "many nats a held-out point loses to the data's exact density, `integral` what a density sums to over "
                     "[−4, 4]².", ("steps", "parameters", "minutes", "nats", "above", "error", "integral", "falling")),
    "flows-digits": ("Flows of digits", FLOWS + "8×8, 17 grey levels.", FLOW_COLUMNS),
    "flows-fashion-mnist": ("Flows of Fashion-MNIST", FLOWS + "28×28, 256 grey levels.", FLOW_COLUMNS),
    "flow-memory": ("Memory against depth", "Megabytes that a loss keeps for the backward pass, by `python -m "
                    "benchmarks.flow_memory`; `times` from the least to the greatest depth, which is `deeper` times as great.",
                    ("depths", "megabytes", "times", "deeper")),
    "latents-digits": ("Variational autoencoders of binarised digits", LATENTS + "16×16 zeros and ones; `cvae` is told the "
                       "class.", BOUNDS),
    "latents-fashion-mnist": ("Variational autoencoders of Fashion-MNIST", LATENTS + "28×28, 256 grey levels; `cvae` is told "
                              "the class.", BOUNDS),
    "latents-whole": ("All of Fashion-MNIST", "By `python -m benchmarks.latents whole`: the bounds of `vae` on all 10,000 "
                      "held-out images, one draw after the other, and the megabytes that it took.",
                      ("steps", "elbo", "elbo_error", "iwae", "iwae_error", "apart", "below", "images", "k", "megabytes")),
    "latents-seeds": ("Flow posteriors and ladders", "By `python -m benchmarks.latents seeds`, binarised digits: mean and "
                      "deviation over seeds, in nats; `apart` is the difference of IWAE-k to the row named, seed by seed.",
                      ("seeds", "parameters", "elbo", "elbo_sd", "iwae", "iwae_sd", "k", "against", "apart", "apart_sd")),
    "latents-sprites": ("Disentangled sprites", "By `python -m benchmarks.latents sprites`: mutual information gap of 10,000 "
                        "held-out hearts of 32×32, mean and deviation over seeds, each factor's gap, and the ELBO in nats.",
                        ("seeds", "minutes", "mig", "mig_sd", "scale", "orientation", "x", "y", "elbo", "elbo_sd")),
}  # fmt: skip


def page(facts: dict[str, Any]) -> str:
    """All tables."""
    parts = [
        "# What the methods reach\n",
        "Made by `python -m benchmarks.quality page`; nothing here is typed.\n",
    ]
    for key, (title, text, columns) in HEADS.items():
        if key in facts:
            rows = [[name, *(shown(row.get(column)) for column in columns)] for name, row in facts[key].items()]
            parts += [f"## {title}\n", f"{text}\n", lines(["recipe", *columns], rows)]
    if "matrix" in facts:
        names = list(facts["matrix"])
        text = f"FID (gencli-features-v1) of {N_MATRIX} samples at guidance 1, with its evaluations, 100 at most"
        parts += [
            "## Checkpoint × sampler\n",
            f"{text}; in brackets where it is above {WORST:g} times its column's best.\n",
        ]
        cells = [
            [name, *(in_words(facts["matrix"][run]["cells"].get(name, NOT_MEASURED)) for run in names)]
            for name in samplers()
        ]
        parts.append(lines(["sampler", *names], cells))
    return "\n".join(parts)


NOT_MEASURED = {"reason": "not measured"}


def in_words(cell: dict[str, Any]) -> str:
    """A cell of the matrix."""
    if "reason" in cell:
        return str(cell["reason"])
    text = f"{cell['fid']:.3g} · {cell['evaluations']:g}"
    return text if cell["accepted"] else f"({text})"


def shown(value: Any) -> str:
    """A value in a table; nothing where there is none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def lines(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"
