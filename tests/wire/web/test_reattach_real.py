"""Re-attach with real servers, each a process, and real clients that agree on compression with them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websocket

from ..backends import Backend
from ..net import PATIENCE, connect, text_of, until
from .ends import WebProxy, web_proxy
from .movers import REPLAY, balanced


def open_websocket(balancer: WebProxy, path: str = "/echo") -> ClientConnection:
    return websocket(
        f"ws://{balancer.address}{path}",
        sock=connect(balancer.address),
        proxy=None,
        open_timeout=PATIENCE,
        close_timeout=PATIENCE,
        ping_interval=None,
    )


def echoes(connection: ClientConnection, text: str) -> None:
    connection.send(text)
    assert connection.recv(PATIENCE) == text


@pytest.fixture
def servers() -> Iterator[list[Backend]]:
    running = [Backend("websockets", name=f"app-{number}") for number in range(3)]
    try:
        yield running
    finally:
        for one in running:
            one.close()


@pytest.fixture
def balancer(servers: list[Backend]) -> Iterator[WebProxy]:
    with web_proxy(servers, route=REPLAY) as running:
        yield running


def live(balancer: WebProxy) -> list[int]:
    return [balancer.stats.active("pool", f"b{number}") for number in range(len(balancer.backends))]


def test_a_killed_process_is_noticed_by_none_of_its_clients(
    balancer: WebProxy, servers: list[Backend]
) -> None:
    text = "the same again, " * 100
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_websocket(balancer)) for _ in range(24)]
        for client in clients:
            (deflate,) = client.protocol.extensions
            assert isinstance(deflate, PerMessageDeflate)
            # Each message stands alone, so another server can read it.
            assert deflate.local_no_context_takeover
            assert deflate.remote_no_context_takeover
            for _ in range(3):
                echoes(client, text)
        lost = live(balancer)[0]
        assert lost > 0
        servers[0].signal(signal.SIGKILL)
        for client in clients:
            for _ in range(3):
                # Until the balancer sees its end, it passes to the process what that never reads.
                until(lambda: balancer.counted.reattached == lost, "all of them at another backend")
                echoes(client, text)
        assert live(balancer)[0] == 0
        for client in clients:
            client.close()
    balanced(balancer, lost)


def test_a_server_that_goes_away_is_left_as_often_as_it_does(
    balancer: WebProxy, servers: list[Backend]
) -> None:
    """On this path it says Close 1001 to each message."""
    with open_websocket(balancer, "/leave") as client:
        here = text_of(client.local_address)
        for number in range(1, 6):
            client.send("goodbye")
            until(lambda number=number: balancer.counted.reattached == number)
            assert client.ping(b"are you there").wait(PATIENCE)
        client.close(4321, "enough")
    until(lambda: [one for server in servers for one in server.ended].count((4321, "enough")) == 1)
    record = balancer.record(here)
    assert (record["client_close"], record["reattached"]) == (4321, 5)
    balanced(balancer, 5)


def test_without_reattach_it_is_noticed(servers: list[Backend]) -> None:
    """So that the others show something."""
    with web_proxy(servers[:1]) as balancer, open_websocket(balancer) as client:
        (deflate,) = client.protocol.extensions
        assert isinstance(deflate, PerMessageDeflate)
        assert not deflate.local_no_context_takeover
        echoes(client, "hello")
        servers[0].signal(signal.SIGKILL)
        with pytest.raises(ConnectionClosedError):
            client.recv(PATIENCE)


class Talker(threading.Thread):
    """A client that sends numbered messages, some of them ahead of the answers, until it is told to stop."""

    AHEAD = 4

    def __init__(self, balancer: WebProxy) -> None:
        super().__init__()
        self.balancer = balancer
        self.enough = threading.Event()
        self.heard = 0
        self.wrong: BaseException | None = None

    def run(self) -> None:
        try:
            with open_websocket(self.balancer) as connection:
                self.talk(connection)
        except BaseException as error:
            self.wrong = error

    def talk(self, connection: ClientConnection) -> None:
        sent = 0
        while not self.enough.is_set() or self.heard < sent:
            while not self.enough.is_set() and sent < self.heard + self.AHEAD:
                connection.send(f"message {sent}")
                sent += 1
            answer = connection.recv(PATIENCE)
            assert answer == f"message {self.heard}", f"{answer} instead of number {self.heard}"
            self.heard += 1


def test_every_process_is_replaced_under_load_and_no_message_is_lost_or_doubled(
    balancer: WebProxy, servers: list[Backend]
) -> None:
    """A roll: drain, end the process, start another, next."""
    talkers = [Talker(balancer) for _ in range(20)]
    for talker in talkers:
        talker.start()
    moved = 0
    for number in range(len(servers)):
        name = f"b{number}"
        before = [talker.heard for talker in talkers]
        until(lambda before=before: all(t.heard > b + 20 for t, b in zip(talkers, before, strict=True)))
        balancer.apply(**{name: "draining"})
        terms = {"over": 0.2, "deadline": PATIENCE}
        balancer.engine.drain(pool="pool", backends=[name], **terms)
        (drain,) = balancer.engine.drains()[-1:]

        def all_moved(id: int = drain.id, total: int = drain.total) -> bool:
            (found,) = (one for one in balancer.engine.drains() if one.id == id)
            return (found.left, found.moved) == (0, total)

        until(all_moved, "the last one at another backend")
        moved += drain.total
        servers[number].close()
        servers[number] = Backend("websockets", name=f"app-{number}-again")
        balancer.backends = list(servers)
        balancer.apply()
    for talker in talkers:
        talker.enough.set()
    for talker in talkers:
        talker.join(PATIENCE)
    assert [talker.wrong for talker in talkers] == [None] * len(talkers)
    # Each of them had a backend that was replaced.
    assert moved >= len(talkers)
    until(lambda: balancer.connections == 0)
    counted = balancer.counted
    assert (counted.opened, counted.closed) == (len(talkers),) * 2
    assert (counted.reattached, counted.reattach_failed) == (moved, 0)
    assert live(balancer) == [0, 0, 0]
