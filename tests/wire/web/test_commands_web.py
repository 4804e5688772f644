"""The commands end real WebSockets as they promise: with a code, and no faster than asked."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from ..backends import backends
from ..net import PATIENCE
from .behind import Behind, behind

CLIENTS = 12


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Behind]:
    with (
        backends("websockets", "websockets") as servers,
        behind(
            tmp_path,
            {"chat": servers},
            {"chat": 'policy = "round-robin"\n[pools.chat.drain]\nover = "0s"\ndeadline = "1h"'},
        ) as running,
    ):
        yield running


@pytest.fixture
def clients(front: Behind) -> Iterator[list[ClientConnection]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(front.websocket("chat", "/echo")) for _ in range(CLIENTS)]


def ask(front: Behind, *arguments: object) -> str:
    done = front.serving.ask(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_of(client: ClientConnection) -> int | None:
    """Wait for its Close; what it said."""
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(PATIENCE)
    assert closed.value.rcvd is not None, "ended without a Close"
    return closed.value.rcvd.code


def echoes(client: ClientConnection) -> bool:
    client.send("still there?")
    return client.recv(PATIENCE) == "still there?"


@pytest.mark.parametrize(("given", "code"), [((), 1012), (("--code", "4000"), 4000)])
def test_drain_says_goodbye_with_a_code(
    front: Behind, clients: list[ClientConnection], given: tuple[str, ...], code: int
) -> None:
    found = json.loads(ask(front, "drain", "websockets-1", *given, "--json"))
    (drain,) = found["drains"]
    assert (drain["total"], drain["closed"], drain["cut"]) == (CLIENTS // 2, CLIENTS // 2, 0)
    # Round robin: every other one, from the first or the second.
    told = [client for client in clients if client.close_code is not None or not _lives(client)]
    assert len(told) == CLIENTS // 2
    assert {code_of(client) for client in told} == {code}
    assert all(echoes(client) for client in clients if client not in told)


def _lives(client: ClientConnection) -> bool:
    try:
        return echoes(client)
    except ConnectionClosed:
        return False


def test_drain_keeps_to_its_rate(front: Behind, clients: list[ClientConnection]) -> None:
    """Never more than so many a second: what it took says so on the slowest of machines, too."""
    began = time.monotonic()
    said = ask(front, "drain", "--pool", "chat", "--rate", "10/s")
    assert time.monotonic() - began >= (CLIENTS - 2) / 10
    assert f"closed {CLIENTS} of {CLIENTS} tunnels" in said
    assert {code_of(client) for client in clients} == {1012}


def test_105_who_comes_meanwhile_gets_503_and_is_served_afterwards(front: Behind) -> None:
    ask(front, "drain", "--pool", "chat")
    response, _ = front.ask("chat", "/echo")
    assert (response.status, response.headers["retry-after"] is not None) == (503, True)
    ask(front, "undrain", "--pool", "chat")
    with front.websocket("chat", "/echo") as client:
        assert echoes(client)


def test_shed_says_goodbye_with_a_code(front: Behind) -> None:
    ask(front, "drain", "websockets-1")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(front.websocket("chat", "/echo")) for _ in range(CLIENTS)]
        ask(front, "undrain", "websockets-1", "--slow-start", "0s")
        said = ask(front, "shed", "chat", "--to-skew", "1", "--rate", "100/s")
        surplus = CLIENTS // 2 - 1
        assert f"shed: closed {surplus} of {surplus} tunnels" in said
        gone = [client for client in clients if not _lives(client)]
        assert len(gone) == surplus
        assert {code_of(client) for client in gone} == {1012}
