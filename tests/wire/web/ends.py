"""WebSocket mode in an engine of this process, with both ends of a connection in the hands of the test.

No thread stands between: the test writes at one end and reads at the other, in the order that it wants.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from pybalancer._core import BackendSpec, ListenerSpec, Plan, PoolSpec, RouteSpec, WebSpec
from pybalancer.stats.reader import Stats

from ..net import PATIENCE, SECRET, Proxy, to, until
from .frames import TEXT, frame
from .messages import Head, Stream, handshake, request
from .recorder import switch
from .site import Client


class HasAddress(Protocol):
    @property
    def address(self) -> str: ...


class WebProxy(Proxy):
    """An engine with one listener in mode "websocket", one route and one pool."""

    def __init__(
        self,
        backends: Sequence[HasAddress | str],
        *,
        web: dict[str, Any] | None = None,
        route: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.web, self.route = web or {}, route or {}
        super().__init__(backends, **options)  # type: ignore[arg-type]
        self.stats = Stats(fd=self.engine.stats_fd)

    def plan(self, **states: str) -> Plan:
        specs = [
            BackendSpec(
                name=f"b{index}",
                address=backend if isinstance(backend, str) else backend.address,
                state=states.get(f"b{index}", "up"),  # type: ignore[arg-type]
            )
            for index, backend in enumerate(self.backends)
        ]
        web = WebSpec(routes=[RouteSpec(name="all", pool="pool", **self.route)], **self.web)
        front = ListenerSpec(name="front", bind=self.bind, pool="pool", web=web, **self.listener)
        return Plan(
            listeners=[front], pools=[PoolSpec(name="pool", backends=specs, **self.pool)], secret=SECRET
        )

    @property
    def counted(self) -> Any:
        """The listener's counters, as they are now."""
        return self.stats.listener("front")

    @property
    def connections(self) -> int:
        """Clients that are connected, whether their tunnel stands or not."""
        worker = self.stats.workers()[0]
        return int(worker.waiting + worker.opened - worker.closed)

    def record(self, client: str) -> dict[str, Any]:
        """That of this client's connection, once it has ended."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.log() if line["client"] == client]

        records: list[dict[str, Any]] = until(found, "the record")
        return records[-1]

    def close(self) -> None:
        self.stats.close()
        super().close()


def name_of(connection: socket.socket) -> str:
    return "{}:{}".format(*connection.getsockname())


@contextlib.contextmanager
def web_proxy(backends: Sequence[HasAddress | str], **options: Any) -> Iterator[WebProxy]:
    running = WebProxy(backends, **options)
    try:
        yield running
    finally:
        running.close()


class Held:
    """A backend whose connections the test accepts itself."""

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.socket = socket.create_server(to(address)[1], backlog=4096)
        self.socket.settimeout(PATIENCE)
        self.address = name_of(self.socket)
        self.taken: list[Stream] = []

    def accept(self) -> Stream:
        connection, _ = self.socket.accept()
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.taken.append(Stream(connection))
        return self.taken[-1]

    def asked(self) -> tuple[Stream, Head]:
        """The next connection, and the request that comes on it."""
        stream = self.accept()
        head = stream.head()
        assert head is not None
        return stream, head

    def switched(self, *fields: str) -> Stream:
        """The next connection, a WebSocket."""
        stream, head = self.asked()
        stream.socket.sendall(switch(head.get("sec-websocket-key") or "", *fields).encode())
        return stream

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        for stream in self.taken:
            stream.socket.close()


class Ends:
    """A tunnel's client, and its backend."""

    def __init__(self, address: str, backend: Held, path: str = "/ws") -> None:
        self.client = Client(address, handshake(line=f"GET {path} HTTP/1.1"))
        self.name = name_of(self.client.socket)
        self.backend = backend.switched()
        head = self.client.head()
        assert head is not None
        assert head.status == 101, head

    def of(self, sender: str) -> tuple[Stream, Stream]:
        """Who sends, and who receives: ``sender`` is "client" or "backend"."""
        ends = (self.client, self.backend)
        return ends if sender == "client" else ends[::-1]

    def close(self) -> None:
        self.client.socket.close()
        self.backend.socket.close()

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tunnel(balancer: WebProxy, backend: Held) -> Ends:
    return Ends(balancer.address, backend)


def carried(sender: Stream, data: bytes, receiver: Stream) -> bytes:
    """Send all of it, and read as much at the other end."""
    writer = threading.Thread(target=sender.socket.sendall, args=(data,))
    writer.start()
    received = b"".join(receiver.length(len(data)))
    writer.join(PATIENCE)
    assert not writer.is_alive()
    return received


def served(address: str) -> bool:
    """Whether a fresh connection gets its answer."""
    with Client(address, request()) as client:
        return client.answer().status == 200


def is_echoed(client: Stream) -> bool:
    """Whether what a WebSocket says comes back."""
    sent = frame(TEXT, b"hello", masked=True)
    client.socket.sendall(sent)
    return b"".join(client.length(len(sent))) == sent


def opened(address: str) -> Client:
    """A WebSocket."""
    client = Client(address, handshake())
    head = client.head()
    assert head is not None
    assert head.status == 101
    return client
