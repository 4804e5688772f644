"""The clients of the ripple demo: each keeps a WebSocket, numbers what it says, and writes the ledger.

They come back as libraries in browsers do: at once, and after each failure later, by full jitter.
WebSocket is spoken by ``wsproto`` on bare sockets, so that one process carries thousands of them.
"""

import random
import socket
from contextlib import suppress
from dataclasses import dataclass, field

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

from pybalancer.demo.ledger import Ledger

FIRST_BACKOFF, LAST_BACKOFF = 0.5, 10.0
CONNECT_SECONDS = 20.0
SIZE = 64
"""Bytes of a message."""


@dataclass
class Talkers:
    """Who they are, where they connect to, how often each says something."""

    clients: int
    address: str
    ledger: Ledger
    every: float
    """Mean seconds between two messages of a client; each waits 0.5 to 1.5 of it."""
    talking: bool = True
    dice: random.Random = field(default_factory=random.Random)

    async def run(self, pace: float) -> None:
        """All of them until cancelled, ``pace`` a second to begin with."""
        async with trio.open_nursery() as nursery:
            for client in range(self.clients):
                nursery.start_soon(self._client, client)
                await trio.sleep(1 / pace)

    async def _client(self, client: int) -> None:
        failures = 0
        while True:
            talker = Talker(self, client)
            try:
                await talker.open()
                failures = 0
                await talker.talk()
            except Refused as refusal:
                self.ledger.refuses(str(refusal))
                failures += 1
            finally:
                talker.close()
            if failures:
                bound = min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** (failures - 1))
                await trio.sleep(self.dice.uniform(0, bound))


class Refused(Exception):
    """No connection was made."""


class Talker:
    """One connection of a client."""

    def __init__(self, talkers: Talkers, client: int) -> None:
        self._talkers, self._client, self._ledger = talkers, client, talkers.ledger
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._socket = trio.socket.socket()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._code: int | None = None
        self._text = ""
        self._sending = trio.Lock()

    def close(self) -> None:
        self._socket.close()

    async def open(self) -> None:
        """Connect and shake hands."""
        host, _, port = self._talkers.address.rpartition(":")
        self._ledger.tries(self._client, trio.current_time())
        try:
            with trio.fail_after(CONNECT_SECONDS):
                await self._socket.connect((host, int(port)))
                await self._send(Request(host=self._talkers.address, target="/"))
                while self._protocol.state is ConnectionState.CONNECTING:
                    await self._read()
        except trio.TooSlowError:
            raise Refused("no answer") from None
        except (OSError, RemoteProtocolError) as error:
            raise Refused(type(error).__name__) from None
        self._ledger.opens(self._client, trio.current_time())

    async def talk(self) -> None:
        """Say and hear until the connection ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say)
            # A reset is no error here: it is what the ledger is for.
            with suppress(OSError, RemoteProtocolError):
                while self._code is None:
                    await self._read()
            nursery.cancel_scope.cancel()
        self._ledger.loses(self._client, 1006 if self._code is None else self._code, trio.current_time())

    async def _say(self) -> None:
        talkers = self._talkers
        while True:
            await trio.sleep(talkers.every * talkers.dice.uniform(0.5, 1.5))
            if not talkers.talking:
                continue
            if self._protocol.state is not ConnectionState.OPEN:
                return
            number = self._ledger.sends(self._client)
            with suppress(OSError):  # Whoever hears finds that out, too.
                await self._send(TextMessage(f"{self._client} {number} ".ljust(SIZE, ".")))

    async def _read(self) -> None:
        data = await self._socket.recv(1 << 16)
        self._protocol.receive_data(data or None)
        for event in self._protocol.events():
            await self._obey(event)

    async def _obey(self, event: Event) -> None:
        if isinstance(event, RejectConnection):
            raise Refused(str(event.status_code))
        if isinstance(event, Ping):
            await self._send(event.response())
        elif isinstance(event, CloseConnection):
            if self._protocol.state is ConnectionState.REMOTE_CLOSING:
                with suppress(OSError):
                    await self._send(event.response())
            self._code = int(event.code)
        elif isinstance(event, TextMessage):
            self._text += event.data
            if event.message_finished:
                backend, client, number, _ = self._text.split(" ", 3)
                self._text = ""
                if int(client) != self._client:
                    raise RuntimeError(f"client {self._client} got an answer to client {client}")
                self._ledger.answered(self._client, int(number), backend)
        else:
            assert isinstance(event, AcceptConnection), event

    async def _send(self, event: Event) -> None:
        data = self._protocol.send(event)
        async with self._sending:
            left = memoryview(data)
            while left:
                left = left[await self._socket.send(left) :]
