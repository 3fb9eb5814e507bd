"""Checkpoints of the authors' programs as runs, and back, by one table a format.

A format says three things: which model of ours the names and shapes are (`recognise`), what each of our tensors is called
there (`places`, then every rule of `names` that is found), and how its numbers lie there (`ways`). All ways are exact and
go both directions, so that a run made of a file is checked by writing it back: every tensor must be the file's, bit for bit.

Tensors of theirs that ours needs not are named by `left`; buffers of theirs that ours computes are `fixed`, must agree within
10⁻⁵, and are written anew. Nothing else may be left over. Files are read as tensors and plain values only (`pt.py`), or as
safetensors; what a file does not say is said to the user.

Errors: names missing, surplus or of another shape; a model without its like; a latent model without `--codec`.
"""

from __future__ import annotations

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gencli import recipe as recipes
from gencli.bundle import Run, new_config, read_tensors, state_of
from gencli.config import merge, opt
from gencli.converters import pt
from gencli.converters._base import UNKNOWN, Check, Converter, Packed, gap, stripped
from gencli.converters._ways import SAME, Way, owner
from gencli.core import Field, Spec
from gencli.errors import GencliError
from gencli.training.session import resolve

Given = Mapping[str, Tensor]
Names = Sequence[tuple[str, str | Callable[["re.Match[str]"], str]]]
AGREE = 1e-5  # of buffers that are computed anew
ALIKE = 1e-3  # of outputs, as a share of the largest


