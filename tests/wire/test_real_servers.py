"""``pybalancer serve`` between real WebSocket servers and real clients: nothing is lost, changed or added.

Servers: PyPI's websockets, autobahn (Twisted), and an ASGI application on uvicorn with each of its two
implementations. Clients: websockets, trio-websocket, and one by hand (``rfc6455.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from .backends import KINDS, backends
from .clients import CLIENTS, WebsocketsClient, client
from .front import Front, configuration
from .net import payload, sha, until
from .rfc6455 import BINARY, CLOSE, CONTINUATION, DEFLATE, PING, PONG, TEXT, Frame, RawWebSocket, deflate
from .servers.app import FRAGMENT
from .serving import Serve, Serving, environment_in

MB = 1 << 20
SIZES = [0, 1, 125, 126, 127, 65535, 65536, MB, 16 * MB]
"""Around each bound where the length field of a frame changes, and some large ones."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("front")
    with backends(*KINDS) as servers:
        file = directory / "pybalancer.toml"
        file.write_text(configuration(servers, each=True))
        serving = Serving(environment_in(directory), file)
        try:
            yield Front(serving, servers)
        finally:
            serving.close()


@cache
def binary(size: int) -> bytes:
    return payload(size, size)


@cache
def text(size: int) -> str:
    """Of so many bytes in UTF-8, one or two for each character."""
    cut = payload(size, size + 1).decode("latin-1").encode()[:size].decode(errors="ignore")
    return cut + "." * (size - len(cut.encode()))


def told(server: str, message: str | bytes) -> dict[str, Any]:
    """What the server says of a message that came as it was sent."""
    data = message.encode() if isinstance(message, str) else message
    kind = "text" if isinstance(message, str) else "binary"
    return {"server": server, "kind": kind, "size": len(data), "sha256": sha(data)}


every_server = pytest.mark.parametrize("server", KINDS)
every_client = pytest.mark.parametrize("kind", CLIENTS)
servers_that_ping = pytest.mark.parametrize("server", ["websockets", "autobahn"])


@every_client
@every_server
async def test_messages_of_every_size_arrive_both_ways(front: Front, server: str, kind: str) -> None:
    async with client(kind, front.bound[server]) as connection:
        for size in SIZES:
            for message in (binary(size), text(size)):
                await connection.send(message)
                assert json.loads(await connection.receive()) == told(server, message)
                echo = await connection.receive()
                assert type(echo) is type(message)
                assert echo == message


@every_client
@every_server
async def test_a_server_that_leaves_says_1001(front: Front, server: str, kind: str) -> None:
    async with client(kind, front.bound[server], "/leave") as connection:
        await connection.send("goodbye")
        assert await connection.end() == (1001, "going away")


@every_client
@every_server
@pytest.mark.parametrize("code", [1000, 4001])
async def test_the_code_of_a_client_that_leaves_arrives(
    front: Front, server: str, kind: str, code: int
) -> None:
    reason = f"{kind} has seen enough"
    async with client(kind, front.bound[server]) as connection:
        await connection.send("hello")
        assert json.loads(await connection.receive()) == told(server, "hello")
        await connection.receive()
        await connection.close(code, reason)
    until(lambda: (code, reason) in front.servers[server].ended, "the code at the server")


@every_client
@every_server
async def test_pings_of_a_client_are_answered(front: Front, server: str, kind: str) -> None:
    async with client(kind, front.bound[server]) as connection:
        for payload in (b"are you there", b"", bytes(range(125))):
            await connection.ping(payload)


@every_client
@servers_that_ping
async def test_pings_of_a_server_are_answered(front: Front, server: str, kind: str) -> None:
    async with client(kind, front.bound[server], "/ping") as connection:
        await connection.send(b"and you")
        assert await connection.receive() == "pong"


def test_a_ping_of_the_server_is_seen_as_it_was_sent(front: Front) -> None:
    with front.raw(path="/ping", listener="websockets") as connection:
        connection.send(b"and you")
        assert connection.read_frame() == Frame(PING, b"and you", True, False)
        connection.send_frame(PONG, b"not this one")
        connection.send_frame(PONG, b"and you")
        assert connection.receive() == "pong"


@pytest.mark.parametrize("server", ["uvicorn", "uvicorn-wsproto"])
def test_pings_of_a_server_by_itself_are_answered(serve: Serve, server: str) -> None:
    """uvicorn pings again only after the pong."""
    with backends(server, options=("--ping-interval", 0.05)) as (backend,):
        serving = serve("--listen", "127.0.0.1:0", "--to", backend.address)
        with RawWebSocket(serving.address) as connection:
            pings = []
            for _ in range(3):
                ping = connection.read_frame()
                assert ping.opcode == PING
                connection.send_frame(PONG, ping.payload)
                pings.append(ping.payload)
    assert len(set(pings)) == 3


