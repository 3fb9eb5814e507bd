"""Imported last by a server of forks: what the first command of a process imports, and every decoder of Pillow."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import sys

import matplotlib.pyplot
from PIL import Image, ImageDraw, ImageFont, ImageOps

from gencli import registry
from gencli.cli.main import main

__all__ = ["ImageDraw", "ImageFont", "ImageOps", "matplotlib"]

Image.init()
for entry in (
    *registry.entries("converters").values(),
    registry.entry("metrics", "fid"),
    registry.entry("guidance", "cfg"),
):
    with contextlib.suppress(ImportError):  # one that needs a library which is not here
        importlib.import_module(entry.module)
before = sys.argv
sys.argv = ["gencli", "list", "models"]
with (
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
    contextlib.suppress(SystemExit),
):
    main()
sys.argv = before
gc.freeze()  # a collection in a child would copy every page that it looks at
