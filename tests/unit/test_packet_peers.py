"""Which other machines are there: asked over real sockets."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from pybalancer.packet import peers
from pybalancer.packet.peers import MISSES, Peers


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PATIENCE", 0.0)
    monkeypatch.setattr(peers, "RATE", 1000)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def at(number: int, server: socket.socket) -> tuple[str, int]:
    return f"127.0.0.{number}", server.getsockname()[1]


GONE, GONE_TOO = ("255.255.255.255", 1), ("224.0.0.1", 1)
"""No connection gets there: the kernel knows that they are not of one machine."""


async def test_who_does_not_answer_is_silent_after_some_rounds(server: socket.socket) -> None:
    asking = Peers()
    silent = frozenset[str]()
    for _ in range(MISSES - 1):
        silent = await asking.ask({at(1, server), GONE}, silent)
        assert silent == set()
    silent = await asking.ask({at(1, server), GONE}, silent)
    assert silent == {GONE[0]}


async def test_a_machine_without_a_server_is_there(server: socket.socket) -> None:
    asking = Peers()
    silent = frozenset({"127.0.0.2", GONE[0]})
    # The server listens at 127.0.0.1 only, so this is refused; and one answer is enough.
    assert await asking.ask({at(1, server), at(2, server), GONE}, silent) == {GONE[0]}


async def test_who_hears_of_nobody_is_cut_off_itself(server: socket.socket) -> None:
    asking = Peers()
    for _ in range(MISSES + 1):
        assert await asking.ask({GONE, GONE_TOO}, frozenset()) == set()
    silent = frozenset({GONE[0]})
    assert await asking.ask({GONE, GONE_TOO}, silent) == silent
    # What was missed then does not count, when one answers again.
    assert await asking.ask({GONE, GONE_TOO, at(1, server)}, frozenset()) == set()


async def test_who_was_silent_is_until_it_answers(server: socket.socket) -> None:
    """Of a process before this is known, too."""
    silent = frozenset({GONE[0], "127.0.0.1"})
    assert await Peers().ask({GONE, at(1, server)}, silent) == {GONE[0]}


async def test_what_is_no_address_ends_nothing(server: socket.socket) -> None:
    assert await Peers().ask({("10.0.0.1\0", 1), at(1, server)}, frozenset()) == set()
    assert await Peers().ask(set(), frozenset({GONE[0]})) == set()


async def test_who_is_not_asked_any_more_is_forgotten(server: socket.socket) -> None:
    asking = Peers()
    for _ in range(MISSES):
        await asking.ask({at(1, server), GONE}, frozenset())
    assert await asking.ask({at(1, server)}, frozenset({GONE[0]})) == set()
    assert await asking.ask({at(1, server), GONE}, frozenset()) == set()


async def test_what_this_machine_lacks_says_nothing_of_others(server: socket.socket) -> None:
    asking = Peers()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
    try:
        silent = frozenset[str]()
        for _ in range(MISSES + 1):
            silent = await asking.ask({at(1, server), at(2, server)}, silent)
        assert asking._misses == {"127.0.0.1": 0, "127.0.0.2": 0}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
