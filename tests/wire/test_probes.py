"""Probes against real servers, good and bad: what they find, and why; and that they leave nothing."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import uvicorn

from pybalancer.policy.settings import Check
from pybalancer.tasks.probes import MOST_BYTES, probe

from .answers import (
    QUICK,
    Kind,
    ask,
    asked,
    closes_at_once,
    closes_without_an_answer,
    found,
    never_answers,
    opens,
    pongs,
    request_of,
    resets_at_once,
    resets_instead_of_an_answer,
    says,
    says_and_closes,
    talks_for_ever,
    wait_for_end,
)
from .namespace import namespace, needs_namespaces
from .net import PATIENCE, Handler, Server, connect, reserved, reset, server, text_of, until


async def test_a_refusal_may_be_a_sign_of_life() -> None:
    with reserved() as address:
        assert not (await probe(Check(), address)).ok
        there = await probe(Check(refused=True), address)
    assert (there.ok, there.reason) == (True, "connection refused")
    # Nobody is at an address without a route.
    with namespace() as alone, alone.inside():
        assert not (await probe(Check(refused=True), "192.0.2.1:80")).ok


# Where it is.


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "[::1]:0", "unix:@pybalancer-test-{pid}", "unix:{tmp}/app"]
)
async def test_every_kind_of_address(address: str, tmp_path: Path) -> None:
    answer = b"HTTP/1.1 204 No Content\r\n\r\n"
    if address.startswith("unix:@"):
        name = address.format(pid=os.getpid()).removeprefix("unix:@")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(b"\0" + name.encode())
        listener.listen()
        with listener:
            assert await ask("tcp", f"unix:@{name}") == found(True, "connected")
        return
    with server(says(answer), address.format(tmp=tmp_path)) as backend:
        assert await ask("tcp", backend.address) == found(True, "connected")
        assert await ask("http", backend.address) == found(True, "HTTP 204")


KINDS = ["tcp", "http", "websocket"]


@pytest.mark.parametrize("kind", KINDS)
async def test_nobody_listens(kind: Kind, tmp_path: Path) -> None:
    with reserved() as address:
        assert await ask(kind, address) == found(False, "connection refused")
    assert await ask(kind, f"unix:{tmp_path}/nobody") == found(False, "no such file or directory")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
        assert await ask(kind, f"unix:{tmp_path}/dead") == found(False, "connection refused")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_no_longer_accepts(kind: Kind) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        # Its queue is full when the kernel lets connects hang.
        waiting: list[socket.socket] = []
        until(lambda: not fits(listener, waiting), "a full accept queue")
        started = time.monotonic()
        address = text_of(listener.getsockname())
        assert await ask(kind, address, timeout=QUICK) == found(False, "no answer within 0.3s")
        assert time.monotonic() - started >= QUICK
        for client in waiting:
            client.close()


def fits(listener: socket.socket, waiting: list[socket.socket]) -> bool:
    client = socket.socket()
    client.settimeout(0.2)
    waiting.append(client)
    try:
        client.connect(listener.getsockname())
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
async def test_a_unix_socket_that_no_longer_accepts(kind: Kind, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "full"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            first.connect(str(tmp_path / "full"))
            second.setblocking(False)
            with pytest.raises(BlockingIOError):
                second.connect(str(tmp_path / "full"))
            assert await ask(kind, f"unix:{tmp_path}/full") == found(False, "its accept queue is full")


# What any kind meets.


async def test_that_it_connects_is_enough_for_tcp() -> None:
    for handler in (never_answers, closes_at_once, says(b"garbage")):
        assert await asked("tcp", handler) == found(True, "connected")


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("handler", "reasons"),
    [
        (never_answers, ["no answer within 0.3s"]),
        # Who writes to a closed socket may be told so before it reads.
        (closes_at_once, ["closed without an answer", "connection reset by peer", "broken pipe"]),
        (closes_without_an_answer, ["closed without an answer"]),
        (resets_at_once, ["connection reset by peer", "broken pipe"]),
        (resets_instead_of_an_answer, ["connection reset by peer"]),
    ],
)
async def test_no_answer(kind: Kind, handler: Handler, reasons: list[str]) -> None:
    timeout = QUICK if handler is never_answers else PATIENCE
    result = await asked(kind, handler, timeout=timeout)
    assert not result.ok
    assert not result.ours
    assert result.reason in reasons
    assert result.seconds >= (QUICK if handler is never_answers else 0.0)


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xff" * 100,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nContent",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n no colon\r\n\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    ],
)
async def test_nonsense_is_no_answer(kind: Kind, answer: bytes) -> None:
    result = await asked(kind, says_and_closes(answer))
    assert not result.ok
    assert result.reason.startswith("no HTTP: " if kind == "http" else "no WebSocket: ")
    assert "\n" not in result.reason


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_head_without_end_is_cut_short(kind: Kind) -> None:
    sent: list[int] = []
    result = await asked(kind, talks_for_ever(b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 997 + b"\r\n", sent))
    assert not result.ok
    # What it read, and what lay in the kernel's buffers meanwhile.
    assert sum(sent) < 100 * MOST_BYTES


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_the_deadline_is_for_all_of_it(kind: Kind) -> None:
    """One byte now and then is no progress (bad input 24)."""
    done = threading.Event()

    def dribbles(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not done.wait(QUICK / 10):
            connection.sendall(b"x")

    result = await asked(kind, dribbles, timeout=QUICK)
    done.set()
    assert result == found(False, "no answer within 0.3s")
    assert result.seconds < 10 * QUICK


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_probe_can_be_cancelled(kind: Kind) -> None:
    with server(never_answers) as backend:
        with trio.move_on_after(0.05) as scope:
            await ask(kind, backend.address)
        assert scope.cancelled_caught
        until(lambda: backend.served and not backend.live, "the end of the connection")


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Whatever comes of a probe, it closes what it opened."""
    handlers = [
        never_answers,
        closes_at_once,
        resets_at_once,
        says(b"nonsense"),
        says(b"HTTP/1.1 200 OK\r\n\r\n"),
    ]
    servers = [Server(handler) for handler in handlers]
    before = len(os.listdir("/proc/self/fd"))
    async with trio.open_nursery() as nursery:
        for backend in servers:
            for kind in KINDS:
                for _ in range(10):
                    nursery.start_soon(lambda kind, at: ask(kind, at, timeout=QUICK), kind, backend.address)
    for backend in servers:
        until(lambda backend=backend: not backend.live, "the end of the connections")
    until(lambda: len(os.listdir("/proc/self/fd")) <= before, "as many descriptors as before")
    for backend in servers:
        backend.close()


