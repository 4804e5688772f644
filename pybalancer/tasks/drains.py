"""Tells of drains and sheds while they go on, and keeps count of what they have done: ``DrainWatcher``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final, NoReturn

import trio

from pybalancer.status import HOWS, KINDS, DrainStatus

_log = logging.getLogger("pybalancer")

LOOK: Final = 1.0
"""Seconds between two looks while any is under way. Without one, nobody looks."""

TELL: Final = 5.0
"""Seconds between two lines about one of them."""

_BEGIN: Final = {
    "drain": "draining",
    "shed": "shedding from",
    "removed": "removed, so draining",
    "down": "down, so draining",
}


class DrainWatcher:
    """Looks at ``drains()`` whenever it is stirred, and until all that run have ended."""

    def __init__(self, drains: Callable[[], list[DrainStatus]]) -> None:
        self._drains = drains
        self._stirred = trio.Event()
        self._seen: dict[int, DrainStatus] = {}
        self._told: dict[int, float] = {}
        self._totals = {(kind, how): 0 for kind in KINDS for how in HOWS}

    def stir(self) -> None:
        """There may be one that began."""
        self._stirred.set()

    def totals(self) -> dict[tuple[str, str], int]:
        """Tunnels that were closed, cut and moved since the start, by kind."""
        self._count(self._drains())
        return dict(self._totals)

    async def run(self) -> NoReturn:
        """Tell until cancelled."""
        while True:
            await self._stirred.wait()
            self._stirred = trio.Event()
            while self._look(trio.current_time()):
                with trio.move_on_after(LOOK):
                    await self._stirred.wait()
                    self._stirred = trio.Event()

    def _look(self, now: float) -> bool:
        """Whether any is under way."""
        found = self._drains()
        self._count(found)
        for drain in found:
            # Of backends that were empty there is nothing to say.
            if drain.total or drain.kind in ("drain", "shed"):
                self._tell(drain, now)
        return any(drain.state == "running" for drain in found)

    def _count(self, found: list[DrainStatus]) -> None:
        for drain in found:
            before = self._seen.get(drain.id)
            for how in HOWS:
                self._totals[drain.kind, how] += getattr(drain, how) - (getattr(before, how) if before else 0)
        # Those that are forgotten there are forgotten here.
        self._seen = {drain.id: drain for drain in found}
        self._told = {number: told for number, told in self._told.items() if number in self._seen}

    def _tell(self, drain: DrainStatus, now: float) -> None:
        told = self._told.get(drain.id)
        if told is None:
            self._told[drain.id] = told = now
            time = f" over {drain.over_seconds:g} s" if drain.over_seconds else ""
            rate = f", at most {drain.rate:g}/s" if drain.rate else ""
            _log.info("%s %s: %d tunnels%s%s", _BEGIN[drain.kind], drain.what, drain.total, time, rate)
        if drain.state == "running":
            if now - told >= TELL:
                self._told[drain.id] = now
                _log.info(
                    "%s: left %d of %d, %.0f s", drain.what, drain.left, drain.total, drain.seconds_left
                )
        elif told < math.inf:
            self._told[drain.id] = math.inf
            level = logging.WARNING if drain.cut else logging.INFO
            what = "shed" if drain.kind == "shed" else "drain"
            how = "stopped" if drain.state == "cancelled" else "over"
            moved = f", {drain.moved} moved" if drain.moved else ""
            _log.log(
                level,
                "%s of %s is %s after %s s: %d tunnels closed, %d cut%s, %d left",
                what,
                drain.what,
                how,
                f"{drain.age_seconds:.1f}",
                drain.closed,
                drain.cut,
                moved,
                drain.left,
            )
