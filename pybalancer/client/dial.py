"""A stream to where a WebSocket's URL says."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import trio

_PORTS: Final = {"ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Wire:
    """A stream, and what the handshake over it asks for: Host and target."""

    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    host: str
    resource: str


async def dial(url: str, context: ssl.SSLContext | None) -> Wire:
    """Connect to a ws: or wss: URL. The caller closes the stream.

    Raises ``ValueError`` for what is no such URL, and what trio raises where nothing answers.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"not a URL of ws: or wss: {url!r}")
    port = parts.port or _PORTS[parts.scheme]
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme == "ws":
        return Wire(await trio.open_tcp_stream(parts.hostname, port), host, resource)
    stream = await trio.open_ssl_over_tcp_stream(
        parts.hostname, port, ssl_context=context or ssl.create_default_context(), https_compatible=True
    )
    return Wire(stream, host, resource)
