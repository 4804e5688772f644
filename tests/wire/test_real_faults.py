"""Real servers that die, stop reading, or are sent a bomb: what clients see, and that nobody else does."""

from __future__ import annotations

import json
import select
import signal
import threading
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path

import pytest

from .backends import Backend, backends
from .clients import ABNORMAL, CLIENTS, Client, client
from .front import Front, configuration
from .net import payload, sha, until
from .rfc6455 import BINARY, DEFLATE, Closed, Lost, RawWebSocket, deflate, frame
from .serving import Serve

MB = 1 << 20


def begin(serve: Serve, directory: Path, servers: list[Backend]) -> Front:
    file = directory / "pybalancer.toml"
    file.write_text(configuration(servers))
    return Front(serve(file), servers)


async def server_of(connection: Client) -> str:
    """Exchange a message; who answered."""
    await connection.send(b"who is there")
    report = json.loads(await connection.receive())
    assert await connection.receive() == b"who is there"
    assert report["sha256"] == sha(b"who is there")
    return report["server"]  # type: ignore[no-any-return]


@cache
def binary(size: int) -> bytes:
    return payload(size)


@cache
def bomb(size: int) -> bytes:
    return deflate(bytes(size))


class HalfSent:
    """A client in the middle of a message to the server."""

    def __init__(self, connection: RawWebSocket) -> None:
        self.connection = connection
        self.message = binary(4 * MB)
        self._frame = frame(BINARY, self.message)
        connection.send_bytes(self._frame[: 2 * MB])

    def finish(self) -> None:
        self.connection.send_bytes(self._frame[2 * MB :])
        assert json.loads(self.connection.receive())["sha256"] == sha(self.message)
        assert self.connection.receive() == self.message
        assert self.connection.close() == 1000

    def finish_in_vain(self) -> None:
        # A killed process ends its connections as if it had finished; only what is sent to it after that
        # is answered with a reset. So more than the message is sent, for as long as it takes.
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012
            while True:
                self.connection.send_bytes(bytes(1 << 16))


class HalfReceived:
    """A client in the middle of a message from the server, larger than all buffers between them."""

    def __init__(self, connection: RawWebSocket) -> None:
        self.connection = connection
        self.message = binary(32 * MB)
        connection.send(self.message)
        assert json.loads(connection.receive())["sha256"] == sha(self.message)

    def finish(self) -> None:
        assert self.connection.receive() == self.message
        assert self.connection.close() == 1000

    def finish_in_vain(self) -> None:
        with pytest.raises((Lost, ConnectionResetError)):
            self.connection.receive()
        assert self.connection.received < len(self.message)


@pytest.mark.parametrize("victim", ["websockets", "autobahn", "uvicorn"])
async def test_a_server_killed_in_mid_message(serve: Serve, tmp_path: Path, victim: str) -> None:
    with backends("websockets", "autobahn", "uvicorn") as servers:
        front = begin(serve, tmp_path, servers)
        async with AsyncExitStack() as stack:
            talking: dict[str, list[Client]] = {server.name: [] for server in servers}
            for kind in CLIENTS:
                missing = set(talking)
                while missing:
                    connection = await stack.enter_async_context(client(kind, front.address))
                    server = await server_of(connection)
                    talking[server].append(connection)
                    missing.discard(server)
            half_sent = {name: HalfSent(front.raw(name)) for name in talking}
            half_received = {name: HalfReceived(front.raw(name, receive_buffer=1 << 16)) for name in talking}

            front.servers[victim].signal(signal.SIGKILL)
            front.servers[victim].process.wait()

            # Its own clients see an abort, each in its way: never Close, never a message that is not whole.
            half_sent[victim].finish_in_vain()
            assert front.record(half_sent[victim].connection)["reason"] == "backend-reset"
            half_received[victim].finish_in_vain()
            for connection in talking.pop(victim):
                assert await connection.end() == (ABNORMAL, "")
            # The others go on where they were.
            for name, connections in talking.items():
                half_sent[name].finish()
                half_received[name].finish()
                for connection in connections:
                    assert await server_of(connection) == name

        # New ones that would have been its own go to their next choice, at first because it refuses them.
        assert front.record(newcomer(front, victim))["tries"] == 2
        until(
            lambda: newcomer(front, victim) and front.backends()[victim]["state"] == "down",
            "that it counts as down",
        )
        assert front.record(newcomer(front, victim))["tries"] == 1
        assert {front.backends()[name]["state"] for name in talking} == {"up"}


