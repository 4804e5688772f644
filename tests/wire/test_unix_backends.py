"""Backends on Unix sockets. They differ from TCP where it hurts: a connect is over at once, and a full queue
refuses it; an end hangs up in both directions."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from pybalancer.stats.reader import Stats

from .net import PATIENCE, proxy, read_all, refused, served, server, text_of, to, until


@contextlib.contextmanager
def listening(path: Path, backlog: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen(backlog)
        yield unix


def at_once(stack: ExitStack, address: str, count: int) -> list[socket.socket]:
    """So many clients at the same moment."""
    family, where = to(address)
    clients = [stack.enter_context(socket.socket(family)) for _ in range(count)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(where)
    for client in clients:
        client.settimeout(PATIENCE)
    return clients


def answer(unix: socket.socket, count: int) -> None:
    """Greet so many clients, one after the other, and close."""
    for _ in range(count):
        connection, _ = unix.accept()
        connection.sendall(b"hello")
        connection.close()


def test_one_that_answers_and_closes_at_once_took_the_connection(tmp_path: Path) -> None:
    """It has hung up before the balancer looks whether the connect is over."""
    with listening(tmp_path / "back.sock", 1024) as unix, ExitStack() as stack:
        rounds, burst = 10, 100
        answering = threading.Thread(target=answer, args=(unix, rounds * burst), daemon=True)
        answering.start()
        with proxy([text_of(unix.getsockname())], pool={"tries": 1}) as balancer:
            for _ in range(rounds):
                clients = at_once(stack, balancer.address, burst)
                assert [read_all(client) for client in clients] == [b"hello"] * burst
            answering.join()
            assert balancer.events("connect-failed") == []


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    """Nobody is accepted until all but those in the queue wait at the balancer."""
    count, backlog = 100, 8
    with listening(tmp_path / "back.sock", backlog) as unix, ExitStack() as stack:
        balancer = stack.enter_context(proxy([text_of(unix.getsockname())]))
        stats = stack.enter_context(Stats(fd=balancer.engine.stats_fd))
        clients = at_once(stack, balancer.address, count)
        # The kernel lets in one more than it was told.
        until(lambda: stats.workers()[0].waiting == count - backlog - 1)
        answering = threading.Thread(target=answer, args=(unix, count), daemon=True)
        answering.start()
        assert [read_all(client) for client in clients] == [b"hello"] * count
        answering.join()
        assert balancer.events("connect-failed") == []
        for client in clients:
            client.close()
        until(lambda: len(balancer.log()) == count)
        assert set(balancer.reasons()) == {"finished"}


@contextlib.contextmanager
def crowded(path: Path) -> Iterator[str]:
    """The address of one that accepts nobody, and whose queue is full."""
    with listening(path, backlog=0) as unix, socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        yield text_of(unix.getsockname())


def test_a_full_queue_passes_clients_on_to_others(tmp_path: Path) -> None:
    with crowded(tmp_path / "full.sock") as full, server(address=f"unix:{tmp_path}/back.sock") as backend:
        # Every other client is to go to the first.
        with proxy([full, backend], pool={"policy": "round-robin", "tries": 1}) as balancer:
            assert all(served(balancer.address) for _ in range(10))
            assert backend.served == 10


def test_a_queue_that_stays_full_is_waited_for_as_long_as_a_connect(tmp_path: Path) -> None:
    with crowded(tmp_path / "full.sock") as full, proxy([full], pool={"connect_timeout": 0.2}) as balancer:
        assert refused(balancer.address)
        (line,) = until(balancer.log)
        assert 0.2 <= line["duration"] < 5.0


def test_a_queue_that_stays_full_is_a_failure_to_connect(tmp_path: Path) -> None:
    """As it would be over TCP, where the connect times out."""
    with crowded(tmp_path / "full.sock") as full, proxy([full], pool={"connect_timeout": 0.2}) as balancer:
        assert refused(balancer.address)
        assert until(balancer.reasons) == ["connect-failed"]
        assert {event.backend for event in until(lambda: balancer.events("connect-failed"))} == {"b0"}
