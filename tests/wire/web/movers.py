"""A tunnel that goes on elsewhere, with its client and every backend that it has had in the test's hands."""

from __future__ import annotations

import contextlib
import re
import select
from collections.abc import Iterator, Sequence
from typing import Any

from ..net import PATIENCE, until
from .ends import Held, WebProxy, name_of, web_proxy
from .frames import TEXT, Frame, frame, read_frame
from .messages import Head, Stream, handshake
from .recorder import switch
from .site import Client

REPLAY: dict[str, Any] = {"reattach": "replay"}
RESUMED = re.compile(r"([0-9a-f]{32}); previous=(b[0-9]); attempt=([0-9]+)")


def arrives(backends: Sequence[Held]) -> tuple[int, Stream, Head]:
    """Where the next connection goes, and the handshake that comes on it."""
    ready, _, _ = select.select([held.socket for held in backends], [], [], PATIENCE)
    assert ready, "no backend was asked"
    at = [held.socket for held in backends].index(ready[0])
    return at, *backends[at].asked()


def resumed(head: Head) -> tuple[str, str, int]:
    """What a repeated handshake says of itself."""
    match = RESUMED.fullmatch(head.get("pybalancer-resumed") or "")
    assert match, head
    return match[1], match[2], int(match[3])


class Mover:
    """One tunnel through ``balancer`` to whichever of ``backends`` it goes."""

    def __init__(
        self, balancer: WebProxy, backends: Sequence[Held], *fields: str, answer: Sequence[str] = ()
    ) -> None:
        self.balancer, self.backends = balancer, backends
        self.client = Client(balancer.address, handshake(*fields))
        self.name = name_of(self.client.socket)
        self.at, self.backend, self.first = arrives(backends)
        self.last = self.first
        self.accept(*answer)
        head = self.client.head()
        assert head is not None
        assert head.status == 101, head
        self.answer = head

    def accept(self, *fields: str) -> None:
        key = self.last.get("sec-websocket-key") or ""
        self.backend.socket.sendall(switch(key, *fields).encode())

    def moves(self, *fields: str) -> tuple[str, str, int]:
        """The handshake comes again, and is taken; what it says of itself: tunnel, previous and attempt."""
        told = self.asked_again()
        self.accept(*fields)
        return told

    def asked_again(self) -> tuple[str, str, int]:
        self.at, self.backend, self.last = arrives(self.backends)
        return resumed(self.last)

    def says(self, text: bytes) -> None:
        """The client does, and its backend hears it."""
        self.client.send(frame(TEXT, text, masked=True))
        assert self.hears() == text

    def hears(self) -> bytes:
        found = read_frame(self.backend)
        assert (found.opcode, found.masked) == (TEXT, True), found
        return found.payload

    def tells(self, text: bytes) -> None:
        """The backend does, and the client hears it."""
        self.backend.socket.sendall(frame(TEXT, text, masked=False))
        found = self.reads()
        assert (found.opcode, found.payload, found.masked) == (TEXT, text, False), found

    def reads(self) -> Frame:
        return read_frame(self.client)

    def works(self) -> None:
        """Both ways."""
        self.says(b"ping")
        self.tells(b"pong")

    @property
    def record(self) -> dict[str, Any]:
        return self.balancer.record(self.name)

    def __enter__(self) -> Mover:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.socket.close()


@contextlib.contextmanager
def two(**options: Any) -> Iterator[tuple[WebProxy, list[Held]]]:
    """A balancer that re-attaches, with two backends."""
    route = {**REPLAY, **options.pop("route", {})}
    with Held() as first, Held() as second, web_proxy([first, second], route=route, **options) as balancer:
        yield balancer, [first, second]


def balanced(balancer: WebProxy, moved: int, failed: int = 0) -> None:
    """Nothing is left, and every count has its counterpart."""
    until(lambda: balancer.connections == 0, "the end of all connections")
    counted = balancer.counted
    assert (counted.reattached, counted.reattach_failed) == (moved, failed)
    assert counted.opened == counted.closed
    names = [f"b{index}" for index in range(len(balancer.backends))]
    backends = [balancer.stats.backend("pool", name) for name in names]
    assert [backend.opened for backend in backends] == [backend.closed for backend in backends]
    assert sum(backend.opened for backend in backends) == counted.opened + moved
    worker = balancer.stats.workers()[0]
    assert worker.opened == worker.closed
    assert worker.waiting == 0
    assert balancer.engine.active() == 0
    assert all(balancer.stats.active("pool", name) == 0 for name in names)
