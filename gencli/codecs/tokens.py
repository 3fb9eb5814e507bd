"""uint8 images to whole numbers 0 … V−1, one token a sub-pixel, and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from gencli.codecs._base import BaseCodec
from gencli.config import opt
from gencli.core import Batch, Spec


class Tokens(BaseCodec):
    """Grey level k of V is the token k; fewer levels than the data's are a lossy quantisation, and bits/dim counts those."""

    @dataclass(frozen=True)
    class Config:
        levels: int = opt(0, "grey levels; 0 = the data's own", low=0, high=256)

    def spec(self, data: Spec) -> Spec:
        self._vocab = self.config.levels or data.x.vocab or 256
        return dataclasses.replace(data, x=dataclasses.replace(data.x, vocab=self._vocab, range=None))

    def encode(self, batch: Batch) -> Batch:
        levels = batch["x"].float() * ((self._vocab - 1) / 255)
        return {**batch, "x": levels.round().long()}

    def decode(self, batch: Batch) -> Batch:
        grey = batch["x"].double() * (255 / (self._vocab - 1))
        return {**batch, "x": grey.round().to(torch.uint8)}
