"""pybalancer.client.connect under trio, with real servers and a directory that says what the test wants."""

from __future__ import annotations

import math
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from pybalancer.client import ConnectionEnded, Retry, connect, connection

from .answers import accepted
from .backends import Backend, backends
from .directories import Answer, answer, directory, found
from .net import PATIENCE, Server, reserved, server, until

SOON = Retry(base_ms=50, max_ms=200, window_ms=50)


def url(backend: Backend) -> str:
    return f"ws://{backend.address}/echo"


@pytest.fixture(scope="module")
def node() -> Iterator[Backend]:
    with backends("websockets") as (running,):
        yield running


@contextmanager
def silent() -> Iterator[Server]:
    """One that accepts, and says nothing."""
    over = threading.Event()

    def wait(connection: socket.socket) -> None:
        over.wait(PATIENCE)

    with server(wait) as running:
        yield running
        over.set()


Talk = Callable[[WebSocketConnection], Awaitable[None]]


@asynccontextmanager
async def serving(
    talk: Talk, refuse: list[tuple[int, list[tuple[bytes, bytes]]]] | None = None
) -> AsyncIterator[str]:
    """A server in this loop; the first handshakes are refused as it is listed."""

    async def handle(request: WebSocketRequest) -> None:
        if refuse:
            status, fields = refuse.pop(0)
            await request.reject(status, extra_headers=fields)
            return
        connection = await request.accept()
        with suppress(ConnectionClosed):
            await talk(connection)

    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve_websocket, handle, "127.0.0.1", 0, None)
        yield f"ws://127.0.0.1:{running.port}/"
        nursery.cancel_scope.cancel()


async def echo(connection: WebSocketConnection) -> None:
    while True:
        await connection.send_message(await connection.get_message())


async def test_it_goes_where_the_directory_says_and_elsewhere_when_that_is_killed() -> None:
    with backends(*["websockets"] * 4) as servers:
        await visit(servers)
        last = servers[3]
        await trio.to_thread.run_sync(until, lambda: (1000, "") in last.ended, "the Close of who leaves")


async def visit(servers: list[Backend]) -> None:
    """All of them: where it is just now is killed, but for the last."""
    alive = list(servers)

    def answers() -> Answer:
        return found(url(alive[0]), *map(url, alive[1:]), backend=alive[0].name)

    with directory(answers) as running:
        async with connect(running.url, retry=SOON, headers={"X-Token": "1"}) as client:
            for number in range(4):
                await client.send(f"message {number}")
                assert await client.receive() == f"message {number}"
                assert (client.url, client.backend, client.connected) == (url(alive[0]), alive[0].name, True)
                if number < 3:
                    alive[0].signal(signal.SIGKILL)
                    alive[0].process.wait()
                    del alive[0]
                    while client.connected:
                        await trio.lowlevel.checkpoint()
        assert [fields["x-token"] for _, fields in running.asked] == ["1"] * 4


async def test_a_node_that_is_gone_gives_way_to_an_alternative(node: Backend) -> None:
    with (
        reserved() as nobody,
        directory(lambda: found(f"ws://{nobody}/", url(node), backend="gone")) as running,
    ):
        async with connect(running.url, retry=SOON) as client:
            await client.send("hello")
            assert await client.receive() == "hello"
            assert (client.url, client.backend) == (url(node), None)
        assert len(running.asked) == 2


async def test_a_directory_that_is_away_is_gone_around(node: Backend) -> None:
    with directory(lambda: found(url(node))) as running:
        address = running.url
    async with connect(address, retry=Retry(base_ms=50, fallback=url(node))) as client:
        await client.send("hello")
        assert await client.receive() == "hello"
        assert client.url == url(node)


async def test_a_directory_that_never_answers_is_gone_around(node: Backend) -> None:
    with silent() as mute:
        retry = Retry(base_ms=50, fallback=url(node))
        async with connect(f"http://{mute.address}/connect", retry=retry, timeout=0.1) as client:
            await client.send("hello")
            assert await client.receive() == "hello"


async def test_a_directory_that_has_nowhere_is_asked_again(node: Backend) -> None:
    answers = [answer(503, {"error": "nothing is up", "retry": {"after_ms": 10}}) for _ in range(3)]
    with directory(lambda: answers.pop() if answers else found(url(node))) as running:
        async with connect(running.url, retry=SOON) as client:
            await client.send("hello")
            assert await client.receive() == "hello"
        assert len(running.asked) == 4


async def test_a_directory_that_refuses_is_final() -> None:
    with directory(lambda: answer(403)) as running:
        async with connect(running.url) as client:
            with pytest.raises(ConnectionEnded, match="403 the directory answers 403"):
                await client.receive()
            with pytest.raises(ConnectionEnded):
                await client.send("hello")


