"""`gencli report [RUN|COMPARISON]`: one HTML page with pictures, curves, numbers and settings, to be opened from disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli import files, runs
from gencli.cli import console, guiding
from gencli.cli.options import Flag, build
from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.report.frame import Page


def command() -> Any:
    """The `report` command."""
    return build("report", "Write one HTML page about a run or a comparison.", _FLAGS, run)


_FLAGS = [
    Flag(
        "of",
        (),
        str,
        "a run by name or folder, or the folder of a comparison; the newest run without it",
        metavar="RUN|COMPARISON",
        complete=guiding.run_names,
    ),
    Flag("out", ("--out",), str, "the page to write", "Output", shown="report.html in the folder", metavar="FILE.html"),
    Flag("overwrite", ("--overwrite",), bool, "replace a page that is there", "Output", default=False),
]


def run(values: dict[str, Any]) -> None:
    """Write the page."""
    given = values.get("of")
    compared = _comparison(given)
    found = None if compared else _run(given)
    out = _out(values, compared, found)
    page = _page(compared, found)
    content = page.html()
    files.atomic_write(out, content)
    for note in page.notes:
        console.say(f"note: {note}")
    console.document(
        of=page.title,
        kind=page.kind.removeprefix("gencli "),
        size=len(content),
        pictures=page.pictures,
        sections=[section.key for section in page.sections],
        notes=list(page.notes),
    )
    console.say(f"{page.title}: {page.pictures} pictures · {files.as_size(len(content))} · open it in a browser")
    console.result(out)
    console.following(page.following)


def _comparison(given: str | None) -> Path | None:
    """The folder of a comparison that the argument names."""
    if given is None:
        return None
    path = Path(given).expanduser()
    folder = path.parent if path.name == "compare.json" else path
    return folder if (folder / "compare.json").is_file() else None


def _run(given: str | None) -> runs.Found:
    if given is not None:
        path = Path(given).expanduser()
        if path.is_dir() and not (path / "config.json").is_file() and runs.find(given) is None and len(path.parts) > 1:
            raise GencliError(
                f"{given} is neither a run nor a comparison: it has no config.json and no compare.json",
                "see `gencli list runs`",
            )
        return runs.named(given, as_codec=True)
    found = runs.newest(lambda _: True) or next(iter(runs.every()), None)
    if found is None:
        raise GencliError(f"no run yet to report on; looked in {runs.places()}", "train one: gencli train ddpm")
    return found


def _out(values: dict[str, Any], compared: Path | None, found: runs.Found | None) -> Path:
    if "out" in values:
        out = Path(values["out"]).expanduser()
        if out.suffix.lower() not in (".html", ".htm"):
            raise GencliError(f"--out is '{values['out']}', which is no .html file", "give a name such as report.html")
    elif compared is not None:
        out = compared / "report.html"
    else:
        assert found is not None, "there is a comparison or a run"
        out = Path("reports") / f"{found.name}.html" if found.shipped else found.path / "report.html"
    if out.is_dir():
        raise GencliError(f"{out} is a folder", "give another --out")
    if out.exists() and not values["overwrite"]:
        raise GencliError(f"{out} is there already", "add --overwrite, or give another --out")
    return out


def _page(compared: Path | None, found: runs.Found | None) -> Page:
    if compared is not None:
        from gencli.report.comparison import of_comparison

        return of_comparison(compared)
    from gencli.report import codebook
    from gencli.report.page import of_run

    assert found is not None, "there is a comparison or a run"
    return of_run(found.path, found.shipped, seen=codebook.of_run(found.path))
