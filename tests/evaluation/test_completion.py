"""Completion: what is kept stays bit for bit and guides the rest, what is hidden has no influence, in pixels and in codes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from saved import saved
from tiny import DIGITS, table, trained

from gencli.bundle import Run
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.evaluation.completion import Completion, cells, check_sampler, needs_class, pasted_progress, visible
from gencli.evaluation.generate import Request, generate
from gencli.evaluation.inputs import HALVES, Inputs, Keep, half, keep_of, read_inputs

MASKGIT = {
    "model": {"name": "maskgit", "net": {"name": "bidirectional-transformer", "width": 16, "depth": 1, "heads": 2}},
    "data": DIGITS,
    "train": {"steps": 1, "batch_size": 8},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("completing")
    codec = trained(root, table("vqvae", steps=1))
    made = {
        "pixels": saved(root, table("pixelcnn")),
        "codes": saved(root, table("gated-pixelcnn"), codec_run=Run.load(codec)),
        "masked": saved(root, MASKGIT),
    }
    return {name: Run.load(path) for name, path in made.items()}


def completed(run: Run, inputs: Inputs, keep: Keep, seeds=(0, 1), **over):
    completion = Completion.of(run, inputs, keep, len(seeds))
    rows = [*seeds] * len(inputs)
    request = Request(rows, {**completion.rows({}), **over}, micro=3)
    done = [progress for progress in generate(run, request) if progress.chunk is not None]
    return torch.cat([progress.chunk for progress in pasted_progress(completion, done)])


def brightest(run: Run, text="test:0-2") -> Inputs:
    return read_inputs(run, [text])


# -------------------------------------------------------------------------------------------------------------------- masks


def test_halves_are_halves_and_a_middle_line_is_in_neither():
    for name, other in (("top-half", "bottom-half"), ("left-half", "right-half")):
        first, second = half(name, 6, 8), half(other, 6, 8)
        assert first.sum() == second.sum() == 24 and not (first & second).any()
        assert half(name, 5, 7).sum() + half(other, 5, 7).sum() == 35 - (7 if name == "top-half" else 5)
    assert half("top-half", 4, 4)[:2].all() and half("left-half", 4, 4)[:, :2].all()
    assert half("bottom-half", 4, 4)[2:].all() and half("right-half", 4, 4)[:, 2:].all()


@pytest.mark.parametrize("shape", [(6, 8), (3, 6, 8), (3, 2), (2, 3, 4), (1, 1)])
def test_a_cell_is_kept_only_if_all_its_pixels_are(shape):
    mask = torch.rand(6, 8, generator=torch.Generator().manual_seed(1)) < 0.8
    made = cells(mask, shape)
    high, wide = 6 // shape[-2], 8 // shape[-1]
    for place in np.ndindex(*shape):
        block = mask[place[-2] * high : (place[-2] + 1) * high, place[-1] * wide : (place[-1] + 1) * wide]
        assert bool(made[place]) == bool(block.all()), place


@pytest.mark.parametrize("shape", [(48,), (4, 8), (6, 5)])
def test_tokens_that_are_no_grid_over_the_image_are_refused(shape):
    with pytest.raises(GencliError, match="no grid"):
        cells(torch.ones(6, 8, dtype=torch.bool), shape)


def test_what_is_hidden_is_filled_with_the_nearest_kept_pixel():
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(7, 5, generator=generator) < 0.3
    x = torch.randint(256, (2, 3, 7, 5), generator=generator, dtype=torch.uint8)
    made = visible(x, mask)
    assert torch.equal(made[..., mask], x[..., mask])
    spots = mask.nonzero().float()
    for i, k in (~mask).nonzero().tolist():
        away = (spots - torch.tensor([i, k])).norm(dim=1)
        near = spots[away == away.min()].long()
        assert any(torch.equal(made[..., i, k], x[..., a, b]) for a, b in near), (i, k)
    other = torch.where(mask, x, 255 - x)
    assert torch.equal(visible(other, mask), made), "hidden pixels are not looked at"


# --------------------------------------------------------------------------------------------------------------- completing


@pytest.mark.parametrize("name", ["pixels", "codes", "masked"])
@pytest.mark.parametrize("part", HALVES)
def test_the_kept_part_is_bit_identical_and_seeds_differ(runs, name, part):
    run = runs[name]
    inputs, keep = brightest(run), keep_of(part, 8, 8)
    made = completed(run, inputs, keep)
    original = inputs.x.repeat_interleave(2, 0)
    assert made.dtype == torch.uint8 and torch.equal(made[..., keep.mask], original[..., keep.mask])
    hidden = made[..., ~keep.mask].unflatten(0, (3, 2))
    assert (hidden[:, 0] != hidden[:, 1]).any(1).any(), "two seeds differ"
    assert (made[..., ~keep.mask] != original[..., ~keep.mask]).any(), "what is hidden is drawn, not copied"


@pytest.mark.parametrize("name", ["pixels", "codes", "masked"])
def test_what_is_hidden_has_no_influence_and_what_is_kept_has(runs, name):
    run, keep = runs[name], keep_of("top-half", 8, 8)
    inputs = brightest(run)
    made = completed(run, inputs, keep)
    unseen = dataclasses.replace(inputs, x=torch.where(keep.mask, inputs.x, 255 - inputs.x))
    assert torch.equal(completed(run, unseen, keep), made)
    seen = dataclasses.replace(inputs, x=torch.where(keep.mask, 255 - inputs.x, inputs.x))
    assert not torch.equal(completed(run, seen, keep)[..., ~keep.mask], made[..., ~keep.mask])


@pytest.mark.parametrize("name", ["pixels", "codes", "masked"])
def test_a_sampler_ends_with_the_known_tokens_where_they_are_kept(runs, name):
    run, inputs = runs[name], brightest(runs[name])
    completion = Completion.of(run, inputs, keep_of("right-half", 8, 8), 1)
    cond = completion.rows({})
    *_, (frame, _) = run.frames(Rng.rows(range(3)), cond)
    kept = cond["keep"]
    assert kept.any() and not kept.all() and kept.shape == cond["known"].shape == (3, *run.spec.x.shape)
    assert torch.equal(frame.x[kept], cond["known"][kept]) and not cond["known"][~kept].any()
    if name != "codes":
        tokens = run.encode({"x": inputs.x}, Rng.rows(range(3)))["x"]
        assert torch.equal(cond["known"][kept], tokens[kept])


def test_a_completion_is_the_same_whatever_else_is_asked_for(runs):
    run, keep = runs["pixels"], keep_of("left-half", 8, 8)
    many = completed(run, brightest(run), keep, seeds=(0, 1, 2))
    one = completed(run, brightest(run, "test:1"), keep, seeds=(2,))
    assert torch.equal(many[5:6], one)


def test_a_prefix_of_a_raster_is_told_from_what_comes_later(runs):
    inputs = brightest(runs["pixels"], "test:0")
    told = {part: Completion.of(runs["pixels"], inputs, keep_of(part, 8, 8), 1) for part in HALVES}
    assert [part for part, one in told.items() if one.kept_first] == ["top-half"]
    assert "looks back only" in told["bottom-half"].notes[0] and not told["top-half"].notes
    masked = Completion.of(runs["masked"], inputs, keep_of("bottom-half", 8, 8), 1)
    assert masked.kept_first and not masked.notes, "a denoiser of tokens sees all of them"


def test_labels_are_the_items_own_unless_a_class_is_asked_for(runs):
    inputs = brightest(runs["codes"])
    completion = Completion.of(runs["codes"], inputs, keep_of("top-half", 8, 8), 2)
    own = inputs.cond["label"].tolist()
    assert completion.rows({})["label"].tolist() == [label for label in own for _ in (0, 1)]
    assert completion.rows({"label": torch.tensor([7] * 6)})["label"].tolist() == [7] * 6
    assert [row["label"] for row in completion.facts["inputs"]] == own
    assert not brightest(runs["pixels"]).cond, "a model without classes is given none"


def test_the_sheet_has_original_masked_and_completions_row_by_row(runs):
    inputs, keep = brightest(runs["pixels"], "test:0,4"), keep_of("top-half", 8, 8)
    completion = Completion.of(runs["pixels"], inputs, keep, 3)
    made = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8)
    sheet = completion.sheet(made).unflatten(0, (2, 5))
    assert torch.equal(sheet[:, 0], inputs.x.expand(-1, 3, -1, -1))
    assert torch.equal(sheet[:, 1, :, :4], inputs.x[..., :4, :].expand(-1, 3, -1, -1))
    assert sheet[0, 1, :, 7, 7].tolist() == [86, 180, 233]
    assert sheet[:, 2:, 0, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_mask_that_keeps_no_whole_code_is_refused(runs):
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[3, 3] = True
    inputs = brightest(runs["codes"], "test:0")
    with pytest.raises(GencliError, match="no whole code"):
        Completion.of(runs["codes"], inputs, Keep("dot.png", mask), 1)
    mask[:2] = True
    mask[2, :5] = True
    made = Completion.of(runs["codes"], inputs, Keep("dot.png", mask), 1)
    assert int(made.kept.sum()) == 4 and "4 of 16 codes" in made.notes[0], "of 4×4 cells of 2×2 pixels"


def test_a_model_that_was_never_without_a_class_needs_one(runs):
    run = runs["codes"]
    needs_class(run, {})
    config = dataclasses.replace(run.model.config, label_dropout=0.0)
    strict = dataclasses.replace(run, model=type(run.model)(config, run.spec))
    needs_class(strict, {"label": torch.zeros(1)})
    with pytest.raises(GencliError, match="never trained without a class"):
        needs_class(strict, {})


def test_a_sampler_that_keeps_nothing_is_refused(runs):
    from gencli.samplers.ddim import Ddim

    with pytest.raises(GencliError, match="ddim keeps no tokens"):
        check_sampler(runs["pixels"], Ddim.make())


# ------------------------------------------------------------------------------------------------------------------- inputs


def drawn(path: Path, mode: str, size: tuple[int, int], colour) -> str:
    Image.new(mode, size, colour).save(path)
    return str(path)


def test_files_and_folders_are_read_as_the_data_are(runs, tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "note.txt").write_text("no image")
    found = read_inputs(runs["pixels"], [str(tmp_path), str(tmp_path / "b.png")])
    assert [Path(name).name for name in found.names] == ["a.png", "b.png", "b.png"] and not found.cond
    assert found.x.shape == (3, 1, 8, 8) and all(np.array_equal(x[0], pixels) for x in found.x.numpy())
    assert len(set(found.digests)) == 1 and not found.notes


def test_of_a_folder_of_samples_the_samples_are_read(runs, tmp_path):
    for name, side in (("00000.png", 8), ("grid.png", 70), ("order.png", 70)):
        drawn(tmp_path / name, "L", (side, side), 9)
    (tmp_path / "samples.json").write_text('{"items": [{"file": "00000.png", "seed": 0}]}')
    assert [Path(name).name for name in read_inputs(runs["pixels"], [str(tmp_path)]).names] == ["00000.png"]
    (tmp_path / "00000.png").unlink()
    with pytest.raises(GencliError, match=r"lacks 00000\.png"):
        read_inputs(runs["pixels"], [str(tmp_path)])


def test_items_are_those_of_the_run_s_data(runs):
    from tiny import opened

    split = opened(DIGITS).split("test")
    found = read_inputs(runs["codes"], ["test:3,5", "test:0-1"])
    assert found.names == ("test:3", "test:5", "test:0", "test:1") and not found.notes
    assert np.array_equal(found.x.numpy(), split.x[[3, 5, 0, 1]])
    assert found.cond["label"].tolist() == split.cond["label"][[3, 5, 0, 1]].tolist()


def test_another_size_is_fitted_only_when_asked(runs, tmp_path):
    name = drawn(tmp_path / "large.png", "L", (16, 12), 90)
    with pytest.raises(GencliError, match="16×12 grey") as caught:
        read_inputs(runs["pixels"], [name])
    assert "--fit" in (caught.value.hint or "")
    found = read_inputs(runs["pixels"], [name], "crop")
    assert found.x.shape == (1, 1, 8, 8) and int(found.x.max()) == 90 and "resized (crop)" in found.notes[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["red.png"], "has colours"),
        (["none.png"], "no folder or zip"),
        (["broken.png"], "cannot be read"),
        (["empty"], "no images"),
        (["test:0", "red.png"], "one sort|class of its own"),
        (["test:900"], "169|test items"),
        (["test:5-2"], "test:5-2"),
        (["test:"], "test:"),
    ],
)
def test_bad_inputs_are_refused(runs, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    drawn(tmp_path / "red.png", "RGB", (8, 8), (255, 0, 0))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GencliError, match=words):
        read_inputs(runs["pixels"], given)


def test_a_mask_is_the_white_of_a_picture_of_the_same_size(tmp_path):
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[2:5, 1:7] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    keep = keep_of(str(tmp_path / "mask.png"), 8, 8)
    assert np.array_equal(keep.mask.numpy(), pixels > 0) and keep.name == "mask.png"
    for size, colour, words in (((9, 8), 255, "9×8"), ((8, 8), 0, "keeps nothing"), ((8, 8), 255, "keeps everything")):
        with pytest.raises(GencliError, match=words):
            keep_of(drawn(tmp_path / "other.png", "L", size, colour), 8, 8)
    with pytest.raises(GencliError, match="neither a half nor a file"):
        keep_of("upper-half", 8, 8)


# -------------------------------------------------------------------------------------------------------------- hierarchies


def test_the_levels_above_are_completed_first_and_keep_their_own_cells(tmp_path):
    sizes = {"codes": 16, "dim": 4, "width": 8, "residual_width": 4, "residual_blocks": 1, "downsamples": 1}
    tables = {"model": {"name": "vqvae2", **sizes}, "data": DIGITS, "train": {"steps": 1, "batch_size": 8}}
    codec = Run.load(trained(tmp_path, tables, name="vq"))

    def prior(level, **sources):
        tables = table("gated-pixelcnn", {"codecs": [{"name": "learned", "level": level}]})
        return Run.load(saved(tmp_path, tables, name=level, codec_run=codec, sources=sources))

    run = prior("bottom", top=prior("top"))
    inputs, keep = read_inputs(run, ["test:0-1"]), keep_of("top-half", 8, 8)
    completion = Completion.of(run, inputs, keep, 2)
    assert completion.kept.sum() == 8 and completion.above["top"][1].tolist() == [[True, True], [False, False]]
    cond = completion.with_above(run, [0, 1, 0, 1], completion.rows({}))
    encoded = run.encode({"x": visible(inputs.x, keep.mask)}, Rng.rows([0, 0]))["top"]
    assert torch.equal(cond["top"][:, 0], encoded[[0, 0, 1, 1]][:, 0]) and cond["top"].shape == (4, 2, 2)
    made = completed(run, inputs, keep, top=cond["top"])
    assert torch.equal(made[..., :4, :], inputs.x[[0, 0, 1, 1]][..., :4, :])
    unseen = dataclasses.replace(inputs, x=torch.where(keep.mask, inputs.x, 255 - inputs.x))
    again = Completion.of(run, unseen, keep, 2)
    assert torch.equal(again.with_above(run, [0, 1, 0, 1], again.rows({}))["top"], cond["top"])
    assert not torch.equal(completion.with_above(run, [2, 3, 4, 5], completion.rows({}))["top"], cond["top"])
