"""A WebSocket under trio that comes back: ``connect``."""

from __future__ import annotations

import random
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, cast

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
)

from pybalancer.client import rules
from pybalancer.client.dial import Wire, dial
from pybalancer.client.lookup import Look, Reply, look
from pybalancer.client.rules import Comeback, Found, IsFinal, Retry, Told
from pybalancer.client.steps import NO_CLOSE
from pybalancer.errors import ConnectionEnded, leaves, plain

_UNREAD: Final = 16
"""Messages that have come and wait for ``receive``. When there are as many, the sender is made to wait."""
_LEAVING: Final = 2.0
"""Seconds for the other side's part of a closing handshake."""
_DONE: Final = 1000

_dice = random.Random()  # noqa: S311 - spreads clients, and is no secret

Open = Callable[[WebSocketConnection], Awaitable[None]]


@asynccontextmanager
async def connect(
    directory: str,
    *,
    protocols: Iterable[str] = (),
    retry: Retry | None = None,
    final: IsFinal | None = None,
    on_open: Open | None = None,
    timeout: float = 10.0,  # noqa: ASYNC109 - of each look-up and each handshake, not of the whole
    heartbeat: float | None = 30.0,
    max_message: int = 1 << 20,
    headers: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
    chance: Callable[[], float] = _dice.random,
    ask: Look = look,
) -> AsyncIterator[ReconnectingSocket]:
    """A WebSocket to where the directory says, and again when it is lost.

    ``directory``: its http: or https: URL, asked before each connect; or a ws: or wss: URL that is connected
    to as it is. ``on_open`` is called with each new connection before anything else is sent over it: to log
    in, to subscribe. ``timeout``: seconds for an answer of the directory, and for a handshake.
    ``heartbeat``: seconds between pings, and for each pong; None: no pings. ``max_message``: bytes; a longer
    one ends that connection with Close 1009. ``headers`` go to the directory and into the handshakes,
    ``context`` is for https: and wss:. ``final`` is asked of every end whether it is. ``chance`` gives
    numbers in [0, 1).

    The block begins at once, connected or not. Its end closes the connection with 1000. Raises
    ``ValueError`` for what is no such URL; what ``on_open`` raises ends the block.
    """
    options = _Options(
        directory,
        tuple(protocols),
        on_open,
        timeout,
        heartbeat,
        max_message,
        dict(headers or {}),
        context,
        ask,
    )
    socket = ReconnectingSocket(options, Comeback(directory, retry, final), chance)
    failed: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(socket._run)
            try:
                yield socket
            except BaseException as error:
                failed = error
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await socket.aclose()
    except BaseExceptionGroup as group:
        # The nursery is ours: of its group the caller need not know.
        if failed is not None and leaves(failed) == leaves(group):
            raise failed from failed.__cause__
        only = plain(group)
        raise only from only.__cause__


@dataclass(frozen=True, slots=True)
class _Options:
    directory: str
    protocols: tuple[str, ...]
    on_open: Open | None
    timeout: float
    heartbeat: float | None
    max_message: int
    headers: dict[str, str]
    context: ssl.SSLContext | None
    ask: Look