async def test_a_url_needs_no_directory() -> None:
    async with serving(echo) as address:
        async with connect(address) as client:
            await client.send(b"bytes")
            assert await client.receive() == b"bytes"
            with pytest.raises(TypeError, match="str or bytes"):
                await client.send(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [1000, 1008, 4001])
async def test_final_codes(code: int) -> None:
    async def talk(connection: WebSocketConnection) -> None:
        await connection.send_message("last words")
        await connection.aclose(code, "so it is")

    async with serving(talk) as address:
        async with connect(address) as client:
            told: list[str | bytes] = []
            ended: ConnectionEnded | None = None
            try:
                async for message in client:
                    told += [message]
            except ConnectionEnded as error:
                ended = error
            assert told == ["last words"]
            assert ended is None if code == 1000 else (ended.code, ended.reason) == (code, "so it is")


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
async def test_codes_that_are_not(code: int) -> None:
    connections = []

    async def talk(connection: WebSocketConnection) -> None:
        connections.append(connection)
        if len(connections) == 1:
            await connection.aclose(code)
        await echo(connection)

    async with serving(talk) as address:
        async with connect(address, retry=SOON) as client:
            while len(connections) < 2:
                await trio.lowlevel.checkpoint()
            await client.send("hello")
            assert await client.receive() == "hello"


async def test_what_is_final_can_be_told() -> None:
    async def talk(connection: WebSocketConnection) -> None:
        await connection.aclose(1011, "broken")

    async with serving(talk) as address:
        async with connect(address, final=lambda code, reason, usual: code == 1011) as client:
            with pytest.raises(ConnectionEnded, match="1011 broken"):
                await client.receive()


