"""Priors of the levels of a hierarchy: codes of one level given those above, drawn by nested sources."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DIGITS, TRAIN, table, trained

from gencli.bundle import Run
from gencli.codecs.learned import Learned
from gencli.config import merge
from gencli.core import Field, Rng
from gencli.errors import GencliError
from gencli.evaluation.generate import Request, labels_for, samples
from gencli.report.folder import weights_hash
from gencli.training.cache import encoded

SIZES = {"codes": 16, "dim": 4, "width": 8, "residual_width": 4, "residual_blocks": 1, "downsamples": 1}


def vqvae2(**over: Any) -> dict[str, Any]:
    return {"model": {"name": "vqvae2", **SIZES, **over}, "data": DIGITS, "train": {**TRAIN, "steps": 2, "lr": 0.01}}


def prior(level: str, model: str = "gated-pixelcnn", **train: Any) -> dict[str, Any]:
    made = merge(table(model, steps=2, lr=0.05, **train), {"sample": {"name": "next-token", "guidance": 2.0}})
    return merge(made, {"codecs": [{"name": "learned", "level": level}]})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `vq`, `top`, `bottom`: two levels of 8×8 digits."""
    place = tmp_path_factory.mktemp("levels")
    codec = Run.load(trained(place, vqvae2(), name="vq"))
    top = Run.load(trained(place, prior("top"), name="top", codec_run=codec))
    trained(place, prior("bottom"), name="bottom", codec_run=codec, sources={"top": top})
    return place


def load(root: Path, name: str) -> Run:
    return Run.load(root / name)


def drawn(run: Run, seeds: range = range(4), **cond: torch.Tensor) -> torch.Tensor:
    return samples(run, Request(seeds, cond or labels_for(run, seeds, [3, 5]), guidance=1.0))


def refused(root: Path, level: str, *says: str, model: str = "gated-pixelcnn", **sources: Run) -> None:
    with pytest.raises(GencliError) as caught:
        trained(root, prior(level, model), name="no", codec_run=load(root, "vq"), sources=sources)
    for text in says:
        assert text in f"{caught.value.message} | {caught.value.hint}"
    assert "\n" not in caught.value.message and caught.value.hint
    assert not (root / "no").exists(), "no run is begun"


def test_a_level_is_x_and_those_above_are_conditions(root: Path) -> None:
    top, bottom = load(root, "top"), load(root, "bottom")
    assert top.spec.x == bottom.spec.cond["top"] == Field("codes", (2, 2), vocab=16)
    assert bottom.spec.x == Field("codes", (4, 4), vocab=16) and [*top.spec.cond] == ["label"]
    assert bottom.config["sources"] == ["top"] and (root / "bottom/sources/top/codec/config.json").is_file()
    raw = {"x": torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8), "label": torch.arange(3)}
    rng = Rng.batch("e", total=3)
    model: Any = bottom.codecs[0].run.model  # type: ignore[attr-defined]
    codes = model.split(model.encode(bottom.codecs[0].run.encode(raw, rng)["x"]))  # type: ignore[attr-defined]
    batch = bottom.encode(raw, rng)
    assert torch.equal(batch["x"], codes["bottom"]) and torch.equal(batch["top"], codes["top"])
    assert torch.equal(top.encode(raw, rng)["x"], codes["top"]) and batch["label"].tolist() == [0, 1, 2]


def test_decoding_uses_both_levels_and_of_the_top_alone_fills_in_the_bottom(root: Path) -> None:
    top, bottom = load(root, "top"), load(root, "bottom")
    codes = {"x": torch.arange(16).view(1, 4, 4), "top": torch.tensor([[[1, 2], [3, 4]]])}
    other = {**codes, "top": torch.tensor([[[9, 2], [3, 4]]])}
    model: Any = bottom.codecs[0].run.model  # type: ignore[attr-defined]
    for batch in (codes, other):
        x = model.decode(model.join({"top": batch["top"], "bottom": batch["x"]}))
        assert torch.equal(bottom.decode(batch)["x"], bottom.codecs[0].run.decode({"x": x})["x"])  # type: ignore[attr-defined]
    assert not torch.equal(bottom.decode(codes)["x"], bottom.decode(other)["x"])
    with pytest.raises(GencliError, match="'bottom' of run 'vq' need those of 'top'"):
        bottom.decode({"x": codes["x"]})
    alone = top.decode({"x": codes["top"]})["x"]
    filled = model.split(model.join({"top": codes["top"]}))["bottom"]
    assert torch.equal(alone, bottom.decode({"x": filled, "top": codes["top"]})["x"])


def test_the_source_draws_what_is_absent_row_by_row_and_what_is_given_stays(root: Path) -> None:
    top, bottom = load(root, "top"), load(root, "bottom")
    pictures = drawn(bottom)
    assert pictures.shape == (4, 1, 8, 8) and torch.equal(pictures[1:2], drawn(bottom, range(1, 2)))
    label, rng = torch.tensor([5]), Rng.rows([1])
    by_hand = top.draw(rng.at("source", "top"), {"label": label}, top.guidance)["x"]
    assert torch.equal(pictures[1:2], drawn(bottom, range(1, 2), label=label, top=by_hand))
    assert not torch.equal(pictures[1:2], drawn(bottom, range(1, 2), label=label, top=(by_hand + 5) % 16))
    guided = samples(bottom, Request(range(4), labels_for(bottom, range(4), [3, 5]), guidance=4.0))
    assert not torch.equal(guided, pictures)
    unguided = samples(bottom, Request([1], {"label": label, "top": by_hand}, guidance=0.0))
    none = samples(bottom, Request([1], {"top": by_hand}, guidance=1.0))
    assert torch.equal(unguided, none), "guidance drops the label and keeps the codes above"


