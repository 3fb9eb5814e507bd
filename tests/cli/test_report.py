"""`gencli report`: where the page goes, what it is of, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from saved import saved
from shell import Shell, copied
from tiny import smoke

from gencli import home


def created(folder: Path, when: str) -> None:
    """Date a run."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "created": when}), "utf-8")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_newest_run_has_its_page_in_its_folder(shell: Shell, runs: Path) -> None:
    created(runs / "vqvae-digits", "2999-01-01T00:00:00+00:00")
    done = shell.fine("report")
    path = Path(done.out.strip())
    assert path == Path("checkpoints/vqvae-digits/report.html") and done.err.splitlines()[-1].startswith(
        "next: gencli "
    )
    text = path.read_text("utf-8")
    assert "<h1>vqvae-digits</h1>" in text and "econstructions" in text and "1711.00937" in text


def test_a_trained_run_shows_its_training_samples_and_numbers(shell: Shell, runs: Path) -> None:
    shell.fine("sample", "ddpm-digits", "-n", "3", "--steps", "2", "--trajectory")
    shell.fine("eval", "fid", "--features", "pixels", "-n", "30", "--steps", "1", "-c", "ddpm-digits", "--force")
    done = shell.fine("report", "ddpm-digits", "--out", "deep/page.html", "--json")
    document = done.document
    stored = json.loads((runs / "ddpm-digits" / "evaluations.jsonl").read_text("utf-8").splitlines()[0])
    text = Path("deep/page.html").read_text("utf-8")
    assert f'value="{stored["value"]!r}"' in text and stored["receipt"]["weights"] in text
    assert document["path"] == str(Path("deep/page.html")) and document["kind"] == "run" and document["notes"] == []
    assert document["size"] == len(text.encode()) and document["of"] == "ddpm-digits" and document["pictures"] >= 4
    assert document["sections"] == ["samples", "trajectory", "training", *document["sections"][3:]]
    assert "Of other weights" not in text, "receipts and page hash the weights alike"
    inner = shell.fine("report", "gated-pixelcnn-digits", "--json").document
    assert "codec (vqvae-digits)" in Path(inner["path"]).read_text("utf-8")


def test_weights_of_a_run_with_a_codec_are_hashed_as_receipts_do(shell: Shell, runs: Path) -> None:
    shell.fine("sample", "gated-pixelcnn-digits", "-n", "2")
    done = shell.fine("report", "gated-pixelcnn-digits", "--json").document
    assert done["notes"] == [] and done["next"] == "gencli eval fid -c gated-pixelcnn-digits"


def test_a_page_is_overwritten_only_when_asked(shell: Shell, runs: Path) -> None:
    shell.fine("report", "ddpm-digits")
    path = runs / "ddpm-digits" / "report.html"
    path.write_text("mine", "utf-8")
    shell("report", "ddpm-digits").fails("report.html is there already", "--overwrite")
    assert path.read_text("utf-8") == "mine"
    assert (
        shell.fine("report", "ddpm-digits", "--overwrite", "--quiet").out
        == f"checkpoints{os.sep}ddpm-digits{os.sep}report.html\n"
    )
    assert path.read_text("utf-8") != "mine"


def test_what_came_with_gencli_is_not_written_to(shell: Shell, made: Path, tmp_path: Path) -> None:
    shipped = copied(made / "checkpoints", tmp_path / "shipped")
    shell.patch.setattr(home, "shipped_runs", lambda: shipped)  # undone with the shell, in the right order
    before = everything(shipped)
    measured = tmp_path / "samples" / "ddpm-digits" / "evaluations.jsonl"
    measured.parent.mkdir(parents=True)
    measured.write_text(json.dumps({"metric": "fid[x]", "value": 1.25, "n": 7, "better": "lower"}) + "\n{\n", "utf-8")
    done = shell.fine("report", "ddpm-digits")
    assert Path(done.out.strip()) == Path("reports/ddpm-digits.html") and everything(shipped) == before
    assert 'value="1.25"' in Path("reports/ddpm-digits.html").read_text("utf-8")
    assert "note: evaluations.jsonl: line 2 is damaged" in done.err


def test_a_comparison_is_known_by_its_folder_or_file(shell: Shell, runs: Path) -> None:
    args = ["compare", "ddpm-digits", "--samplers", "ddim", "--steps", "1,2", "-n", "4", "--out", "mine"]
    shell.fine(*args)
    done = shell.fine("report", "mine", "--json").document
    cells = json.loads(Path("mine/compare.json").read_text("utf-8"))["cells"]
    text = Path("mine/report.html").read_text("utf-8")
    assert done["kind"] == "comparison" and done["next"] == "gencli report ddpm-digits" and done["pictures"] == 2
    assert all(f'value="{cell["values"][0]["value"]!r}"' in text for cell in cells)
    shell.fine("report", "mine/compare.json", "--out", "again.html")
    again = Path("again.html").read_text("utf-8")
    assert again.split("<footer>")[0] == text.split("<footer>")[0], "only the date may differ"
    shell.fine(*args)  # the page is no part of the comparison


def test_points_are_reported_on_by_model_or_folder(shell: Shell, tmp_path: Path) -> None:
    folder = saved(tmp_path / "elsewhere", smoke("ddpm-toy2d"))
    done = shell.fine("report", str(folder))
    assert Path(done.out.strip()) == folder / "report.html"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing"], ["no run 'nothing'"]),
        (["ddpm-digits", "--out", "page.txt"], ["page.txt", ".html"]),
        (["ddpm-digits", "--out", "folder.html"], ["folder.html is a folder"]),
        (["checkpoints/empty"], ["neither a run nor a comparison"]),
        (["odd"], ["compare.json is damaged"]),
    ],
)
def test_what_cannot_be_reported_is_refused(shell: Shell, runs: Path, args: list[str], words: list[str]) -> None:
    for name in ("folder.html", "checkpoints/empty", "odd"):
        Path(name).mkdir()
    Path("odd/compare.json").write_text("{", "utf-8")
    shell("report", *args).fails(*words)


def test_without_a_run_the_next_step_is_told(shell: Shell) -> None:
    shell("report").fails("no run yet", "gencli train ddpm")
