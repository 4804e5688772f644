"""One way, from the first client to the last count."""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from bench.ripple import processes
from bench.ripple.crowd import Crowd
from bench.ripple.fleet import running_fleet
from bench.ripple.processes import Footprint
from bench.ripple.proxies import Terms
from bench.ripple.ways import Way
from pybalancer.demo.ledger import Chapter, Ledger, Messages, middle, peak, skew

BACKENDS = 4
PATIENCE = 60.0
"""Seconds for all clients to be there before a figure is taken without those that are not."""


@dataclass(frozen=True)
class Settings:
    """Of a whole run of the bench."""

    terms: Terms
    every: float
    """Seconds between two messages of a client."""
    settle: float
    """Seconds from the end of the roll to the measure of the skew."""
    wait: float
    """Seconds from the reload to the count of what is left of the old."""
    manner: str
    """How backends end: polite or abrupt."""
    boot: float
    """Seconds that they take to start."""
    seed: int


@dataclass(frozen=True)
class Disturbance:
    """What clients saw in one chapter."""

    seconds: float
    clients: int
    """Clients that were cut, at least once."""
    cuts: int
    codes: dict[int, int]
    tried: int
    """Most attempts to come back in any second."""
    returned: int
    """Most that succeeded in any second."""
    refused: dict[str, int]
    away: float
    """Median seconds without a connection, of those that lost one."""
    away_longest: float
    missing: int
    """Clients that were not back when the chapter ended, however long that was waited for."""
    messages: Messages


@dataclass(frozen=True)
class Result:
    """One way's figures."""

    way: Way
    roll: Disturbance
    spread: dict[str, int]
    reload: Disturbance
    fresh: Footprint
    before: Footprint
    after: Footprint

    @property
    def skew(self) -> float:
        return skew(self.spread)

    def to_dict(self) -> dict[str, Any]:
        return {
            "proxy": self.way.proxy,
            "way": self.way.name,
            "title": self.way.title,
            "roll": asdict(self.roll),
            "spread": self.spread,
            "skew": self.skew,
            "change": self.way.reload,
            "reload": asdict(self.reload),
            "fresh": asdict(self.fresh),
            "before_reload": asdict(self.before),
            "after_reload": asdict(self.after),
        }


def disturbance(
    ledger: Ledger, chapter: Chapter, seconds: float, missing: int, reached: Counter[tuple[int, int]]
) -> Disturbance:
    return Disturbance(
        seconds=seconds,
        clients=len(chapter.cut),
        cuts=chapter.cut.total(),
        codes=dict(sorted(chapter.codes.items())),
        tried=peak(chapter.tried),
        returned=peak(chapter.returned),
        refused=dict(chapter.refused),
        away=middle(chapter.away),
        away_longest=max(chapter.away, default=0.0),
        missing=missing,
        messages=ledger.messages(chapter, reached),
    )


def tell(way: Way, what: str) -> None:
    print(f"  {way.proxy} {way.name}: {what}", file=sys.stderr, flush=True)


async def run(way: Way, settings: Settings) -> Result:
    terms = settings.terms
    with tempfile.TemporaryDirectory(prefix="ripple-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # noqa: ASYNC240 - for nginx, whose worker is somebody else
        async with running_fleet(BACKENDS, folder, settings.manner, settings.boot) as fleet:
            proxy = way.make(fleet, folder, terms)
            await proxy.start()
            session = proxy.process.pid
            try:
                ledger = Ledger(terms.clients, trio.current_time())
                crowd = Crowd(
                    terms.clients, proxy.address, ledger, settings.every, random.Random(settings.seed)
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(crowd.run, 500.0)
                    if missing := await gather(ledger):
                        said = dict(ledger.chapter.refused)
                        raise RuntimeError(f"{missing} clients did not get in to begin with: {said}")
                    fresh = processes.footprint(session)
                    tell(way, f"{terms.clients} clients are there")
                    ledger.begin("steady", trio.current_time())
                    await trio.sleep(2 * settings.every)

                    roll = ledger.begin("roll", trio.current_time())
                    await way.roll(proxy, fleet, terms)
                    rolled = trio.current_time() - roll.began
                    tell(way, f"rolled in {rolled:.1f} s, {len(roll.cut)} clients cut")
                    await trio.sleep(settings.settle)
                    roll_missing = await gather(ledger)
                    spread = ledger.spread(fleet.names)
                    before = processes.footprint(session)

                    changed = ledger.begin("reload", trio.current_time())
                    await getattr(proxy, way.reload)()
                    took = trio.current_time() - changed.began
                    await trio.sleep_until(changed.began + settings.wait)
                    after = processes.footprint(session)
                    changed_missing = await gather(ledger)
                    tell(way, f"changed in {took:.1f} s, {len(changed.cut)} clients cut")

                    ledger.begin("end", trio.current_time())
                    crowd.talking = False
                    with trio.move_on_after(10):
                        while ledger.waiting:  # noqa: ASYNC110 - asked a few times in all
                            await trio.sleep(0.05)
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await processes.end(session)
        reached = fleet.reached()
        return Result(
            way,
            disturbance(ledger, roll, rolled, roll_missing, reached),
            spread,
            disturbance(ledger, changed, took, changed_missing, reached),
            fresh,
            before,
            after,
        )


async def gather(ledger: Ledger) -> int:
    """Wait until every client is connected and has heard a backend; how many are not for all the waiting."""
    with trio.move_on_after(PATIENCE):
        while not all(ledger.backend):  # noqa: ASYNC110 - asked a few times in all
            await trio.sleep(0.05)
    return ledger.backend.count(None)
