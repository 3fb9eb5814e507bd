"""A folder that the library diffusers loads: `UNet2DModel`, `DDIMScheduler`, and a pipeline where there are no classes.

    unet/config.json  unet/diffusion_pytorch_model.safetensors  scheduler/scheduler_config.json
    model_index.json  (without classes)                         gencli.json  (what diffusers has no place for)

Writes a `ddpm` with the network `unet` over pixels in [−1, 1]. Its network is that of `UNet2DModel` with one head, sine before
cosine, frequencies down to exactly 1/10,000, norms of ε 1e-6 and downsampling padded on the right and bottom; the null label
is the last row of the class embedding. The schedule is named where diffusers has it (linear, cosine) and else spelt out as
`trained_betas`; `variance` becomes `variance_type`; spacing and clipping are those of the run's sampler.

Reads such folders, and any other `UNet2DModel` of that form; `gencli.json` or `--like` say which data it was trained on and
whether the last class means "no class". A network without such a row is given one of zeros.

With a clipping scheduler diffusers steps along the unclipped direction unless `use_clipped_model_output=True` is given to it;
with it, DDIM of the same noise gives the same pictures.

Errors: another model or network, codecs other than pixels in [−1, 1], norms of several numbers of groups, spacing `linspace`
or `quad`; reading: an option or a schedule that gencli has no counterpart for, tensors that do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from gencli import files, registry
from gencli.bundle import Run, read_tensors, spec_from
from gencli.codecs.pixels import Pixels
from gencli.config import merge
from gencli.converters._base import UNKNOWN, Check, Converter, Packed, described, installed
from gencli.converters._chain import chain_from, sample_from, scheduler_of
from gencli.converters._unet2d import net_from, our_tensors, their_name, unet_of
from gencli.core import Field, Spec
from gencli.errors import GencliError
from gencli.metrics._torchvision import import_torchvision
from gencli.models.diffusion.ddpm import Ddpm
from gencli.networks.unet import UNet
from gencli.training.session import resolve

WEIGHTS = "diffusion_pytorch_model.safetensors"
OURS = "gencli.json"


class Diffusers(Converter):
    """A denoiser for diffusers."""

    suffix = "-diffusers"
    folder = True
    reads = True
    peer = ("diffusers", "peers")

    def write(self, run: Run, path: Path) -> list[str]:
        model = convertible(run)
        scheduler, notes = scheduler_of(run, model)
        files.atomic_json(path / "unet" / "config.json", unet_of(run, model))
        state = {their_name(key): value.contiguous() for key, value in model.net.state_dict().items()}
        files.atomic_write(path / "unet" / WEIGHTS, save(state, metadata={"format": "pt"}))
        files.atomic_json(path / "scheduler" / "scheduler_config.json", scheduler)
        files.atomic_json(path / OURS, run.config)
        if run.spec.cond:
            return [*notes, "no model_index.json: diffusers has no pipeline for class labels; load unet and scheduler"]
        pipeline = scheduler["_class_name"].replace("Scheduler", "Pipeline")
        parts = {"scheduler": ["diffusers", scheduler["_class_name"]], "unet": ["diffusers", "UNet2DModel"]}
        files.atomic_json(path / "model_index.json", {"_class_name": pipeline, **parts})
        return notes

    def read(self, path: Path, like: Run | None) -> tuple[Packed, list[str]]:
        inner = path / "unet" if (path / "unet").is_dir() else path
        place = path / "scheduler" if (path / "scheduler").is_dir() else path
        unet, scheduler = _json(inner / "config.json"), _json(place / "scheduler_config.json")
        tensors, _ = read_tensors(inner / WEIGHTS)
        known = like.config if like else _json(path / OURS) if (path / OURS).is_file() else None
        spec, notes = data_of(unet, known)
        if "label" in spec.cond and unet["num_class_embeds"] == spec.cond["label"].vocab:
            rows = tensors["class_embedding.weight"]
            tensors["class_embedding.weight"] = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
            notes.append("it has no row for 'no class' and got one of zeros: sample with --class, without --guidance")
        run = built(unet, scheduler, spec, known)
        assert isinstance(run.model, Ddpm), "`built` makes nothing else"
        run.model.net.load_state_dict(our_tensors(run.model.net, tensors, inner / WEIGHTS))
        return Packed.like(run), notes

    def check(self, run: Run, path: Path) -> list[Check]:
        import diffusers

        if installed("torchvision"):
            import_torchvision()
        diffusers.utils.logging.disable_progress_bar()
        flat = not (path / "unet").is_dir()
        net = diffusers.UNet2DModel.from_pretrained(
            path, subfolder=None if flat else "unet", local_files_only=True
        ).eval()
        sub = "scheduler" if (path / "scheduler").is_dir() else None
        scheduler = diffusers.DDIMScheduler.from_pretrained(path, subfolder=sub, local_files_only=True)
        model = run.model
        assert isinstance(model, Ddpm), "made by `write` or `read`"
        generator, size = torch.Generator().manual_seed(0), 4
        x = torch.randn(size, *run.spec.x.shape, generator=generator)
        index = torch.linspace(0, len(model.levels) - 1, size).round().long()
        cond = {
            key: torch.arange(size) * ((net.config.num_class_embeds or 1) - 1) // (size - 1) for key in run.spec.cond
        }
        sigma = model.levels.flip(0)[index]
        with torch.no_grad():
            theirs = net(x, index, class_labels=cond.get("label")).sample
            ours = model.predict(x * (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1).to(x), sigma, **cond)
            kept = scheduler.alphas_cumprod[index].double()
        scale = max(1.0, float(theirs.abs().max()))
        gap = float((ours - theirs).abs().max()) / scale
        ours_kept = 1 / (1 + sigma**2)
        apart = max(
            float((ours_kept.sqrt() - kept.sqrt()).abs().max()),
            float(((1 - ours_kept).sqrt() - (1 - kept).sqrt()).abs().max()),
        )
        return [
            Check("network outputs against diffusers", gap, 1e-5),
            Check("shares of data and noise in the chain against diffusers", apart, 2e-4),  # no signal is capped here
        ]


def convertible(run: Run) -> Ddpm:
    """The run's model, if diffusers has its like."""
    model, name = run.model, run.config["recipe"]["model"]["name"]
    if not isinstance(model, Ddpm):
        raise GencliError(
            f"run {run.name} is a {registry.public_name(name)}; of gencli's models diffusers has a counterpart for ddpm only",
            f"gencli convert {run.name} --to safetensors",
        )
    if not isinstance(model.net, UNet):
        raise GencliError(
            f"run {run.name} has the network {model.config.net.name}; UNet2DModel is a counterpart for unet only",
            f"gencli convert {run.name} --to safetensors, or onnx",
        )
    if len(run.codecs) != 1 or not isinstance(run.codecs[0], Pixels) or run.spec.x.range != (-1.0, 1.0):
        raise GencliError(
            f"run {run.name} does not work on pixels in [-1, 1], the only codec of diffusers' pipelines for UNet2DModel",
            f"gencli convert {run.name} --to safetensors",
        )
    return model


