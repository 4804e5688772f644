"""WebSocket probes: handshake, ping, pong, and all that a server can do instead."""

from __future__ import annotations

import socket
import struct

import pytest

from pybalancer.tasks.probes import MOST_BYTES

from .answers import (
    CLOSE,
    PING,
    PONG,
    QUICK,
    accepted,
    ask,
    asked,
    found,
    frame,
    never_answers,
    opens,
    ping_of,
    pongs,
    request_of,
    says,
    wait_for_end,
)
from .backends import backends
from .net import reset, until


async def test_real_servers_answer_and_see_a_proper_end() -> None:
    with backends("websockets", "autobahn", "uvicorn", "uvicorn-wsproto") as servers:
        for backend in servers:
            for _ in range(3):
                assert await ask("websocket", backend.address) == found(True, "pong"), backend.name
            until(lambda backend=backend: len(backend.ended) == 3, f"three ends at {backend.name}")
            assert {code for code, _ in backend.ended} == {1000}, backend.name


async def test_a_server_that_is_no_websocket_server() -> None:
    result = await asked("websocket", says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    assert result == found(False, "handshake refused: HTTP 200")
    result = await asked("websocket", says(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"))
    assert result == found(False, "handshake refused: HTTP 403")


async def test_the_101_may_say_how_busy_a_backend_is() -> None:
    def handler(connection: socket.socket) -> None:
        answer = accepted(connection)
        connection.sendall(answer[:-2] + b"Pybalancer-Load: 0.25\r\n\r\n")
        connection.sendall(frame(PONG, ping_of(connection)))
        wait_for_end(connection)

    result = await asked("websocket", handler)
    assert (result, result.load) == (found(True, "pong"), 0.25)


async def test_what_the_handshake_says() -> None:
    heads: list[bytes] = []

    def handler(connection: socket.socket) -> None:
        heads.append(request_of(connection))

    headers = (("Origin", "https://app.example"),)
    await asked("websocket", handler, path="/live?probe", host="app.example", headers=headers)
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "GET /live?probe HTTP/1.1"
    assert {"Host: app.example", "Origin: https://app.example", "User-Agent: pybalancer"} <= set(lines)


async def test_it_takes_the_pong_that_answers_its_ping_and_no_other() -> None:
    assert await asked("websocket", opens(pongs())) == found(True, "pong")
    # Unsolicited pongs, pings of its own, messages, fragments: all allowed before the pong.
    chatter = (
        frame(PONG),
        frame(PONG, b"x"),
        frame(PING, b"y"),
        frame(0x81, b"hello"),
        frame(0x02, b"a"),
        frame(0x80),
    )
    assert await asked("websocket", opens(pongs(*chatter))) == found(True, "pong")
    assert await asked("websocket", opens(pongs(), with_it=b"".join(chatter))) == found(True, "pong")

    def wrong(connection: socket.socket) -> None:
        connection.sendall(frame(PONG, bytes(reversed(ping_of(connection)))))
        wait_for_end(connection)

    assert await asked("websocket", opens(wrong), timeout=QUICK) == found(False, "no answer within 0.3s")


async def test_it_answers_pings_meanwhile() -> None:
    answered: list[bytes] = []

    def then(connection: socket.socket) -> None:
        payload = ping_of(connection)
        connection.sendall(frame(PING, b"and you?"))
        answered.append(connection.recv(6 + 8, socket.MSG_WAITALL))
        connection.sendall(frame(PONG, payload))
        wait_for_end(connection)

    assert (await asked("websocket", opens(then))).ok
    assert answered[0][0] == PONG


async def test_101_without_a_pong_is_not_healthy() -> None:
    result = await asked("websocket", opens(never_answers), timeout=QUICK)
    assert result == found(False, "no answer within 0.3s")


@pytest.mark.parametrize(
    "answer",
    [
        "Upgrade: websocket|Connection: Upgrade",
        "Upgrade: websocket|Connection: Upgrade|Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "Upgrade: websocket|Connection: keep-alive|{accept}",
        "Upgrade: h2c|Connection: Upgrade|{accept}",
        "Upgrade: websocket|Connection: Upgrade|{accept}|Sec-WebSocket-Protocol: chat",
        "Upgrade: websocket|Connection: Upgrade|{accept}|Sec-WebSocket-Extensions: permessage-deflate",
    ],
)
async def test_a_101_that_is_none(answer: str) -> None:
    def handler(connection: socket.socket) -> None:
        lines = accepted(connection).decode().split("\r\n")
        (accept,) = (line for line in lines if line.startswith("Sec-WebSocket-Accept"))
        head = ["HTTP/1.1 101 Switching Protocols", *answer.format(accept=accept).split("|"), "", ""]
        connection.sendall("\r\n".join(head).encode())
        wait_for_end(connection)

    result = await asked("websocket", handler)
    assert not result.ok
    assert result.reason.startswith("no WebSocket: ")


@pytest.mark.parametrize("split", [True, False], ids=["later", "with the 101"])
@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (
            frame(CLOSE, struct.pack("!H", 1001) + b"going away"),
            "the WebSocket ended before the pong (code 1001)",
        ),
        (frame(CLOSE), "the WebSocket ended before the pong (code 1005)"),
        (b"\xff\xff\xff\xff", "the WebSocket ended before the pong (code 1002)"),
        (b"\x81\x80\x00\x00\x00\x00", "the WebSocket ended before the pong (code 1002)"),
        (frame(0x81, b"\xff\xfe"), "the WebSocket ended before the pong (code 1007)"),
        (b"\x89\x7e\x01\x00" + bytes(256), "the WebSocket ended before the pong (code 1002)"),
    ],
    ids=["close", "close without a code", "garbage", "masked", "not UTF-8", "a ping too long"],
)
async def test_a_websocket_that_fails_before_its_pong(sent: bytes, reason: str, split: bool) -> None:
    def then(connection: socket.socket) -> None:
        if split:
            ping_of(connection)
            connection.sendall(sent)
        wait_for_end(connection)

    assert await asked("websocket", opens(then, with_it=b"" if split else sent)) == found(False, reason)


async def test_a_connection_that_ends_before_the_pong() -> None:
    def closes(connection: socket.socket) -> None:
        ping_of(connection)

    def resets(connection: socket.socket) -> None:
        ping_of(connection)
        reset(connection)

    closed = await asked("websocket", opens(closes))
    assert closed == found(False, "the WebSocket ended before the pong (code 1006)")
    assert await asked("websocket", opens(resets)) == found(False, "connection reset by peer")


@pytest.mark.parametrize(
    ("first", "more"),
    [(b"", frame(0x82, bytes(100)) * 100), (bytes([0x82, 127, 0x7F, *[0xFF] * 7]), bytes(1 << 14))],
    ids=["messages", "one message"],
)
async def test_one_that_talks_without_end_is_cut_short(first: bytes, more: bytes) -> None:
    sent: list[int] = []

    def then(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(more)
            sent.append(len(more))

    result = await asked("websocket", opens(then))
    assert result == found(False, "talks without end instead of answering the ping")
    assert sum(sent) < 1000 * MOST_BYTES


async def test_pings_without_end_end_at_the_deadline() -> None:
    """Of a server that does not read the pongs, so that they cannot be sent."""

    def then(connection: socket.socket) -> None:
        while True:
            connection.sendall(frame(PING, b"?" * 100) * 100)

    result = await asked("websocket", opens(then), timeout=QUICK)
    assert not result.ok
    assert result.seconds < 10 * QUICK
