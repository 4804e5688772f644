"""Resets: whoever is cut off learns it, at once, whatever else goes on at that moment.

A socket tells its error once, to whichever call comes first. So a reader that sees an end was not lied to
if the writer on the same socket was told of the reset, and both must be listened to.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import select
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

from .net import (
    PATIENCE,
    Proxy,
    connect,
    payload,
    proxy,
    read_all,
    reset,
    served,
    server,
    until,
)

MB = 1 << 20
TRIALS = 100


def told(connection: socket.socket) -> set[type[OSError]]:
    """Send without a pause until a connection breaks, and read it to its end: the errors met by both."""
    connection.settimeout(PATIENCE)
    errors: set[type[OSError]] = set()
    ended = threading.Event()

    def send() -> None:
        try:
            while not ended.is_set():
                connection.send(bytes(4096))
        except OSError as error:
            errors.add(type(error))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        read_all(connection)
    except OSError as error:
        errors.add(type(error))
    ended.set()
    sender.join()
    return errors


def all_reasons(balancer: Proxy, count: int) -> Counter[str]:
    until(lambda: len(balancer.log()) >= count, f"{count} records")
    return Counter(balancer.reasons())


def test_93_a_backends_reset_is_never_an_end_for_a_client_that_is_sending() -> None:
    rng = random.Random(93)

    def break_off(connection: socket.socket) -> None:
        connection.sendall(b"partial answer")
        for _ in range(rng.randrange(1, 20)):
            connection.recv(1 << 16)
        reset(connection)

    with server(break_off) as backend, proxy([backend]) as balancer:
        for _ in range(TRIALS):
            with connect(balancer.address) as client:
                assert ConnectionResetError in told(client)
        assert all_reasons(balancer, TRIALS) == {"backend-reset": TRIALS}


def test_a_clients_reset_is_never_an_end_for_a_backend_that_is_sending() -> None:
    rng = random.Random(1)
    seen: queue.SimpleQueue[set[type[OSError]]] = queue.SimpleQueue()
    with server(lambda connection: seen.put(told(connection))) as backend, proxy([backend]) as balancer:
        for _ in range(TRIALS):
            client = connect(balancer.address)
            client.sendall(b"an order")
            for _ in range(rng.randrange(1, 8)):
                client.recv(1 << 16)
            reset(client)
            assert ConnectionResetError in seen.get(timeout=PATIENCE)
        assert all_reasons(balancer, TRIALS) == {"client-reset": TRIALS}


def broken(connection: socket.socket) -> int:
    """Wait until a connection that was read to its end is broken as well; its error."""
    poller = select.poll()
    # For nothing, so for errors and hang-ups only.
    poller.register(connection, 0)
    poller.poll(PATIENCE * 1000 / 3)
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@pytest.mark.parametrize("who", ["client", "backend"])
def test_a_reset_after_an_end_is_passed_on_at_once(who: str) -> None:
    """Half-closed connections have no deadline here. The other side has nothing to say and would wait for
    ever."""
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended = threading.Event()

    def give_up(connection: socket.socket) -> None:
        connection.sendall(b"that is all")
        connection.shutdown(socket.SHUT_WR)
        assert ended.wait(PATIENCE)
        reset(connection)

    def wait(connection: socket.socket) -> None:
        assert read_all(connection) == b"that is all"
        ended.set()
        seen.put(broken(connection))

    on_client, on_backend = (give_up, wait) if who == "client" else (wait, give_up)
    with server(on_backend) as backend, proxy([backend], pool={"half_closed_timeout": 0.0}) as balancer:
        with contextlib.closing(connect(balancer.address)) as client:
            on_client(client)
            assert seen.get(timeout=PATIENCE)
            assert all_reasons(balancer, 1) == {f"{who}-reset": 1}


def fill(connection: socket.socket) -> None:
    """Send until nothing fits any more: neither here nor in the balancer nor at the other side."""
    connection.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while True:
            connection.send(bytes(MB))


def sockets_of_workers() -> int:
    """How many are open in the workers' own tables of descriptors."""
    return sum(
        os.readlink(file).startswith("socket:")
        for task in Path("/proc/self/task").iterdir()
        if (task / "comm").read_text().startswith("pybalancer-")
        for file in (task / "fd").iterdir()
    )


def test_91_both_reset_at_once_while_both_are_blocked() -> None:
    """The balancer holds bytes for both, in pipes, and neither is left to take them."""
    full: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
    both = threading.Barrier(2)

    def fill_and_reset(connection: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            fill(connection)
            full.put(connection)
            both.wait(PATIENCE)
        reset(connection)

    def backend_of_many(connection: socket.socket) -> None:
        if connection.recv(5, socket.MSG_PEEK) == b"hello":
            connection.sendall(connection.recv(5))
        else:
            fill_and_reset(connection)

    with server(backend_of_many) as backend, proxy([backend]) as balancer:
        at_rest = sockets_of_workers()
        for number in range(1, 4):
            client = connect(balancer.address)
            client.send(bytes(5))
            fill_and_reset(client)
            assert all_reasons(balancer, number).keys() <= {"client-reset", "backend-reset"}
        assert balancer.engine.active() == 0
        assert sockets_of_workers() == at_rest
        assert served(balancer.address)


@pytest.mark.parametrize("who", ["client", "backend"])
def test_93_a_reset_after_a_half_close_with_bytes_in_a_pipe(who: str) -> None:
    """One side floods the other, says that it has ended, and breaks off while most of it is under way. The
    other reads only then: what comes is a beginning of it, and no end."""
    sent = payload(128 * MB)
    gone = threading.Event()
    seen: queue.SimpleQueue[tuple[bytes, bool]] = queue.SimpleQueue()

    def flood(connection: socket.socket) -> None:
        connection.settimeout(0.2)
        left = memoryview(sent)
        with contextlib.suppress(TimeoutError):
            while left:
                left = left[connection.send(left) :]
        assert left, "all of it found room"
        connection.shutdown(socket.SHUT_WR)
        reset(connection)
        gone.set()

    def read_late(connection: socket.socket) -> None:
        assert gone.wait(PATIENCE)
        connection.settimeout(PATIENCE)
        got = bytearray()
        try:
            while part := connection.recv(1 << 16):
                got += part
        except ConnectionResetError:
            seen.put((bytes(got), True))
        else:
            seen.put((bytes(got), False))

    on_client, on_backend = (flood, read_late) if who == "client" else (read_late, flood)
    with server(on_backend) as backend, proxy([backend]) as balancer:
        with contextlib.closing(connect(balancer.address)) as client:
            on_client(client)
            got, was_reset = seen.get(timeout=PATIENCE)
        assert was_reset
        assert sent.startswith(got)
        assert all_reasons(balancer, 1) == {f"{who}-reset": 1}
