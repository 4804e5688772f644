"""Where an admin interface is: ``unix:/path`` or ``host:port``, and where it is when nobody says."""

import os
from dataclasses import dataclass
from pathlib import Path

from pybalancer.errors import AdminError

LONGEST_PATH = 107
"""Bytes that fit into ``sun_path`` (unix(7)), less the final NUL."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port; the host is an address without brackets, or a name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> UnixAddress | TcpAddress:
    """``unix:/path`` (or just ``/path``), ``host:port``, ``[v6]:port`` or ``:port`` on loopback.

    Raises AdminError, which says what an address looks like.
    """
    if text.startswith(("unix:", "/", "./")):
        path = text.removeprefix("unix:")
        if not path or len(os.fsencode(path)) > LONGEST_PATH:
            raise AdminError(f"{text}: the path of a Unix socket has 1 to {LONGEST_PATH} bytes")
        return UnixAddress(Path(path))
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise AdminError(f"{text}: not an admin address; write unix:/path or host:port")
    return TcpAddress(host or "127.0.0.1", int(port))


def default() -> str:
    """The socket under the run directory, for when neither flag nor file names one."""
    return f"unix:{run_directory() / 'admin.sock'}"


def run_directory() -> Path:
    """systemd's RuntimeDirectory, else /run/pybalancer for root, else the user's own."""
    if given := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])  # systemd lists several with colons
    if os.geteuid() == 0:
        return Path("/run/pybalancer")
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "pybalancer"
    return Path(f"/tmp/pybalancer-{os.geteuid()}")  # noqa: S108 - its owner is checked before use
