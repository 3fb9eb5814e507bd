"""A trained autoencoder as a codec: its run's own codecs, then its encoder.

Offers: codec

x becomes the latents of the run's model, `(N, *model.latent.shape)` (codes of a VQ-VAE, moments of a VAE); conditions are
kept. Encoding and decoding run without gradients, in micro-batches, on the model's device; the codec is no module, so its
model is in nobody's state dict: a run nests the other run's folder instead.

Of a model with several levels (VQ-VAE-2), `level` says whose codes x are. The codes of the levels above become conditions
of the same names, and decoding needs them; those of the levels below are the likeliest, as the model fills them in.

Raises GencliError if the run's model is no autoencoder, if it has levels and none or an unknown one is named, if decoding
lacks a level above, and if the data are not of the shape that it was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gencli import registry
from gencli.bundle import Run
from gencli.codecs._base import BaseCodec
from gencli.config import opt
from gencli.core import Autoencoder, Batch, Levels, Spec
from gencli.errors import GencliError

ROWS = 256  # encoded at a time


class Learned(BaseCodec):
    """`decode(encode(x))` is the run's reconstruction of x."""

    @dataclass(frozen=True)
    class Config:
        run: str = opt("codec", "folder of the run; relative ones are inside the bundle")
        level: str = opt("", "whose codes x are, of a model with several levels; those above become conditions")

    def __init__(self, config: Config, run: Run | None = None) -> None:
        super().__init__(config)
        self.run = run if run is not None else Run.load(config.run)
        model = self.run.model
        if not isinstance(model, Autoencoder):
            raise GencliError(
                f"run '{self.run.name}' cannot be a codec: {type(model).__name__} does not encode and decode",
                "choose the run of an autoencoder such as vqvae",
            )
        self.model = model.eval().requires_grad_(False)
        self.above = self._above()

    @property
    def name(self) -> str:
        """The run's own, not that of the folder which it has inside another run."""
        name = self.run.name
        return str(self.run.config.get("name", name)) if name == "codec" else name

    def _above(self) -> tuple[str, ...]:
        """The names of the levels above the chosen one, whose codes are conditions."""
        level, name = self.config.level, self.name
        if not isinstance(self.model, Levels):
            if level:
                raise GencliError(
                    f"run '{name}' has no level '{level}': its codes are one grid", f"give --codec {name}"
                )
            return ()
        names = tuple(self.model.levels)
        if level not in names:
            near = registry.nearest(level, names)
            what = (
                f"has no level '{level}'" if level else f"has the levels {', '.join(names)}: a prior is of one of them"
            )
            raise GencliError(
                f"run '{name}' {what}", f"give --codec {name}:{near[0] if near else f' or {name}:'.join(names)}"
            )
        return names[: names.index(level)]

    @property
    def below(self) -> str:
        """The next level down; empty for the last, and for a model without levels."""
        names = tuple(self.model.levels) if isinstance(self.model, Levels) else ()
        return names[len(self.above) + 1] if len(self.above) + 1 < len(names) else ""

    def spec(self, data: Spec) -> Spec:
        trained = self.run.data_spec.x
        if (data.x.kind, data.x.shape) != (trained.kind, trained.shape):
            raise GencliError(
                f"codec '{self.run.name}' was trained on {trained.kind} {trained.shape}, "
                f"the data are {data.x.kind} {data.x.shape}",
                "use the data, and the image size, that the codec was trained on",
            )
        if not isinstance(self.model, Levels):
            return dataclasses.replace(data, x=self.model.latent)
        above = {name: self.model.levels[name] for name in self.above}
        return dataclasses.replace(data, x=self.model.levels[self.config.level], cond={**data.cond, **above})

    def encode(self, batch: Batch) -> Batch:
        for codec in self.run.codecs:
            batch = codec.encode(batch)
        z = self._through(self.model.encode, batch["x"])
        if not isinstance(self.model, Levels):
            return {**batch, "x": z}
        levels = self.model.split(z)
        return {**batch, "x": levels[self.config.level], **{name: levels[name] for name in self.above}}

    def decode(self, batch: Batch) -> Batch:
        z = batch["x"]
        if isinstance(self.model, Levels):
            self.require(batch)
            names = (*self.above, self.config.level)
            levels = [batch[name] for name in self.above]
            z = self._through(
                lambda *parts: cast(Any, self.model).join(dict(zip(names, parts, strict=True))), *levels, z
            )
        batch = {**batch, "x": self._through(self.model.decode, z)}
        for codec in reversed(self.run.codecs):
            batch = codec.decode(batch)
        return batch

    def require(self, batch: Batch) -> None:
        """Refuse a batch that lacks a level above."""
        lacking = [name for name in self.above if name not in batch]
        if lacking:
            first = lacking[0]
            raise GencliError(
                f"the codes '{self.config.level}' of run '{self.name}' need those of '{first}', and nothing gives them",
                f"train the prior with --source {first}=RUN, a prior of {self.name}:{first}",
            )

    @torch.no_grad()
    def _through(self, map: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """`map` of tensors row by row, the result being where the last of them is."""
        here, device = tensors[-1].device, self.run.model.device
        parts = zip(*(tensor.split(ROWS) for tensor in tensors), strict=True)
        return torch.cat([map(*(rows.to(device) for rows in part)).to(here) for part in parts])
