"""clean-fid imports beside a CPU build of torch, and a torchvision that imports is left alone."""

import subprocess
import sys
import types

import pytest

from gencli.metrics import _torchvision
from gencli.metrics._torchvision import import_torchvision


def test_clean_fid_imports_after_it():
    import_torchvision()
    import cleanfid.fid

    assert callable(cleanfid.fid.frechet_distance)


def test_a_torchvision_that_imports_is_left_alone(monkeypatch):
    stub = types.ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", stub)
    before = len(_torchvision._held)
    assert import_torchvision() is stub and len(_torchvision._held) == before


def test_other_failures_are_passed_on(monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('a driver is missing')\n")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="a driver is missing"):
        import_torchvision()


def test_the_missing_operators_are_declared_once_the_plain_import_fails(tmp_path):
    """A stand-in that fails the way the real one does, in a process of its own."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "import torch\n"
        "for name in ('nms', 'qnms'):\n"
        "    if not hasattr(torch.ops.torchvision, name):\n"
        "        raise RuntimeError(f'operator torchvision::{name} does not exist')\n"
        "fine = True\n"
    )
    code = "from gencli.metrics._torchvision import import_torchvision as t; assert t().fine and t().fine"
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"], check=True)
