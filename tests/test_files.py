"""Writing in one step, and what is said when the disk or the folder says no."""

import errno
import json
import os
import subprocess
import sys

import pytest

from gencli import files
from gencli.errors import GencliError
from gencli.files import as_size, atomic_json, atomic_path, atomic_write
from gencli.home import home


def test_a_file_is_replaced_and_no_temporary_name_is_left(tmp_path):
    path = tmp_path / "deep" / "a.bin"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = atomic_write(tmp_path / "a", b"old")
    with pytest.raises(ValueError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise ValueError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_old_file_is_whole_until_the_block_ends(tmp_path):
    path = atomic_write(tmp_path / "a", b"old")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_the_bytes_are_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    events = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), real(fd)))
    move = files.replace
    monkeypatch.setattr(files, "replace", lambda a, b: (events.append("rename"), move(a, b)))
    atomic_write(tmp_path / "a", b"x")
    assert events == ["sync", "rename", "sync"]


def test_json_is_utf8_with_a_final_newline_and_refuses_nan(tmp_path):
    path = atomic_json(tmp_path / "a.json", {"name": "çà"})
    assert path.read_text(encoding="utf-8").endswith("}\n") and "çà" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "çà"}
    with pytest.raises(ValueError):
        atomic_json(tmp_path / "b.json", {"x": float("nan")})


def test_a_rename_that_is_refused_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    calls = []
    real = os.replace

    def busy(source, target):
        calls.append(1)
        if len(calls) < 3:
            raise PermissionError(errno.EACCES, "in use")
        real(source, target)

    monkeypatch.setattr(os, "replace", busy)
    files.replace(tmp_path / "a", tmp_path / "b")
    assert len(calls) == 3 and (tmp_path / "b").exists()


def test_a_rename_that_is_always_refused_says_so(tmp_path, monkeypatch):
    def never(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", never)
    with pytest.raises(GencliError, match=r"cannot write .*a: permission denied") as caught:
        atomic_write(tmp_path / "a", b"x")
    assert caught.value.code == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk full while writing .*free in"), (errno.EROFS, "cannot write .*read-only")],
)
def test_the_disks_refusals_name_the_path_and_exit_with_one(tmp_path, number, words):
    with pytest.raises(GencliError, match=words) as caught, atomic_path(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == 1 and caught.value.hint and str(tmp_path / "a") in caught.value.message


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes")
def test_a_full_disk_in_a_real_process_keeps_the_old_file(tmp_path):
    path = atomic_write(tmp_path / "a", b"old")
    code = (
        "import resource, sys; from gencli.files import atomic_write; from gencli.errors import GencliError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: atomic_write(sys.argv[1], b'x' * 5000)\n"
        "except GencliError as error: print(error.code, error.message)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"1 disk full while writing {path}"), done
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(GencliError, match="cannot write"):
        atomic_write(tmp_path / "a" / "b", b"x")


def test_sizes_are_for_people():
    assert [as_size(n) for n in (0, 999, 1500, 3_200_000, 5e12)] == ["0 B", "999 B", "1.5 kB", "3.2 MB", "5.0 TB"]


def test_home_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENCLI_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("GENCLI_HOME")
    assert home().parts[-2:] == (".cache", "gencli")
