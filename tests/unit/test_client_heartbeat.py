"""When the client in Python gives a silent connection up: a clock that jumps, a connection that is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from pybalancer.client import Comeback, ReconnectingSocket
from pybalancer.client.connection import _UNREAD, _Options
from pybalancer.client.lookup import look

EVERY = 30.0


class Connection:
    """It has answered ``pongs`` pings, or tells ``asked`` of each that it does not answer."""

    def __init__(self, pongs: int, asked: Callable[[], None] = lambda: None) -> None:
        self.pongs, self.asked = pongs, asked
        self.pings = 0

    async def ping(self) -> None:
        self.pings += 1
        if self.pings > self.pongs:
            self.asked()
            await trio.sleep_forever()
        await trio.sleep(1.0)


def idle() -> ReconnectingSocket:
    options = _Options("ws://node.test/", (), None, 10.0, EVERY, 1 << 20, {}, None, look)
    return ReconnectingSocket(options, Comeback("ws://node.test/"), lambda: 0.5)


async def given_up(client: ReconnectingSocket, connection: Any, within: float) -> float | None:
    """After how many seconds ``connection`` is given up, if it is."""
    began = trio.current_time()
    with trio.move_on_after(within):
        with trio.CancelScope() as scope:
            await client._beat(connection, EVERY, scope)
        return trio.current_time() - began
    return None


@pytest.mark.parametrize("pongs", [0, 1, 5])
async def test_no_pong(pongs: int, autojump_clock: trio.testing.MockClock) -> None:
    found = await given_up(idle(), Connection(pongs), 1e6)
    assert found == pytest.approx(pongs * (EVERY + 1.0) + 2 * EVERY)


async def test_pongs(autojump_clock: trio.testing.MockClock) -> None:
    connection = Connection(10**9)
    assert await given_up(idle(), connection, 3100.0) is None
    assert connection.pings == 100


async def test_any_message_is_a_sign_of_life(autojump_clock: trio.testing.MockClock) -> None:
    client = idle()

    def come() -> None:
        client._heard += connection.pings < 4

    connection = Connection(0, come)
    assert await given_up(client, connection, 1e6) == pytest.approx(4 * 2 * EVERY)


async def test_where_nobody_receives_silence_means_nothing(autojump_clock: trio.testing.MockClock) -> None:
    client = idle()
    client._unread.extend(["unread"] * _UNREAD)
    assert await given_up(client, Connection(0), 1e5) is None
    client._unread.pop()
    assert await given_up(client, Connection(0), 1e5) == pytest.approx(2 * EVERY)
