"""The guard against PROXY headers that nobody asked for: it looks at a client's first bytes, and holds back
those that may become one. Whatever else happens to the tunnel meanwhile must not notice."""

from __future__ import annotations

import queue
import socket
import threading

import pytest

from .net import PATIENCE, connect, payload, proxy, read_all, read_exactly, reset, server, sha, until

MB = 1 << 20
LONG = {"proxy_timeout": 3600.0}
"""Held back for so long that nothing here waits for it."""


@pytest.mark.parametrize("guard", [True, False])
def test_a_reset_before_the_first_byte_reaches_the_backend_as_one(guard: bool) -> None:
    seen: queue.SimpleQueue[str] = queue.SimpleQueue()

    def expect_nothing(connection: socket.socket) -> None:
        try:
            seen.put(f"an end after {read_all(connection)!r}")
        except ConnectionResetError:
            seen.put("a reset")

    with (
        server(expect_nothing) as backend,
        proxy([backend], listener={"refuse_unexpected_proxy": guard}) as balancer,
    ):
        for number in range(1, 21):
            client = connect(balancer.address)
            until(lambda number=number: backend.served == number)  # type: ignore[misc]
            reset(client)
            assert seen.get(timeout=PATIENCE) == "a reset"
        until(lambda: len(balancer.log()) == 20)
        assert set(balancer.reasons()) == {"client-reset"}


def test_a_reset_with_first_bytes_held_back_reaches_the_backend_at_once() -> None:
    """In time: not only when the bytes are let through after all."""
    seen: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def expect_reset(connection: socket.socket) -> None:
        connection.sendall(b"hello")
        got = b""
        try:
            while part := connection.recv(16):
                got += part
        except ConnectionResetError:
            seen.put(b"PROX".startswith(got))
        else:
            seen.put(False)

    with server(expect_reset) as backend, proxy([backend], listener=LONG) as balancer:
        client = connect(balancer.address)
        client.sendall(b"PROX")
        assert read_exactly(client, 5) == b"hello"
        reset(client)
        assert seen.get(timeout=PATIENCE)
        assert until(balancer.reasons) == ["client-reset"]


def test_a_flood_from_the_backend_is_not_held_back_with_the_first_bytes() -> None:
    """The client's socket is watched for room to write as well, while its first byte is only looked at."""
    flood = payload(8 * MB)
    said: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def pour(connection: socket.socket) -> None:
        connection.sendall(flood)
        while data := connection.recv(16):
            said.put(data)

    with server(pour) as backend, proxy([backend], listener=LONG) as balancer:
        with connect(balancer.address, receive_buffer=65536) as client:
            client.sendall(b"P")
            assert sha(read_exactly(client, len(flood))) == sha(flood)
            # All of it came while the byte was still held.
            assert said.empty()
            client.sendall(b"ING")
            assert said.get(timeout=PATIENCE) == b"PING"


def test_an_end_behind_held_bytes_is_seen_while_the_backend_is_blocked() -> None:
    flood = payload(8 * MB)
    heard = threading.Event()

    def pour(connection: socket.socket) -> None:
        pouring = threading.Thread(target=connection.sendall, args=(flood,))
        pouring.start()
        assert read_all(connection) == b"PROX"
        heard.set()
        pouring.join()

    with server(pour) as backend, proxy([backend], listener=LONG) as balancer:
        with connect(balancer.address, receive_buffer=65536) as client:
            client.sendall(b"PROX")
            assert client.recv(1) == flood[:1]
            client.shutdown(socket.SHUT_WR)
            # Not a byte of the flood is read until then.
            assert heard.wait(PATIENCE)
            assert sha(flood[:1] + read_all(client)) == sha(flood)
        assert until(balancer.reasons) == ["finished"]