def test_a_moved_bundle_needs_nothing_else_and_its_hash_is_of_all_weights(root: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(root / "bottom", tmp_path / "elsewhere"))
    for inside in ("", "codec", "sources/top", "sources/top/codec"):
        assert (moved / inside / "model.safetensors").is_file()
    assert torch.equal(drawn(Run.load(moved)), drawn(load(root, "bottom")))
    before = Run.load(moved).weights_hash()
    assert before == load(root, "bottom").weights_hash() == weights_hash(moved)
    file = moved / "sources/top/model.safetensors"
    weights = load_file(file)
    file.unlink()
    save_file({key: value + 0.01 for key, value in weights.items()}, file)
    assert Run.load(moved).weights_hash() != before and weights_hash(moved) == Run.load(moved).weights_hash()


def test_a_resumed_run_goes_on_with_its_sources(root: Path, tmp_path: Path) -> None:
    from tiny import resumed

    folder = Path(shutil.copytree(root / "bottom", tmp_path / "bottom"))
    events = resumed(folder, steps=4)
    assert "resumed at step 2" in [event.text for event in events] and events[-1].step == 4
    assert json.loads((folder / "config.json").read_text())["sources"] == ["top"]
    assert drawn(Run.load(folder)).shape == (4, 1, 8, 8)


def test_encoded_items_of_two_levels_are_not_mixed_up(root: Path) -> None:
    from tiny import opened

    items = opened(DIGITS).split("test")
    shapes = [encoded(load(root, name), items, "hash").batch(torch.arange(2))["x"].shape for name in ("top", "bottom")]
    assert shapes == [(2, 2, 2), (2, 4, 4)]


def test_three_levels_are_drawn_from_the_top_down_and_sources_bring_their_own(tmp_path: Path) -> None:
    data = {**DIGITS, "image_size": 16}
    codec = Run.load(trained(tmp_path, merge(vqvae2(levels=3), {"data": data}), name="vq"))

    def of(level: str, **sources: Run) -> Run:
        tables = merge(prior(level), {"data": data})
        return Run.load(trained(tmp_path, tables, name=level, codec_run=codec, sources=sources))

    top = of("top")
    middle = of("middle", top=top)
    bottom = of("bottom", middle=middle)
    assert sorted(bottom.sources) == ["middle", "top"] and [*bottom.spec.cond] == ["label", "top", "middle"]
    label, rng = torch.tensor([7]), Rng.rows([3])
    one = top.draw(rng.at("source", "top"), {"label": label}, top.guidance)["x"]
    two = middle.draw(rng.at("source", "middle"), {"label": label, "top": one}, middle.guidance)["x"]
    assert torch.equal(
        bottom.sample(rng, {"label": label})["x"], bottom.sample(rng, {"label": label, "top": one, "middle": two})["x"]
    )


# ------------------------------------------------------------------------------------------------------ what may be wrong


def test_a_source_that_does_not_fit_is_refused(root: Path, tmp_path: Path) -> None:
    top, bottom = load(root, "top"), load(root, "bottom")
    refused(
        root,
        "bottom",
        "the condition 'top' has no source",
        "gencli train gated-pixelcnn --codec vq:top",
        "--source top=RUN",
    )
    refused(root, "bottom", "--source tip=top: there is no condition 'tip'", "label, top", tip=top)
    shapes = ("'top' is codes (2, 2) of 16 values, the run makes codes (4, 4) of 16 values",)
    refused(root, "bottom", *shapes, top=bottom)
    refused(root, "top", "there is no condition 'top'", "label", top=top)
    codec = Run.load(trained(tmp_path, vqvae2(codes=8), name="other"))
    few = Run.load(trained(tmp_path, prior("top"), name="few", codec_run=codec))
    refused(root, "bottom", "the run makes codes (2, 2) of 8 values", top=few)
    codec = Run.load(trained(tmp_path, merge(vqvae2(), {"train": {"seed": 1}}), name="twin"))
    twin = Run.load(trained(tmp_path, prior("top"), name="twins", codec_run=codec))
    refused(root, "bottom", "its codes are those of run twin, needed are those of run vq", "--codec vq:top", top=twin)


def test_an_unconditional_model_cannot_be_the_prior_of_a_lower_level(root: Path) -> None:
    refused(
        root, "bottom", "model pixelcnn takes no conditions", "gated-pixelcnn", model="pixelcnn", top=load(root, "top")
    )


def test_a_level_that_is_not_there_is_named(root: Path) -> None:
    codec = load(root, "vq")
    for level, says in (
        ("", "has the levels top, bottom"),
        ("botom", "has no level 'botom'"),
        ("x", "has no level 'x'"),
    ):
        with pytest.raises(GencliError, match=says) as caught:
            Learned.make({"level": level}, codec)
        assert "vq:bottom" in str(caught.value.hint)
    plain = Run.load(trained(root, table("vqvae", steps=1), name="plain"))
    with pytest.raises(GencliError, match="run 'plain' has no level 'top': its codes are one grid"):
        Learned.make({"level": "top"}, plain)