class Inert:
    """In the place of what is beside the weights: it takes what it is given, and nothing is done."""

    def __init__(self, *given: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


BESIDE = (  # names in such files, of settings and counters; what they name is not looked up
    "argparse.Namespace",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)


@dataclass(frozen=True)
class Found:
    """What a file is: the tables of a run, its data, and what the file does not say."""

    recipe: dict[str, Any]
    spec: Spec
    assumed: str = ""
    codec: Run | None = None
    inner: dict[str, Tensor] = field(default_factory=dict)  # tensors of the codec that are set anew


@dataclass(frozen=True)
class Line:
    """One tensor of ours, and theirs."""

    ours: str
    theirs: tuple[str, ...]
    way: Way

    def renamed(self, change: Callable[[str], str]) -> Line:
        """With other names of theirs."""
        return Line(self.ours, tuple(map(change, self.theirs)), self.way)


class Official(Converter):
    """One layout."""

    suffix = ".pt"
    reads = True
    names: ClassVar[Names] = ()
    ways: ClassVar[Sequence[tuple[str, Way]]] = ()
    left: ClassVar[Sequence[str]] = ()  # patterns of their names
    own: ClassVar[Sequence[str]] = ()  # patterns of ours that they have not
    optional: ClassVar[Sequence[str]] = ()  # patterns of ours that a file may leave out together

    @dataclass(frozen=True)
    class Config:
        codec: str = opt("", "run of the autoencoder whose latents the model is of")
        image_size: int = opt(
            0, "side of the images, where the file does not say it; 0 = that of the released model", low=0
        )
        recipe: str = opt("", "recipe whose settings stand for what the file does not say")
        reference: str = opt("", "file with tensors x, level, label and out, which the network must make of them")

    # --------------------------------------------------------------------------------------------------- what a format says

    @abstractmethod
    def recognise(self, given: Given, where: Path) -> Found:
        """Which model the names and shapes are."""

    @abstractmethod
    def fits(self, run: Run) -> bool:
        """Whether a run can be written in this layout."""

    def places(self, model: Any) -> Mapping[str, str]:
        """Our modules to theirs, where a rule cannot say it."""
        return {}

    def ways_of(self, model: Any) -> Sequence[tuple[str, Way]]:
        """`ways`, where they depend on the model."""
        return self.ways

    def fixed(self, model: Any) -> Mapping[str, Tensor]:
        """Their buffers that ours computes."""
        return {}

    def derived(self, given: Given) -> Mapping[str, Tensor]:
        """Tensors of ours that follow from theirs and are not written back."""
        return {}

    def tensors(self, path: Path) -> dict[str, Tensor]:
        """Every tensor in the file, by their names."""
        if path.suffix == ".safetensors":
            return read_tensors(path)[0]
        with torch.serialization.safe_globals([(Inert, name) for name in BESIDE]):
            held = pt.load(path)
        return stripped(self.unpacked(held, path))

    def unpacked(self, held: Any, path: Path) -> dict[str, Tensor]:
        """The tensors among what a pickle holds."""
        return pt.tensors_in(held, path)[0]

    # -------------------------------------------------------------------------------------------------------- there and back

    def layout(self, model: nn.Module) -> list[Line]:
        """Each tensor of ours with theirs."""
        places, ways = dict(self.places(model)), self.ways_of(model)
        made = []
        for key in model.state_dict():
            if any(re.search(pattern, key) for pattern in self.own):
                continue
            name = key
            at = key.rpartition(".")[0]
            while at and at not in places:
                at = at.rpartition(".")[0]
            if at:
                name = places[at] + key[len(at) :]
            for pattern, text in self.names:
                name = re.sub(pattern, text, name)
            way = next((way for pattern, way in ways if re.search(pattern, key)), SAME)
            made.append(Line(key, tuple(name.replace("{}", part) for part in way.parts), way))
        return made

    def sent(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's tensors under their names."""
        state = model.state_dict()
        made: dict[str, Tensor] = {}
        for line in self.layout(model):
            values = line.way.send(state[line.ours], owner(model, line.ours))
            made |= dict(zip(line.theirs, values, strict=True))
        return {**made, **self.fixed(model)}

    def brought(self, model: nn.Module, given: Given, where: Path) -> dict[str, Tensor]:
        """Their tensors under our names; refuses what is missing, surplus or of another shape."""
        lines, fixed = self._asked_for(model, given), self.fixed(model)
        wanted = {name for line in lines for name in line.theirs}
        surplus = sorted(name for name in given.keys() - wanted - fixed.keys() if not self.drops(name))
        self._refuse(where, {"missing": sorted(wanted - given.keys()), "surplus": surplus})
        made, shapes, state = {}, [], model.state_dict()
        for line in lines:
            there = state[line.ours]
            expected = [part.shape for part in line.way.send(there, owner(model, line.ours))]
            for name, shape in zip(line.theirs, expected, strict=True):
                if given[name].shape != shape:
                    shapes.append(f"{name} {tuple(given[name].shape)} for {tuple(shape)}")
            if not shapes:
                value = line.way.bring([given[name] for name in line.theirs], owner(model, line.ours))
                made[line.ours] = value.to(there.dtype).contiguous()
        apart = [
            f"{name} {tuple(given[name].shape)}"
            for name, value in fixed.items()
            if name in given
            and (given[name].shape != value.shape or not torch.allclose(given[name].to(value), value, atol=AGREE))
        ]
        self._refuse(where, {"of another shape": shapes, "of other values than ours": apart})
        return made

    def _asked_for(self, model: nn.Module, given: Given) -> list[Line]:
        """The layout without a part that the file has nothing of."""
        lines = self.layout(model)
        for pattern in self.optional:
            part = [line for line in lines if re.search(pattern, line.ours)]
            if not any(name in given for line in part for name in line.theirs):
                lines = [line for line in lines if line not in part]
        return lines

    def drops(self, name: str) -> bool:
        """Whether a tensor of theirs is one that ours needs not."""
        return any(re.search(pattern, name) for pattern in self.left)

    def need(self, given: Given, name: str, where: Path) -> Tensor:
        """One of their tensors, which tells what the model is."""
        if name not in given:
            self._refuse(where, {"missing": [name]})
        return given[name]

    def _refuse(self, where: Path, wrong: Mapping[str, Sequence[str]]) -> None:
        said = [
            f"{what} {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
            for what, names in wrong.items()
            if names
        ]
        if said:
            raise GencliError(
                f"{where} is no checkpoint of {self.public_name()} that gencli knows: {'; '.join(said)}",
                "choose another --from (`gencli list converters`), or say what it is with --like RUN or RECIPE",
            )

    # ---------------------------------------------------------------------------------------------------------- the two verbs

    def read(self, path: Path, like: Run | None) -> tuple[Packed, list[str]]:
        given = self.tensors(path)
        found = None
        if like is None:
            found = self._asked(self.recognise(given, path))
            run = Run.build(resolve(found.recipe), found.spec, found.codec)
            run.config = new_config(run, UNKNOWN, path.stem, codec=found.codec)
        elif self.fits(like):
            run = like
        else:
            raise self._unlike(like)
        brought = self.brought(run.model, given, path)
        run.model.load_state_dict(brought | dict(self.derived(given)), strict=False)
        dropped = sorted(name for name in given if self.drops(name))
        notes = [f"its {len(given)} tensors are those of the model {run.config['recipe']['model']['name']}"]
        if dropped:
            more = f" and {len(dropped) - 1} more" if dropped[1:] else ""
            notes.append(f"left out, for gencli needs it not: {dropped[0]}{more}")
        if found is not None and found.assumed:
            notes.append(f"not in the file, taken from the released model: {found.assumed}")
        return self._packed(run, found, brought.keys()), notes

    def _asked(self, found: Found) -> Found:
        """With the settings of the recipe that was asked for, over those of the released model."""
        if not self.config.recipe:
            return found
        asked: dict[str, Any] = recipes.load(self.config.recipe)
        tables: dict[str, Any] = {
            k: v for k, v in asked.items() if k in ("model", "train", "sample", "codecs", "recipe")
        }
        return dataclasses.replace(found, recipe=merge(found.recipe, tables), assumed="")

    def _packed(self, run: Run, found: Found | None, held: Collection[str]) -> Packed:
        """With what only training needs, where the file has it."""
        made = Packed.like(run)
        made.tensors |= {key: value for key, value in state_of(run.model).items() if key in held}
        inner = found.codec if found is not None else None
        if inner is not None:
            assert found is not None, "it is what was found"
            nested = Packed.like(inner) if inner.path is None else Packed.of(inner.path)
            join = lambda place: f"codec/{place}" if place else "codec"  # noqa: E731
            made.configs |= {join(place): config for place, config in nested.configs.items()}
            made.tensors |= {f"codec/{key}": value for key, value in (nested.tensors | found.inner).items()}
        return made

    def write(self, run: Run, path: Path) -> list[str]:
        if not self.fits(run):
            raise self._unlike(run)
        torch.save({name: value.detach().cpu().contiguous() for name, value in self.sent(run.model).items()}, path)
        lost = [key for key in run.model.state_dict() if any(re.search(p, key) for p in self.own)]
        return (
            [f"{self.public_name()} has no place for {', '.join(sorted({k.split('.')[0] for k in lost}))}"]
            if lost
            else []
        )

    def check(self, run: Run, path: Path) -> list[Check]:
        """Writing the run again must make the file."""
        given, sent = self.tensors(path), self.sent(run.model)
        fixed = self.fixed(run.model)
        exact = [name for name in sent if name not in fixed and name in given]
        worst = max((gap(sent[name], given[name]) for name in exact), default=0.0)
        checks = [Check(f"{len(exact)} tensors, written back", worst, 0.0)]
        return [*checks, self._compared(run)] if self.config.reference else checks

    def output(self, model: Any, given: Given) -> Tensor:
        """What theirs makes of inputs: a denoiser's network, told levels as theirs is."""
        told = {"label": given["label"].long()} if "label" in given else {}
        return model.net(given["x"].float(), given["level"].float(), **told)

    def _compared(self, run: Run) -> Check:
        where = Path(self.config.reference)
        given = read_tensors(where)[0] if where.suffix == ".safetensors" else pt.tensors_in(pt.load(where), where)[0]
        for name in ("x", "out"):
            self.need(given, name, where)
        with torch.no_grad():
            made = self.output(run.model, given)
        theirs = given["out"].to(made)
        if made.shape != theirs.shape:
            raise GencliError(
                f"{where}: out is {tuple(theirs.shape)}, the network makes {tuple(made.shape)}", "give its own outputs"
            )
        worst = float((made - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
        return Check(f"outputs for {where.name}", worst, ALIKE)

    def _unlike(self, run: Run) -> GencliError:
        model = run.config["recipe"]["model"]
        net = model.get("net", {}).get("name")
        what = f"{model['name']} with the network {net}" if net else model["name"]
        return GencliError(
            f"run {run.name} is a {what}, of which the format {self.public_name()} knows nothing",
            f"gencli convert {run.name} --to safetensors",
        )


def images(side: int, channels: int = 3, classes: int = 0) -> Spec:
    """Pictures of 8 bits, of numbered classes."""
    names = tuple(map(str, range(classes)))
    label = {"label": Field("label", (), vocab=classes, names=names)} if classes else {}
    return Spec(Field("image", (channels, side, side), vocab=256), label)


def count(given: Given, pattern: str) -> int:
    """One more than the largest number in names that a pattern with one group finds; 0 if there is none."""
    found = [int(match[1]) for name in given if (match := re.search(pattern, name))]
    return max(found, default=-1) + 1
