import socket

import pytest


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """Every test has its own cache, and no test opens a socket."""

    def refuse(*_, **__):
        raise OSError("sockets are forbidden in tests")

    monkeypatch.setenv("GENCLI_HOME", str(tmp_path / "gencli-home"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
