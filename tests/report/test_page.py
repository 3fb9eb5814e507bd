"""The HTML page: whole, closed to the outside, escaped, and with the run's own numbers."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from saved import ddpm, saved
from tiny import smoke

from gencli.errors import GencliError
from gencli.evaluation.book import Book, Row
from gencli.evaluation.compare import Cell, Ledger
from gencli.report import figures, frame, markdown, markup
from gencli.report.album import evenly
from gencli.report.comparison import of_comparison
from gencli.report.folder import weights_hash
from gencli.report.kinds import image as images
from gencli.report.page import of_run
from gencli.report.pareto import Point

VOID = {"br", "hr", "img", "input", "link", "meta"}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@dataclass
class Node:
    """An element that was read."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Reader(HTMLParser):
    """A page as a reader of HTML sees it: every tag is closed by its own."""

    nodes: list[Node] = field(default_factory=list)
    open: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        node = Node(tag, dict(attrs))
        self.nodes.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1].tag == tag, (
            f"</{tag}> closes {self.open[-1].tag if self.open else 'nothing'}"
        )
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for node in self.open:
            node.text += data

    def all(self, tag: str, **attributes: str) -> list[Node]:
        """Elements by tag and attributes."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [n for n in self.nodes if n.tag == tag and all(n.attributes.get(k) == v for k, v in wanted.items())]


def read(content: bytes) -> Reader:
    """A page that keeps the rules of every page."""
    text = content.decode("utf-8")
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    page = Reader()
    page.feed(text)
    page.close()
    assert not page.open, [node.tag for node in page.open]
    check_closed(page)
    check_readable(page)
    return page


def check_closed(page: Reader) -> None:
    """Nothing is loaded from outside, and nothing runs but the page's own script."""
    for node in page.nodes:
        for name in ("src", "srcset", "data", "action", "poster", "background"):
            assert (node.attributes.get(name) or "data:").startswith("data:"), node
        assert not [name for name in node.attributes if name.startswith("on") or name == "style"], node
        if node.tag != "a":
            assert (node.attributes.get("href") or "data:").startswith("data:"), node
    assert not {node.tag for node in page.nodes} & {"iframe", "object", "embed", "base", "form", "video", "audio"}
    style, scripts = page.all("style")[0].text, [n for n in page.all("script") if "type" not in n.attributes]
    assert len(scripts) == 1 and len(page.all("style")) == 1 and "url(" not in style and "@import" not in style
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"] or ""
    for rule, text in (("style-src", style), ("script-src", scripts[0].text)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy


def check_readable(page: Reader) -> None:
    """Headings in order, names for what is not text, anchors that lead somewhere."""
    levels = [int(node.tag[1]) for node in page.nodes if re.fullmatch("h[1-6]", node.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), levels
    assert all((node.attributes.get("alt") or "").strip() for node in page.all("img"))
    assert all((node.attributes.get("aria-label") or "").strip() for node in page.all("svg"))
    for node in page.nodes:
        if node.attributes.get("role") == "region":
            assert node.attributes["tabindex"] == "0" and node.attributes["aria-label"]
    ids = [node.attributes["id"] for node in page.nodes if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    targets = [n.attributes["href"] for n in page.all("a") if (n.attributes["href"] or "").startswith("#")]
    named = [n.attributes["aria-labelledby"] for n in page.nodes if "aria-labelledby" in n.attributes]
    assert {*(target[1:] for target in targets if target), *named} <= {*ids}
    assert page.all("title")[0].text.endswith(" · gencli report") and len(page.all("h1")) == len(page.all("main")) == 1


def receipt(weights: str) -> dict[str, Any]:
    return {"metric": "fid", "weights": weights, "step": 6, "sampler": {"name": "ddim", "steps": 5}, "seeds": "0-63"}


def value(metric: str, weights: str = "w", number: float = 5.816084171468958, **over: Any) -> dict[str, Any]:
    ends = [number - 1.25, number + 1.5]
    base = {"metric": metric, "value": number, "interval": ends, "n": 1064, "better": "lower", "unit": "", "kind": ""}
    return {"schema": 1, **base, "note": "", "facts": {}, "receipt": receipt(weights), **over}


def lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")


LOSSES = [{"step": i + 1, "loss": 0.9 / (i + 1), "grad_norm": 2.0 + i % 3, "seconds": 0.1 * i} for i in range(40)]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a log and pictures, and what was drawn from it."""
    root = tmp_path_factory.mktemp("stock")
    folder = saved(root / "checkpoints", ddpm())
    lines(folder / "metrics.jsonl", LOSSES)
    (folder / "README.md").write_text(
        "# A card\n\nOf `ddpm`.\n\n| | |\n|---|---|\n| seed | 7 |\n\n#### deep\n", "utf-8"
    )
    weights = weights_hash(folder)
    worst = [{"sample": 3, "training": 17, "pixels": 0.4321}, {"sample": 5, "training": 99, "pixels": 0.5}]
    measured = [
        value("fid[pixels]", weights, note="few items", at="2026-01-01T00:00:00+00:00"),
        value("memorisation", weights, 0.98765, interval=None, facts={"worst": worst}, at="2026-01-02T00:00:00+00:00"),
        value("bpd", "other", 3.25, unit="bits/dim", kind="bound", at="2025-01-02T00:00:00+00:00"),
    ]
    lines(folder / "evaluations.jsonl", measured)
    rng = np.random.default_rng(3)
    for step in (3, 6):
        images.save_grid(
            folder / "samples" / f"step-{step:08d}.png", rng.integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
        )
    images.save_grid(folder / "nearest.png", rng.integers(0, 256, (4, 1, 8, 8), dtype=np.uint8))
    draw(root / "samples" / folder.name / "ddim-5-0", weights)
    return root


def draw(folder: Path, weights: str) -> None:
    """What `gencli sample --trajectory` leaves."""
    frames = [np.random.default_rng(i).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8) for i in range(5)]
    images.save_grid(folder / "grid.png", frames[-1])
    images.save_animation(folder / "trajectory.webp", frames)
    facts = {
        "weights": weights,
        "sampler": {"name": "ddim", "steps": 5},
        "seeds": "0-3",
        "guidance": 1.5,
        "device": "cpu",
    }
    (folder / "samples.json").write_text(json.dumps({**facts, "items": [{}] * 4}), "utf-8")


@pytest.fixture
def run(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run's folder, from where it was made."""
    shutil.copytree(stock, tmp_path / "at")
    monkeypatch.chdir(tmp_path / "at")
    return tmp_path / "at" / "checkpoints" / "ddpm-digits"


# ------------------------------------------------------------------------------------------------------------------ content


def test_a_page_has_the_numbers_of_the_run_with_every_digit_and_receipt(run: Path) -> None:
    page = read(of_run(run).html())
    values = [node.attributes["value"] for node in page.all("data")]
    assert values == ["0.98765", "5.816084171468958", "3.25"], "newest first"
    text = page.all("section", id="evaluations")[0].text
    for words in ("5.816", "4.566 – 7.316", "1,064", "few items", "3.25 bits/dim", "bound", "2026-01-02"):
        assert words in text
    assert text.count("Of other weights") == 1, "the third was measured before"
    rows = dict(zip((n.text for n in page.all("th", scope="row")), (n.text for n in page.all("td")), strict=False))
    assert "hash of the weights" in rows and text.count("name ddim, steps 5") == 3 and text.count("0-63") == 3
    near = page.all("section", id="neighbours")[0].text
    assert "worst of memorisation" in near and "17" in near and "0.4321" in near
    assert not page.all("aside"), "nothing was left out"


def test_a_page_has_all_settings_the_card_and_the_paper(run: Path) -> None:
    page = read(of_run(run).html())
    config = json.loads((run / "config.json").read_text("utf-8"))
    told = page.all("section", id="configuration")[0].text
    for key, inner in config["recipe"]["train"].items():
        assert key in told and (isinstance(inner, (bool, list)) or str(inner) in told), key
    assert config["data"]["hash"] in told
    card = page.all("section", id="card")[0].text
    assert "A card" in card and "seed" in card and "|" not in card and "#" not in card
    link = page.all("a", href="https://arxiv.org/abs/2006.11239")
    assert len(link) == 1 and f"{config['parameters']:,}" in page.all("header")[0].text


def test_pictures_are_the_files_and_curves_are_the_log(run: Path) -> None:
    made = of_run(run)
    page = read(made.html())
    held = [base64.b64decode((n.attributes["src"] or "").split(",", 1)[1]) for n in page.all("img")]
    grid = Path("samples/ddpm-digits/ddim-5-0/grid.png").read_bytes()
    steps = [(run / "samples" / f"step-{step:08d}.png").read_bytes() for step in (3, 6)]
    assert (
        held[0] == grid
        and held[-3:] == [*steps, (run / "nearest.png").read_bytes()]
        and len(held) == made.pictures == 1 + 5 + 2 + 1
    )
    width, height = Image.open(run / "samples" / "step-00000006.png").size
    assert [page.all("img")[-1].attributes[k] for k in ("width", "height")] == [str(2 * width), str(2 * height)]
    drawn = [json.loads(node.text) for node in page.all("script", type="application/json")]
    assert [one["name"] for curve in drawn for one in curve] == ["loss", "grad_norm"]
    assert drawn[0][0]["steps"] == [row["step"] for row in LOSSES]
    assert np.allclose(drawn[0][0]["values"], [row["loss"] for row in LOSSES], rtol=1e-4)
    assert page.all("figure", class_="curve")[0].attributes["data-log"] == "true", "0.9 to 0.02 is on a log scale"


def test_without_anything_but_settings_the_page_says_what_makes_it(run: Path) -> None:
    for name in ("metrics.jsonl", "evaluations.jsonl", "README.md", "model.safetensors", "nearest.png"):
        (run / name).unlink()
    shutil.rmtree(run / "samples")
    shutil.rmtree("samples")
    made = of_run(run)
    page = read(made.html())
    text = page.all("main")[0].text
    assert "gencli sample ddpm-digits" in text and "gencli eval fid -c ddpm-digits" in text and "no log" in text
    assert made.pictures == 0 and made.following == "gencli train --resume ddpm-digits"


def test_points_have_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path / "checkpoints", smoke("ddpm-toy2d"))
    made = of_run(folder)
    page = read(made.html())
    assert "gencli eval wasserstein" in page.all("main")[0].text and made.following == f"gencli sample {folder.name}"


# ------------------------------------------------------------------------------------------------------------------ escaping


def test_what_a_run_says_of_itself_stays_text(run: Path) -> None:
    config = json.loads((run / "config.json").read_text("utf-8"))
    config["command"] = config["data"]["name"] = EVIL
    config["recipe"]["train"][EVIL] = EVIL
    (run / "config.json").write_text(json.dumps(config), "utf-8")
    (run / "README.md").write_text(f"# {EVIL}\n\n{EVIL}\n\n| {EVIL} |\n\n```\n</code>{EVIL}\n```\n- `{EVIL}`", "utf-8")
    lines(
        run / "metrics.jsonl", [{"step": 1, f"</script>{EVIL}": 1.0}, {"step": 2, f"</script>{EVIL}": 2.0, "loss": 1.0}]
    )
    weights = weights_hash(run)
    worst = [{EVIL: EVIL}]
    lines(run / "evaluations.jsonl", [value(EVIL, weights, note=EVIL, facts={"worst": worst, EVIL: EVIL}, unit=EVIL)])
    facts = {"weights": weights, "sampler": {"name": EVIL, "steps": EVIL}, "seeds": EVIL, "items": [1], "device": EVIL}
    Path("samples/ddpm-digits/ddim-5-0/samples.json").write_text(json.dumps(facts), "utf-8")
    content = of_run(run).html()
    page = read(content)
    assert b"<script>alert" not in content and b"<img src=x" not in content
    assert "alert(1)" in page.all("title")[0].text + page.all("main")[0].text
    for key in ("evaluations", "configuration", "card", "samples", "neighbours", "environment"):
        assert EVIL in page.all("section", id=key)[0].text, key
    assert EVIL in page.all("header")[0].text


def test_markup_is_escaped_once_and_attributes_too() -> None:
    inner = markup.element("b", "<&>\x00", title='"x"', data_y=None, hidden=True)
    assert inner == '<b title="&quot;x&quot;" hidden>&lt;&amp;&gt;\ufffd</b>'
    assert markup.element("p", [inner, None, (1, "<")]) == f"<p>{inner}1&lt;</p>"
    held = markup.data({"a": "</script><b>"})
    assert "</script><b" not in held[:-9] and json.loads(inside(held)) == {"a": "</script><b>"}
    with pytest.raises(ValueError):
        markup.data(math.nan)


def inside(text: str) -> str:
    page = Reader()
    page.feed(text)
    return page.nodes[0].text


def test_markdown_knows_a_few_forms_and_never_skips_a_level() -> None:
    made = markdown.rendered("# One\n### Deep\ntext\nmore **b**\n\n- a\n- `<c>`\n\n| x | y |\n|--|--|\n| 1 | <2> |\n")
    for part in ("<h3>One</h3>", "<h4>Deep</h4>", "<p>text more <strong>b</strong></p>", "<code>&lt;c&gt;</code>"):
        assert part in made
    assert made.count("<li>") == 2 and '<th scope="col">x</th>' in made and "<td>&lt;2&gt;</td>" in made


# ------------------------------------------------------------------------------------------------------- damaged and left out


def test_damaged_lines_are_named_and_the_others_used(run: Path) -> None:
    rows: list[Any] = [*LOSSES[:2], "{half", '{"loss": 1}', "[]", *LOSSES[5:8], *["x"] * 9]
    lines(run / "metrics.jsonl", rows)
    lines(run / "evaluations.jsonl", [value("fid", "w"), '{"metric": "kid"}', value("fid", interval=[1])])
    (run / "samples" / "step-00000003.png").write_bytes(b"no picture")
    Path("samples/ddpm-digits/ddim-5-0/samples.json").write_text("{", "utf-8")
    draw(Path("samples/ddpm-digits/ddim-5-1"), "others")
    made = of_run(run)
    notes = "\n".join(made.notes)
    for line in (3, 4, 5, 9, 10):
        assert f"metrics.jsonl: line {line} is damaged" in notes
    assert "metrics.jsonl: 7 more lines are damaged" in notes and "jsonl: line 1 " not in notes and "0x" not in notes
    assert "evaluations.jsonl: line 2" in notes and "evaluations.jsonl: line 3" in notes
    assert "step-00000003.png is no picture that" in notes and "samples.json is damaged" in notes
    assert "1 folder in samples/ddpm-digits were drawn with other weights" in notes.replace("\\", "/")
    page = read(made.html())
    kept = json.loads(page.all("script", type="application/json")[0].text)[0]["steps"]
    assert kept == [1, 2, 6, 7, 8] and len(page.all("data")) == 1 and len(page.all("img")) == 2
    assert page.all("aside")[0].text.count("line 3") == 2


def test_what_has_no_room_is_left_out_and_named(run: Path) -> None:
    room = 4 * Path("samples/ddpm-digits/ddim-5-0/grid.png").stat().st_size // 3 + 10
    made = of_run(run, room=room)
    assert made.pictures == 1, "the samples come first"
    notes = "\n".join(made.notes)
    assert "the way from noise to samples" in notes and "step-00000003.png" in notes and "step-00000006.png" in notes
    read(made.html())


def test_a_large_picture_is_shown_smaller(run: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1700), dtype=np.uint8)
    Image.fromarray(noise).save(run / "nearest.png")
    assert (run / "nearest.png").stat().st_size > 1_000_000
    made = of_run(run)
    page = read(made.html())
    assert any(note.startswith("shown smaller") and "nearest.png (1.5 MB)" in note for note in made.notes), made.notes
    kind, _, content = (page.all("img")[-1].attributes["src"] or "").partition(";base64,")
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (1600, 847) and kind != "data:image/png"
    assert page.all("img")[-1].attributes["width"] == "1700"


def test_of_many_pictures_an_even_choice_is_shown(run: Path) -> None:
    shutil.rmtree("samples")
    picture = run / "samples" / "step-00000006.png"
    for step in range(10, 110):
        shutil.copy(picture, run / "samples" / f"step-{step:08d}.png")
    made = of_run(run)
    captions = [n.text for n in read(made.html()).all("figcaption") if n.text.startswith("step ")]
    assert len(captions) == 24 and captions[0] == "step 3" and captions[-1] == "step 109"
    assert "78 of 102 pictures" in "\n".join(made.notes)
    assert evenly(5, 9) == [0, 1, 2, 3, 4] and evenly(101, 3) == [0, 50, 100]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GencliError, match=r"config\.json"):
        of_run(tmp_path)


