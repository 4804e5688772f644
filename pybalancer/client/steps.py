"""The rules for any WebSocket library, on any loop or none: addresses to connect to, and times to wait."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from pybalancer.client import rules
from pybalancer.client.lookup import Look, look
from pybalancer.client.rules import Comeback, Found, IsFinal, Retry, Told

NO_CLOSE: Final = 1006
"""The code of an end without a Close (RFC 6455, section 7.1.5)."""

_dice = random.Random()  # noqa: S311 - spreads clients, and is no secret


class Attempts(Iterator[tuple[str | None, float]]):
    """What to do next, again and again: see ``attempts``."""

    def __init__(
        self,
        target: str,
        retry: Retry | None,
        final: IsFinal | None,
        timeout: float,
        headers: Mapping[str, str] | None,
        context: ssl.SSLContext | None,
        clock: Callable[[], float],
        chance: Callable[[], float],
        ask: Look,
    ) -> None:
        self.backend: str | None = None
        """The name of the backend of the last URL, if the directory told it."""
        self.end: tuple[int, str] | None = None
        """Code and reason of the end that was final."""
        self._target, self._comeback = target, Comeback(target, retry, final)
        self._ask, self._asking = ask, (timeout, dict(headers or {}), context)
        self._clock, self._chance = clock, chance
        self._out = False
        self._last: tuple[int, str, float | None] = (NO_CLOSE, "", None)

    def __next__(self) -> tuple[str | None, float]:
        if self.end is not None:
            raise StopIteration
        if self._out:
            # The caller has been there and is back: what it did not report was a loss.
            self._out = False
            return self._wait(*self._last)
        found = self._find()
        if not isinstance(found, Found):
            return self._wait(found.status, f"the directory answers {found.status}", found.after)
        self._out, self._last = True, (NO_CLOSE, "", None)
        self.backend = found.backend
        return found.url, 0.0

    def opened(self) -> None:
        """The connection is open."""
        self._comeback.opened(self._clock() * 1000.0)

    def closed(self, code: int | None, reason: str | None = "") -> None:
        """It has ended: with the code and reason of the server's Close, or None for both."""
        self._last = (NO_CLOSE if code is None else code, reason or "", None)

    def refused(self, status: int, retry_after: str | None = None) -> None:
        """The handshake was answered with this HTTP status, and perhaps a Retry-After field."""
        asked = rules.retry_after(retry_after, time.time() * 1000.0)
        self._last = (status, f"the handshake is answered with {status}", asked)

    def _find(self) -> Found | Told:
        if self._target.lower().startswith("ws"):
            return Found(self._target, None)
        reply = self._ask(self._target, *self._asking)
        return self._comeback.answer(reply.status, reply.text, reply.retry_after, time.time() * 1000.0)

    def _wait(self, code: int, reason: str, after: float | None) -> tuple[None, float]:
        delay = self._comeback.wait(self._clock() * 1000.0, self._chance(), code, reason, after)
        if delay is None:
            self.end = (code, reason)
            raise StopIteration
        return None, delay / 1000.0


def attempts(
    directory: str,
    *,
    retry: Retry | None = None,
    final: IsFinal | None = None,
    timeout: float = 10.0,
    headers: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
    clock: Callable[[], float] = time.monotonic,
    chance: Callable[[], float] = _dice.random,
    ask: Look = look,
) -> Attempts:
    """Yield ``(url, 0.0)``: connect to it; and ``(None, delay)``: wait so many seconds, then go on.

    ``directory`` is its http: or https: URL, which is asked before each connect, in the thread that takes
    the next step and for at most ``timeout`` seconds; or a ws: or wss: URL that is connected to as it is.
    Tell ``opened()``, then ``closed(code, reason)`` or ``refused(status, retry_after)``; an attempt of which
    nothing was told was a loss. It is over when an end was final: ``end`` has its code and reason then.

    ``clock`` gives monotonic seconds, ``chance`` numbers in [0, 1). Raises ``ValueError`` for what is no
    such URL.
    """
    return Attempts(directory, retry, final, timeout, headers, context, clock, chance, ask)
