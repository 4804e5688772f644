"""Crowds of real WebSocket clients, all open at once: so many of each kind, from several source addresses.

Every member sends messages, checks what the server says of them and the echo, and keeps the name of
the server that it talks to.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import trio
import trio_websocket
import websockets.asyncio.client

from .clients import in_thread
from .net import payload, sha, text_of, to
from .rfc6455 import RawWebSocket

AT_ONCE = 64
"""Handshakes under way at the same time, of each kind."""
LARGEST = 4096
"""Bytes of a message."""
PATIENCE = 60.0
SOURCES = [f"127.0.0.{host}" for host in range(2, 14)]


class Member:
    """One client: where it is, whom it talks to, and with which code it parted."""

    def __init__(self, kind: str, number: int) -> None:
        self.number = number
        self.source = SOURCES[number % len(SOURCES)]
        self.dice = random.Random(f"{kind} {number}")
        self.connection: Any = None
        self.local = ""
        self.server = ""
        self.code = 0

    def message(self) -> bytes:
        return payload(self.dice.randrange(LARGEST), self.dice.randrange(1 << 32))

    def check(self, sent: bytes, report: str | bytes, echo: str | bytes) -> None:
        said = json.loads(report)
        server = said.pop("server")
        assert said == {"kind": "binary", "size": len(sent), "sha256": sha(sent)}
        assert echo == sent
        assert self.server in ("", server), "a WebSocket has one server"
        self.server = server


class Crowd(ABC):
    """``size`` members. Each phase is over when it is for all of them."""

    kind: str

    def __init__(self, address: str, size: int) -> None:
        self.address = address
        self.members = [Member(self.kind, number) for number in range(size)]

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def talk(self) -> None:
        """One message of each, its report and its echo."""

    @abstractmethod
    async def close(self) -> None:
        """Each with 1000."""


class RawCrowd(Crowd):
    """By hand, in one thread: all send before the first of them reads."""

    kind = "raw"

    async def open(self) -> None:
        def connect() -> None:
            for member in self.members:
                member.connection = RawWebSocket(self.address, source=member.source)
                member.local = member.connection.local

        await in_thread(connect)

    async def talk(self) -> None:
        def exchange() -> None:
            sent = [member.message() for member in self.members]
            for member, message in zip(self.members, sent, strict=True):
                member.connection.send(message)
            for member, message in zip(self.members, sent, strict=True):
                member.check(message, member.connection.receive(), member.connection.receive())

        await in_thread(exchange)

    async def close(self) -> None:
        def part() -> None:
            for member in self.members:
                member.code = member.connection.close()

        await in_thread(part)


class TrioCrowd(Crowd):
    """trio-websocket, in the test's own loop."""

    kind = "trio-websocket"

    def __init__(self, address: str, size: int, nursery: trio.Nursery) -> None:
        super().__init__(address, size)
        self._nursery = nursery
        self._gate = trio.CapacityLimiter(AT_ONCE)

    async def _each(self, step: Callable[[Member], Awaitable[None]]) -> None:
        async def through_the_gate(member: Member) -> None:
            async with self._gate:
                await step(member)

        async with trio.open_nursery() as nursery:
            for member in self.members:
                nursery.start_soon(through_the_gate, member)

    async def open(self) -> None:
        async def connect(member: Member) -> None:
            _, where = to(self.address)
            connection = trio.socket.socket()
            await connection.bind((member.source, 0))
            await connection.connect(where)
            member.local = text_of(connection.getsockname())
            member.connection = await trio_websocket.wrap_client_stream(
                self._nursery, trio.SocketStream(connection), self.address, "/"
            )

        await self._each(connect)

    async def talk(self) -> None:
        async def exchange(member: Member) -> None:
            message = member.message()
            await member.connection.send_message(message)
            report = await member.connection.get_message()
            member.check(message, report, await member.connection.get_message())

        await self._each(exchange)

    async def close(self) -> None:
        async def part(member: Member) -> None:
            await member.connection.aclose(1000)
            member.code = member.connection.closed.code

        await self._each(part)


class AsyncioCrowd(Crowd):
    """websockets on asyncio, in a loop of its own with a thread of its own."""

    kind = "websockets"

    def __init__(self, address: str, size: int) -> None:
        super().__init__(address, size)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> AsyncioCrowd:
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _each(self, step: Callable[[Member], Coroutine[Any, Any, None]]) -> None:
        async def all_of_them() -> None:
            gate = asyncio.Semaphore(AT_ONCE)

            async def through_the_gate(member: Member) -> None:
                async with gate:
                    await step(member)

            await asyncio.gather(*map(through_the_gate, self.members))

        await in_thread(asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result)

    async def open(self) -> None:
        async def connect(member: Member) -> None:
            opening = websockets.asyncio.client.connect(
                f"ws://{self.address}/",
                proxy=None,
                compression=None,
                local_addr=(member.source, 0),
                open_timeout=PATIENCE,
                close_timeout=PATIENCE,
                ping_interval=None,
            )
            # Without an `async with`, which could not span two phases.
            member.connection = await opening.__aenter__()
            member.local = text_of(member.connection.local_address)

        await self._each(connect)

    async def talk(self) -> None:
        async def exchange(member: Member) -> None:
            message = member.message()
            await member.connection.send(message)
            report = await member.connection.recv()
            member.check(message, report, await member.connection.recv())

        await self._each(exchange)

    async def close(self) -> None:
        async def part(member: Member) -> None:
            await member.connection.close(1000)
            member.code = member.connection.close_code

        await self._each(part)
