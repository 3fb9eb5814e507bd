"""`--codec RUN:LEVEL` and `--source KEY=RUN`: what is typed, what is told, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shell import Shell
from tiny import DIGITS, TRAIN, trained

from gencli.bundle import Run

SMALL = ("--steps", "1", "--net.width", "4", "--net.layers", "1", "--net.head", "8", "--batch-size", "8")
VQ = {"codes": 16, "dim": 4, "width": 8, "residual_width": 4, "residual_blocks": 1, "downsamples": 1}


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `vq` and `top`."""
    place = tmp_path_factory.mktemp("cli-levels") / "checkpoints"
    one = {"data": DIGITS, "train": {**TRAIN, "steps": 1}}
    codec = Run.load(trained(place, {**one, "model": {"name": "vqvae2", **VQ}}, name="vq"))
    net = {"name": "gated-pixelcnn", "width": 4, "layers": 1, "head": 8}
    top = {**one, "model": {"name": "gated-pixelcnn", "net": net}, "codecs": [{"name": "learned", "level": "top"}]}
    trained(place, top, name="top", codec_run=codec)
    return place


@pytest.fixture
def made(levels: Path, shell: Shell, tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").symlink_to(levels)
    return levels


def test_the_bottom_is_trained_after_the_top_told_and_drawn_by_class(shell: Shell, made: Path, tmp_path: Path) -> None:
    ask = ("train", "gated-pixelcnn", "--codec", "vq:bottom", "--source", "top=top", *SMALL, "--out", "mine")
    done = shell.fine(*ask, "--name", "bottom")
    assert "gencli sample" in done.err
    config = json.loads((tmp_path / "mine/bottom/config.json").read_text())
    assert config["recipe"]["codecs"] == [{"name": "learned", "level": "bottom"}] and config["codec"] == "vq"
    told = shell.fine("info", "mine/bottom").out
    assert "vq:bottom" in told and "top=top" in told
    shell.fine("sample", "mine/bottom", "--class", "3", "-n", "2", "--out", "drawn")
    assert len([*(tmp_path / "drawn").glob("0*.png")]) == 2
    shell("train", "gated-pixelcnn", "--resume", "mine/bottom", "--source", "top=top").fails(
        "--source top=top", "keeps"
    )
    shell.fine("train", "gated-pixelcnn", "--resume", "mine/bottom", "--steps", "2")


def test_the_way_from_level_to_level_is_told(shell: Shell, made: Path) -> None:
    from tiny import opened

    from gencli.cli.train import _next
    from gencli.training.session import Session, resolve

    def following(name: str) -> str:
        tables = resolve(json.loads((made / name / "config.json").read_text())["recipe"])
        return _next(Session(tables, opened(DIGITS), made, folder=made / name))

    assert following("vq").startswith("gencli train gated-pixelcnn --codec ") and following("vq").endswith(":top")
    assert following("top").startswith("gencli train gated-pixelcnn --codec vq:bottom --source top=")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--codec", "vq"], ["run 'vq' has the levels top, bottom", "--codec vq:top or vq:bottom"]),
        (["--codec", "vq:tpo"], ["run 'vq' has no level 'tpo'", "--codec vq:top"]),
        (["--codec", "top:top"], ["run 'top' cannot be a codec"]),
        (["--codec", "qv:top"], ["no run 'qv'"]),
        (["--codec", "vq:bottom"], ["'top' has no source", "--codec vq:top", "--source top=RUN"]),
        (["--codec", "vq:bottom", "--source", "top=topp"], ["no run 'topp'", "did you mean top"]),
        (["--codec", "vq:bottom", "--source", "tip=top"], ["--source tip=top", "no condition 'tip'", "label, top"]),
        (["--codec", "vq:bottom", "--source", "top=vq"], ["'top' is codes (2, 2) of 16 values, the run makes image"]),
        (["--codec", "vq:bottom", "--source", "top"], ["--source top is not KEY=RUN"]),
        (["--codec", "vq:bottom", "--source", "top=top", "--source", "top=top"], ["--source top=top", "twice"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_what_does_not_fit_is_one_line(
    shell: Shell, made: Path, tmp_path: Path, args: list[str], words: list[str]
) -> None:
    shell("train", "gated-pixelcnn", *args, *SMALL, "--out", "mine").fails(*words)
    assert not (tmp_path / "mine").exists(), "no run is begun"
