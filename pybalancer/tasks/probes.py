"""Questions to a backend: does it accept, does it answer, does its WebSocket live."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from pybalancer.policy.settings import Check

MOST_BYTES: Final = 64 * 1024
"""Of an answer's head, or of what a WebSocket says before its pong."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe found. ``reason`` is for people; ``seconds`` is how long it took."""

    ok: bool
    reason: str
    seconds: float


class _Bad(Exception):
    """The backend answered, and that answer is not a healthy one."""


async def probe(check: Check, address: str) -> ProbeResult:
    """Ask the backend at ``address`` (``ip:port``, ``[ip]:port``, ``unix:/path``).

    Never raises for what a backend does; cancellation passes.
    """
    started = trio.current_time()

    def result(ok: bool, reason: str) -> ProbeResult:
        return ProbeResult(ok, reason, trio.current_time() - started)

    try:
        with trio.fail_after(check.timeout):
            return result(True, await _KINDS[check.kind](check, address))
    except trio.TooSlowError:
        return result(False, f"no answer within {check.timeout:g}s")
    except _Bad as error:
        return result(False, str(error))
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        return result(False, why[:1].lower() + why[1:])


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[trio.SocketStream]:
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        connection = trio.socket.socket(socket.AF_UNIX)
        target: object = "\0" + path[1:] if path.startswith("@") else path
    else:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        connection = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        target = (host, int(port))
    with connection:
        await connection.connect(target)
        yield trio.SocketStream(connection)


async def _tcp(check: Check, address: str) -> str:
    del check
    async with _connected(address):
        return "connected"


def _host(check: Check, address: str) -> str:
    return check.host or ("localhost" if address.startswith("unix:") else address)


async def _http(check: Check, address: str) -> str:
    import h11

    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_BYTES)
    headers = [("Host", _host(check, address)), ("User-Agent", "pybalancer"), ("Connection", "close")]
    request = h11.Request(method="GET", target=check.path, headers=[*headers, *check.headers])
    async with _connected(address) as stream:
        await stream.send_all(
            (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        )
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(MOST_BYTES))
                elif isinstance(event, h11.Response):
                    break
                elif not isinstance(event, h11.InformationalResponse):
                    raise _Bad("closed without an answer")
        except h11.RemoteProtocolError as error:
            raise _Bad(f"no HTTP: {error}") from None
    if not check.expects(event.status_code):
        raise _Bad(f"HTTP {event.status_code}")
    return f"HTTP {event.status_code}"


async def _websocket(check: Check, address: str) -> str:
    """Handshake, a ping with random bytes, its pong, and Close 1000 (RFC 6455)."""
    from wsproto import ConnectionType, WSConnection
    from wsproto.events import (
        AcceptConnection,
        CloseConnection,
        Ping,
        Pong,
        RejectConnection,
        Request,
    )
    from wsproto.utilities import RemoteProtocolError

    connection = WSConnection(ConnectionType.CLIENT)
    extra = [(name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in check.headers]
    request = Request(host=_host(check, address), target=check.path, extra_headers=extra)
    payload = secrets.token_bytes(8)
    received = 0
    async with _connected(address) as stream:
        await stream.send_all(connection.send(request))
        try:
            while True:
                data = await stream.receive_some(MOST_BYTES)
                received += len(data)
                if received > 16 * MOST_BYTES:
                    raise _Bad("talks without end instead of answering the ping")
                connection.receive_data(data or None)
                for event in connection.events():
                    match event:
                        case AcceptConnection():
                            await stream.send_all(connection.send(Ping(payload)))
                        case Pong() if bytes(event.payload) == payload:
                            await stream.send_all(connection.send(CloseConnection(1000)))
                            return "pong"
                        case Ping():
                            await stream.send_all(connection.send(event.response()))
                        case RejectConnection():
                            raise _Bad(f"handshake refused: HTTP {event.status_code}")
                        case CloseConnection():
                            raise _Bad(f"closed the WebSocket ({event.code}) instead of answering the ping")
                if not data:
                    raise _Bad("closed without an answer")
        except RemoteProtocolError as error:
            raise _Bad(f"no WebSocket: {error}") from None


_KINDS: Final = {"tcp": _tcp, "http": _http, "websocket": _websocket}
