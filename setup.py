"""What pyproject.toml cannot say: the wheel carries the trained models of `checkpoints/shipped` as `gencli/shipped`."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SOURCE = Path(__file__).parent / "checkpoints" / "shipped"


class BuildWithModels(build_py):
    """The package, then the shipped runs beside it, without the state that only training needs."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout finds them where they are
            return
        target = Path(self.build_lib) / "gencli" / "shipped"
        shutil.rmtree(target, ignore_errors=True)
        if SOURCE.is_dir():
            shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("train", "samples", ".*"))


setup(cmdclass={"build_py": BuildWithModels})
