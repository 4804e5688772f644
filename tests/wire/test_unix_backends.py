"""Backends on Unix sockets. They differ from TCP where it hurts: a connect is over at once, and a full queue
refuses it; an end hangs up in both directions."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pybalancer.stats.reader import Stats

from .net import PATIENCE, connect, proxy, read_all, refused, server, text_of, to


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
        answering = threading.Thread(target=answer, args=(unix, rounds * burst))
        answering.start()
        with proxy([text_of(unix.getsockname())], pool={"tries": 1}) as balancer:
            for _ in range(rounds):
                clients = at_once(stack, balancer.address, burst)
                assert [read_all(client) for client in clients] == [b"hello"] * burst
            answering.join()
            assert balancer.events("connect-failed") == []


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    """Nobody is accepted until clients have found the queue full, and asked again."""
    count, backlog = 100, 8
    with listening(tmp_path / "back.sock", backlog) as unix, ExitStack() as stack:
        with (
            proxy([text_of(unix.getsockname())]) as balancer,
            Stats(fd=balancer.engine.stats_fd) as stats,
        ):
            clients = at_once(stack, balancer.address, count)
            until_asked_again(stats, count)
            answering = threading.Thread(target=answer, args=(unix, count))
            answering.start()
            assert [read_all(client) for client in clients] == [b"hello"] * count
            answering.join()
            for client in clients:
                client.close()
            until_all_ended = lambda: len(balancer.log()) == count  # noqa: E731
            until(until_all_ended)
            assert Counter(balancer.reasons()) == {"finished": count}
            assert balancer.events("connect-failed") == []
