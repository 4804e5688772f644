"""A ``Balancer`` inside the test: configurations in one line, and waiting under trio."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import trio

from pybalancer import Balancer

from .answers import request_of
from .net import PATIENCE, Server, connect, read_exactly

SECRET = "00112233445566778899aabbccddeeff"


def configuration(
    backends: Mapping[str, str],
    *,
    health: Mapping[str, Any] | None = None,
    listeners: Sequence[Mapping[str, Any]] = ({"name": "public", "bind": "127.0.0.1:0", "pool": "chat"},),
    balancer: Mapping[str, Any] | None = None,
    pools: Mapping[str, Any] | None = None,
    **pool: Any,
) -> dict[str, Any]:
    """One listener before one pool, ``chat``, of these backends (name to address)."""
    chat = {"backends": [{"name": name, "address": address} for name, address in backends.items()], **pool}
    if health is not None:
        chat["health"] = dict(health)
    return {
        "balancer": {"workers": 1, "secret": SECRET, **(balancer or {})},
        "listeners": [dict(listener) for listener in listeners],
        "pools": {"chat": chat, **(pools or {})},
    }


async def until(condition: Callable[[], Any], what: str = "the condition", every: float = 0.005) -> Any:
    """Wait for a truth, and return it. Real time, whatever the test's clock says."""
    deadline = time.monotonic() + PATIENCE
    while True:
        if truth := condition():
            return truth
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE:g} s"
        await trio.to_thread.run_sync(time.sleep, every)


def backends_of(balancer: Balancer, pool: str = "chat") -> dict[str, Any]:
    """Status of a pool's backends, by name."""
    (found,) = (each for each in balancer.status().pools if each.name == pool)
    return {backend.name: backend for backend in found.backends}


def states(balancer: Balancer, pool: str = "chat") -> str:
    """``up`` or ``down`` of each, in the order of the configuration."""
    return " ".join(backend.state for backend in backends_of(balancer, pool).values())


def picks(balancer: Balancer, clients: int = 200, pool: str = "chat") -> dict[str | None, int]:
    """How many of so many clients each backend would get now."""
    found: dict[str | None, int] = {}
    for number in range(clients):
        name = balancer.explain(f"10.1.{number >> 8}.{number & 255}:1000", pool)["backend"]
        found[name] = found.get(name, 0) + 1
    return found


class Named(Server):
    """An echo server that says its name first."""

    def __init__(self, name: str, address: str = "127.0.0.1:0") -> None:
        self.name = name
        super().__init__(self._serve, address)

    def _serve(self, connection: socket.socket) -> None:
        connection.sendall(self.name.encode() + b"\n")
        while data := connection.recv(1 << 16):
            connection.sendall(data)


class Moody(Server):
    """An HTTP server that answers with ``status``, or with nothing where that is 0."""

    def __init__(self, status: int = 200, address: str = "127.0.0.1:0") -> None:
        self.status = status
        super().__init__(self._answer, address)

    def _answer(self, connection: socket.socket) -> None:
        request_of(connection)
        if self.status:
            connection.sendall(b"HTTP/1.1 %d Yes or no\r\nContent-Length: 0\r\n\r\n" % self.status)
        else:
            while connection.recv(1 << 16):
                pass


class Tunnel:
    """A client of Named servers: which one it has, and whether it still has it."""

    def __init__(self, address: str) -> None:
        self.socket = connect(address)
        name = b""
        while not name.endswith(b"\n"):
            name += read_exactly(self.socket, 1)
        self.backend = name.decode().strip()

    def stands(self) -> bool:
        """A message there and back over the same connection."""
        self.socket.sendall(b"still there?")
        return read_exactly(self.socket, 12) == b"still there?"

    async def was_reset(self) -> bool:
        """Wait for its end; whether that was an abort."""
        try:
            left = await trio.to_thread.run_sync(self.socket.recv, 1)
        except ConnectionResetError:
            return True
        assert left == b""
        return False

    def close(self) -> None:
        self.socket.close()


S = TypeVar("S", bound=Server)


class Run(Protocol):
    """What the fixture ``run`` does: keep a server until the test ends."""

    def __call__(self, made: S) -> S: ...


class Open(Protocol):
    """What the fixture ``tunnels`` does: open tunnels that stay until the test ends."""

    def __call__(self, balancer: Balancer, count: int = 24, listener: str = "public") -> list[Tunnel]: ...