# http.


class App:
    """A uvicorn server: the path is the status. ``seen`` has the headers of the last request."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self.listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(self, lifespan="off", log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self.server.serve([self.listener])), daemon=True
        )
        self.thread.start()
        self.address = text_of(self.listener.getsockname())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.seen = {name.decode(): value.decode() for name, value in scope["headers"]}
        assert len(self.seen) == len(scope["headers"]), "no header comes twice"
        self.seen["target"] = scope["path"] + "?" + scope["query_string"].decode()
        status = int(scope["path"].rpartition("/")[2])
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        self.listener.close()


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    running = App()
    yield running
    running.close()


@pytest.mark.parametrize(
    ("status", "ok"),
    [
        (200, True),
        (204, True),
        (301, True),
        (399, True),
        (400, False),
        (404, False),
        (500, False),
        (503, False),
    ],
)
async def test_the_status_decides(app: App, status: int, ok: bool) -> None:
    assert await ask("http", app.address, path=f"/{status}") == found(ok, f"HTTP {status}")


async def test_other_statuses_may_be_expected(app: App) -> None:
    for status, ok in ((200, False), (401, True), (418, False), (429, True), (431, True), (432, False)):
        check = {"path": f"/{status}", "expect": ((401, 401), (429, 431))}
        assert await ask("http", app.address, **check) == found(ok, f"HTTP {status}")


async def test_what_is_asked(app: App) -> None:
    assert (await ask("http", app.address, path="/200?deep=1")).ok
    assert app.seen == {
        "host": app.address,
        "connection": "close",
        "user-agent": "pybalancer",
        "target": "/200?deep=1",
    }
    headers = (("X-Probe", "yes"), ("User-Agent", "kube-probe/1.27"))
    assert (await ask("http", app.address, path="/200", host="app.example", headers=headers)).ok
    assert app.seen["host"] == "app.example"
    assert app.seen["x-probe"] == "yes"
    assert app.seen["user-agent"] == "kube-probe/1.27"


@pytest.mark.parametrize(
    ("said", "load"),
    [
        ("", None),
        ("Pybalancer-Load: 0.7", 0.7),
        ("pybalancer-load:\t1", 1.0),
        ("Pybalancer-Load: 0", 0.0),
        ("Pybalancer-Load: 17.25", 17.25),
        ("Pybalancer-Load: 0.5\r\nPybalancer-Load: 0.9", 0.5),
        *[
            (f"Pybalancer-Load: {text}", None)
            for text in ("", "x", "-1", "nan", "1e3", ".5", "5.", "70%", "1" * 9)
        ],
        *[(f"Pybalancer-Load: {text}", None) for text in ("0.7, 0.9", "+1", "0x1", "inf", "1_0")],
    ],
)
async def test_a_backend_may_say_how_busy_it_is(said: str, load: float | None) -> None:
    """What is no number says nothing, and is no reason to call the backend ill."""
    head = "\r\n".join(line for line in ("HTTP/1.1 200 OK", "Content-Length: 0", said) if line)
    result = await asked("http", says(f"{head}\r\n\r\n".encode()))
    assert (result.ok, result.load) == (True, load)
    ill = await asked("http", says(f"{head}\r\n\r\n".replace("200", "503").encode()))
    assert (ill.ok, ill.load) == (False, None)


async def test_the_host_is_one_that_servers_accept(tmp_path: Path) -> None:
    for address, host in (("[::1]:0", "[::1]:"), (f"unix:{tmp_path}/app", "localhost\r\n")):
        requests: list[bytes] = []

        def handler(connection: socket.socket, requests: list[bytes] = requests) -> None:
            requests.append(request_of(connection))
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        with server(handler, address) as backend:
            assert (await ask("http", backend.address)).ok
        assert f"\r\nHost: {host}".encode() in requests[0]


async def test_answers_before_the_answer_are_passed_over() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    assert await asked("http", says(early, early, b"HTTP/1.1 200 OK\r\n\r\n")) == found(True, "HTTP 200")
    assert await asked("http", says(early, b"HTTP/1.1 503 No\r\n\r\n")) == found(False, "HTTP 503")
    assert await asked("http", says_and_closes(early)) == found(False, "closed without an answer")


async def test_early_answers_without_end_end_at_the_deadline() -> None:
    handler = talks_for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10, [])
    assert await asked("http", handler, timeout=QUICK) == found(False, "no answer within 0.3s")


async def test_a_body_without_end_is_not_read() -> None:
    sent: list[int] = []
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"
    assert await asked("http", talks_for_ever(head, bytes(1 << 16), sent)) == found(True, "HTTP 200")
    assert sum(sent) < 1 << 27


# The PROXY protocol.


@pytest.mark.parametrize(
    ("version", "header"),
    [("v1", b"PROXY UNKNOWN\r\n"), ("v2", b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")],
)
async def test_a_backend_that_expects_a_proxy_header_gets_one(version: str, header: bytes) -> None:
    wrong: list[bytes] = []

    def behind(then: Handler) -> Handler:
        def handler(connection: socket.socket) -> None:
            came = connection.recv(len(header), socket.MSG_WAITALL)
            if came != header:
                wrong.append(came)
            else:
                then(connection)

        return handler

    ok = says(b"HTTP/1.1 200 OK\r\n\r\n")
    for kind, then in (("http", ok), ("websocket", opens(pongs()))):
        assert (await asked(kind, behind(then), send_proxy=version)).ok
        assert not (await asked(kind, behind(then))).ok
    assert len(wrong) == 2
    with server(behind(wait_for_end)) as backend:
        assert (await ask("tcp", backend.address, send_proxy=version)).ok
        until(lambda: backend.served and not backend.live, "the end of the connection")
    assert len(wrong) == 2


# What is our own fault.


@pytest.mark.parametrize("kind", KINDS)
async def test_80_without_a_descriptor_nothing_is_known(kind: Kind) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with server() as backend:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            result = await ask(kind, backend.address)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert result == found(False, "too many open files", ours=True)
        assert (await ask("tcp", backend.address)).ok


@needs_namespaces
async def test_81_without_an_outgoing_port_nothing_is_known() -> None:
    with namespace() as machine, machine.inside(), server() as backend:
        machine.set("ipv4/ip_local_port_range", "40000 40001")
        with connect(backend.address), connect(backend.address):
            result = await ask("tcp", backend.address)
        assert result == found(False, "cannot assign requested address", ours=True)


@needs_namespaces
async def test_a_connection_to_itself_is_none() -> None:
    """Where nobody listens, a connect within the ephemeral range may by chance reach its own socket."""
    with namespace() as machine, machine.inside():
        machine.set("ipv4/ip_local_port_range", "40000 40000")
        itself = connect("127.0.0.1:40000")
        assert itself.getsockname() == itself.getpeername()
        reset(itself)
        assert await ask("tcp", "127.0.0.1:40000") == found(False, "connection refused")
