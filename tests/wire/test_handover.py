"""Tunnels go from one engine to another. Both are in this process, which makes every step visible; that it
works between two processes is shown in test_upgrade.py."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pybalancer._core import Engine, EngineError, HandOver

from .net import (
    PATIENCE,
    Proxy,
    connect,
    echoes,
    payload,
    read_all,
    read_exactly,
    reset,
    served,
    server,
    sha,
    until,
)


class Successor(Proxy):
    """An engine that takes over what ``old`` has."""

    def __init__(self, old: Proxy, workers: int = 1, **options: Any) -> None:
        self.engine = Engine(workers=workers)
        self.engine.log_connections(True)
        self.backends = options.pop("backends", old.backends)
        self.bind, self.listener, self.pool = old.bind, old.listener, options.pop("pool", old.pool)
        self.told, self.lines = [], []
        self.hand = HandOver(self.engine)
        self.old = HandOver(old.engine)
        self.hand.inherit(self.old.lend())
        self.apply()
        pairs = [socket.socketpair() for _ in range(max(workers, old.engine.workers))]
        self.ours = [ours.detach() for ours, _ in pairs]
        self.theirs = [theirs.detach() for _, theirs in pairs]

    def receive(self) -> int:
        """As far as nothing is decided: how many tunnels are held."""
        self.hand.receive(self.old.manifest(), self.ours)
        sent = self.old.freeze(self.theirs, PATIENCE)
        assert self.hand.wait_received(PATIENCE) == sent
        return sent

    def take_over(self, grace: float = 10.0) -> int:
        sent = self.receive()
        assert self.hand.activate() == sent
        self.leaving = threading.Thread(target=self.old.let_go, args=(self.taken, grace))
        self.leaving.start()
        return sent

    @property
    def taken(self) -> list[int]:
        return [0]

    def close(self) -> None:
        super().close()
        if hasattr(self, "leaving"):
            self.leaving.join()


@contextlib.contextmanager
def proxy(backends: Any, **options: Any) -> Iterator[Proxy]:
    running = Proxy(backends, **options)
    yield running
    running.close()


@contextlib.contextmanager
def successor(old: Proxy, **options: Any) -> Iterator[Successor]:
    running = Successor(old, **options)
    yield running
    running.close()


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_tunnels_and_listeners_change_hands(before: int, after: int) -> None:
    with server() as backend, proxy([backend], workers=before) as old:
        clients = [connect(old.address) for _ in range(30)]
        assert all(echoes(client) for client in clients)
        with successor(old, workers=after) as new:
            assert new.address == old.address
            assert new.take_over() == 30
            assert all(echoes(client) for client in clients)
            new.leaving.join()
            assert (old.engine.active(), new.engine.active()) == (0, 30)
            assert all(served(new.address) for _ in range(30))
            for client in clients:
                client.close()
            until(lambda: new.engine.active() == 0)
            assert new.reasons().count("finished") == 60


def test_who_is_not_taken_over_goes_on() -> None:
    with server() as backend, proxy([backend]) as old:
        clients = [connect(old.address) for _ in range(10)]
        assert all(echoes(client) for client in clients)
        late = None
        with successor(old) as new:
            assert new.receive() == 10
            # Frozen: nobody answers, and nobody is refused.
            late = connect(old.address)
            for client in (*clients, late):
                client.sendall(b"hello")
            clients[0].settimeout(0.1)
            with pytest.raises(TimeoutError):
                clients[0].recv(1)
            clients[0].settimeout(PATIENCE)
            new.engine.close()
            assert new.old.thaw() == 10
        assert all(read_exactly(client, 5) == b"hello" for client in (*clients, late))
        assert old.engine.active() == 11
        assert all(echoes(client) for client in clients)


def test_bytes_under_way_arrive_in_both_directions() -> None:
    size = 24 << 20
    there, back = payload(size, 1), payload(size, 2)
    got: list[str] = []

    def exchange(connection: socket.socket) -> None:
        sender = threading.Thread(target=connection.sendall, args=(back,))
        sender.start()
        got.append(sha(read_exactly(connection, size)))
        sender.join()

    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(server(exchange))
        engines = [stack.enter_context(proxy([backend]))]
        client = connect(engines[0].address)
        sending = threading.Thread(target=client.sendall, args=(there,))
        sending.start()
        parts = bytearray(read_exactly(client, 1 << 20))
        for _ in range(6):
            # Nobody reads: pipes and buffers are full when it changes hands.
            engines.append(stack.enter_context(successor(engines[-1])))
            assert engines[-1].take_over() == 1  # type: ignore[attr-defined]
            parts += read_exactly(client, 2 << 20)
        parts += read_exactly(client, size - len(parts))
        sending.join()
        assert sha(bytes(parts)) == sha(back)
        until(lambda: got)
        assert got == [sha(there)]


def test_half_closed_tunnels_stay_half_closed() -> None:
    received = threading.Event()

    def answer_at_the_end(connection: socket.socket) -> None:
        data = read_all(connection)
        received.wait(PATIENCE)
        connection.sendall(data[::-1])

    with server(answer_at_the_end) as backend, proxy([backend]) as old:
        client = connect(old.address)
        client.sendall(b"abc")
        client.shutdown(socket.SHUT_WR)
        until(lambda: backend.live)
        with successor(old) as new:
            assert new.take_over() == 1
            received.set()
            assert read_all(client) == b"cba"
            until(lambda: new.reasons() == ["finished"])


def test_the_record_tells_of_the_whole_tunnel() -> None:
    with server() as backend, proxy([backend]) as old:
        client = connect(old.address)
        assert echoes(client)
        where = client.getsockname()
        with successor(old) as new:
            new.take_over()
            assert echoes(client)
            reset(client)
            (line,) = until(new.log)
            assert line["client"] == f"{where[0]}:{where[1]}"
            assert (line["bytes_to_backend"], line["bytes_to_client"]) == (10, 10)
            assert line["reason"] == "client-reset"
            assert line["duration"] > line["connect"] > 0
            new.leaving.join()
            assert old.log() == []


def test_a_backend_that_the_new_plan_does_not_know_keeps_or_loses_its_tunnels() -> None:
    for fate in ("keep", "close"):
        with server() as first, server() as second, proxy([first]) as old:
            client = connect(old.address)
            assert echoes(client)
            with successor(old, backends=[second], pool={"on_remove": fate}) as new:
                assert new.take_over() == 1
                if fate == "keep":
                    assert echoes(client)
                    client.close()
                    (line,) = until(new.log)
                    assert line["address"] == first.address
                else:
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
                    assert until(new.reasons) == ["backend-removed"]


def test_tunnels_of_a_backend_that_is_gone_are_drained_by_the_new_engine() -> None:
    drains = {"on_remove": "drain", "drain_over": 0.2, "drain_deadline": 20.0}
    with server() as first, server() as second, proxy([first], workers=2) as old:
        clients = [connect(old.address) for _ in range(10)]
        assert all(echoes(client) for client in clients)
        with successor(old, backends=[second], pool=drains) as new:
            assert new.take_over() == 10
            assert all(read_all(client) == b"" for client in clients)
            for client in clients:
                client.close()
            until(lambda: new.engine.active() == 0)
            assert set(new.reasons()) == {"backend-removed"}
            (drain,) = new.engine.drains()
            assert (drain.kind, drain.total, drain.closed, drain.cut) == ("removed", 10, 10, 0)


def test_handshakes_under_way_end_in_the_old_engine_and_go_over_as_tunnels() -> None:
    with (
        server() as backend,
        proxy([backend], listener={"accept_rate": 20.0, "accept_burst": 1, "accept_queue": 100}) as old,
    ):
        clients = [connect(old.address) for _ in range(10)]
        until(lambda: old.engine.active() == 10)
        with successor(old) as new:
            sent = new.take_over()
            assert sent < 10
            assert all(echoes(client) for client in clients)
            new.leaving.join()
            assert (old.engine.active(), new.engine.active()) == (0, 10)
            assert all(echoes(client) for client in clients)


def test_ports_and_sources_are_counted_on() -> None:
    options = {"listener": {"max_connections_per_source": 3}, "pool": {"sources": ["127.0.0.1"]}}
    with server() as backend, proxy([backend], **options) as old:
        clients = [connect(old.address) for _ in range(3)]
        assert all(echoes(client) for client in clients)
        with successor(old) as new:
            assert new.take_over() == 3
            assert new.engine.ports()["pool"]["b0"][0] == 3
            assert not served(new.address)
            clients.pop().close()
            until(lambda: new.engine.active() == 2)
            assert served(new.address)


def test_a_unix_listener_keeps_its_file(tmp_path: Any) -> None:
    path = tmp_path / "front.sock"
    with server() as backend, proxy([backend], bind=f"unix:{path}", workers=2) as old:
        inode = path.stat().st_ino
        client = connect(old.address)
        assert echoes(client)
        with successor(old, workers=2) as new:
            assert new.take_over() == 1
            new.leaving.join()
            assert path.stat().st_ino == inode
            assert echoes(client)
            assert served(new.address)
        assert not path.exists()


def test_nonsense_is_refused() -> None:
    with server() as backend, proxy([backend]) as old:
        hand = HandOver(old.engine)
        with pytest.raises(EngineError, match="no sense"):
            hand.receive(b"\xff" * 9, [])
        with pytest.raises(OSError, match="Bad file descriptor"):
            hand.freeze([987_654], 1.0)
        a, b = socket.socketpair()
        a.sendall(b"\xff" * 64)
        a.close()
        client = connect(old.address)
        assert echoes(client)
        with pytest.raises(EngineError, match=r"gone|no message of ours"):
            hand.freeze([b.detach()], PATIENCE)
        assert hand.thaw() == 1
        assert echoes(client)


def test_a_full_table_refuses_and_nothing_is_lost() -> None:
    import resource

    with server() as backend, proxy([backend], workers=2) as old:
        clients = [connect(old.address) for _ in range(40)]
        assert all(echoes(client) for client in clients)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        new = Successor(old, workers=1)
        try:
            # The new engine's only worker has room for fewer; the old one's two have their sockets already.
            resource.setrlimit(resource.RLIMIT_NOFILE, (70, hard))
            new.apply()
            new.hand.receive(new.old.manifest(), new.ours)
            with pytest.raises(EngineError, match="no room"):
                new.old.freeze(new.theirs, PATIENCE)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            new.engine.close()
        assert new.old.thaw() == 40
        assert all(echoes(client) for client in clients)


@pytest.mark.parametrize("how", ["drain", "shed"])
def test_who_was_to_go_when_nothing_came_of_it_goes(how: str) -> None:
    """A drain whose deadline passes while its tunnels are frozen cuts them; a shed takes what it should."""
    with server() as backend, proxy([backend], pool={"policy": "least-connections"}) as old:
        clients = [connect(old.address) for _ in range(8)]
        assert all(echoes(client) for client in clients)
        if how == "drain":
            old.engine.drain(pool="pool", over=0.0, deadline=0.3, rate=0.001)
        else:
            old.engine.shed("pool", [("b0", 3)], rate=50.0)
        with successor(old) as new:
            sent = new.receive()
            assert sent >= 5
            until(lambda: old.engine.drains()[0].age > 0.5)
            new.engine.close()
            assert new.old.thaw() == sent
        wanted = 8 if how == "drain" else 3
        until(lambda: old.engine.active() == 8 - wanted or gone(clients) == wanted, "their end")
        told = until(
            lambda: old.engine.drains()[0].state == "done" and old.engine.drains()[0], "the end of it"
        )
        assert told.closed + told.cut == wanted


def gone(clients: list[socket.socket]) -> int:
    """How many have had their end."""
    count = 0
    for client in clients:
        with contextlib.suppress(BlockingIOError):
            client.setblocking(False)
            try:
                count += client.recv(1, socket.MSG_PEEK) == b""
            except ConnectionResetError:
                count += 1
    return count


def test_what_came_while_a_tunnel_stood_still_came_in_time() -> None:
    """Its idle timeout was over meanwhile, but so was the silence."""
    with server() as backend, proxy([backend], pool={"idle_timeout": 0.5}) as old:
        clients = [connect(old.address) for _ in range(20)]
        assert all(echoes(client) for client in clients)
        with successor(old) as new:
            assert new.receive() == 20
            frozen = time.monotonic()
            for client in clients:
                client.sendall(b"hello")
            until(lambda: time.monotonic() - frozen > 0.7)
            assert new.hand.activate() == 20
            new.leaving = threading.Thread(target=new.old.let_go, args=([0], 10.0))
            new.leaving.start()
            assert all(read_exactly(client, 5) == b"hello" for client in clients)
