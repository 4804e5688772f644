"""The watcher on a clock that jumps, with a probe that answers as the test says."""

import itertools
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from pybalancer.policy.coalesce import Coalescer
from pybalancer.policy.settings import Check
from pybalancer.tasks.health import HealthWatcher
from pybalancer.tasks.probes import ProbeResult

A, B = ("chat", "a"), ("chat", "b")
AT_A, AT_B, ELSEWHERE = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"
HEALTH = {"interval": 1.0, "jitter": 0.0, "rise": 2, "fall": 3}


def config(backends: str = "a", slow_start: float = 0.0, **health: Any) -> Any:
    """One pool with backends of these one-letter names; without health, passive."""
    section = SimpleNamespace(
        **{"kind": "tcp", "path": "/", "host": None, "timeout": 0.5, "expect": (), "headers": {}, **health}
    )
    pool = SimpleNamespace(
        backends=[SimpleNamespace(name=name) for name in backends],
        health=section if health else None,
        slow_start=slow_start,
        send_proxy=None,
    )
    return SimpleNamespace(pools={"chat": pool})


@dataclass
class Probes:
    """What was asked when, and how it is answered: a function of address and time."""

    answer: Callable[[str, float], bool] = lambda _address, _time: True
    takes: float = 0.0
    error: Exception | None = None
    ours: bool = False
    begun: list[tuple[float, str, Check]] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    async def __call__(self, check: Check, address: str) -> ProbeResult:
        began = trio.current_time()
        self.begun.append((began, address, check))
        await trio.sleep(self.takes)
        self.ended.append(trio.current_time())
        if self.error is not None:
            raise self.error
        ok = not self.ours and self.answer(address, began)
        return ProbeResult(ok, "pong" if ok else "connection refused", self.takes, self.ours)

    def times(self, address: str = AT_A) -> list[float]:
        return [time for time, where, _ in self.begun if where == address]


class Watched:
    """A watcher that runs, and the times of its news. Time counts from 0."""

    def __init__(self, probes: Probes, on_change: Callable[[], None] | None = None) -> None:
        self.start = trio.current_time()
        self.probes = probes
        self.changes: list[float] = []
        self.watcher = HealthWatcher(on_change or self._note, ask=self._ask, rng=random.Random(1))

    def _note(self) -> None:
        self.changes.append(self.now())

    async def _ask(self, check: Check, address: str) -> ProbeResult:
        return await self.probes(check, address)

    def now(self) -> float:
        return trio.current_time() - self.start

    def up(self, key: tuple[str, str] = A) -> bool:
        return self.watcher.snapshot()[key].up

    async def until(self, time: float) -> None:
        """And all that is due then has happened."""
        await trio.sleep_until(self.start + time)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def watching(
    probes: Probes, given: Any, addresses: dict[tuple[str, str], str] | None = None, **options: Any
) -> AsyncIterator[Watched]:
    watched = Watched(probes, **options)
    watched.watcher.update(given, addresses or {A: AT_A, B: AT_B})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.watcher.run)
        yield watched
        nursery.cancel_scope.cancel()
    probes.begun = [(time - watched.start, address, check) for time, address, check in probes.begun]


def after(seconds: float) -> Callable[[str, float], bool]:
    """Backends that answer, from then on."""
    start = trio.current_time()
    return lambda _address, time: time >= start + seconds - 1e-6


def never(_address: str, _time: float) -> bool:
    return False


# When it asks.


async def test_the_first_probe_comes_within_the_jitter(autojump_clock: MockClock) -> None:
    addresses = {("chat", name): f"10.0.0.{index}:1" for index, name in enumerate("abcdefghij")}
    probes = Probes()
    async with watching(probes, config("abcdefghij", **{**HEALTH, "jitter": 0.5}), addresses) as watched:
        await watched.until(0.4999)
    firsts = [time for time, _, _ in probes.begun]
    assert len(firsts) == 10
    assert len({round(time, 3) for time in firsts}) == 10


async def test_probes_begin_an_interval_apart_however_long_they_take(autojump_clock: MockClock) -> None:
    probes = Probes(takes=0.4)
    async with watching(probes, config(**HEALTH)) as watched:
        await watched.until(4.5)
    assert probes.times() == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])