@every_server
def test_fragments_of_a_client_arrive(front: Front, server: str) -> None:
    """With a ping between them, which may stand there, and with empty ones."""
    parts = ["first ", "", "sec\N{LATIN SMALL LETTER O WITH DIAERESIS}nd ", "last"]
    with front.raw(listener=server) as connection:
        connection.send_frame(TEXT, parts[0].encode(), fin=False)
        connection.send_frame(CONTINUATION, parts[1].encode(), fin=False)
        connection.ping(b"in the middle")
        connection.send_frame(CONTINUATION, parts[2].encode(), fin=False)
        connection.send_frame(CONTINUATION, parts[3].encode())
        assert json.loads(connection.receive()) == told(server, "".join(parts))
        assert connection.receive() == "".join(parts)
        assert connection.close() == 1000


@servers_that_ping
def test_fragments_of_a_server_keep_their_bounds(front: Front, server: str) -> None:
    message = binary(3 * FRAGMENT + 1)
    with front.raw(path="/fragments", listener=server) as connection:
        connection.send(message)
        assert json.loads(connection.receive()) == told(server, message)
        frames = [connection.read_frame()]
        while not frames[-1].fin:
            frames.append(connection.read_frame())
    assert frames[0].opcode == BINARY
    assert {frame.opcode for frame in frames[1:]} == {CONTINUATION}
    assert [len(frame.payload) for frame in frames if frame.payload] == [FRAGMENT] * 3 + [1]
    assert b"".join(frame.payload for frame in frames) == message


@every_server
def test_compressed_messages_pass_as_they_are(front: Front, server: str) -> None:
    """permessage-deflate is between client and server: what goes over the wire is what they made of it."""
    message = b"the same again, " * (MB // 16)
    with front.raw(listener=server, extensions=DEFLATE) as connection:
        assert connection.extensions.startswith("permessage-deflate")
        connection.send_frame(BINARY, deflate(message), compressed=True)
        assert json.loads(connection.receive()) == told(server, message)
        assert connection.receive() == message
        assert connection.close() == 1000
    assert connection.sent < MB // 50
    assert connection.received < MB // 50
    record = front.record(connection)
    assert record["reason"] == "finished"
    assert (record["bytes_to_backend"], record["bytes_to_client"]) == (connection.sent, connection.received)


@every_server
async def test_a_window_kept_from_message_to_message_stays_in_step(front: Front, server: str) -> None:
    """PyPI's websockets compresses with what went before: one wrong byte, and nothing fits any more."""
    async with client("websockets", front.bound[server], compression="deflate") as connection:
        assert isinstance(connection, WebsocketsClient)
        (extension,) = connection.connection.protocol.extensions
        assert extension.name == "permessage-deflate"
        for size in SIZES[:-1]:
            await connection.send(text(size))
            assert json.loads(await connection.receive()) == told(server, text(size))
            assert await connection.receive() == text(size)


@every_server
def test_every_byte_is_counted(front: Front, server: str) -> None:
    with front.raw(listener=server) as connection:
        for size in SIZES[:-1]:
            connection.send(binary(size))
            assert json.loads(connection.receive()) == told(server, binary(size))
            assert connection.receive() == binary(size)
        assert connection.close() == 1000
    record = front.record(connection)
    assert (record["backend"], record["reason"]) == (server, "finished")
    assert (record["bytes_to_backend"], record["bytes_to_client"]) == (connection.sent, connection.received)


@every_server
@pytest.mark.parametrize("path", ["/", "/leave"])
def test_an_end_is_passed_on_as_it_is(front: Front, server: str, path: str) -> None:
    """How servers end differs: with Close or without, with a reset even after Close. All that is theirs.

    In mode tcp the balancer does not read frames: an opcode that does not exist is theirs to refuse too.
    """
    ends = []
    for connection in (
        RawWebSocket(front.servers[server].address, path),
        front.raw(path=path, listener=server),
    ):
        with connection:
            connection.send_frame(BINARY if path == "/leave" else 0x7, b"hello")
            end: list[Frame | str] = []
            if path == "/leave":
                close = connection.read_frame()
                end.append(close)
                connection.send_frame(CLOSE, close.payload)
            ends.append(end + connection.rest())
    direct, through = ends
    assert through == direct
    record = front.record(connection)
    assert record["reason"] == ("backend-reset" if "reset" in direct else "finished")
