"""What is drawn of codes and of tokens on their way: every code in its cell, the order and confidence of filling, attention."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from saved import saved
from tiny import DIGITS, opened, table, trained
from torch import Tensor

from gencli.bundle import Run
from gencli.core import Rng
from gencli.report import codebook
from gencli.report.drawn import GIVEN, colours, moving, save_attention, save_order, shades
from gencli.report.page import of_run


@pytest.fixture(scope="module")
def tokeniser(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("codes"), table("vqvae", steps=1))


def cell(picture: Image.Image, place: int, columns: int, side: int) -> tuple[int, ...]:
    left, top = 2 + place % columns * (side + 2), 2 + place // columns * (side + 2)
    assert len(set(picture.crop((left, top, left + side, top + side)).getdata())) == 1, "a cell has one colour"
    return picture.getpixel((left, top))


def test_every_code_has_a_cell_as_bright_as_it_is_used_and_grey_where_never():
    counts = torch.tensor([0, 1, 5, 25, 125, 0, 625, 3, 7])
    picture = codebook.usage_map(counts).convert("RGB")
    side = (picture.width - 2) // 3 - 2
    seen = [cell(picture, k, 3, side) for k in range(9)]
    assert [k for k, colour in enumerate(seen) if colour == GIVEN] == [0, 5]
    used = sorted((k for k in range(9) if counts[k]), key=lambda k: counts[k])
    light = [sum(seen[k]) for k in used]
    assert light == sorted(light) and len(set(light)) == 7, "brighter where more often"
    assert seen[1] == (68, 1, 84) and seen[6] == (253, 231, 37), "once is viridis' darkest, the most its brightest"


@pytest.mark.parametrize("codes", [2, 64, 1000])
def test_there_are_as_many_cells_as_codes(codes):
    picture = codebook.usage_map(torch.arange(1, codes + 1))
    columns = round(codes**0.5)
    side = (picture.width - 2) // columns - 2
    rows = (picture.height - 2) // (side + 2)
    assert (rows - 1) * columns < codes <= rows * columns and picture.width < 900


def test_codes_are_counted_over_held_out_items(tokeniser):
    run, items = Run.load(tokeniser), opened(DIGITS).split("test")
    made = codebook.of_run(tokeniser)
    x = run.encode(items.batch(torch.arange(len(items))), Rng.batch("all", total=len(items)))["x"]
    wanted = np.bincount(run.model.encode(x).flatten().numpy(), minlength=16)
    assert made.items == len(items) == 169 and made.counts.tolist() == wanted.tolist()
    used = int((wanted > 0).sum())
    assert f"{used} of 16 codes" in made.words and f"{169 * 16:,} codes of 169" in made.words


def test_the_page_shows_codes_and_reconstructions_and_the_curve_of_perplexity(tokeniser):
    made = of_run(tokeniser, seen=codebook.of_run(tokeniser))
    html = made.html().decode()
    assert "codes" in [section.key for section in made.sections] and made.pictures >= 2
    assert "each followed by its reconstruction" in html and "perplexity" in html
    assert made.pictures == of_run(tokeniser).pictures + 2
    assert any("perplexity" in json.loads(line) for line in (tokeniser / "metrics.jsonl").read_text().splitlines())


def test_what_is_no_autoencoder_or_has_no_weights_or_data_is_left_alone(tmp_path, tokeniser):
    assert codebook.of_run(saved(tmp_path, table("pixelcnn"))) is None
    bare = tmp_path / "bare"
    bare.mkdir()
    config = json.loads((tokeniser / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config))
    assert codebook.of_run(bare) is None
    (bare / "model.safetensors").write_bytes((tokeniser / "model.safetensors").read_bytes())
    config["recipe"]["data"] = {"name": "folder", "path": str(tmp_path / "gone")}
    (bare / "config.json").write_text(json.dumps(config))
    made = codebook.of_run(bare)
    assert made is not None and made.problem and not made.items
    assert made.problem in of_run(bare, seen=made).notes


# ------------------------------------------------------------------------------------------------------------ on the way


@dataclass
class Done:
    """A finished micro-batch with frames."""

    frames: list[Tensor] = field(default_factory=list)
    info: list[dict[str, Tensor]] = field(default_factory=list)


def test_a_model_of_tokens_has_its_order_confidence_and_entropy_drawn(tmp_path):
    def batch(n):
        frames = [torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8) for _ in range(3)]
        order = [torch.full((n, 4, 4), -1) for _ in range(3)]
        for step, held in enumerate(order):
            held[:, 0] = 0
            held[:, 1 : 2 + step] = torch.arange(1, 2 + step)[:, None]
        confidence = [torch.rand(n, 4, 4) for _ in range(3)]
        return Done(
            frames, [{"order": o, "confidence": c, "entropy": c + 1} for o, c in zip(order, confidence, strict=True)]
        )

    moving("image", tmp_path, [batch(3), batch(2)])
    for name in ("trajectory", "confidence", "entropy"):
        with Image.open(tmp_path / f"{name}.webp") as picture:
            assert picture.n_frames == 3, name
    assert (tmp_path / "order.png").is_file()


def test_the_order_is_dark_first_bright_last_and_given_grey(tmp_path):
    order = torch.tensor([[[0, 1], [2, 3]]])
    picture = Image.open(save_order(tmp_path / "order.png", order)).convert("RGB")
    top = picture.height - 36
    seen = [picture.getpixel((2 + 16 * k + 8, top + 2 + 16 * i + 8)) for i in (0, 1) for k in (0, 1)]
    assert seen[0] == GIVEN and seen[1] == (68, 1, 84) and seen[3] == (253, 231, 37)
    assert sum(seen[1]) < sum(seen[2]) < sum(seen[3])


def test_shades_are_shares_of_the_greatest_or_of_one():
    maps = [torch.tensor([[[0.0, 0.5]]]), torch.tensor([[[1.0, 2.0]]])]
    assert [m.flatten().tolist() for m in shades(maps)] == [[0, 64], [128, 255]]
    assert [m.flatten().tolist() for m in shades([maps[0]], top=1.0)] == [[0, 128]]
    assert colours(torch.tensor([0.0, 1.0]), 1.0).shape == (3, 2)


def test_attention_has_a_picture_for_every_block_and_head(tmp_path):
    weights = torch.rand(2, 3, 16, 16).tril().div(16)
    small = Image.open(save_attention(tmp_path / "a.png", weights))
    many = Image.open(save_attention(tmp_path / "b.png", torch.rand(12, 20, 16, 16)))
    assert many.height > 3 * small.height and many.width >= 8 * 96 and many.width < 1200, "eight of each at most"
