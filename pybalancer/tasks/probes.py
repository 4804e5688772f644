"""Questions to a backend: does it accept, does it answer, does its WebSocket live."""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from pybalancer.policy.settings import Check

MOST_BYTES: Final = 64 * 1024
"""Of an answer's head, or of what a WebSocket says before its pong."""


OUR_FAULT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""This machine is short of files, memory or outgoing ports: that says nothing of the backend. To mark all
backends down for it would make an outage of a shortage."""

_HELLO: Final = {"v1": b"PROXY UNKNOWN\r\n", "v2": b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"}
"""PROXY protocol: this connection is the balancer's own (v2: LOCAL, its section 2.2)."""

_USER_AGENT: Final = ("User-Agent", "pybalancer")


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe found. ``reason`` is for people; ``seconds`` is how long it took.

    ``ours`` means that it failed for reasons of our own, and that nothing was found. ``load`` is what the
    backend says of itself: 0 is idle, 1 full.
    """

    ok: bool
    reason: str
    seconds: float
    ours: bool = False
    load: float | None = None


class _Bad(Exception):
    """The backend answered, and that answer is not a healthy one."""


async def probe(check: Check, address: str) -> ProbeResult:
    """Ask the backend at ``address`` (``ip:port``, ``[ip]:port``, ``unix:/path``).

    Never raises for what a backend does; cancellation passes.
    """
    started = trio.current_time()

    def result(ok: bool, reason: str, ours: bool = False, load: float | None = None) -> ProbeResult:
        return ProbeResult(ok, reason, trio.current_time() - started, ours, load)

    try:
        with trio.fail_after(check.timeout):
            reason, load = await _KINDS[check.kind](check, address)
            return result(True, reason, load=load)
    except trio.TooSlowError:
        return result(False, f"no answer within {check.timeout:g}s")
    except _Bad as error:
        return result(False, str(error))
    except trio.BrokenResourceError as error:
        return result(False, _why(error.__cause__ or error))
    except OSError as error:
        answered = check.refused and error.errno in {errno.ECONNREFUSED, errno.ECONNRESET}
        return result(answered, _why(error), ours=error.errno in OUR_FAULT)


def _why(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    why = os.strerror(number) if number else str(error)
    return why[:1].lower() + why[1:]


@asynccontextmanager
async def _connected(check: Check, address: str) -> AsyncIterator[trio.SocketStream]:
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
        if check.mark:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, check.mark)
        await connection.connect(target)
        _check_peer(connection)
        stream = trio.SocketStream(connection)
        if check.send_proxy is not None:
            await stream.send_all(_HELLO[check.send_proxy])
        yield stream


def _check_peer(connection: trio.socket.SocketType) -> None:
    """Raise _Bad unless a connection that was reported as made leads to somebody."""
    try:
        peer = connection.getpeername()
    except OSError:
        # A Unix socket refuses with EAGAIN, which for TCP means "under way": a hung server would pass.
        raise _Bad("its accept queue is full") from None
    if connection.family != socket.AF_UNIX and peer == connection.getsockname():
        # Where nobody listens on a local port of the ephemeral range, a connect may by chance start from
        # that very port, and then reaches itself (TCP's simultaneous open).
        raise _Bad(_why(ConnectionRefusedError(errno.ECONNREFUSED, "")))


Found = tuple[str, float | None]
"""A reason, and the load that the backend told."""

_LOAD: Final = re.compile(rb"[0-9]{1,6}(\.[0-9]{1,9})?")


def told_load(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """What the first ``Pybalancer-Load`` says; None where there is none, or nonsense: it is only a hint."""
    values = (value.strip() for name, value in headers if name.lower() == b"pybalancer-load")
    value = next(values, b"")
    return float(value) if _LOAD.fullmatch(value) else None


async def _tcp(check: Check, address: str) -> Found:
    async with _connected(check, address):
        return "connected", None


def _host(check: Check, address: str) -> str:
    return check.host or ("localhost" if address.startswith("unix:") else address)


def _headers(check: Check) -> list[tuple[str, str]]:
    ours = [] if any(name.lower() == "user-agent" for name, _ in check.headers) else [_USER_AGENT]
    return [*ours, *check.headers]


async def _http(check: Check, address: str) -> Found:
    import h11

    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_BYTES)
    headers = [("Host", _host(check, address)), ("Connection", "close"), *_headers(check)]
    request = h11.Request(method="GET", target=check.path, headers=headers)
    async with _connected(check, address) as stream:
        await stream.send_all(
            (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        )
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    data = await stream.receive_some(MOST_BYTES)
                    if not data and not connection.trailing_data[0]:
                        raise _Bad("closed without an answer")
                    connection.receive_data(data)
                elif isinstance(event, h11.Response):
                    break
                elif not isinstance(event, h11.InformationalResponse):
                    raise _Bad("closed without an answer")
        except h11.RemoteProtocolError as error:
            raise _Bad(f"no HTTP: {error}") from None
    if not check.expects(event.status_code):
        raise _Bad(f"HTTP {event.status_code}")
    return f"HTTP {event.status_code}", told_load(event.headers)


async def _websocket(check: Check, address: str) -> Found:
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
    from wsproto.utilities import ProtocolError

    connection = WSConnection(ConnectionType.CLIENT)
    headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in _headers(check)]
    request = Request(host=_host(check, address), target=check.path, extra_headers=headers)
    payload = secrets.token_bytes(8)
    received = 0
    load: float | None = None
    async with _connected(check, address) as stream:
        await stream.send_all(connection.send(request))
        try:
            while True:
                data = await stream.receive_some(MOST_BYTES)
                if not data and not received:
                    raise _Bad("closed without an answer")
                received += len(data)
                if received > 16 * MOST_BYTES:
                    raise _Bad("talks without end instead of answering the ping")
                connection.receive_data(data or None)
                for event in connection.events():
                    match event:
                        case AcceptConnection():
                            load = told_load(event.extra_headers)
                            await stream.send_all(connection.send(Ping(payload)))
                        case Pong() if bytes(event.payload) == payload:
                            await stream.send_all(connection.send(CloseConnection(1000)))
                            return "pong", load
                        case Ping():
                            await stream.send_all(connection.send(event.response()))
                        case RejectConnection():
                            raise _Bad(f"handshake refused: HTTP {event.status_code}")
                        case CloseConnection():
                            raise _Bad(f"the WebSocket ended before the pong (code {event.code})")
        except ProtocolError as error:
            raise _Bad(f"no WebSocket: {error}") from None


_KINDS: Final = {"tcp": _tcp, "http": _http, "websocket": _websocket}
