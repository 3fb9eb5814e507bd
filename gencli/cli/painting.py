"""`gencli sample RUN --input IMAGE` where the run's model paints images from images: what is given, and what is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.bundle import Run
    from gencli.core import Batch
    from gencli.evaluation.generate import Progress
    from gencli.evaluation.inputs import Inputs


@dataclass(frozen=True)
class Painting:
    """What `--input` asks for without `--keep`.

    Args:
        key: the condition that the images are.
        inputs: the images.
        given: the same, as the model is given them.
        each: paintings of an image.
    """

    key: str
    inputs: Inputs
    given: Batch
    each: int

    @classmethod
    def of(cls, values: dict[str, Any], run: Run, sampler: Any, each: int) -> Painting | None:
        """None without `--input`, with `--keep`, and for a model and a sampler that are given no image."""
        from gencli.core import Rng
        from gencli.evaluation.conditions import encoded, pictures
        from gencli.evaluation.inputs import read_inputs

        if "known" in sampler.takes and "input" in values and "keep" not in values:
            inputs = read_inputs(run, values["input"], values.get("fit"))
            known = run.encode({"x": inputs.x, **inputs.cond}, Rng.rows([0] * len(inputs)))["x"].cpu()
            return cls("known", inputs, {"known": known}, each)
        key = next(iter(pictures(run, drawn=True)), None)
        if "input" not in values or "keep" in values or key is None:
            return None
        inputs = read_inputs(run, values["input"], values.get("fit"), key)
        return cls(key, inputs, encoded(run, {key: inputs.x}), each)

    def asked(self, run: Run, seeds: list[int], labels: Batch) -> tuple[list[int], Batch]:
        """Seeds and conditions of every image: each input has the same seeds, and the classes asked for by them."""
        count = len(self.inputs)
        classes = {key: value.repeat(count) for key, value in labels.items() if key != self.key}
        own = {**self.inputs.cond, **self.given}
        return seeds * count, {**{key: value.repeat_interleave(self.each, 0) for key, value in own.items()}, **classes}

    def done(self, done: Sequence[Progress]) -> list[Progress]:
        """What was drawn."""
        return list(done)

    def rows(self) -> list[dict[str, Any]]:
        """Of every image, what it was painted from, for the receipt."""
        return [{"input": name} for name in self.inputs.names for _ in range(self.each)]

    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        inputs = zip(self.inputs.names, self.inputs.digests, strict=True)
        return {"painted": {"condition": self.key, "inputs": [{"input": n, "sha256": digest} for n, digest in inputs]}}

    def sheet(self, made: Tensor) -> tuple[Tensor, int]:
        """What the grid shows, and its columns: what is given, and the paintings."""
        from gencli.evaluation.preview import beside

        return beside(self.inputs.x, made), 1 + self.each

    @property
    def notes(self) -> Sequence[str]:
        """What a user must be told, a line each."""
        return self.inputs.notes

    @property
    def what(self) -> str:
        """In the line that says what was resolved."""
        count = len(self.inputs)
        return f"painted from {count} input{'s' * (count > 1)}"

    @property
    def name(self) -> str:
        """For the folder."""
        return "painted"
