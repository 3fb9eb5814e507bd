"""Deep Residual Learning for Image Recognition: a classifier of clean images (He et al., 2015). arXiv:1512.03385

Offers: classify

    loss = −log p(y | x)

It makes no samples: it judges those of other models (`gencli eval class-accuracy`), and its features compare sets of images
(`gencli eval fid --features RUN`). It has seen no noise, so it guides no denoiser: `noisy-classifier` does.

Ours: the loss may be smoothed (arXiv:1512.00567): a share `smoothing` of the target is spread evenly over all classes.

Errors: data without class labels; whole numbers as data; a level of noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Model, Spec, Turn
from gencli.models.discriminative._labelled import classes_of, refuse_noise


class CleanClassifier(Model):
    """Classes of images, and features of what it looks at."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    clean_only: ClassVar[bool] = True
    couples = True  # batch normalisation

    @dataclass(frozen=True)
    class Config:
        smoothing: float = opt(0.0, "share of the target that is spread over all classes", low=0.0, high=0.9)
        net: Part = part("networks", "resnet", "the classifying network", role="label")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        classes = classes_of(spec, "classifier")
        self.net = config.net.build(spec.x, classes)

    def class_logits(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """`(N, classes)` of clean x; `sigma` may only be 0."""
        refuse_noise(sigma, "classifier")
        return self.net(x.to(self.net.head.weight)).to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """`(N, D)` of clean x."""
        return self.net.features(x.to(self.net.head.weight))

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """Cross-entropy of each item; the mean over items."""
        label, logits = batch["label"], self.net(batch["x"])
        each = F.cross_entropy(logits.float(), label, reduction="none", label_smoothing=self.config.smoothing)
        right = (logits.argmax(1) == label).float()
        return {"loss": each.mean(), "each": each, "accuracy": right.mean()}