async def test_one_probe_at_a_time(autojump_clock: MockClock) -> None:
    probes = Probes(takes=2.5)
    async with watching(probes, config(**HEALTH)) as watched:
        await watched.until(9.0)
    assert probes.times() == pytest.approx([0.0, 2.5, 5.0, 7.5])


async def test_jitter_keeps_them_out_of_step(autojump_clock: MockClock) -> None:
    probes = Probes()
    async with watching(probes, config("ab", **{**HEALTH, "jitter": 0.2})) as watched:
        await watched.until(200.0)
    times = probes.times()
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(0.8 - 1e-6 <= gap <= 1.2 + 1e-6 for gap in gaps)
    assert min(gaps) < 0.85
    assert max(gaps) > 1.15
    assert sum(gaps) / len(gaps) == pytest.approx(1.0, abs=0.05)
    assert times[100] != pytest.approx(probes.times(AT_B)[100], abs=0.001)


async def test_it_asks_what_the_configuration_says(autojump_clock: MockClock) -> None:
    probes = Probes()
    given = config(
        **HEALTH, kind="http", path="/ready", host="app", headers={"X-Probe": "1"}, expect=((200, 204),)
    )
    async with watching(probes, given) as watched:
        await watched.until(0.5)
    assert probes.begun[0][2] == Check("http", 0.5, "/ready", "app", ((200, 204),), (("X-Probe", "1"),))


# What it makes of the answers.


