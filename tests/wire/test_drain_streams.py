"""Drain in mode "tcp": an end in a quiet moment, a reset where something would be missing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from pybalancer._core import Drain

from .net import Proxy, connect, echoes, payload, proxy, read_all, read_exactly, refused, server, until

LONG = 1000.0


def drain(balancer: Proxy, **terms: float) -> int:
    return balancer.engine.drain(pool="pool", **{"over": 0.0, "deadline": LONG, **terms})  # type: ignore[arg-type]


def order(balancer: Proxy, id: int) -> Drain:
    (found,) = (drain for drain in balancer.engine.drains() if drain.id == id)
    return found


def test_a_client_gets_its_end_and_may_say_its_last_words() -> None:
    heard = []

    def handler(connection: socket.socket) -> None:
        heard.append(read_all(connection))

    with server(handler) as backend, proxy([backend]) as balancer, connect(balancer.address) as client:
        client.sendall(b"first ")
        until(lambda: backend.served == 1)
        id = drain(balancer)
        assert client.recv(1) == b""
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)
        assert until(lambda: heard) == [b"first last"]
        assert until(balancer.reasons) == ["drained"]
        assert order(balancer, id).state == "done"


def speak_on(client: socket.socket) -> None:
    """Until somebody says that nobody listens."""
    try:
        while True:
            client.sendall(b"x")
    except BrokenPipeError:
        raise ConnectionResetError from None


def test_what_the_backend_says_after_all_turns_the_end_into_a_reset() -> None:
    said = threading.Event()

    def handler(connection: socket.socket) -> None:
        said.wait()
        connection.sendall(b"one thing more")
        connection.recv(1)

    with server(handler) as backend, proxy([backend]) as balancer, connect(balancer.address) as client:
        until(lambda: backend.served == 1)
        drain(balancer)
        assert client.recv(1) == b""
        said.set()
        # It was told the end already; what it does next tells it that this was not all.
        until(balancer.reasons)
        with pytest.raises(ConnectionResetError):
            speak_on(client)


def sends(data: bytes) -> Callable[[socket.socket], None]:
    def handler(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.recv(1)

    return handler


def test_no_stream_is_ended_within_what_is_under_way() -> None:
    data = payload(8 << 20)
    with server(sends(data)) as backend, proxy([backend]) as balancer:
        with connect(balancer.address, receive_buffer=4096) as client:
            read_exactly(client, 1)
            id = drain(balancer)
            # It takes nothing: there is no quiet moment until it has taken all.
            rest = read_all(client)
            assert rest == data[1:]
            assert order(balancer, id).closed == 1
            client.shutdown(socket.SHUT_WR)
            assert until(balancer.reasons) == ["drained"]


def test_the_deadline_resets_who_does_not_end() -> None:
    with server(sends(payload(8 << 20))) as backend, proxy([backend]) as balancer:
        with connect(balancer.address, receive_buffer=4096) as client:
            read_exactly(client, 1)
            drain(balancer, deadline=0.2)
            assert until(balancer.reasons) == ["drain-deadline"]
            with pytest.raises(ConnectionResetError):
                read_all(client)


def test_others_are_not_touched_and_a_draining_listener_takes_nobody() -> None:
    with server() as one, server() as two, proxy([one, two], workers=2) as balancer:
        clients = [connect(balancer.address) for _ in range(30)]
        assert all(echoes(client) for client in clients)
        ours = one.served
        assert 0 < ours < 30
        balancer.apply(b0="draining")
        id = balancer.engine.drain(pool="pool", backends=["b0"], over=0.0, deadline=LONG)
        until(lambda: order(balancer, id).state == "done" or order(balancer, id).closed == ours)
        ended = 0
        for client in clients:
            client.settimeout(None)
            client.sendall(b"x")
            try:
                ended += client.recv(1) == b""
            except ConnectionResetError:
                ended += 1
        assert ended == ours
        late = [connect(balancer.address) for _ in range(20)]
        assert all(echoes(client) for client in late)
        assert one.served == ours
        balancer.listener = {"draining": True}
        balancer.apply()
        assert refused(balancer.address)
        assert until(lambda: "draining" in balancer.reasons())
        for client in [*clients, *late]:
            client.close()
