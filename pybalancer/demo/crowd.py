"""The demo's clients: each keeps a WebSocket through the balancer, and checks every echo."""

import random

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionTimeout,
    DisconnectionTimeout,
    HandshakeError,
    WebSocketConnection,
    open_websocket,
)

from pybalancer.demo.tally import Tally

PAUSE = (0.5, 1.5)
"""Seconds between two messages of a client, at random."""
AGAIN = (0.2, 1.0)
"""Seconds until a client that lost its connection tries again, at random: not all at once."""
CONNECT_SECONDS = 10.0
LARGEST = 2048
"""Bytes of a message."""


_FAILURES = (
    OSError,
    trio.BrokenResourceError,
    ConnectionClosed,
    ConnectionTimeout,
    DisconnectionTimeout,
    HandshakeError,
)
_dice = random.Random()  # noqa: S311 - nothing here is a secret


async def run_crowd(clients: int, host: str, port: int, tally: Tally) -> None:
    """``clients`` of them until cancelled. They come one after the other over the first second."""
    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(_client, host, port, tally)
            await trio.sleep(1.0 / clients)


async def _client(host: str, port: int, tally: Tally) -> None:
    lost_one = False
    while True:
        connected = False
        try:
            async with open_websocket(
                host,
                port,
                "/",
                use_ssl=False,
                connect_timeout=CONNECT_SECONDS,
                disconnect_timeout=1.0,
            ) as connection:
                connected = True
                tally.connections += 1
                tally.reconnects += lost_one
                tally.connected += 1
                try:
                    await _talk(connection, tally)
                finally:
                    tally.connected -= 1
        except _FAILURES:
            if connected:
                tally.lost += 1
                lost_one = True
            else:
                tally.refused += 1
        await trio.sleep(_dice.uniform(*AGAIN))


async def _talk(connection: WebSocketConnection, tally: Tally) -> None:
    while True:
        sent = _dice.randbytes(_dice.randrange(LARGEST))
        await connection.send_message(sent)
        if await connection.get_message() == sent:
            tally.messages += 1
        else:
            tally.wrong += 1
        await trio.sleep(_dice.uniform(*PAUSE))