async def test_down_after_fall_and_up_after_rise(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pybalancer")
    async with watching(Probes(after(4.5)), config(**HEALTH)) as watched:
        await watched.until(1.5)
        assert watched.up()
        await watched.until(2.0)
        assert not watched.up()
        await watched.until(5.5)
        assert not watched.up()
        await watched.until(6.0)
        assert watched.up()
        await watched.until(100.0)
    assert watched.changes == pytest.approx([2.0, 6.0])
    assert [record.getMessage() for record in caplog.records] == [
        "chat/a is down: connection refused",
        "chat/a is up: pong",
    ]


async def test_one_that_is_always_up_is_no_news(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(Probes(), config(**HEALTH)) as watched:
        await watched.until(1000.0)
    assert watched.changes == []
    assert caplog.records == []


async def test_each_backend_is_judged_by_itself(autojump_clock: MockClock) -> None:
    async with watching(Probes(lambda address, _: address == AT_B), config("ab", **HEALTH)) as watched:
        await watched.until(10.0)
        assert not watched.up(A)
        assert watched.up(B)


async def test_a_check_that_fails_by_itself_does_not_end_the_others(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    probes = Probes(error=RuntimeError("a defect"))
    async with watching(probes, config("ab", **HEALTH)) as watched:
        await watched.until(10.0)
        assert watched.watcher.snapshot()[A].reason.startswith("the check itself failed: a defect")
        probes.error = None
        await watched.until(20.0)
        assert watched.up(A)
        assert watched.up(B)
    assert any(record.exc_info for record in caplog.records)


async def test_what_is_our_own_fault_counts_for_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    probes = Probes(ours=True)
    async with watching(probes, config(**HEALTH)) as watched:
        await watched.until(100.0)
        assert watched.up()
        # Once is enough to know; and it goes on asking.
        assert [record.getMessage() for record in caplog.records] == [
            "cannot check chat/a, so it counts as before: connection refused"
        ]
        probes.ours, probes.answer = False, never
        await watched.until(103.5)
        assert not watched.up()
        probes.ours = True
        await watched.until(200.0)
        assert not watched.up()


# What time alone does.


async def test_slow_start_is_news_at_each_step(autojump_clock: MockClock) -> None:
    async with watching(Probes(after(2.5)), config(slow_start=4.5, **HEALTH)) as watched:
        await watched.until(100.0)
    assert watched.changes == pytest.approx([2.0, 4.0, *(4.0 + step / 2 for step in range(1, 10))])


async def test_a_probe_that_hangs_holds_up_nothing(autojump_clock: MockClock) -> None:
    probes = Probes(after(2.5))
    async with watching(probes, config(slow_start=4.5, **HEALTH)) as watched:
        await watched.until(4.1)
        probes.takes = 50.0
        await watched.until(20.0)
        assert watched.changes == pytest.approx([2.0, 4.0, *(4.0 + step / 2 for step in range(1, 10))])
        assert watched.watcher.snapshot()[A].ramp == 1.0


async def test_the_end_of_a_hold_is_news_even_while_a_probe_hangs(autojump_clock: MockClock) -> None:
    probes = Probes()
    async with watching(probes, config(**{**HEALTH, "rise": 1, "fall": 1})) as watched:
        down = {1, 3, 5}  # Each fall a second after it came back: the third is held.
        probes.answer = lambda _, time: round(time - watched.start) not in down
        await watched.until(5.5)
        assert watched.watcher.snapshot()[A].held
        await watched.until(6.5)
        assert watched.watcher.snapshot()[A].held
        probes.takes = 50.0
        await watched.until(12.0)
        assert watched.up()
        fell, rose = watched.changes[-2:]
        assert fell == pytest.approx(5.0)
        assert 6.5 < rose < 12.0
        assert watched.watcher.snapshot()[A].since == pytest.approx(watched.start + rose)


# Reloads.


async def test_a_backend_that_stays_keeps_its_history(autojump_clock: MockClock) -> None:
    async with watching(Probes(never), config(**HEALTH)) as watched:
        await watched.until(1.5)
        assert "2 of 3 failures" in watched.watcher.snapshot()[A].reason
        watched.watcher.update(config("ba", **HEALTH), {A: AT_A, B: AT_B})
        await watched.until(2.1)
        assert not watched.up(A)
        assert watched.up(B)


async def test_reloads_do_not_bring_the_probes_out_of_time(autojump_clock: MockClock) -> None:
    probes = Probes()
    async with watching(probes, config(**HEALTH)) as watched:
        for tenth in range(1, 50):
            await watched.until(tenth / 10)
            watched.watcher.update(config(**HEALTH), {A: AT_A})
    assert probes.times() == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])


async def test_at_another_address_it_is_another_backend(autojump_clock: MockClock) -> None:
    probes = Probes(lambda address, _: address != AT_A)
    async with watching(probes, config(**HEALTH)) as watched:
        await watched.until(5.5)
        assert not watched.up()
        watched.watcher.update(config(**HEALTH), {A: ELSEWHERE})
        assert watched.up()
        assert watched.watcher.snapshot()[A].reason == "not checked yet"
        await watched.until(10.0)
        assert watched.up()
    assert max(probes.times(AT_A)) == pytest.approx(5.0)
    assert probes.times(ELSEWHERE) == pytest.approx([5.5, 6.5, 7.5, 8.5, 9.5])


async def test_a_backend_that_is_gone_is_not_asked(autojump_clock: MockClock) -> None:
    probes = Probes(never, takes=0.4)
    async with watching(probes, config("ab", **HEALTH)) as watched:
        await watched.until(0.2)
        watched.watcher.update(config("b", **HEALTH), {B: AT_B})
        assert A not in watched.watcher.snapshot()
        await watched.until(0.9)
        # The probe that was under way was given up.
        assert len(probes.ended) == 1
        watched.watcher.passive_failure(*A, 100)
        await watched.until(10.0)
        assert watched.changes == pytest.approx([2.4])
    assert probes.times(AT_A) == [0.0]


async def test_one_that_comes_back_has_no_past(autojump_clock: MockClock) -> None:
    async with watching(Probes(never), config(**HEALTH)) as watched:
        await watched.until(5.0)
        watched.watcher.update(config("b", **HEALTH), {B: AT_B})
        watched.watcher.update(config("a", **HEALTH), {A: AT_A})
        assert watched.up()
        await watched.until(7.5)
        assert not watched.up()


async def test_another_interval_counts_at_once(autojump_clock: MockClock) -> None:
    probes = Probes()
    async with watching(probes, config(**{**HEALTH, "interval": 3600.0})) as watched:
        await watched.until(10.0)
        watched.watcher.update(config(**HEALTH), {A: AT_A})
        await watched.until(12.5)
    assert probes.times() == pytest.approx([0.0, 10.0, 11.0, 12.0])


async def test_after_a_reload_not_all_are_asked_in_the_same_instant(autojump_clock: MockClock) -> None:
    probes = Probes()
    async with watching(probes, config("ab")) as watched:
        await watched.until(1000.0)
        assert probes.begun == []
        watched.watcher.update(config("ab", **{**HEALTH, "jitter": 0.5}), {A: AT_A, B: AT_B})
        await watched.until(1000.6)
    (first,), (second,) = probes.times(AT_A), probes.times(AT_B)
    assert abs(first - second) > 0.001
    assert min(first, second) >= 1000.0
    assert max(first, second) <= 1000.5


async def test_an_answer_to_an_old_question_does_not_count(autojump_clock: MockClock) -> None:
    probes = Probes(never, takes=0.4)
    async with watching(probes, config(**{**HEALTH, "fall": 1})) as watched:
        await watched.until(0.2)
        probes.answer = after(0.0)
        watched.watcher.update(config(**{**HEALTH, "fall": 1, "path": "/other"}), {A: AT_A})
        await watched.until(10.0)
        assert watched.up()
        assert watched.changes == []
    assert probes.times()[:2] == pytest.approx([0.0, 0.2])


async def test_a_probe_that_hangs_does_not_outlive_its_settings(autojump_clock: MockClock) -> None:
    probes = Probes(takes=1e6)
    async with watching(probes, config(**HEALTH)) as watched:
        await watched.until(100.0)
        probes.takes = 0.0
        watched.watcher.update(config(**{**HEALTH, "timeout": 0.1, "jitter": 0.5}), {A: AT_A})
        await watched.until(100.5)
        assert watched.watcher.snapshot()[A].reason == "pong"
    assert 100.001 < probes.times()[1] < 100.5


async def test_a_shorter_slow_start_is_news(autojump_clock: MockClock) -> None:
    probes = Probes(after(2.5))
    async with watching(probes, config(slow_start=3600.0, **HEALTH)) as watched:
        await watched.until(5.0)
        assert watched.watcher.snapshot()[A].ramp == pytest.approx(0.1)
        probes.takes = 50.0
        watched.watcher.update(config(slow_start=0.0, **HEALTH), {A: AT_A})
        await watched.until(5.1)
        assert watched.watcher.snapshot()[A].ramp == 1.0
    assert watched.changes == pytest.approx([2.0, 4.0, 5.0])


# Failed connects.


async def test_failed_connects_bring_it_down_at_once(autojump_clock: MockClock) -> None:
    async with watching(Probes(), config(**HEALTH)) as watched:
        await watched.until(0.5)
        watched.watcher.passive_failure(*A, 3)
        assert not watched.up()
        assert watched.changes == pytest.approx([0.5])
        await watched.until(5.0)
        assert watched.changes == pytest.approx([0.5, 2.0])


async def test_without_a_section_only_those_that_are_down_are_asked(autojump_clock: MockClock) -> None:
    probes = Probes(after(104.0))
    async with watching(probes, config()) as watched:
        await watched.until(100.0)
        watched.watcher.passive_failure(*A, 3)
        assert not watched.up()
        await watched.until(200.0)
        assert watched.up()
    times = probes.times()
    # Not at once, when it just failed; then every two seconds, give or take a fifth, until it answers.
    assert 101.6 <= times[0] <= 102.4
    assert 104.0 <= times[-1] <= 106.4
    assert len(times) <= 3
    assert watched.changes == pytest.approx([100.0, times[-1]])


async def test_it_counts_what_succeeded_in_between(autojump_clock: MockClock) -> None:
    async with watching(Probes(), config()) as watched:
        for second in range(1, 20):
            await watched.until(float(second))
            watched.watcher.passive_failure(*A, 5, opened=second * 1000)
            assert watched.up()
        watched.watcher.passive_failure(*A, 5, opened=19_000)
        assert not watched.up()


async def test_the_end_of_their_hold_is_news_too(autojump_clock: MockClock) -> None:
    probes = Probes()
    async with watching(probes, config(**{**HEALTH, "rise": 1, "fall": 1})) as watched:
        for time in (0.5, 1.5, 3.5):
            await watched.until(time)
            watched.watcher.passive_failure(*A, 1)
            if time == 1.5:
                await watched.until(2.5)
                probes.takes = 50.0
        assert watched.watcher.snapshot()[A].held
        await watched.until(10.0)
        assert not watched.watcher.snapshot()[A].held
    assert watched.changes[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 3.5])
    assert 4.5 < watched.changes[5] < 6.0