class ReconnectingSocket:
    """One conversation over connections that may change. Made by ``connect``.

    Several tasks may send, one may receive.
    """

    def __init__(self, options: _Options, comeback: Comeback, chance: Callable[[], float]) -> None:
        self.url: str | None = None
        """Where it is connected, or was last."""
        self.backend: str | None = None
        """The backend's name, if the directory told it."""
        self._options, self._comeback, self._chance = options, comeback, chance
        self._connection: WebSocketConnection | None = None
        self._wire: Wire | None = None
        """What is below it."""
        self._unread: deque[str | bytes] = deque()
        self._heard = 0
        """Messages that have come."""
        self._changed = trio.Event()
        self._end: tuple[int, str] | None = None
        self._problem: Exception | None = None
        """What ``on_open`` has raised."""
        self._life = trio.CancelScope(shield=True)
        """Of ``_run``. Shielded, so that who is cancelled can still say Close; ``connect`` cancels it."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection just now."""
        return self._open() is not None

    async def send(self, message: str | bytes) -> None:
        """Hand a message to the connection; wait for one while there is none.

        It goes to one connection once and is never sent again: if that is lost meanwhile, it may or may not
        have arrived. If this is cancelled when it has begun to go out, that connection is lost. Raises
        ``ConnectionEnded`` when it is over.
        """
        if not isinstance(message, str | bytes):
            raise TypeError(f"a message is str or bytes, not {type(message).__name__}")
        while True:
            if self._end is not None:
                raise ConnectionEnded(*self._end)
            connection = self._open()
            if connection is not None:
                with suppress(ConnectionClosed):
                    await connection.send_message(message)
                return
            await self._changed.wait()

    async def receive(self) -> str | bytes:
        """The next message, over whatever connection it comes.

        Raises ``ConnectionEnded`` when it is over and all that had come was received.
        """
        await trio.lowlevel.checkpoint()
        while not self._unread:
            if self._end is not None:
                raise ConnectionEnded(*self._end)
            await self._changed.wait()
        message = self._unread.popleft()
        self._tell()
        return message

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        """All messages until a Close 1000; ``ConnectionEnded`` is raised at another final end."""
        while True:
            try:
                message = await self.receive()
            except ConnectionEnded as end:
                if end.code == _DONE:
                    return
                raise
            yield message

    async def aclose(self, code: int = _DONE, reason: str = "") -> None:
        """End it for good, with a Close if it is connected."""
        connection = self._connection
        self._over(code, reason)
        if connection is not None:
            with trio.move_on_after(_LEAVING):
                await connection.aclose(code, reason)
        self._life.cancel()

    def _open(self) -> WebSocketConnection | None:
        """The connection that takes messages; also after a send that was cancelled there is none at once."""
        connection, wire = self._connection, self._wire
        if connection is None or connection.closed is not None or wire is None or wire.stream.ended.is_set():
            return None
        return connection

    def _over(self, code: int, reason: str) -> None:
        if self._end is None:
            self._end = (code, reason)
        self._tell()

    def _tell(self) -> None:
        """Wake all that wait for any change."""
        self._changed.set()
        self._changed = trio.Event()

    async def _run(self) -> None:
        with self._life:
            while True:
                code, reason, after = await self._attempt()
                if self._problem is not None:
                    raise self._problem
                now = trio.current_time() * 1000.0
                delay = self._comeback.wait(now, self._chance(), code, reason, after)
                if delay is None:
                    self._over(code, reason)
                    return
                await trio.sleep(delay / 1000.0)

    async def _attempt(self) -> tuple[int, str, float | None]:
        """Look up, connect, live; how it ended: code, reason, milliseconds that were asked for."""
        found = await self._find()
        if isinstance(found, Told):
            return found.status, f"the directory answers {found.status}", found.after
        self.url, self.backend = found.url, found.backend
        end: tuple[int, str, float | None] = (NO_CLOSE, "", None)
        try:
            with trio.fail_after(self._options.timeout):
                wire = await dial(found.url, self._options.context)
        except (OSError, ValueError, trio.BrokenResourceError, trio.TooSlowError):
            return end
        try:
            async with trio.open_nursery() as nursery:
                end = await self._converse(nursery, wire)
                nursery.cancel_scope.cancel()
        except* ConnectionRejected as group:
            # It comes from the library's reader, through the nursery.
            end = _refused(plain(group))
        except* Exception:  # noqa: S110 - whatever it is, the connection is lost, and that is told
            # Of the reader too, which lets out what its parsers raise for what a server has sent.
            pass
        finally:
            await trio.aclose_forcefully(wire.stream)
        return end

    async def _converse(self, nursery: trio.Nursery, wire: Wire) -> tuple[int, str, float | None]:
        connection = await self._shake_hands(nursery, wire)
        if connection is None:
            return NO_CLOSE, "", None
        self._wire = wire
        try:
            code, reason = await self._live(connection)
        finally:
            self._connection = None
        if self._end is not None:
            # `aclose` needs the library's reader for the closing handshake, and cancels this after it.
            await trio.sleep_forever()
        return code, reason, None

    async def _shake_hands(self, nursery: trio.Nursery, wire: Wire) -> WebSocketConnection | None:
        """The opening handshake; None if the other side ends it, or has not answered in time."""
        options = self._options
        connection: WebSocketConnection | None = None

        async def watch(over: trio.CancelScope) -> None:
            await wire.stream.ended.wait()
            over.cancel()

        with trio.move_on_after(options.timeout):
            async with trio.open_nursery() as race:
                race.start_soon(watch, race.cancel_scope)
                connection = await wrap_client_stream(
                    nursery,
                    # Any stream will do; the library's types name two.
                    cast("trio.SocketStream", wire.stream),
                    wire.host,
                    wire.resource,
                    subprotocols=options.protocols,
                    extra_headers=[
                        (name.encode(), value.encode()) for name, value in options.headers.items()
                    ],
                    max_message_size=options.max_message,
                )
                race.cancel_scope.cancel()
        return connection

    async def _find(self) -> Found | Told:
        options = self._options
        if options.directory.lower().startswith("ws"):
            return Found(options.directory, None)
        reply = Reply(0)
        with trio.move_on_after(options.timeout):
            reply = await trio.to_thread.run_sync(
                options.ask,
                options.directory,
                options.timeout,
                options.headers,
                options.context,
                abandon_on_cancel=True,
            )
        return self._comeback.answer(reply.status, reply.text, reply.retry_after, time.time() * 1000.0)

    async def _live(self, connection: WebSocketConnection) -> tuple[int, str]:
        """The whole life of a connection; how it ended."""
        self._comeback.opened(trio.current_time() * 1000.0)
        async with trio.open_nursery() as nursery:
            if self._options.heartbeat is not None:
                nursery.start_soon(self._beat, connection, self._options.heartbeat, nursery.cancel_scope)
            with suppress(ConnectionClosed):
                await self._greet(connection)
                if self._problem is None:
                    self._connection = connection
                    self._tell()
                    await self._take(connection)
            nursery.cancel_scope.cancel()
        reason = connection.closed
        return (NO_CLOSE, "no pong") if reason is None else (int(reason.code), reason.reason or "")

    async def _greet(self, connection: WebSocketConnection) -> None:
        if self._options.on_open is None:
            return
        try:
            await self._options.on_open(connection)
        except ConnectionClosed:
            raise
        except Exception as error:
            # Kept apart from what the library raises: this is the caller's.
            self._problem = error

    async def _take(self, connection: WebSocketConnection) -> None:
        while True:
            # Room first: a message that was taken is never put back.
            while len(self._unread) >= _UNREAD:
                await self._changed.wait()
            self._unread.append(await connection.get_message())
            self._heard += 1
            self._tell()

    async def _beat(self, connection: WebSocketConnection, every: float, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep(every)
            heard = self._heard
            with trio.move_on_after(every) as patience, suppress(ConnectionClosed):
                await connection.ping()
            # Any message is a sign of life. Where nobody receives, nothing is read, pongs neither.
            silent = self._heard == heard and len(self._unread) < _UNREAD
            if patience.cancelled_caught and silent:
                scope.cancel()


def _refused(error: BaseException) -> tuple[int, str, float | None]:
    if not isinstance(error, ConnectionRejected):
        return NO_CLOSE, "", None
    fields = {name.lower(): value.decode("latin-1") for name, value in error.headers}
    after = rules.retry_after(fields.get(b"retry-after"), time.time() * 1000.0)
    return error.status_code, f"the handshake is answered with {error.status_code}", after
