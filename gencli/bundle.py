"""A run on disk and in memory: everything needed to sample, evaluate, or serve as another run's codec or teacher.

    checkpoints/NAME/  config.json  model.safetensors (averaged weights)  codec/ sources/KEY/ (nested bundles)  train/

Loading reads JSON and safetensors and executes no code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gencli import __version__, files, registry, runs
from gencli.config import choose
from gencli.core import (
    Batch,
    Classifier,
    Codec,
    Denoiser,
    Field,
    LatentVariable,
    Model,
    NextToken,
    Rng,
    Spec,
    TokenDenoiser,
)
from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.guidance._base import Guidance

FORMAT = 1
MEND = "restore it from a copy, or train again"
DEFAULT_SAMPLERS = (
    (Denoiser, "ddim"),
    (NextToken, "next-token"),
    (TokenDenoiser, "confidence"),
    (LatentVariable, "prior"),
)


def field_from(values: Mapping[str, Any]) -> Field:
    """A `Field` from its JSON form."""
    made = dict(values)
    made["shape"] = tuple(made.get("shape", ()))
    made["range"] = tuple(made["range"]) if made.get("range") else None
    made["names"] = tuple(made.get("names", ()))
    return Field(**made)


def spec_from(values: Mapping[str, Any]) -> Spec:
    """A `Spec` from its JSON form."""
    return Spec(field_from(values["x"]), {key: field_from(value) for key, value in values.get("cond", {}).items()})


def spec_to(spec: Spec) -> dict[str, Any]:
    """A `Spec` as JSON."""
    return {
        "x": dataclasses.asdict(spec.x),
        "cond": {key: dataclasses.asdict(value) for key, value in spec.cond.items()},
    }


@dataclass
class Run:
    """A model with its codecs: what `train` makes and every other command takes."""

    model: Model
    codecs: list[Codec]
    spec: Spec  # of model space
    data_spec: Spec
    config: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Run] = field(default_factory=dict)
    path: Path | None = None

    # ------------------------------------------------------------------------------------------------------------- making

    @classmethod
    def build(
        cls,
        recipe: Mapping[str, Any],
        data_spec: Spec,
        codec_run: Run | None = None,
        sources: dict[str, Run] | None = None,
    ) -> Run:
        """A fresh run from a recipe's tables and what the data are; refuses a recipe that does not fit, with the reason."""
        part = choose("models", recipe["model"], where="model")
        kind = part.load()
        tables = recipe.get("codecs") or getattr(kind, "codecs", [])
        if codec_run and not any(registry.public_name(table["name"]) == "learned" for table in tables):
            tables = [{"name": "learned"}]
        codecs: list[Codec] = []
        spec = data_spec
        for table in tables:
            chosen = choose("codecs", table, where="codecs")
            codec = chosen.build(codec_run) if chosen.name == "learned" else chosen.build()
            spec = codec.spec(spec)
            codecs.append(codec)
        adapters = [choose("adapters", table, where="adapters").build() for table in recipe.get("adapters", [])]
        narrow = spec
        for adapter in adapters:
            narrow = adapter.narrowed(narrow)
        model = part.build(narrow)
        model.attach()
        for adapter in adapters:
            adapter.apply(model, spec)
        return cls(model, codecs, spec, data_spec, {"recipe": dict(recipe)}, sources or {})

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Run:
        """The run in a folder, with its averaged weights, ready to sample."""
        path = Path(path)
        config = read_config(path)
        nested = path / "codec"
        codec_run = cls.load(nested, device) if (nested / "config.json").exists() else None
        sources = {key: cls.load(path / "sources" / key, device) for key in config.get("sources", [])}
        weights = path / "model.safetensors"
        shapes = tensor_shapes(weights)
        with files.understood(path / "config.json", MEND, also=(RuntimeError,)):
            spec = spec_from(config["data"]["spec"])
            with torch.device("meta"):  # a config.json that belongs to other weights takes no memory
                plan = cls.build(config["recipe"], spec, codec_run).model
            check_fit(plan, shapes, str(weights), plan.training_only)
            run = cls.build(config["recipe"], spec, codec_run, sources)
        run.config, run.path = config, path
        load_weights(run.model, weights, allow_missing=run.model.training_only)
        run.model.eval().requires_grad_(False).to(device)
        return run

    # ------------------------------------------------------------------------------------------------------------ data space

    def encode(self, batch: Batch, rng: Rng) -> Batch:
        """Data to model space."""
        for codec in self.codecs:
            batch = codec.draw(codec.encode(batch), rng)
        return {key: value.to(self.model.device) for key, value in batch.items()}

    def decode(self, batch: Batch) -> Batch:
        """Model space to data."""
        for codec in reversed(self.codecs):
            batch = codec.decode(batch)
        return batch

    # -------------------------------------------------------------------------------------------------------------- sampling

    def sampler(self, name: str | None = None, settings: Mapping[str, Any] | None = None) -> Any:
        """The sampler called `name`, or the run's own; refuses one that does not fit the model."""
        own = dict(self.config.get("recipe", {}).get("sample", {}))
        own.pop("guidance", None)
        chosen = name or own.get("name") or self.default_sampler()
        same = registry.public_name(own.get("name", "")) == registry.public_name(chosen)
        table = {**(own if same else {}), **(settings or {}), "name": chosen}
        sampler = choose("samplers", table).build()
        sampler.check(self.model)
        return sampler

    def default_sampler(self) -> str:
        """The sampler for the interface that the model offers, and for what its estimate is."""
        if getattr(self.model, "meaning", None) == "endpoint":
            return "renoise"
        for interface, name in DEFAULT_SAMPLERS:
            if isinstance(self.model, interface):
                return name
        named = f"`{self.name}`"
        if isinstance(self.model, Classifier):
            raise GencliError(
                f"run {named} cannot be sampled: {type(self.model).__name__} tells classes",
                f"guide a diffusion model by it: `gencli sample RUN --class 3 --classifier {self.name}`",
            )
        raise GencliError(
            f"run {named} cannot be sampled: {type(self.model).__name__} has no prior",
            f"train a prior over its codes: `{prior_over(self.model, self.name)}`",
        )

    def frames(
        self,
        rng: Rng,
        cond: Batch | None = None,
        sampler: Any = None,
        guidance: float | Guidance = 1.0,
        every: bool = False,
    ) -> Iterator[tuple[Any, Tensor | None]]:
        """Frames of one sample a row of `rng`, each with its picture in data space (only the last unless `every`).

        With `every`, a frame's `info["noisy"]` is in data space too.
        """
        sampler = sampler or self.sampler()
        given = self._supplied(rng, {key: value.to(self.model.device) for key, value in (cond or {}).items()})
        made = sampler.trajectory if every else sampler.frames
        with torch.no_grad():
            for frame in made(self.model, self.spec, len(rng), rng, given, guidance):
                last = frame.index == frame.total - 1
                if every and "noisy" in frame.info:
                    seen = self.decode({"x": frame.info["noisy"], **given})["x"]
                    frame = dataclasses.replace(frame, info={**frame.info, "noisy": seen})
                yield frame, self.decode({"x": frame.x, **given})["x"].cpu() if every or last else None

    def sample(
        self, rng: Rng, cond: Batch | None = None, sampler: Any = None, guidance: float | Guidance = 1.0
    ) -> Batch:
        """Samples in data space, one a row of `rng`, with their conditions."""
        picture: Tensor | None = None
        for _, picture in self.frames(rng, cond, sampler, guidance):  # noqa: B007
            pass
        assert picture is not None, "a sampler must yield at least one frame"
        return {"x": picture, **(cond or {})}

    def _supplied(self, rng: Rng, given: Batch) -> Batch:
        """The conditions as the model takes them, those that are absent drawn from the sources, each given those before."""
        absent = {key: source for key, source in self.sources.items() if key in self.spec.cond and key not in given}
        noise: Batch = {}
        while absent:
            key = min(absent, key=lambda key: sum(other in absent for other in absent[key].spec.cond))
            source, until = absent.pop(key), self.model.until(key)
            source.model.to(self.model.device)
            inner = {k: v for k, v in given.items() if k in source.spec.cond}
            drawn = source.draw(rng.at("source", key), inner, source.guidance if inner else 1.0, until)
            if until:
                noise[key] = drawn.pop("sigma")
            made = drawn["x"] if until else self._made(key, source, {**inner, **drawn})
            given = {**given, key: made.to(self.model.device)}
        for codec in self.codecs:
            codec.require(given)
        return self.model.supplied(given, rng.at("supplied"), noise)

    def _made(self, key: str, source: Run, drawn: Batch) -> Tensor:
        """What a source drew, as a condition; an image becomes whole grey levels on the way, as an image from a file has."""
        if key in self.data_spec.cond and self.data_spec.cond[key].kind == "image":
            return self.pictures({key: source.decode(drawn)["x"]})[key]
        return (drawn if source.spec.x == self.spec.cond[key] else source.decode(drawn))["x"]

    def pictures(self, raw: Mapping[str, Tensor]) -> Batch:
        """Images of the data among the conditions, as the model is given them."""
        n = len(next(iter(raw.values())))
        blank = torch.zeros(n, *self.data_spec.x.shape, dtype=torch.uint8)
        made = self.encode({"x": blank, **raw}, Rng.rows([0] * n))
        return {key: made[key] for key in raw}

    def draw(self, rng: Rng, cond: Batch, guidance: float = 1.0, until: float = 0.0) -> Batch:
        """Samples in model space by the run's own sampler, with the conditions that its sources gave.

        With `until` a sampler of denoisers stops at the first level of noise that is not above it: x then has noise, is
        scaled to unit variance for data of unit variance, and `sigma` is its level.
        """
        given = self._supplied(rng, cond)
        frame: Any = None
        with torch.no_grad():
            for frame in self.sampler().frames(self.model, self.spec, len(rng), rng, given, guidance):
                if until and frame.info["sigma"] <= until:
                    break
        assert frame is not None, "a sampler must yield at least one frame"
        if not until:
            return {**given, "x": frame.x}
        return {**given, "x": frame.info["noisy"], "sigma": frame.info["sigma"].expand(len(rng))}

    # --------------------------------------------------------------------------------------------------------------- identity

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name if self.path else self.config.get("name", "unsaved")

    @property
    def step(self) -> int:
        """How many optimiser steps the loaded weights have had."""
        return int(self.config.get("step", 0))

    @property
    def averaged(self) -> bool:
        """Whether the weights are an average over training steps, not the last step's."""
        train = self.config.get("recipe", {}).get("train", {})
        return bool(train.get("ema") or train.get("ema_decay"))

    @property
    def guidance(self) -> float:
        """The recipe's default guidance scale."""
        return float(self.config.get("recipe", {}).get("sample", {}).get("guidance", 1.0))

    def weights_hash(self) -> str:
        """sha256 of the weights, shortened, for receipts and cache keys."""
        assert self.path is not None, "only a saved run has a hash"
        return hash_of(self.path)