async def test_failures_of_a_stranger_are_nothing(autojump_clock: MockClock) -> None:
    async with watching(Probes(), config(**HEALTH)) as watched:
        watched.watcher.passive_failure("chat", "nobody", 100)
        watched.watcher.passive_failure("no pool", "a", 100)
        await watched.until(1.0)
        assert watched.changes == []


# Swaps.


async def test_104_swaps_are_a_tenth_of_a_second_apart_whoever_falls(autojump_clock: MockClock) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    addresses = {("chat", name): f"10.0.0.{index}:1" for index, name in enumerate(names)}
    swaps: list[float] = []
    plans: list[int] = []

    async def swap() -> None:
        swaps.append(trio.current_time())
        plans.append(sum(health.up for health in watched.watcher.snapshot().values()))

    swapping = Coalescer(swap, 0.1)
    probes = Probes(lambda _, time: time % 1.0 < 0.5)
    given = config(names, **{**HEALTH, "interval": 0.05, "jitter": 0.5, "rise": 1, "fall": 1})
    async with watching(probes, given, addresses, on_change=swapping.request) as watched:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swapping.run)
            await watched.until(10.0)
            probes.answer = never
            await watched.until(15.0)
            nursery.cancel_scope.cancel()
    gaps = [later - earlier for earlier, later in itertools.pairwise(swaps)]
    assert len(gaps) > 5
    assert min(gaps) >= 0.1 - 1e-6
    # And the last plan is that of the last news.
    assert plans[-1] == 0


