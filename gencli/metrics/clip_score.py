"""CLIPScore: A Reference-free Evaluation Metric for Image Captioning (Hessel et al., 2021). arXiv:2104.08718

Offers: image, samples, labels

    clip-score = 100 · mean over samples of max(0, cos(e(image), e(text)))

with CLIP's embeddings e of a sample and of the prompt of the class that was asked for. This is the scale of papers on
text-to-image models; the paper's own CLIP-S is 2.5 · mean max(0, cos), and stands in the facts. The mean with the prompts of
all other classes stands beside it: a model whose samples are of the right class is above it.

Ours: the data have classes and no captions, so the texts are `prompt` with each class's name (the paper begins captions with
"A photo depicts"). Values of different CLIP networks, and of different prompts, are not comparable; the folder is what the
model hub gives, the text's vocabulary with it. Range: 0 to 100, with published weights 15 to 35.

Errors: classes without names or none; a prompt without {class}; a folder without CLIP's weights or its vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gencli.config import opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.metrics._base import Evidence, ItemMetric, Value, mean_with_error
from gencli.metrics._pretrained import Pretrained, beside, load
from gencli.metrics.cas import labels_of

SCALE, PAPER = 100.0, 2.5
VOCABULARY = (("tokenizer.json",), ("vocab.json", "merges.txt"))


class ClipScore(ItemMetric):
    """How well samples fit the words for their class."""

    @dataclass(frozen=True)
    class Config:
        weights: str = opt("", "folder of CLIP's weights and vocabulary; empty = the cache folder's")
        prompt: str = opt("a photo of a {class}", "what a class is called; {class} is its name")

    def foresee(self, classes: Field | None) -> None:
        self._prompts(classes)
        folder = self._folder()
        if not any(all((folder / name).is_file() for name in names) for names in VOCABULARY):
            raise GencliError(
                f"{folder} has no vocabulary of CLIP: tokenizer.json, or vocab.json and merges.txt",
                "put them beside model.safetensors; the model's page has them",
            )

    def __call__(self, evidence: Evidence) -> Value:
        self.foresee(evidence.classes)
        samples, prompts = evidence.drawn(), self._prompts(evidence.classes)
        device = "cpu" if evidence.run is None else evidence.run.model.device
        by = Pretrained(self._folder(), device)
        every = torch.arange(len(samples))
        images = by.extract(samples.items.batch(part)["x"] for part in every.split(evidence.batch_size)).unit()
        label = labels_of(samples.items, every, evidence.batch_size)
        fit = SCALE * np.maximum(0, images @ texts(self._folder(), prompts).T)  # (N, K)
        asked = np.arange(len(prompts)) == label[:, None]
        mean, error, interval = mean_with_error(fit[asked])
        others = float(fit[~asked].mean()) if len(prompts) > 1 else None
        return Value(
            name=f"clip-score[{by.name}]",
            value=mean,
            interval=interval,
            n=len(samples),
            better="higher",
            note=f"'{self.config.prompt}'" + ("" if others is None else f"; {others:.4g} with other classes' prompts"),
            facts={
                "standard_error": error,
                "with_other_prompts": others,
                "clip_s": PAPER * mean / SCALE,
                "weights": by.sha256,
                "fingerprint": by.fingerprint,
            },
        )

    def _folder(self) -> Path:
        return Path(self.config.weights).expanduser() if self.config.weights else beside("clip")

    def _prompts(self, classes: Field | None) -> list[str]:
        if classes is None or not classes.names:
            raise GencliError("clip-score needs classes with names", "use a model of data whose classes have names")
        if "{class}" not in self.config.prompt:
            raise GencliError(
                f"--clip-score.prompt is '{self.config.prompt}', which has no {{class}}",
                "write {class} where its name goes",
            )
        return [self.config.prompt.replace("{class}", name) for name in classes.names]


def texts(folder: Path, prompts: list[str]) -> np.ndarray:
    """CLIP's embeddings `(K, D)` of the prompts, of length one, in float64."""
    net: Any = load(folder, "CLIPTextModelWithProjection", "clip-score").eval()
    import transformers

    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises anything on damaged files
        why = str(error).partition("\n")[0]
        raise GencliError(f"the vocabulary in {folder} cannot be read: {why}", "copy its files again") from error
    most = net.config.max_position_embeddings
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=most, return_tensors="pt")
    with torch.no_grad():
        made = net(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).text_embeds.double()
    return np.asarray((made / made.norm(dim=1, keepdim=True)).numpy())
