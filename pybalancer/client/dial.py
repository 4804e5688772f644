"""A stream to where a WebSocket's URL says."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import trio

_PORTS: Final = {"ws": 80, "wss": 443}


class Watched(trio.abc.Stream):
    """A stream that tells when nothing more comes, or when it was closed.

    trio-websocket's opening handshake does not notice, and would wait for as long as it is let.

    A send that is cancelled ends it: nobody knows how much of a frame is out, and whatever followed would be
    taken for the rest of that.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.ended = trio.Event()
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ended.set()
            raise
        if not data:
            self.ended.set()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ended.set()
            raise
        except BaseException:
            await trio.aclose_forcefully(self)
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.ended.set()
        await self._stream.aclose()


@dataclass(frozen=True, slots=True)
class Wire:
    """A stream, and what the handshake over it asks for: Host and target."""

    stream: Watched
    host: str
    resource: str


async def dial(url: str, context: ssl.SSLContext | None) -> Wire:
    """Connect to a ws: or wss: URL, TLS included. The caller closes the stream.

    Raises ``ValueError`` for what is no such URL, and what trio raises where nothing answers.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"not a URL of ws: or wss: {url!r}")
    port = parts.port or _PORTS[parts.scheme]
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme == "ws":
        return Wire(Watched(await trio.open_tcp_stream(parts.hostname, port)), host, resource)
    stream = await trio.open_ssl_over_tcp_stream(
        parts.hostname, port, ssl_context=context or ssl.create_default_context(), https_compatible=True
    )
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return Wire(Watched(stream), host, resource)
