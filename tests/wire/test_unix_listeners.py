"""Listeners on Unix sockets: the file is ours to change and to remove for as long as it is ours."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from .net import proxy, served, server


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_reload_changes_the_permissions(tmp_path: Path) -> None:
    path = tmp_path / "front.sock"
    listener = {"unix_mode": 0o666}
    with server() as backend, proxy([backend], bind=f"unix:{path}", listener=listener) as balancer:
        inode = path.stat().st_ino
        for wanted in (0o666, 0o600, 0o660):
            listener["unix_mode"] = wanted
            balancer.apply()
            assert mode(path) == wanted
        # It is still the same socket, not a new one.
        assert path.stat().st_ino == inode
        assert served(balancer.address)
    assert not path.exists()


@pytest.mark.parametrize("change", ["reload", "end"])
def test_a_file_that_somebody_else_put_there_since_is_left_alone(tmp_path: Path, change: str) -> None:
    path = tmp_path / "front.sock"
    with server() as backend, socket.socket(socket.AF_UNIX) as other:
        with proxy([backend], bind=f"unix:{path}", listener={"unix_mode": 0o666}) as balancer:
            os.unlink(path)
            other.bind(str(path))
            path.chmod(0o640)
            if change == "reload":
                balancer.listener["unix_mode"] = 0o600
                balancer.apply()
        assert mode(path) == 0o640
