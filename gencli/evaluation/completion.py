"""Completion: of given images some pixels are kept, and a model of tokens draws the others.

    x  →  known = encode(x), keep = cells of kept pixels  →  sampler  →  decode  →  kept pixels pasted back

The mask of pixels becomes one of model space: a token that stands for several pixels (a code of a learned codec) is kept only
if all of them are, and all channels of a pixel share its fate. `known` (tokens) and `keep` (true = leave untouched) reach the
sampler among the conditions. After decoding the kept pixels are pasted, so that they are what was given, bit for bit.

A prior over the lower level of a hierarchy is given the levels above: those are completed first, by the runs that are its
sources, each with a mask of its own.

Ours: what is hidden has no influence at all. A learned encoder sees around each cell, so it is shown the input with every
hidden pixel replaced by the nearest kept one.

A model of next tokens draws each token from those before it in its order, given or drawn, so that kept tokens further on do
not influence it: with rows in order, `top-half` is a draw from the exact conditional, `bottom-half` is not. A denoiser of
tokens sees all kept tokens at once.

Raises GencliError for a model without tokens, for tokens that are no grid over the image, and where no token is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gencli import registry
from gencli.bundle import Run
from gencli.core import Batch, NextToken, Rng, TokenDenoiser
from gencli.errors import GencliError
from gencli.evaluation.generate import MICRO, Progress
from gencli.evaluation.inputs import Inputs, Keep

if TYPE_CHECKING:
    from gencli.samplers._base import Sampler

INTERFACES = (NextToken, TokenDenoiser)
HIDDEN = (86, 180, 233)  # Okabe and Ito's sky blue, which no grey image holds


def cells(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask of tokens `shape` = `(…, h, w)`: those whose pixels are all kept in `mask` `(H, W)`."""
    height, width = mask.shape
    if len(shape) < 2 or height % shape[-2] or width % shape[-1]:
        raise GencliError(
            f"tokens of shape {tuple(shape)} are no grid over images of {width}×{height} pixels",
            "complete with a model whose tokens are: pixels, or one level of codes",
        )
    blocks = mask.reshape(shape[-2], height // shape[-2], shape[-1], width // shape[-1])
    return blocks.all(3).all(1).expand(*shape).clone()


def visible(x: Tensor, mask: Tensor) -> Tensor:
    """Images `(…, H, W)` with every hidden pixel replaced by the nearest kept one."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(~mask.numpy(), return_distances=False, return_indices=True)
    return x[..., torch.from_numpy(rows).long(), torch.from_numpy(columns).long()]


@dataclass(frozen=True)
class Completion:
    """Inputs, what is kept of them, and both in model space.

    Args:
        inputs: the images.
        keep: of their pixels.
        known: tokens `(M, *shape)`, zero where they are not kept.
        kept: tokens that are kept, `shape`.
        above: the same two for every condition that a source of the run draws.
        each: completions of an input.
        kept_first: whether no kept token follows a drawn one in the model's order, if it has one: all then have influence.
    """

    inputs: Inputs
    keep: Keep
    known: Tensor
    kept: Tensor
    above: dict[str, tuple[Tensor, Tensor]]
    each: int
    kept_first: bool

    @classmethod
    def of(cls, run: Run, inputs: Inputs, keep: Keep, each: int, edits: bool = False) -> Completion:
        """In a run's model space; nothing of what is hidden enters, unless it `edits`: the sampler begins with all of it, or
        the model itself leaves out what is hidden.

        Raises:
            GencliError: the run has no tokens and the sampler needs them, or no token is kept.
        """
        if not edits:
            check_model(run)
        shape = run.spec.x.shape
        kept = cells(keep.mask, shape)
        if not kept.any():
            high, wide = (a // b for a, b in zip(keep.mask.shape, shape[-2:], strict=True))
            raise GencliError(
                f"--keep {keep.name} keeps no whole code of run {run.name}, each of {wide}×{high} pixels",
                "keep more, or complete with a model of pixels",
            )
        shown = inputs.x if edits else visible(inputs.x, keep.mask)
        encoded = run.encode({"x": shown, **inputs.cond}, Rng.rows([0] * len(inputs)))
        masks = {key: cells(keep.mask, run.spec.cond[key].shape) for key in _drawn(run)}
        above = {key: (_only(encoded[key], mask), mask) for key, mask in masks.items()}
        first = _kept_first(run, kept)
        known = encoded["x"].cpu() if edits else _only(encoded["x"], kept)
        return cls(inputs, keep, known, kept, above, each, first)

    @property
    def count(self) -> int:
        """Of the images that are made."""
        return len(self.inputs) * self.each

    def rows(self, labels: Batch) -> Batch:
        """The conditions of every image: an input's completions follow one another.

        Args:
            labels: of every image, where a class was asked for; else the inputs' own are taken.
        """
        own = {key: value.repeat_interleave(self.each, 0) for key, value in self.inputs.cond.items()}
        keep = self.kept.expand(self.count, *self.kept.shape).clone()
        return {**own, **labels, "known": self.known.repeat_interleave(self.each, 0), "keep": keep}

    def with_above(self, run: Run, seeds: Sequence[int], cond: Batch) -> Batch:
        """The conditions of every image with those of the levels above, completed by the run's sources in turn."""
        absent = dict(_drawn(run))
        while absent:
            key = min(absent, key=lambda key: sum(other in absent for other in absent[key].spec.cond))
            source, (known, kept) = absent.pop(key), self.above[key]
            keep = kept.expand(self.count, *kept.shape)
            given = {name: value for name, value in cond.items() if name in source.spec.cond}
            scale = source.guidance if given else 1.0
            given = {**given, "known": known.repeat_interleave(self.each, 0), "keep": keep}
            made = []
            for rows in torch.arange(self.count).split(MICRO):
                rng = Rng.rows([seeds[i] for i in rows], run.model.device).at("source", key)
                some = {name: value[rows].to(run.model.device) for name, value in given.items()}
                made.append(source.draw(rng, some, scale)["x"].cpu())
            cond = {**cond, key: torch.cat(made)}
        return cond

    def pasted(self, made: Tensor, first: int = 0) -> Tensor:
        """Images `first`, `first` + 1, … `(n, C, H, W)` with the kept pixels as they were given."""
        rows = torch.arange(first, first + len(made)) // self.each
        return torch.where(self.keep.mask, self.inputs.x[rows], made)

    def sheet(self, made: Tensor) -> Tensor:
        """Rows of the original, what is kept of it, and its completions, in colours: `(M (2 + each), 3, H, W)`."""
        original = self.inputs.x.expand(-1, 3, -1, -1) if self.inputs.x.shape[1] == 1 else self.inputs.x
        masked = torch.where(self.keep.mask, original, torch.tensor(HIDDEN, dtype=torch.uint8)[:, None, None])
        wide = made.expand(-1, 3, -1, -1) if made.shape[1] == 1 else made
        own = wide.unflatten(0, (len(self.inputs), self.each))
        return torch.cat([original[:, None], masked[:, None], own], 1).flatten(0, 1)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        inputs = [
            {"input": name, "sha256": digest, **{key: int(v[i]) for key, v in self.inputs.cond.items() if v.ndim == 1}}
            for i, (name, digest) in enumerate(zip(self.inputs.names, self.inputs.digests, strict=True))
        ]
        return {
            "keep": self.keep.name,
            "mask_sha256": self.keep.digest,
            "kept_pixels": int(self.keep.mask.sum()),
            "pixels": self.keep.mask.numel(),
            "kept_tokens": int(self.kept.sum()),
            "tokens": self.kept.numel(),
            "kept_first": self.kept_first,
            "inputs": inputs,
        }

    @property
    def notes(self) -> list[str]:
        """What a user must be told, a line each."""
        made = list(self.inputs.notes)
        whole = self.kept.numel() * int(self.keep.mask.sum()) == int(self.kept.sum()) * self.keep.mask.numel()
        if not whole:
            made.append(f"{int(self.kept.sum())} of {self.kept.numel()} codes are wholly within what is kept")
        if not self.kept_first:
            made.append("the model looks back only: kept pixels after a drawn one in its order do not influence it")
        return made


def check_model(run: Run) -> None:
    """Refuse a run whose model has no tokens of its own to keep."""
    if not isinstance(run.model, INTERFACES):
        raise GencliError(
            f"run {run.name} cannot complete images: {run.model.public_name()} has no tokens to keep",
            f"edit it by --sampler repaint or sdedit if it is a diffusion model; models that have: {', '.join(capable())}",
        )
    for key, source in _drawn(run).items():
        if not isinstance(source.model, INTERFACES) or source.spec.x != run.spec.cond[key]:
            raise GencliError(
                f"run {run.name} cannot complete images: its {key} is drawn by a {source.model.public_name()} of other data",
                "complete with a model of pixels, or a prior over codes whose sources are priors over codes",
            )


def _drawn(run: Run) -> dict[str, Run]:
    """The sources whose samples are conditions of the run's model."""
    return {key: source for key, source in run.sources.items() if key in run.spec.cond}


def _only(tokens: Tensor, kept: Tensor) -> Tensor:
    """Tokens that are kept, the others zero."""
    if tokens.is_floating_point():
        raise GencliError("the run's space has no whole numbers to keep", "complete with a model of tokens")
    return torch.where(kept, tokens.cpu(), torch.zeros_like(tokens, device="cpu"))


def _kept_first(run: Run, kept: Tensor) -> bool:
    """Whether no kept token follows a drawn one in the model's order, if it has one."""
    if not isinstance(run.model, NextToken):
        return True
    along = kept.flatten()[run.model.order.cpu()]
    return not bool(along[int((~along).long().argmax()) :].any())


def edits(run: Run, sampler: Sampler) -> bool:
    """Whether sampler or model is given the whole image, of which parts stay."""
    return "known" in sampler.takes or bool(getattr(run.model, "completes", False))


def check_sampler(run: Run, sampler: Sampler) -> None:
    """Refuse a sampler of a run's model that keeps nothing, and a model that has no tokens to keep."""
    if edits(run, sampler):
        return
    check_model(run)
    if sampler.interface not in INTERFACES:
        raise GencliError(f"sampler {sampler.public_name()} keeps no tokens", "use next-token or confidence")


def capable() -> list[str]:
    """The models that can complete images."""
    samplers = [registry.load("samplers", name) for name in registry.entries("samplers")]
    fits = [sampler.fits for sampler in samplers if sampler.interface in INTERFACES]
    models: Mapping[str, Any] = {name: registry.attempt("models", name) for name in registry.entries("models")}
    return [name for name, model in models.items() if model is not None and any(fit(model) for fit in fits)]


def needs_class(run: Run, cond: Batch) -> None:
    """Refuse to leave out a class that the model has never been without."""
    label = run.model.spec.cond.get("label")
    if label is not None and "label" not in cond and getattr(run.model.config, "label_dropout", None) == 0:
        raise GencliError(
            f"run {run.name} was never trained without a class (label_dropout 0), and the input has none",
            "add --class",
        )


def pasted_progress(completion: Completion, done: Sequence[Progress]) -> list[Progress]:
    """Finished micro-batches, in order, with what is kept pasted in their samples and frames."""
    made, first = [], 0
    for progress in done:
        assert progress.chunk is not None, "only finished micro-batches have samples"
        frames = [completion.pasted(frame, first) for frame in progress.frames]
        made.append(dataclasses.replace(progress, chunk=completion.pasted(progress.chunk, first), frames=frames))
        first += len(progress.chunk)
    return made
