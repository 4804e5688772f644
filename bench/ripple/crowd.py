"""The clients: each keeps a WebSocket through the proxy, numbers what it sends, and writes the ledger.

They come back as libraries in browsers do: at once, and after each failure later, by full jitter
(uniformly between nothing and a bound that doubles). Nothing here knows which proxy is before it.
WebSocket is spoken by the `websockets` library without its asyncio part, whose cost per connection
would make 2,000 clients in one process the bottleneck of the measurement.
"""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from dataclasses import dataclass

import trio
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from pybalancer.demo.ledger import Ledger

FIRST_BACKOFF, LAST_BACKOFF = 0.5, 10.0
CONNECT_SECONDS, CLOSE_SECONDS = 20.0, 10.0
SIZE = 64
"""Bytes of a message."""


@dataclass
class Crowd:
    """Who they are, where they connect to, how often each says something."""

    clients: int
    address: str
    ledger: Ledger
    every: float
    """Mean seconds between two messages of a client; each waits 0.5 to 1.5 of it."""
    dice: random.Random
    talking: bool = True

    async def run(self, pace: float) -> None:
        """All of them until cancelled, ``pace`` a second to begin with."""
        async with trio.open_nursery() as nursery:
            for client in range(self.clients):
                nursery.start_soon(self._client, client)
                await trio.sleep(1 / pace)

    async def _client(self, client: int) -> None:
        failures = 0
        while True:
            connection = Connection(self, client)
            try:
                await connection.open()
                failures = 0
                await connection.talk()
            except Refused as refusal:
                self.ledger.refuses(str(refusal))
                failures += 1
            finally:
                connection.close()
            if failures:
                bound = min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** (failures - 1))
                await trio.sleep(self.dice.uniform(0, bound))


class Refused(Exception):
    """No connection was made."""


class Connection:
    """One connection of a client."""

    def __init__(self, crowd: Crowd, client: int) -> None:
        self._crowd, self._client, self._ledger = crowd, client, crowd.ledger
        self._protocol = ClientProtocol(parse_uri(f"ws://{crowd.address}/"))
        self._socket = trio.socket.socket()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    async def open(self) -> None:
        """Connect and shake hands."""
        host, _, port = self._crowd.address.rpartition(":")
        self._ledger.tries(self._client, trio.current_time())
        try:
            with trio.fail_after(CONNECT_SECONDS):
                await self._socket.connect((host, int(port)))
                self._protocol.send_request(self._protocol.connect())
                await self._flush()
                while self._protocol.state is State.CONNECTING and not self._protocol.handshake_exc:
                    await self._read()
        except trio.TooSlowError:
            raise Refused("no answer") from None
        except OSError as error:
            raise Refused(type(error).__name__) from None
        if error := self._protocol.handshake_exc:
            status = error.response.status_code if isinstance(error, InvalidStatus) else 0
            raise Refused(str(status) if status else "ended before an answer")
        self._ledger.opens(self._client, trio.current_time())

    async def talk(self) -> None:
        """Say and hear until the connection ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say)
            await self._hear()
            nursery.cancel_scope.cancel()
        code = self._protocol.close_code
        self._ledger.loses(self._client, 1006 if code is None else int(code), trio.current_time())

    async def _say(self) -> None:
        crowd = self._crowd
        while True:
            await trio.sleep(crowd.every * crowd.dice.uniform(0.5, 1.5))
            if not crowd.talking:
                continue
            if self._protocol.state is not State.OPEN:
                return
            number = self._ledger.sends(self._client)
            self._protocol.send_text(f"{self._client} {number} ".ljust(SIZE, ".").encode())
            with suppress(OSError):  # The reader finds that out, too.
                await self._flush()

    async def _hear(self) -> None:
        # A reset is caught here and not around the nursery, where it would cost a group of exceptions each:
        # thousands may come at once.
        with suppress(OSError):
            while self._protocol.state is State.OPEN:
                await self._read()
            # Close was said. Who leaves the connection standing then is not waited for forever.
            with trio.move_on_after(CLOSE_SECONDS):
                while self._protocol.state is not State.CLOSED:
                    await self._read()
        if self._protocol.state is not State.CLOSED:
            self._protocol.receive_eof()

    async def _read(self) -> None:
        data = await self._socket.recv(1 << 16)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if not isinstance(event, Response) and event.opcode is Opcode.TEXT:
                backend, _, client, number, _ = bytes(event.data).decode().split(" ", 4)
                if int(client) != self._client:
                    raise RuntimeError(f"client {self._client} got an answer to client {client}")
                self._ledger.answered(self._client, int(number), backend)
        await self._flush()

    async def _flush(self) -> None:
        """Send what the protocol has to say, answers to pings among it."""
        for data in self._protocol.data_to_send():
            if not data:
                self._socket.shutdown(socket.SHUT_WR)
                continue
            left = memoryview(data)
            while left:
                left = left[await self._socket.send(left) :]
