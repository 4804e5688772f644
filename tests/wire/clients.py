"""Real WebSocket clients behind one small interface: websockets, trio-websocket, and one by hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio_websocket
import websockets.exceptions
import websockets.sync.client

from .net import PATIENCE
from .rfc6455 import Closed, Lost, RawWebSocket

LARGEST = 1 << 30
ABNORMAL = 1006
"""What stands for a code where the connection ended without Close (RFC 6455 section 7.1.5)."""


class Client(ABC):
    """One open WebSocket."""

    @abstractmethod
    async def send(self, message: str | bytes) -> None: ...

    @abstractmethod
    async def receive(self) -> str | bytes: ...

    @abstractmethod
    async def ping(self, payload: bytes) -> None:
        """Until the pong is there."""

    @abstractmethod
    async def close(self, code: int, reason: str) -> None:
        """With the whole closing handshake."""

    @abstractmethod
    async def end(self) -> tuple[int, str]:
        """Wait until the server closes: its code and reason, or ABNORMAL if it did without them."""


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)


class WebsocketsClient(Client):
    """PyPI's websockets, its client for threads."""

    def __init__(self, address: str, path: str, compression: str | None) -> None:
        opening = websockets.sync.client.connect(
            f"ws://{address}{path}",
            proxy=None,
            compression=compression,
            max_size=LARGEST,
            open_timeout=PATIENCE,
            close_timeout=PATIENCE,
            ping_interval=None,
        )
        # Without a `with`, which could not span two threads; `close` is all that its end does.
        self.connection = opening.__enter__()

    async def send(self, message: str | bytes) -> None:
        await in_thread(self.connection.send, message)

    async def receive(self) -> str | bytes:
        return await in_thread(self.connection.recv, PATIENCE)  # type: ignore[no-any-return]

    async def ping(self, payload: bytes) -> None:
        assert await in_thread(self.connection.ping(payload).wait, PATIENCE)

    async def close(self, code: int, reason: str) -> None:
        await in_thread(self.connection.close, code, reason)

    async def end(self) -> tuple[int, str]:
        try:
            raise AssertionError(await self.receive())
        except websockets.exceptions.ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (ABNORMAL, "")


class TrioClient(Client):
    """PyPI's trio-websocket."""

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self.connection = connection

    async def send(self, message: str | bytes) -> None:
        await self.connection.send_message(message)

    async def receive(self) -> str | bytes:
        return await self.connection.get_message()  # type: ignore[no-any-return]

    async def ping(self, payload: bytes) -> None:
        await self.connection.ping(payload)

    async def close(self, code: int, reason: str) -> None:
        await self.connection.aclose(code, reason)

    async def end(self) -> tuple[int, str]:
        try:
            raise AssertionError(await self.receive())
        except trio_websocket.ConnectionClosed as closed:
            if closed.reason is None:
                return ABNORMAL, ""
            return closed.reason.code, closed.reason.reason or ""


class RawClient(Client):
    """The one by hand."""

    def __init__(self, address: str, path: str) -> None:
        self.connection = RawWebSocket(address, path)

    async def send(self, message: str | bytes) -> None:
        await in_thread(self.connection.send, message)

    async def receive(self) -> str | bytes:
        return await in_thread(self.connection.receive)  # type: ignore[no-any-return]

    async def ping(self, payload: bytes) -> None:
        await in_thread(self.connection.ping, payload)

    async def close(self, code: int, reason: str) -> None:
        await in_thread(self.connection.close, code, reason)

    async def end(self) -> tuple[int, str]:
        try:
            raise AssertionError(await self.receive())
        except Closed as closed:
            return closed.code, closed.reason
        except (Lost, ConnectionResetError):
            return ABNORMAL, ""


@asynccontextmanager
async def _websockets(address: str, path: str, compression: str | None = None) -> AsyncIterator[Client]:
    client = await in_thread(WebsocketsClient, address, path, compression)
    try:
        yield client
    finally:
        with trio.CancelScope(shield=True):
            await in_thread(client.connection.close)


@asynccontextmanager
async def _trio(address: str, path: str) -> AsyncIterator[Client]:
    async with trio_websocket.open_websocket_url(
        f"ws://{address}{path}",
        max_message_size=LARGEST,
        connect_timeout=PATIENCE,
        disconnect_timeout=PATIENCE,
    ) as connection:
        yield TrioClient(connection)


@asynccontextmanager
async def _raw(address: str, path: str) -> AsyncIterator[Client]:
    client = await in_thread(RawClient, address, path)
    try:
        yield client
    finally:
        client.connection.abandon()


CLIENTS: dict[str, Callable[..., Any]] = {
    "websockets": _websockets,
    "trio-websocket": _trio,
    "raw": _raw,
}


@asynccontextmanager
async def client(kind: str, address: str, path: str = "/", **options: Any) -> AsyncIterator[Client]:
    """One WebSocket through ``address``, closed at the end if it was not before."""
    with trio.fail_after(2 * PATIENCE):
        async with CLIENTS[kind](address, path, **options) as running:
            yield running
