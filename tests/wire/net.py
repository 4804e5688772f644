"""Real sockets for the wire tests: servers in threads, clients that know what they sent.

Nothing here sleeps for a fixed time or picks a port by number: servers bind port 0, and waiting is
for a condition, with a deadline that only a hang reaches.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pybalancer._core import BackendSpec, Engine, Event, ListenerSpec, Plan, PoolSpec

PATIENCE = 30.0
SECRET = bytes(range(16))


def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait for a truth, and return it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        if truth := condition():
            return truth
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE:g} s"
        time.sleep(0.005)


def text_of(address: Any) -> str:
    """A socket's address as pybalancer writes it."""
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def to(address: str) -> tuple[int, Any]:
    """Family and address for ``socket.connect``."""
    if address.startswith("unix:"):
        return socket.AF_UNIX, address.removeprefix("unix:")
    host, _, port = address.rpartition(":")
    if host.startswith("["):
        return socket.AF_INET6, (host.strip("[]"), int(port))
    return socket.AF_INET, (host, int(port))


def connect(address: str, source: str | None = None, receive_buffer: int | None = None) -> socket.socket:
    family, where = to(address)
    client = socket.socket(family)
    client.settimeout(PATIENCE)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if source:
        client.bind((source, 0))
    client.connect(where)
    return client


def reset(connection: socket.socket) -> None:
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_all(connection: socket.socket, pause: Callable[[], None] | None = None) -> bytes:
    """Everything until the other side's end. A reset raises."""
    parts = []
    while part := connection.recv(1 << 18):
        parts.append(part)
        if pause:
            pause()
    return b"".join(parts)


def read_exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        assert part, f"ended after {len(parts)} of {count} bytes"
        parts += part
    return bytes(parts)


def refused(address: str, first: bytes = b"", source: str | None = None) -> bool:
    """Whether a connection is turned away: reset or closed without a byte."""
    try:
        with connect(address, source) as client:
            if first:
                client.sendall(first)
            return client.recv(1) == b""
    except (ConnectionResetError, BrokenPipeError):
        return True


def echoes(client: socket.socket, message: bytes = b"hello") -> bool:
    """Whether a tunnel to an echo server stands. A reset raises."""
    client.sendall(message)
    return read_exactly(client, len(message)) == message


def served(address: str, source: str | None = None) -> bool:
    """Whether a fresh connection becomes a tunnel to an echo server."""
    try:
        with connect(address, source) as client:
            return echoes(client)
    except (ConnectionError, AssertionError):
        return False


@contextlib.contextmanager
def reserved() -> Iterator[str]:
    """An address on which servers may come and go: the port stays taken, so nobody else gets it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield text_of(holder.getsockname())


def payload(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


Handler = Callable[[socket.socket], None]


def echo(connection: socket.socket) -> None:
    """Send back what comes, and end when the client does."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)


class Server:
    """A listening socket whose connections are handled in threads."""

    def __init__(self, handler: Handler = echo, address: str = "127.0.0.1:0", backlog: int = 1024) -> None:
        family, where = to(address)
        self.socket = socket.socket(family)
        if family != socket.AF_UNIX:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(where)
        self.socket.listen(backlog)
        self.address = text_of(self.socket.getsockname())
        self.handler = handler
        self.live: set[socket.socket] = set()
        self.served = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with self._lock:
                self.live.add(connection)
                self.served += 1
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError), connection:
                self.handler(connection)
        finally:
            with self._lock:
                self.live.discard(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        with self._lock:
            live = list(self.live)
        for connection in live:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Proxy:
    """An engine with one listener and one pool."""

    def __init__(
        self,
        backends: Sequence[Server | str],
        *,
        bind: str = "127.0.0.1:0",
        workers: int = 1,
        listener: dict[str, Any] | None = None,
        pool: dict[str, Any] | None = None,
    ) -> None:
        self.engine = Engine(workers=workers)
        self.engine.log_connections(True)
        self.backends = list(backends)
        self.bind, self.listener, self.pool = bind, listener or {}, pool or {}
        self.told: list[Event] = []
        self.lines: list[dict[str, Any]] = []
        self.apply()

    def plan(self, **states: str) -> Plan:
        specs = [
            BackendSpec(
                name=f"b{index}",
                address=backend if isinstance(backend, str) else backend.address,
                state=states.get(f"b{index}", "up"),  # type: ignore[arg-type]
            )
            for index, backend in enumerate(self.backends)
        ]
        return Plan(
            listeners=[ListenerSpec(name="front", bind=self.bind, pool="pool", **self.listener)],
            pools=[PoolSpec(name="pool", backends=specs, **self.pool)],
            secret=SECRET,
        )

    def apply(self, **states: str) -> int:
        return self.engine.apply(self.plan(**states))

    @property
    def address(self) -> str:
        return self.engine.bound()["front"]

    def events(self, kind: str | None = None) -> list[Event]:
        self.told += self.engine.take_events()
        return [event for event in self.told if kind in (None, event.kind)]

    def log(self) -> list[dict[str, Any]]:
        import json

        self.lines += [json.loads(line) for line in self.engine.take_log("json").splitlines()]
        return self.lines

    def reasons(self) -> list[str]:
        return [line["reason"] for line in self.log()]

    def close(self) -> None:
        self.engine.close()


@contextlib.contextmanager
def proxy(backends: Sequence[Server | str], **options: Any) -> Iterator[Proxy]:
    running = Proxy(backends, **options)
    try:
        yield running
    finally:
        running.close()


@contextlib.contextmanager
def server(handler: Handler = echo, address: str = "127.0.0.1:0", **options: Any) -> Iterator[Server]:
    running = Server(handler, address, **options)
    try:
        yield running
    finally:
        running.close()


def processor_time() -> float:
    """CPU seconds of this process, all threads."""
    return time.process_time()
