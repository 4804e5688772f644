"""Every byte: what one side sent arrives, or the other sees an abort, never a clean end that lies."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from .net import (
    Server,
    connect,
    payload,
    processor_time,
    proxy,
    read_all,
    read_exactly,
    reset,
    server,
    sha,
    until,
)

MB = 1 << 20
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [0, 1, 1000, 65535, 65536, 65537, MB, 16 * MB])
def test_both_ways_equal(size: int) -> None:
    sent = payload(size)
    with server() as backend, proxy([backend]) as balancer, connect(balancer.address) as client:
        writer = threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)))
        writer.start()
        assert sha(read_all(client)) == sha(sent)
        writer.join()
        line = until(balancer.log)[0]
        assert (line["reason"], line["bytes_to_backend"], line["bytes_to_client"]) == ("finished", size, size)


def test_the_server_may_speak_first() -> None:
    with server(lambda c: c.sendall(b"220 ready\r\n")) as backend, proxy([backend]) as balancer:
        assert read_all(connect(balancer.address)) == b"220 ready\r\n"


@pytest.mark.parametrize("v6", [False, True])
def test_addresses_of_every_kind(v6: bool, tmp_path: Path) -> None:
    bind = "[::1]:0" if v6 else f"unix:{tmp_path}/front.sock"
    at = f"unix:{tmp_path}/back.sock" if v6 else "[::1]:0"
    with server(address=at) as backend, proxy([backend], bind=bind) as balancer:
        for _ in range(10):
            with connect(balancer.address) as client:
                client.sendall(b"hello")
                assert read_exactly(client, 5) == b"hello"


def test_a_dual_stack_listener_takes_ipv4_too() -> None:
    with server() as backend, proxy([backend], bind="[::]:0") as balancer:
        port = balancer.address.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            with connect(f"{host}:{port}") as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        clients = until(lambda: len(balancer.log()) == 2 and balancer.log())
        assert sorted(line["client"].rpartition(":")[0] for line in clients) == ["127.0.0.1", "[::1]"]


def test_87_client_half_closes_then_the_backend_sends_10_mb() -> None:
    answer = payload(10 * MB)

    def answer_at_the_end(connection: socket.socket) -> None:
        assert read_all(connection) == b"the question"
        connection.sendall(answer)

    with server(answer_at_the_end) as backend, proxy([backend]) as balancer:
        with connect(balancer.address) as client:
            client.sendall(b"the question")
            client.shutdown(socket.SHUT_WR)
            assert sha(read_all(client)) == sha(answer)
        assert until(balancer.reasons) == ["finished"]


def test_88_backend_writes_and_closes_for_a_slow_client() -> None:
    answer = payload(8 * MB)
    with server(lambda c: c.sendall(answer)) as backend, proxy([backend]) as balancer:
        client = connect(balancer.address, receive_buffer=4096)
        with client:
            until(lambda: (backend.served and not backend.live) or balancer.engine.active(), "the connection")
            got = read_all(client, pause=lambda: time.sleep(0.0005))
        assert sha(got) == sha(answer)


def test_89_a_half_closed_peer_makes_no_busy_loop() -> None:
    hold = threading.Event()
    with (
        server(lambda c: (c.shutdown(socket.SHUT_WR), hold.wait(20))) as backend,
        proxy([backend]) as balancer,
    ):
        with connect(balancer.address) as client:
            assert client.recv(1) == b""
            client.sendall(b"the body is not finished")
            before = processor_time()
            # Long enough for a loop to show: it would use all of it.
            time.sleep(1.0)
            assert processor_time() - before < 0.3
            hold.set()


def test_91_full_pipes_in_both_directions_do_not_starve() -> None:
    sent, back = payload(24 * MB, 1), payload(24 * MB, 2)

    def both(connection: socket.socket) -> None:
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(read_all(connection)))
        reader.start()
        connection.sendall(back)
        connection.shutdown(socket.SHUT_WR)
        reader.join()
        assert sha(received[0]) == sha(sent)
        verified.set()

    verified = threading.Event()
    with server(both) as backend, proxy([backend]) as balancer, connect(balancer.address) as client:
        writer = threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)))
        writer.start()
        assert sha(read_all(client)) == sha(back)
        writer.join()
        assert verified.wait(20)


def test_92_small_buffers_and_random_sizes() -> None:
    def narrow(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        while data := connection.recv(rng.randint(1, 70_000)):
            connection.sendall(data)

    rng = random.Random(92)
    with server(narrow) as backend, proxy([backend]) as balancer:
        for seed in range(6):
            sent = payload(rng.randint(1, 3 * MB), seed)
            with connect(balancer.address) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

                def write(client: socket.socket = client, sent: bytes = sent) -> None:
                    view = memoryview(sent)
                    while view:
                        view = view[client.send(view[: rng.randint(1, 100_000)]) :]
                    client.shutdown(socket.SHUT_WR)

                writer = threading.Thread(target=write)
                writer.start()
                assert sha(read_all(client)) == sha(sent)
                writer.join()


@pytest.mark.parametrize("after", [0, 1000, 5 * MB])
def test_93_a_reset_by_the_backend_is_a_reset_for_the_client(after: int) -> None:
    def break_off(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(payload(after))
        reset(connection)

    with server(break_off) as backend, proxy([backend]) as balancer, connect(balancer.address) as client:
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_all(client)
        assert until(balancer.reasons) == ["backend-reset"]


def test_a_reset_by_the_client_reaches_the_backend() -> None:
    seen = threading.Event()

    def expect_reset(connection: socket.socket) -> None:
        try:
            read_all(connection)
        except ConnectionResetError:
            seen.set()

    with server(expect_reset) as backend, proxy([backend]) as balancer:
        client = connect(balancer.address)
        client.sendall(b"x")
        until(lambda: backend.live)
        reset(client)
        assert seen.wait(10)
        assert until(balancer.reasons) == ["client-reset"]


def test_what_a_backend_said_before_it_broke_is_delivered() -> None:
    def refuse_politely(connection: socket.socket) -> None:
        # Closing with unread bytes in the buffer makes a reset: the answer before it still counts.
        connection.recv(1)
        connection.sendall(b"413 too much\r\n")
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    with (
        server(refuse_politely) as backend,
        proxy([backend]) as balancer,
        connect(balancer.address) as client,
    ):
        with contextlib.suppress(ConnectionError):
            client.sendall(payload(MB // 2))
        assert read_exactly(client, 14) == b"413 too much\r\n"


def test_82_many_spliced_streams_past_the_pipe_quota() -> None:
    """An unprivileged user may have 1024 small pipes (pipe-user-pages-soft); then pipes shrink, or
    bytes are copied. The relay runs as such a user here."""
    script = """