async def test_what_a_backend_says_of_its_load_is_passed_on(autojump_clock: MockClock) -> None:
    """When it changes, without a new plan, and only what a good answer says."""
    told: list[tuple[float, tuple[str, str], float | None]] = []
    said: dict[int, float | None] = {0: 0.5, 1: 0.5, 2: 0.75, 3: None, 4: 1.0}
    start = trio.current_time()

    async def ask(check: Check, address: str) -> ProbeResult:
        second = round(trio.current_time() - start)
        if second >= 5:
            return ProbeResult(False, "HTTP 503", 0.0, load=0.1)
        return ProbeResult(True, "HTTP 200", 0.0, load=said[second])

    changes: list[float] = []
    watcher = HealthWatcher(
        lambda: changes.append(trio.current_time() - start),
        on_load=lambda key, load: told.append((trio.current_time() - start, key, load)),
        ask=ask,
        rng=random.Random(1),
    )
    watcher.update(config(**HEALTH), {A: AT_A})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await trio.sleep(6.5)
        assert watcher.snapshot()[A].load is None
        nursery.cancel_scope.cancel()
    assert told == [
        (0.0, A, 0.5),
        (pytest.approx(2.0), A, 0.75),
        (pytest.approx(3.0), A, None),
        (pytest.approx(4.0), A, 1.0),
        (pytest.approx(5.0), A, None),
    ]
    assert changes == []


# Its end.


async def test_it_ends_when_it_is_cancelled(autojump_clock: MockClock) -> None:
    probes = Probes(takes=1e9)
    async with watching(probes, config("ab", **HEALTH)) as watched:
        await watched.until(1.0)
    assert len(probes.begun) == 2
    assert probes.ended == []


async def test_it_may_be_told_before_it_runs(autojump_clock: MockClock) -> None:
    watched = Watched(Probes(never))
    watched.watcher.update(config(**HEALTH), {A: AT_A})
    assert watched.up()
    watched.watcher.passive_failure(*A, 3)
    assert not watched.up()
    watched.watcher.update(config("b", **HEALTH), {B: AT_B})
    assert list(watched.watcher.snapshot()) == [B]


# Where packets go by their own way.


async def test_what_is_asked_and_where_may_be_another_way(autojump_clock: MockClock) -> None:
    probes = Probes()

    def way(pool: str, check: Check, address: str) -> tuple[Check, str]:
        return replace(check, mark=7), f"203.0.113.10:1 of {pool} at {address}"

    async with watching(probes, config("ab", **HEALTH)) as watched:
        watched.watcher._way = way
        await watched.until(1.5)
    assert {(where, check.mark) for _, where, check in probes.begun} == {
        ("203.0.113.10:1 of chat at 10.0.0.1:1", 7),
        ("203.0.113.10:1 of chat at 10.0.0.2:1", 7),
    }


async def test_a_pool_that_others_check_is_not_asked(autojump_clock: MockClock) -> None:
    probes = Probes()
    async with watching(probes, config("a", **HEALTH)) as watched:
        await watched.until(0.5)
        asked = len(probes.begun)
        watched.watcher.update(config("a", **HEALTH), {A: AT_A}, {"chat"})
        await watched.until(5)
        assert watched.watcher.snapshot() == {}
    assert len(probes.begun) == asked