# ------------------------------------------------------------------------------------------------------------------- figures


def test_a_thinned_curve_keeps_its_extremes_and_counts_what_is_not_finite() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=9000)
    values[4321], values[77] = 50.0, -50.0
    rows = [{"step": i, "loss": float(v)} for i, v in enumerate(values)] + [
        {"step": 9000, "loss": math.nan},
        {"step": 9001},
    ]
    line = figures.series(rows, "loss")
    kept = dict(zip(line.steps, line.values, strict=True))
    assert len(line.steps) <= figures.MOST + 2 and line.odd == 1 and line.total == 9000
    assert kept[4321] == 50 and kept[77] == -50 and line.steps[0] == 0 and line.steps[-1] == 8999
    assert all(abs(kept[s] - values[int(s)]) < 1e-3 for s in line.steps)
    made = figures.curve([line], "Loss")
    assert "1 values are not finite" in made and len(re.findall("<tr>", made)) == 25
    assert "No finite value" in figures.curve([figures.series([{"step": 1, "loss": math.inf}], "loss")], "Loss")


@pytest.mark.parametrize("ends", [(0.02, 1.02), (1e-5, 3e4), (-3, 7), (0, 1), (1, 1), (5, 5.0001), (990, 1010)])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_few_round_and_inside(ends: tuple[float, float], log: bool) -> None:
    low, high = ends
    if log and low <= 0:
        return
    axis = figures.Axis(low, high, log, 0, 100)
    found = axis.ticks()
    assert 1 <= len(found) <= 9 and all(low - 1e-9 <= t <= high + 1e-9 for t in found) and found == sorted(set(found))
    assert all(-1e-6 <= axis.at(t) <= 100 + 1e-6 for t in found)
    if high > low:
        assert axis.at(low) == 0 and abs(axis.at(high) - 100) < 1e-9 and len(found) >= 2


