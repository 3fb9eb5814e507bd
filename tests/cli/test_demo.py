"""The demo on its smallest steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from shell import Shell

from gencli.cli import demo

SMALL = (
    ("a codec", "train", ["vqvae", "--smoke", "--name", "codec"]),
    ("its reconstructions", "eval", ["reconstruction", "-c", "codec", "-n", "8"]),
    ("a prior", "train", ["gated-pixelcnn", "--smoke", "--codec", "codec", "--name", "prior"]),
    ("digits", "sample", ["vqvae", "-n", "4"]),
)


def test_the_demo_ends_with_a_table_and_pictures(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STEPS", SMALL)
    done = shell.fine("demo")
    assert "gencli sample vqvae -n 4" in done.out and "psnr" in done.out
    assert done.out.splitlines()[-1] == "gencli-demo"
    assert done.err.count("next:") == 1, "only the demo says what to do next"
    with Image.open(tmp_path / "gencli-demo" / "demo.png") as picture:
        assert picture.width > 32 and picture.convert("L").getextrema()[0] < picture.convert("L").getextrema()[1]
    assert Path.cwd() == tmp_path, "the demo leaves the working folder as it was"


def test_a_second_demo_gets_a_folder_of_its_own(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STEPS", SMALL[:1])
    shell.fine("demo")
    assert shell.fine("demo").out.splitlines()[-1] == "gencli-demo-2"


def test_the_steps_of_the_demo_name_what_exists() -> None:
    from gencli import recipe, registry

    for _, verb, args in demo.STEPS:
        if verb == "train":
            assert args[0] in recipe.names()
        if verb == "eval":
            assert args[0] in registry.entries("metrics")
