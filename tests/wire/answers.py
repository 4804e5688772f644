"""Servers that answer a probe in all kinds of ways, and what the probe finds of them."""

from __future__ import annotations

import base64
import hashlib
import socket
from typing import Any

from pybalancer.policy.settings import Check
from pybalancer.tasks.probes import ProbeResult, probe

from .net import PATIENCE, Handler, reset, server

Kind = Any
QUICK = 0.3
"""Seconds that a probe waits in vain, where it is to wait in vain."""


async def ask(kind: Kind, address: str, **options: Any) -> ProbeResult:
    return await probe(Check(kind, **{"timeout": PATIENCE, **options}), address)


async def asked(kind: Kind, handler: Handler, **options: Any) -> ProbeResult:
    """What is found of a server that does this with each connection."""
    with server(handler) as backend:
        return await ask(kind, backend.address, **options)


def request_of(connection: socket.socket) -> bytes:
    """The head of a request, to the empty line."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        if not part:
            break
        head += part
    return head


def wait_for_end(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def says(*parts: bytes) -> Handler:
    """Reads a request, writes this, and waits for the end."""

    def handler(connection: socket.socket) -> None:
        request_of(connection)
        for part in parts:
            connection.sendall(part)
        wait_for_end(connection)

    return handler


def says_and_closes(*parts: bytes) -> Handler:
    def handler(connection: socket.socket) -> None:
        request_of(connection)
        for part in parts:
            connection.sendall(part)

    return handler


def talks_for_ever(head: bytes, more: bytes, sent: list[int]) -> Handler:
    """Reads a request, writes ``head``, and ``more`` again and again; ``sent`` is how many bytes it could."""

    def handler(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(head)
        while True:
            connection.sendall(more)
            sent.append(len(more))

    return handler


def never_answers(connection: socket.socket) -> None:
    wait_for_end(connection)


def closes_at_once(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def closes_without_an_answer(connection: socket.socket) -> None:
    request_of(connection)


def resets_at_once(connection: socket.socket) -> None:
    reset(connection)


def resets_instead_of_an_answer(connection: socket.socket) -> None:
    request_of(connection)
    reset(connection)


class found:
    """Equal to a result that says this, however long it took."""

    def __init__(self, ok: bool, reason: str, ours: bool = False) -> None:
        self.expected = (ok, reason, ours)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ProbeResult):
            return NotImplemented
        return (other.ok, other.reason, other.ours) == self.expected

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"found{self.expected}"


GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CLOSE, PING, PONG = 0x88, 0x89, 0x8A


def accepted(connection: socket.socket) -> bytes:
    """Read the handshake; the answer to it."""
    head = request_of(connection)
    (key,) = (
        line[18:].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
    )
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def ping_of(connection: socket.socket) -> bytes:
    """The payload of the client's ping (a short masked frame)."""
    first, second, *mask = connection.recv(6, socket.MSG_WAITALL)
    assert first == PING
    data = connection.recv(second & 0x7F, socket.MSG_WAITALL)
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))


def frame(first: int, payload: bytes = b"") -> bytes:
    assert len(payload) < 126
    return bytes([first, len(payload)]) + payload


def opens(then: Handler, *, with_it: bytes = b"") -> Handler:
    """A server that accepts the WebSocket (and sends something in the same segment), and then does this."""

    def handler(connection: socket.socket) -> None:
        connection.sendall(accepted(connection) + with_it)
        then(connection)

    return handler


def pongs(*before: bytes) -> Handler:
    """Sends this, then the pong, and waits for the end."""

    def then(connection: socket.socket) -> None:
        payload = ping_of(connection)
        for part in before:
            connection.sendall(part)
        connection.sendall(frame(PONG, payload))
        wait_for_end(connection)

    return then