def test_a_scatter_plot_names_points_and_marks_what_nothing_beats() -> None:
    points = [
        Point("good", 1.0, (0.5, 1.5), {"s": 10.0}),
        Point("cheap", 5.0, None, {"s": 1.0}),
        Point("beaten", 6.0, (5.0, 7.0), {"s": 20.0}),
        Point("free", 2.0),
    ]
    made = figures.scatter(points, "s", "fid", True, {"floor": 0.4})
    assert "good ✓" in made and "cheap ✓" in made and "beaten ✓" not in made and "free" not in made and "floor" in made
    spots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', made)]
    assert spots[1][0] < spots[0][0] < spots[2][0] and spots[0][1] > spots[1][1] > spots[2][1], "less quality is lower"
    assert "Not known" in figures.scatter(points[3:], "s", "fid", True)


def test_both_palettes_have_enough_contrast() -> None:
    css = (Path(frame.__file__).parent / "web" / "page.css").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    )
    assert light.keys() == dark.keys() and light["paper"] != dark["paper"]
    for palette in (light, dark):
        for name in ("ink", "faint", "accent"):
            assert min(contrast(palette[name], palette[under]) for under in ("paper", "card")) >= 4.5, name
        assert contrast(palette["warn"], palette["warn-paper"]) >= 4.5
        for i in range(figures.COLOURS):
            assert contrast(palette[f"s{i}"], palette["card"]) >= 3, i


