"""Urgent bytes (MSG_OOB): the balancer has nowhere else to pass them on, so they stay in their place among
the others."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from pathlib import Path

import pytest

from .net import PATIENCE, connect, payload, proxy, read_all, server

both_ways = pytest.mark.parametrize("who", ["client", "backend"])


class Speech:
    """What one side says: some bytes, an urgent one, more, and the end. The other listens when the first
    have been said, or when no more of them fit into the sockets on the way."""

    def __init__(self, begin: bytes) -> None:
        self.begin = begin
        self.said = b""
        self.heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._begun = threading.Event()

    def speak(self, connection: socket.socket) -> None:
        left = memoryview(self.begin)
        connection.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while left:
                left = left[connection.send(left) :]
        connection.settimeout(PATIENCE)
        self.said = self.begin[: len(self.begin) - len(left)] + b"!after"
        self._begun.set()
        connection.send(b"!", socket.MSG_OOB)
        connection.sendall(b"after")
        connection.shutdown(socket.SHUT_WR)
        # The other side ends when it has heard all.
        connection.recv(1)

    def listen(self, connection: socket.socket) -> None:
        assert self._begun.wait(PATIENCE)
        self.heard.put(read_all(connection))

    def is_heard(self, who: str, front: str = "127.0.0.1:0", back: str = "127.0.0.1:0") -> bool:
        """Whether all of it arrives when ``who`` says it."""
        on_client, on_backend = (self.speak, self.listen) if who == "client" else (self.listen, self.speak)
        with server(on_backend, back) as backend, proxy([backend], bind=front) as balancer:
            with connect(balancer.address) as client:
                on_client(client)
                return self.heard.get(timeout=PATIENCE) == self.said


@both_ways
def test_an_urgent_byte_stays_in_the_stream(who: str) -> None:
    assert Speech(b"before").is_heard(who)


@both_ways
def test_an_urgent_byte_in_bulk_data_is_not_its_end(who: str) -> None:
    assert Speech(payload(1 << 20) * 32).is_heard(who)


@both_ways
def test_an_urgent_byte_stays_in_the_stream_of_a_unix_socket(who: str, tmp_path: Path) -> None:
    unix = f"unix:{tmp_path}"
    assert Speech(b"before").is_heard(who, f"{unix}/front.sock", f"{unix}/back.sock")
