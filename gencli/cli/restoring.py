"""`gencli sample dps --operator deblur --input IMAGE`: what is measured of images, and what is restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gencli.cli import console
from gencli.cli.options import Flag
from gencli.errors import GencliError

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.bundle import Run
    from gencli.core import Batch
    from gencli.evaluation.generate import Progress
    from gencli.evaluation.restoring import Restoration

FLAGS = [
    Flag(
        "measured",
        ("--measured",),
        bool,
        "the images of --input are measurements already: blurred, holed or enlarged ones; nothing is measured of them",
        "Restoration",
        default=False,
    )
]


@dataclass(frozen=True)
class Restoring:
    """What `--input` asks of a sampler that restores.

    Args:
        run: whose sampler.
        restoration: the inputs, and what is measured of them.
        scores: of what was made, once it is.
    """

    run: Run
    restoration: Restoration
    scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, values: dict[str, Any], run: Run, sampler: Any, each: int) -> Restoring | None:
        """None for other samplers."""
        from gencli.evaluation.inputs import read_inputs
        from gencli.evaluation.restoring import Restoration

        name = sampler.public_name()
        if "measured" not in sampler.takes:
            if values.get("measured"):
                raise GencliError(
                    f"--measured is for samplers that restore, {name} does not", "see `gencli list samplers`"
                )
            return None
        if "input" not in values:
            raise GencliError(
                f"sampler {name} restores images and was given none", "add --input IMAGE and --operator NAME"
            )
        if "keep" in values:
            raise GencliError(
                f"--keep is not for sampler {name}, whose operator says what is measured",
                f"leave it out, or give --operator inpaint --operator.mask {values['keep']}",
            )
        inputs = read_inputs(run, values["input"], values.get("fit"))
        if not sampler.draws and each > 1:
            each, note = 1, f"{name} makes the same of every seed: one restoration of each input"
            inputs = replace(inputs, notes=(*inputs.notes, note))
        return cls(run, Restoration.of(run, sampler, inputs, each, bool(values.get("measured"))))

    def asked(self, run: Run, seeds: list[int], labels: Batch) -> tuple[list[int], Batch]:
        """Seeds and conditions of every image: each input has the same seeds, and the classes asked for by them."""
        count, each = len(self.restoration.inputs), self.restoration.each
        return seeds[:each] * count, self.restoration.rows(
            {k: value[:each].repeat(count) for k, value in labels.items()}
        )

    def done(self, done: list[Progress]) -> list[Progress]:
        """What was drawn; how good it is is said."""
        import torch

        made = torch.cat([progress.chunk for progress in done if progress.chunk is not None])
        scores = self.restoration.scores(self.run, made)
        self.scores.update(scores)
        names = {"": "a restoration", "mean_": f"the mean of {self.restoration.each}", "baseline_": "a linear estimate"}
        parts = [
            f"{name} {scores[f'{key}psnr']:.2f} dB, SSIM {scores[f'{key}ssim']:.3f}"
            for key, name in names.items()
            if f"{key}psnr" in scores and (key != "mean_" or self.restoration.each > 1)
        ]
        console.say(" · ".join([*parts, f"residual {scores['residual']:.2f} of the noise"]))
        return done

    def rows(self) -> list[dict[str, Any]]:
        """Of every image, what it restores, for the receipt."""
        names = self.restoration.inputs.names
        return [{"input": names[i // self.restoration.each]} for i in range(self.restoration.count)]

    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        return {"restoration": {**self.restoration.facts, **self.scores}}

    def sheet(self, made: Tensor) -> tuple[Tensor, int]:
        """What the grid shows, and its columns: the original, what was measured, the restorations."""
        return self.restoration.sheet(self.run, made), (1 if self.restoration.taken else 2) + self.restoration.each

    @property
    def notes(self) -> Sequence[str]:
        """What a user must be told, a line each."""
        return self.restoration.inputs.notes

    @property
    def what(self) -> str:
        """In the line that says what was resolved."""
        made, count = self.restoration, len(self.restoration.inputs)
        noise = "as they are" if made.taken else f"with noise {made.noise:g}"
        return f"{count} input{'s' * (count > 1)} by {made.operator.public_name()}, {noise}"

    @property
    def name(self) -> str:
        """For the folder."""
        return self.restoration.operator.public_name()