def data_of(unet: Mapping[str, Any], known: Mapping[str, Any] | None) -> tuple[Spec, list[str]]:
    """What the network's data are, and what is not known of them."""
    side = unet.get("sample_size")
    if side is None or "in_channels" not in unet:
        raise GencliError("unet/config.json has no sample_size or in_channels", "add the side of the images there")
    shape = (int(unet["in_channels"]), *([side, side] if isinstance(side, int) else side))
    classes = unet.get("num_class_embeds")
    if known is None:
        labels = {"label": Field("label", (), vocab=classes, names=tuple(map(str, range(classes))))} if classes else {}
        return Spec(Field("image", shape, vocab=256), labels), [
            "which data it was trained on is not known: give --data to `gencli eval`, or convert with --like"
        ]
    spec = spec_from(known["data"]["spec"])
    label = spec.cond.get("label")
    rows = {(label.vocab or 0) + 1, label.vocab} if label else {None}
    if spec.x.shape != shape or classes not in rows:
        raise GencliError(
            f"the network is for images of {shape} with {classes or 'no'} class embeddings, "
            f"the data of {known['name']} are {spec.x.shape} with {label.vocab if label else 'no'} classes",
            "choose another --like",
        )
    return spec, []


def built(unet: Mapping[str, Any], scheduler: Mapping[str, Any], spec: Spec, known: Mapping[str, Any] | None) -> Run:
    """An untrained run whose network and chain are those of the files."""
    base = known["recipe"] if known else {}
    if base and registry.public_name(base["model"]["name"]) != "ddpm":
        raise GencliError(f"--like {known and known['name']} is no ddpm", "choose a run or recipe of ddpm")
    net = net_from(unet, spec)
    recipe = {
        "recipe": base.get("recipe", "ddpm"),
        "model": merge({**base.get("model", {}), "name": "ddpm"}, {"net": net}),
        "data": base.get("data", {"name": "folder"}),
        "train": base.get("train", {}),
        "sample": merge(base.get("sample", {}), sample_from(scheduler)),
    }
    in_model = Spec(Pixels.make().spec(spec).x, spec.cond)
    recipe["model"] = {**recipe["model"], **chain_from(scheduler, in_model)}
    run = Run.build(resolve(recipe), spec)
    facts = known["data"] if known else UNKNOWN
    run.config = described(run, {key: facts[key] for key in ("name", "hash", "items")})
    if known:
        run.config = {**run.config, "name": known["name"], "command": known["command"]}
    return run


def _json(path: Path) -> dict[str, Any]:
    try:
        made = files.read_json(path)
    except FileNotFoundError:
        raise GencliError(f"{path} is missing", "give the folder that holds unet/ and scheduler/") from None
    except (OSError, ValueError) as error:
        raise GencliError(f"{path} is damaged: {error}", "give the folder as it was saved") from None
    if not isinstance(made, dict):
        raise GencliError(f"{path} is damaged: no JSON object", "give the folder as it was saved")
    return made