# ---------------------------------------------------------------------------------------------------------------------- files


def weight_files(path: Path) -> list[Path]:
    """The files that decide what the run in a folder makes: its own weights, its codec's, and its sources'."""
    own = [path / "model.safetensors", path / "codec" / "model.safetensors"]
    inner = [file for folder in sorted((path / "sources").glob("*")) for file in weight_files(folder)]
    return [own[0], *(file for file in own[1:] if file.exists()), *inner]


def hash_of(path: Path) -> str:
    """sha256 of the files that decide what the run in a folder makes, shortened."""
    digest = hashlib.sha256()
    for file in weight_files(path):
        with file.open("rb") as held:
            while part := held.read(2**20):
                digest.update(part)
    return digest.hexdigest()[:16]


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.json; a `GencliError` says what is wrong with a folder that is no run, damaged, or too new."""
    file = path / "config.json"
    if not file.is_file():
        raise GencliError(f"{path} is not a run: it has no config.json", "see `gencli list runs`")
    with files.understood(file, MEND):
        config = files.read_json(file)
        version = int(config["format"])
        config = dict(config) if version > FORMAT else runs.checked(config)
    if version > FORMAT:
        by = config.get("gencli", "a newer version")
        raise GencliError(
            f"{path} is a run of format {version}, made by gencli {by}; this version reads up to {FORMAT}",
            "upgrade gencli",
        )
    return config


def new_config(
    run: Run, data: Mapping[str, Any], name: str, created: str = "", command: str = "", codec: Run | None = None
) -> dict[str, Any]:
    """The config.json of a run that was just built from a resolved recipe.

    Args:
        run: the run.
        data: name, hash and number of items of its data set.
        name: the run's.
        created: when, in ISO form; empty if it is not known.
        command: what was typed.
        codec: the run whose latents are its data.
    """
    recipe = run.config["recipe"]
    inner = codec.config["model_names"] if codec else []
    return {
        "format": FORMAT,
        "gencli": __version__,
        "name": name,
        "created": created,
        "command": command,
        "recipe": recipe,
        "spec": spec_to(run.spec),
        "data": {**data, "spec": spec_to(run.data_spec)},
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "codec_models": inner,
        "model_names": [recipe["model"]["name"], *inner],
        "codec": codec.name if codec else None,
        "sources": sorted(run.sources),
        "adapters": [table["name"] for table in recipe.get("adapters", [])],
        "step": 0,
    }


def prior_over(model: Model, name: str) -> str:
    """The command that trains a prior over the codes of an autoencoder, the model of run `name`."""
    latent = getattr(model, "latent", None)
    prior = "em" if latent is not None and latent.vocab is None else "gated-pixelcnn"
    level = next((f":{level}" for level in getattr(model, "levels", {})), "")
    return f"gencli train {prior} --codec {name}{level}"


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's state by name, contiguous on the CPU, tied tensors once."""
    seen: set[tuple[int, torch.Size]] = set()  # by address, on the meta device by identity
    made: dict[str, Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        key = (id(value) if value.is_meta else value.data_ptr(), value.shape)
        if value.numel() and key in seen:
            continue
        seen.add(key)
        made[name] = value.detach() if value.is_meta else value.detach().to("cpu").contiguous()
    return made


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; a damaged one is a `GencliError` naming it."""
    with _opened(file) as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}, dict(handle.metadata() or {})  # noqa: SIM118


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file by name, from its header alone."""
    with _opened(file) as handle:
        return {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    if not file.is_file():
        raise GencliError(f"{file} is missing", "resume the run to write it again, or train anew")
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, ValueError, TypeError, MemoryError) as error:
        raise GencliError(
            f"{file} is damaged: {error}", "resume the run: it falls back to the last good state"
        ) from None


def load_weights(model: nn.Module, file: Path, allow_missing: tuple[str, ...] = ()) -> dict[str, str]:
    """Fill a model from a safetensors file, refusing keys that do not fit; returns the file's metadata."""
    tensors, metadata = read_tensors(file)
    load_tensors(model, tensors, str(file), allow_missing)
    return metadata


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], where: str, allow_missing: tuple[str, ...] = ()) -> None:
    """Fill a model from tensors by name; tied tensors may stand once."""
    check_fit(model, {key: value.shape for key, value in tensors.items()}, where, allow_missing)
    model.load_state_dict(tensors, strict=False)


def check_fit(
    model: nn.Module, shapes: Mapping[str, Sequence[int]], where: str, allow_missing: tuple[str, ...] = ()
) -> None:
    """Refuse tensors of these names and shapes that do not fit a model; tied ones may stand once."""
    own = model.state_dict()
    wrong = [key for key in shapes if key not in own or tuple(own[key].shape) != tuple(shapes[key])]
    tied = set(own) - set(state_of(model))
    absent = [
        key for key in own if key not in shapes and key not in tied and not key.startswith(allow_missing or ("\0",))
    ]
    if wrong or absent:
        first = wrong[0] if wrong else absent[0]
        raise GencliError(
            f"{where} does not fit the model: {len(wrong)} unexpected and {len(absent)} missing tensors, first '{first}'",
            "the weights belong to other settings",
        )