def newcomer(front: Front, victim: str) -> RawWebSocket:
    """A client whose first choice is dead."""
    with front.raw(victim) as connection:
        connection.send(b"hello")
        assert json.loads(connection.receive())["server"] == front.order(connection.local)[1]
    return connection


def buffers_between() -> int:
    """The most that the kernel's buffers hold on the way from a client to a server."""
    most = [
        int(Path(f"/proc/sys/net/ipv4/tcp_{name}").read_text().split()[2])
        for name in ("wmem", "rmem", "wmem", "rmem")
    ]
    return sum(most) + int(Path("/proc/sys/fs/pipe-max-size").read_text())


def push(connection: RawWebSocket, data: memoryview) -> int:
    """Send until the other side holds back; how much it took."""
    poll = select.poll()
    poll.register(connection.socket, select.POLLOUT)
    connection.socket.setblocking(False)
    taken = 0
    # A second without room is no pause between two readers: nobody reads.
    while taken < len(data) and poll.poll(1000):
        taken += connection.socket.send(data[taken : taken + MB])
    connection.socket.settimeout(60)
    connection.sent += taken
    return taken


def test_a_server_that_does_not_read_holds_its_client_back(serve: Serve, tmp_path: Path) -> None:
    message = binary(16 * MB)
    everything = memoryview(frame(BINARY, message) * 16)
    with backends("websockets", "autobahn") as servers:
        front = begin(serve, tmp_path, servers)
        with front.raw("websockets", "/digest") as pushing, front.raw("autobahn") as other:
            before = front.forget_peak()
            front.servers["websockets"].signal(signal.SIGSTOP)
            taken = push(pushing, everything)
            assert taken < buffers_between() < len(everything)
            other.send(b"not held back")
            assert json.loads(other.receive())["server"] == "autobahn"
            assert front.peak() - before < 8 * MB

            front.servers["websockets"].signal(signal.SIGCONT)
            rest = threading.Thread(target=pushing.send_bytes, args=(everything[taken:],))
            rest.start()
            for _ in range(16):
                assert json.loads(pushing.receive())["sha256"] == sha(message)
            rest.join()
            assert pushing.close() == 1000
        record = front.record(pushing)
        assert (record["reason"], record["bytes_to_backend"]) == ("finished", pushing.sent)
        assert front.peak() - before < 8 * MB


@pytest.mark.parametrize("server", ["websockets", "uvicorn"])
def test_86_a_deflate_bomb_passes_as_it_is(serve: Serve, tmp_path: Path, server: str) -> None:
    """A thousand times smaller on the wire than in the server, which refuses it by its own limit."""
    assert len(bomb(128 * MB)) < MB // 4
    with backends(server, options=("--largest", MB)) as servers:
        front = begin(serve, tmp_path, servers)
        before = front.forget_peak()
        with front.raw(server, extensions=DEFLATE) as connection:
            connection.send_frame(BINARY, bomb(128 * MB), compressed=True)
            with pytest.raises(Closed) as closed:
                connection.receive()
            assert closed.value.code == 1009
        assert front.record(connection)["bytes_to_backend"] == connection.sent
        assert front.peak() - before < 2 * MB


def test_86_a_deflate_bomb_comes_back_as_it_is(serve: Serve, tmp_path: Path) -> None:
    message = bytes(64 * MB)
    with backends("websockets") as servers:
        front = begin(serve, tmp_path, servers)
        before = front.forget_peak()
        with front.raw("websockets", extensions=DEFLATE) as connection:
            connection.send_frame(BINARY, bomb(len(message)), compressed=True)
            assert json.loads(connection.receive())["sha256"] == sha(message)
            assert connection.receive() == message
            assert connection.close() == 1000
        record = front.record(connection)
        assert (record["bytes_to_backend"], record["bytes_to_client"]) == (
            connection.sent,
            connection.received,
        )
        assert connection.received < MB
        assert front.peak() - before < 2 * MB
