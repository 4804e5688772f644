"""Many requests, few actions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio


class Coalescer:
    """Runs ``action`` soon after it is asked for, but begins it at most once per ``interval`` seconds.

    The first request after a quiet time is served at once. One that comes later, even while the action
    runs, is served by another run: the last request is never lost.
    """

    def __init__(self, action: Callable[[], Awaitable[None]], interval: float = 0.1) -> None:
        self._action = action
        self._interval = interval
        self._wanted = trio.Event()

    def request(self) -> None:
        """Ask for the action. It may be asked for before ``run`` began."""
        self._wanted.set()

    async def run(self) -> NoReturn:
        """Serve requests until cancelled. An error of the action ends it: it is the caller's to judge."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            started = trio.current_time()
            await self._action()
            await trio.sleep_until(started + self._interval)