async def test_a_refused_handshake_is_final_or_not_by_its_status() -> None:
    async with serving(echo, refuse=[(503, [(b"Retry-After", b"0")]), (502, []), (403, [])]) as address:
        async with connect(address, retry=SOON) as client:
            with pytest.raises(ConnectionEnded, match="403 the handshake"):
                await client.receive()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x00\x01\x02",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nno WebSocket here",
    ],
)
async def test_who_ends_the_handshake_is_not_waited_for(said: bytes) -> None:
    """However long that would be allowed."""

    def hang_up(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(said)

    with server(hang_up) as running:
        retry = Retry(base_ms=10, max_ms=20)
        async with connect(f"ws://{running.address}/", retry=retry, timeout=math.inf) as client:
            await trio.to_thread.run_sync(until, lambda: running.served >= 3, "the third attempt")
            assert not client.connected


@pytest.mark.parametrize(
    "frame",
    [
        b"\xf1\x00",
        b"\x83\x00",
        b"\x81\x02\xff\xfe",
        b"\x81\x81\x00\x00\x00\x00a",
        b"\x80\x01a",
        b"\x81\xff",
        b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x82\x7f\x00\x00\x00\x00\x00\x20\x00\x00" + bytes(1 << 21),
        b"\x88\x01\x03",
        b"\x88\x02\x03\xed",
        b"\x89\x7e\x00\x80" + bytes(128),
    ],
)
async def test_frames_that_are_none_end_a_connection_and_no_more(frame: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        # The last one may leave before it has asked.
        with suppress(ValueError):
            connection.sendall(accepted(connection) + frame)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass

    with server(talk) as running:
        retry = Retry(base_ms=10, max_ms=20)
        async with connect(f"ws://{running.address}/", retry=retry) as client:
            await trio.to_thread.run_sync(until, lambda: running.served >= 3, "the third connection")
            assert client._end is None
            assert not client._unread


@pytest.mark.parametrize("turn", range(10))
async def test_a_whole_conversation_in_one_segment(turn: int) -> None:
    """Handshake, message, Close and end come at once: none of it is missed."""

    def talk(connection: socket.socket) -> None:
        close = b"\x88\x04" + (4001).to_bytes(2, "big") + b"no"
        connection.sendall(accepted(connection) + b"\x81\x05hello" + close)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass

    with server(talk) as running:
        async with connect(f"ws://{running.address}/") as client:
            assert await client.receive() == "hello"
            with pytest.raises(ConnectionEnded, match="4001 no"):
                await client.receive()


async def test_each_connection_is_greeted_before_anything_else_is_sent() -> None:
    got: list[list[str | bytes]] = []

    async def talk(connection: WebSocketConnection) -> None:
        mine: list[str | bytes] = []
        got.append(mine)
        while len(mine) < 2:
            mine.append(await connection.get_message())
        await connection.aclose(1001 if len(got) == 1 else 1000)

    async def greet(connection: WebSocketConnection) -> None:
        await connection.send_message("log in")

    async with serving(talk) as address:
        async with connect(address, retry=SOON, on_open=greet) as client:
            await client.send("1")
            while len(got) < 2:
                await trio.lowlevel.checkpoint()
            await client.send("2")
            assert [message async for message in client] == []
    assert got == [["log in", "1"], ["log in", "2"]]


async def test_a_send_that_is_cancelled_is_not_completed_by_what_follows() -> None:
    """Else the server would get a message that was never sent: its beginning, and the frames behind it."""
    size, reads = 64 << 20, threading.Event()
    got: list[bytes] = []
    lengths: list[int] = []

    def talk(connection: socket.socket) -> None:
        connection.sendall(accepted(connection))
        reads.wait(PATIENCE)
        head = connection.recv(2)
        length = 2
        with suppress(ConnectionResetError):
            while piece := connection.recv(1 << 20):
                length += len(piece)
        lengths.append(length)
        got.append(head)

    with server(talk) as running:
        async with connect(f"ws://{running.address}/", retry=SOON, heartbeat=None) as client:
            while not client.connected:
                await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, bytes(size))
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            assert not client.connected
            reads.set()
            await client.send("next")
            await trio.to_thread.run_sync(until, lambda: len(got) == 1, "the end of the first")
        await trio.to_thread.run_sync(until, lambda: len(got) == 2, "the end of the second")
    # A frame of 64 MiB, and on a connection of its own one of 4 bytes.
    assert got == [b"\x82\xff", b"\x81\x84"]
    assert lengths[0] < size


async def test_a_server_that_is_silent_is_left() -> None:
    """It answers no ping: its process is stopped."""
    with backends("websockets", "websockets") as (mute, other):
        answers = [url(mute)]
        with directory(lambda: found(*answers)) as running:
            async with connect(running.url, retry=SOON, heartbeat=0.2, timeout=1.0) as client:
                await client.send("hello")
                assert await client.receive() == "hello"
                mute.signal(signal.SIGSTOP)
                answers.append(url(other))
                while client.url == url(mute):
                    await trio.lowlevel.checkpoint()
                assert client.url == url(other)


async def test_a_client_that_is_slow_to_receive_loses_nothing(node: Backend) -> None:
    sent = [str(number) for number in range(200)]
    before = len(node.ended)
    async with connect(url(node)) as client:
        for message in sent:
            await client.send(message)
        while len(client._unread) < 16:
            await trio.lowlevel.checkpoint()
        # More do not come, however often it is looked.
        await trio.testing.wait_all_tasks_blocked()
        assert len(client._unread) == 16
        assert [await client.receive() for _ in sent] == sent
    await trio.to_thread.run_sync(until, lambda: len(node.ended) > before, "the end of the one connection")
    assert node.ended[before:] == [(1000, "")]


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    async with serving(echo) as address:
        with pytest.raises(KeyError, match="mine"):
            async with connect(address):
                raise KeyError("mine")
        group = ExceptionGroup("mine", [KeyError("one")])
        with pytest.raises(ExceptionGroup) as caught:
            async with connect(address):
                raise group
        assert caught.value is group


async def test_what_on_open_raises_ends_the_block() -> None:
    async def greet(connection: WebSocketConnection) -> None:
        raise KeyError("no password")

    async with serving(echo) as address:
        with pytest.raises(KeyError, match="no password"):
            async with connect(address, on_open=greet) as client:
                await client.receive()


async def test_closing_ends_all_that_wait() -> None:
    """With nobody there to connect to."""
    ended = []

    async def wait(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(ConnectionEnded):
            await call()
        ended.append(1000)

    with reserved() as nobody:
        async with connect(f"ws://{nobody}/") as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, client.receive)
                nursery.start_soon(wait, lambda: client.send("hello"))
                await trio.testing.wait_all_tasks_blocked()
                await client.aclose()
            assert ended == [1000, 1000]
            assert [message async for message in client] == []


async def test_a_url_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="not a URL"):
        async with connect("/connect"):
            pass


async def test_who_leaves_sees_the_closing_handshake_through(
    node: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also who is cancelled. Nobody is given up here: where the server's part went unseen this would hang."""
    monkeypatch.setattr(connection, "_LEAVING", math.inf)
    before = len(node.ended)
    async with connect(url(node)) as client:
        await client.send("hello")
    with trio.CancelScope() as scope:
        async with connect(url(node)) as client:
            await client.send("hello")
            scope.cancel()
            await client.receive()
    await trio.to_thread.run_sync(until, lambda: len(node.ended) >= before + 2, "both ends")
    assert node.ended[before:] == [(1000, "")] * 2


async def test_it_can_be_cancelled_at_any_time(node: Backend) -> None:
    with silent() as mute, directory(lambda: found(url(node))) as running:
        for where in (f"http://{mute.address}/", f"ws://{mute.address}/", running.url):
            with trio.move_on_after(0.1) as scope:
                async with connect(where) as client:
                    await client.receive()
            assert scope.cancelled_caught