import os, sys, resource
os.setgid(65534); os.setuid(65534)
from tests.wire.net import *
backend = Server()
balancer = Proxy([backend])
sent = payload(3 << 20)
def one(results, index):
    with connect(balancer.address) as client:
        writer = threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)))
        writer.start()
        results[index] = sha(read_all(client, pause=lambda: time.sleep(0.001))) == sha(sent)
        writer.join()
results = [False] * 150
threads = [threading.Thread(target=one, args=(results, index)) for index in range(150)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(results))
balancer.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    if "PermissionError" in done.stderr or "ModuleNotFoundError" in done.stderr:
        # The checkout lies where only root may look: the quota is root's then, which has none.
        script = script.replace("os.setgid(65534); os.setuid(65534)", "")
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
        )
    assert done.stdout.strip() == "150", done.stderr


def test_96_sigpipe_at_its_default_does_not_kill() -> None:
    """A host may reset SIGPIPE; splice to a dead peer raises it whatever the flags."""
    script = """
import signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from tests.wire.net import *
with proxy([sys.argv[1]]) as balancer:
    for round in range(20):
        client = connect(balancer.address)
        read_exactly(client, 3 << 20)
        reset(client)
    until(lambda: len(balancer.reasons()) == 20)
    print("alive")
"""

    def pour(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(MB))

    with server(pour) as backend:
        done = subprocess.run(
            [sys.executable, "-c", script, backend.address],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr


def test_idle_and_half_closed_timeouts() -> None:
    hold = threading.Event()

    def stay(connection: socket.socket) -> None:
        connection.recv(1)
        hold.wait(20)

    with (
        server(stay) as backend,
        proxy([backend], pool={"idle_timeout": 0.3, "half_closed_timeout": 0.2}) as balancer,
    ):
        idle = connect(balancer.address)
        with pytest.raises(ConnectionResetError):
            read_all(idle)
        half = connect(balancer.address)
        half.sendall(b"x")
        half.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            read_all(half)
        reasons = until(lambda: len(balancer.reasons()) == 2 and balancer.reasons())
        assert reasons == ["idle-timeout", "half-closed-timeout"]
        hold.set()


def test_traffic_keeps_an_idle_timeout_away() -> None:
    with server() as backend, proxy([backend], pool={"idle_timeout": 0.5}) as balancer:
        with connect(balancer.address) as client:
            for _ in range(12):
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                time.sleep(0.1)
        assert until(balancer.reasons) == ["finished"]


def test_hundreds_of_tunnels_at_once() -> None:
    with server() as one, server() as two, proxy([one, two], workers=2) as balancer:
        clients = [connect(balancer.address) for _ in range(400)]
        for index, client in enumerate(clients):
            client.sendall(index.to_bytes(4))
        for index, client in enumerate(clients):
            assert int.from_bytes(read_exactly(client, 4)) == index
        assert balancer.engine.active() == 400
        assert one.served + two.served == 400
        assert min(one.served, two.served) > 120
        for client in clients:
            client.close()
        until(lambda: balancer.engine.active() == 0)


def _unused(backend: Server) -> str:
    address = backend.address
    backend.close()
    return address


def test_a_dead_backend_is_passed_over_and_told_of() -> None:
    with server() as alive:
        dead = _unused(Server())
        with proxy([dead, alive]) as balancer:
            for _ in range(40):
                with connect(balancer.address) as client:
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"
            failures = until(lambda: balancer.events("connect-failed"))
            assert {(event.pool, event.backend) for event in failures} == {("pool", "b0")}
            assert "refused" in (failures[0].message or "")