def contrast(a: str, b: str) -> float:
    """As WCAG 2.1 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# --------------------------------------------------------------------------------------------------------------- comparisons


def picture(seed: int) -> Any:
    return images.grid(np.random.default_rng(seed).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8))


def test_a_comparison_of_samplers_has_a_page(tmp_path: Path) -> None:
    ledger = Ledger(
        tmp_path / "one", {"run": EVIL, "data": "digits", "n": 64, "metrics": [{"name": "fid"}], "device": "cpu"}
    )
    numbers = {("ddim", 5): 8.5, ("ddim", 10): 5.25, ("heun", 5): 3.125}
    for i, ((sampler, steps), number) in enumerate(numbers.items()):
        found = (value("fid[pixels]", "w", number, note="few"),)
        ledger.add(Cell("r", sampler, steps, {}, evaluations=2.0 * steps, seconds=1.5 + i, values=found), picture(i))
    ledger.add(Cell("r", "langevin", None, {}, reason="off-distribution start", why=EVIL))
    made = of_comparison(tmp_path / "one")
    page = read(made.html())
    table = page.all("section", id="table")[0].text
    assert all(
        word in table for word in ("8.5", "5.25", "3.125", "off-distribution start", "few", EVIL, "1.875 – 4.625")
    )
    held = [base64.b64decode((n.attributes["src"] or "").split(",", 1)[1]) for n in page.all("img")]
    assert held == [(tmp_path / "one" / f"{name}.png").read_bytes() for name in ("ddim-5", "ddim-10", "heun-5")]
    assert (
        "ddim-10: 5.25" in page.all("section", id="costs")[0].text
        and "heun-5 ✓" in page.all("section", id="costs")[0].text
    )
    assert page.all("section", id="evaluations")[0].text.count("hash of the weights") == 3
    assert made.pictures == 3 and not made.notes


def test_a_comparison_of_families_has_a_page(tmp_path: Path) -> None:
    facts = {
        "compares": "families",
        "data": "digits",
        "split": "test",
        "n": 64,
        "metrics": [],
        "budget": 600.0,
        "features": "f",
    }
    book = Book(tmp_path / "two", facts)
    book.buy("vae", 0, "recipe", 1234, 0.0125)
    over = {"parameters": 4321, "train_seconds": 598.0, "sample_seconds": 0.002, "evaluations": 1.0, "weights": "w"}
    bits = value("bpd", "w", 1.5, unit="bits/dim", kind="bound")
    book.add(Row("vae", run="runs/vae", values=(value("fid[f]", "w", 9.5), bits), falling=0.05, **over), picture(0))
    book.add(
        Row("ddpm", run="runs/ddpm", values=(value("fid[f]", "w", 2.5),), **{**over, "sample_seconds": 0.5}), picture(1)
    )
    book.add(Row("gan", why=EVIL))
    book.add(Row("real data", "floor", values=(value("fid[f]", "w", 0.5),)), picture(2))
    book.add(Row("gaussian", "control", values=(value("fid[f]", "w", 5.0),)), picture(3))
    made = of_comparison(tmp_path / "two")
    page = read(made.html())
    names = [n.text for n in page.all("th", scope="row")][:5]
    assert names == ["ddpm", "vae", "gan", "real data", "gaussian"], "the best first"
    table = page.all("section", id="table")[0].text
    told = (
        "undertrained",
        "5.0%",
        "does not beat gaussian",
        f"failed: {EVIL}",
        "4,321",
        "598 s",
        "1.5 bits/dim",
        "bound",
    )
    assert all(words in table for words in told) and table.count("does not beat") == 1
    assert len(page.all("img")) == made.pictures == 4 and made.following == "gencli report runs/ddpm"
    assert "1,234" in page.all("section", id="configuration")[0].text
    assert "600" in page.all("header")[0].text and "gaussian" in page.all("section", id="costs")[0].text


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cells": [{"run": 1}]}', '{"compares": "families", "rows": [3]}'])
def test_a_damaged_comparison_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "compare.json").write_text(text, "utf-8")
    with pytest.raises(GencliError, match=r"compare\.json is damaged"):
        of_comparison(tmp_path)


# ------------------------------------------------------------------------------------------------------------------- browser

PROBE = """
addEventListener("load", () => {
  const seen = {};
  const images = [...document.images];
  seen.hidden = images.filter((image) => image.naturalWidth === 0).length;
  const plot = document.querySelector(".plot");
  const label = () => plot.querySelector("svg").getAttribute("aria-label");
  const press = (key) => plot.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  seen.whole = label();
  press("+");
  seen.near = label();
  press("ArrowRight");
  seen.moved = label();
  press("0");
  seen.reset = label();
  const box = plot.parentElement.querySelector("input[type=checkbox]");
  seen.log = box.checked;
  press("l");
  seen.linear = box.checked;
  const range = document.querySelector("input[type=range]");
  range.value = 0;
  range.dispatchEvent(new Event("input"));
  seen.frame = range.getAttribute("aria-valuetext");
  seen.shown = document.querySelectorAll(".strip figure.shown").length;
  seen.across = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.documentElement.dataset.probe = JSON.stringify(seen);
});
"""


def browse(page: Path, profile: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a browser that has no network."""
    assert CHROMIUM is not None
    line = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--disable-extensions",
    ]
    line += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--virtual-time-budget=1500", *more]
    return subprocess.run([*line, page.as_uri()], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
@pytest.mark.parametrize("width", [360, pytest.param(1600, marks=pytest.mark.slow)])
def test_a_browser_shows_it_without_a_complaint(run: Path, tmp_path: Path, width: int) -> None:
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = of_run(run).html().decode().replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    (tmp_path / "page.html").write_text(
        text.replace("</body>", f"<script>{PROBE}</script></body>"), "utf-8", newline="\n"
    )
    done = browse(tmp_path / "page.html", tmp_path / "profile", f"--window-size={width},900", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert 'data-ready="yes"' in done.stdout
    seen = json.loads(html.unescape(re.findall(r'data-probe="([^"]*)"', done.stdout)[0]))
    assert seen["hidden"] == 0 and seen["across"] == 0, "every picture is shown, nothing sticks out"
    assert "steps 1 to 40" in seen["whole"] == seen["reset"] and "steps 10.75 to 30.25" in seen["near"]
    assert "steps 14.65 to 34.15" in seen["moved"] and seen["log"] is True and seen["linear"] is False
    assert seen["frame"] == "frame 1 of 5" and seen["shown"] == 2
