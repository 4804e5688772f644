"""What is told and counted of drains, and what sheds by itself: tasks on a clock that jumps."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pybalancer.errors import DrainError
from pybalancer.policy.rebalance import PATIENCE, PAUSE, Load
from pybalancer.status import DrainPart, DrainStatus
from pybalancer.tasks import rebalance
from pybalancer.tasks.drains import LOOK, TELL, DrainWatcher


def drain(number: int, **changes: Any) -> DrainStatus:
    began = DrainStatus(
        id=number,
        kind="drain",
        what="chat/app-1",
        pool="chat",
        listener=None,
        parts=[DrainPart("app-1", 100, 100)],
        total=100,
        left=100,
        closed=0,
        cut=0,
        moved=0,
        age_seconds=0.0,
        over_seconds=30.0,
        deadline_seconds=60.0,
        rate=0.0,
        code=1012,
        state="running",
    )
    return replace(began, **changes)


@dataclass
class Engine:
    """Drains that go on with time, each from when it began to when it is over."""

    found: dict[int, DrainStatus] = field(default_factory=dict)
    over_at: dict[int, float] = field(default_factory=dict)
    looks: list[float] = field(default_factory=list)

    def begin(self, each: DrainStatus, lasts: float) -> None:
        self.found[each.id] = each
        self.over_at[each.id] = trio.current_time() + lasts

    def drains(self) -> list[DrainStatus]:
        self.looks.append(trio.current_time())
        return [self._now(each) for each in self.found.values()]

    def _now(self, each: DrainStatus) -> DrainStatus:
        end = self.over_at[each.id]
        if trio.current_time() < end:
            return each
        return replace(each, state="done", left=0, closed=each.total - each.cut, age_seconds=12.34)


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[DrainWatcher]:
    watcher = DrainWatcher(engine.drains)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        yield watcher
        nursery.cancel_scope.cancel()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "pybalancer")
    return caplog


async def test_nobody_looks_while_there_is_nothing(autojump_clock: MockClock) -> None:
    engine = Engine()
    async with running(engine):
        await trio.sleep(3600)
    assert engine.looks == []


async def test_it_tells_the_beginning_the_progress_and_the_end(
    autojump_clock: MockClock, log: pytest.LogCaptureFixture
) -> None:
    engine = Engine()
    async with running(engine) as watcher:
        engine.begin(drain(1, rate=50.0), 12.0)
        watcher.stir()
        await trio.sleep(60)
        looked = len(engine.looks)
        await trio.sleep(3600)
        assert len(engine.looks) == looked, "it looks no more once all have ended"
    assert looked <= 12 / LOOK + 2
    assert log.messages == [
        "draining chat/app-1: 100 tunnels over 30 s, at most 50/s",
        *["chat/app-1: left 100 of 100, 30 s"] * int(12 / TELL),
        "drain of chat/app-1 is over after 12.3 s: 100 tunnels closed, 0 cut, 0 left",
    ]


@pytest.mark.parametrize(
    ("changes", "begins", "ends", "level"),
    [
        ({"cut": 3}, "draining chat/app-1: 100", "97 tunnels closed, 3 cut, 0 left", logging.WARNING),
        (
            {"moved": 4},
            "draining chat/app-1: 100",
            "100 tunnels closed, 0 cut, 4 moved, 0 left",
            logging.INFO,
        ),
        (
            {"kind": "shed", "over_seconds": 0.0},
            "shedding from chat/app-1: 100 tunnels",
            "shed of",
            logging.INFO,
        ),
        ({"kind": "removed"}, "removed, so draining chat/app-1", "drain of", logging.INFO),
        ({"kind": "down"}, "down, so draining chat/app-1", "drain of", logging.INFO),
    ],
)
async def test_of_each_kind_in_its_words(
    autojump_clock: MockClock,
    log: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    begins: str,
    ends: str,
    level: int,
) -> None:
    engine = Engine()
    async with running(engine) as watcher:
        engine.begin(drain(1, **changes), 2.0)
        watcher.stir()
        await trio.sleep(10)
    first, last = log.records
    assert first.getMessage().startswith(begins)
    assert ends in last.getMessage()
    assert last.levelno == level


async def test_one_that_was_stopped_is_said_to_be(
    autojump_clock: MockClock, log: pytest.LogCaptureFixture
) -> None:
    engine = Engine()
    async with running(engine) as watcher:
        engine.begin(drain(1, state="cancelled", left=40, closed=60, age_seconds=7.0), 1e9)
        watcher.stir()
        await trio.sleep(10)
    assert log.messages[-1] == "drain of chat/app-1 is stopped after 7.0 s: 60 tunnels closed, 0 cut, 40 left"


@pytest.mark.parametrize(("kind", "lines"), [("removed", 0), ("down", 0), ("drain", 2)])
async def test_of_an_empty_backend_that_went_by_itself_there_is_nothing_to_say(
    autojump_clock: MockClock, log: pytest.LogCaptureFixture, kind: Any, lines: int
) -> None:
    engine = Engine()
    async with running(engine) as watcher:
        engine.begin(drain(1, kind=kind, total=0, left=0), 2.0)
        watcher.stir()
        await trio.sleep(10)
    assert len(log.messages) == lines


async def test_a_drain_that_begins_later_is_told_at_once(
    autojump_clock: MockClock, log: pytest.LogCaptureFixture
) -> None:
    engine = Engine()
    async with running(engine) as watcher:
        engine.begin(drain(1), 100.0)
        watcher.stir()
        await trio.sleep(1.5)
        engine.begin(drain(2, what="chat/app-2"), 100.0)
        watcher.stir()
        await trio.testing.wait_all_tasks_blocked()
        assert log.messages[-1].startswith("draining chat/app-2")


async def test_totals_grow_and_outlive_what_is_forgotten(autojump_clock: MockClock) -> None:
    engine = Engine()
    watcher = DrainWatcher(engine.drains)
    assert set(watcher.totals().values()) == {0}
    engine.begin(drain(1, closed=10, cut=1), 1e9)
    engine.begin(drain(2, kind="shed", closed=5, moved=2), 1e9)
    for _ in range(3):
        totals = watcher.totals()
        assert (totals["drain", "closed"], totals["drain", "cut"]) == (10, 1)
        assert (totals["shed", "closed"], totals["shed", "moved"]) == (5, 2)
    engine.found[1] = drain(1, closed=25, cut=1)
    del engine.found[2]
    totals = watcher.totals()
    assert (totals["drain", "closed"], totals["shed", "closed"]) == (25, 5)
    engine.begin(drain(3, closed=1), 1e9)
    assert watcher.totals()["drain", "closed"] == 26


# Rebalancing.


@dataclass
class Pools:
    """A balancer with one pool whose loads the test sets; a shed evens them out unless told otherwise."""

    skew: float | None = 1.2
    counts: dict[str, int] = field(default_factory=lambda: {"app-1": 400, "app-2": 100})
    busy_now: bool = False
    helps: bool = True
    error: Exception | None = None
    sheds: list[tuple[float, str, float, float | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = trio.current_time()

    @property
    def config(self) -> Any:
        settings = None if self.skew is None else SimpleNamespace(skew=self.skew, rate=50.0)
        return SimpleNamespace(pools={"chat": SimpleNamespace(rebalance=settings)})

    def loads(self, pool: str) -> dict[str, Load]:
        assert pool == "chat"
        return {name: Load(count, 1) for name, count in self.counts.items()}

    def busy(self, pool: str) -> bool:
        assert pool == "chat"
        return self.busy_now

    async def shed(self, pool: str, to_skew: float, *, rate: float | None = None, wait: bool = True) -> None:
        await trio.lowlevel.checkpoint()
        assert not wait, "nobody looks at other pools meanwhile"
        self.sheds.append((trio.current_time() - self.began, pool, to_skew, rate))
        if self.error is not None:
            raise self.error
        if self.helps:
            mean = sum(self.counts.values()) // len(self.counts)
            self.counts = dict.fromkeys(self.counts, mean)


async def watch(pools: Pools, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await rebalance.watch(pools)


async def test_a_pool_that_stays_skewed_is_shed_halfway(
    autojump_clock: MockClock, log: pytest.LogCaptureFixture
) -> None:
    pools = Pools()
    await watch(pools, 300)
    ((when, pool, to_skew, rate),) = pools.sheds
    assert PATIENCE <= when <= PATIENCE + 2 * rebalance.LOOK
    assert (pool, to_skew, rate) == ("chat", pytest.approx(1.1), 50.0)
    assert log.messages == ["pool chat is skewed, 1.6 times the fair share: shedding to 1.1"]


@pytest.mark.parametrize(
    "changes", [{"skew": None}, {"busy_now": True}, {"counts": {"app-1": 110, "app-2": 100}}]
)
async def test_it_sheds_only_what_it_shall(autojump_clock: MockClock, changes: dict[str, Any]) -> None:
    pools = Pools(**changes)
    await watch(pools, 600)
    assert pools.sheds == []


async def test_who_gains_nothing_is_asked_less_and_less(autojump_clock: MockClock) -> None:
    """As of a pool whose keys do not allow more: closing the same clients again and again helps nobody."""
    pools = Pools(helps=False)
    await watch(pools, 600)
    times = [when for when, *_ in pools.sheds]
    gaps = [second - first for first, second in itertools.pairwise(times)]
    assert 3 <= len(times) <= 6
    assert gaps == sorted(gaps)
    assert gaps[0] >= PAUSE + 2 * PATIENCE


async def test_an_error_is_told_and_ends_nothing(
    autojump_clock: MockClock, log: pytest.LogCaptureFixture
) -> None:
    pools = Pools(error=DrainError("there is no pool 'chat'"))
    await watch(pools, 600)
    assert len(pools.sheds) > 1
    assert "pool chat is not rebalanced: there is no pool 'chat'" in log.messages


async def test_a_reload_may_begin_change_and_end_it(autojump_clock: MockClock) -> None:
    pools = Pools(skew=None, helps=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rebalance.watch, pools)
        await trio.sleep(100)
        assert pools.sheds == []
        pools.skew = 1.3
        await trio.sleep(PATIENCE + 3)
        assert [to_skew for _, _, to_skew, _ in pools.sheds] == [pytest.approx(1.15)]
        # Another limit is another beginning: no pause, no longer patience.
        pools.skew = 1.5
        await trio.sleep(PATIENCE + 3)
        assert [to_skew for _, _, to_skew, _ in pools.sheds][1:] == [pytest.approx(1.25)]
        pools.skew = None
        await trio.sleep(3600)
        assert len(pools.sheds) == 2
        nursery.cancel_scope.cancel()
