"""When the kernel is asked what was counted, and by whom."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pybalancer import _core
from pybalancer.packet.control import BEFORE_ANSWERS, PacketControl
from pybalancer.packet.counting import RECENT, Counting
from pybalancer.packet.forwarder import Address, Count, Counts

VIP: Address = ("203.0.113.10", 80, "tcp")


class Forwarder:
    """One service, one machine, and what it is to say next."""

    def __init__(self) -> None:
        self.where, self.host = VIP, "10.0.0.1"
        self.packets = 0
        self.threads: list[int] = []
        self.problem: Exception | None = None

    def services(self) -> Mapping[int, Address]:
        return {0: self.where}

    def hosts(self) -> Mapping[int, str]:
        return {1: self.host}

    def counts(self) -> Counts:
        self.threads.append(threading.get_ident())
        if self.problem is not None:
            raise self.problem
        return Counts({"forwarded": self.packets}, {0: Count(self.packets)}, {1: Count(self.packets)})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def control_of(forwarder: Forwarder, clock: Clock) -> Any:
    control: Any = PacketControl()
    control._running, control._counting = SimpleNamespace(forwarder=forwarder), Counting(clock)
    return control


async def test_many_who_ask_at_once_are_answered_by_one_question_in_a_thread(clock: Clock) -> None:
    forwarder = Forwarder()
    control = control_of(forwarder, clock)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(control.refresh)
    assert len(forwarder.threads) == 1
    assert forwarder.threads[0] != threading.get_ident()
    clock.now += RECENT / 2
    await control.refresh()
    assert len(forwarder.threads) == 1
    forwarder.packets = 7
    clock.now += RECENT
    await control.refresh()
    assert control._counting.counts.hosts[1].packets == 7


async def test_who_asks_does_not_wait_long_for_a_change(clock: Clock, mock_clock: MockClock) -> None:
    forwarder = Forwarder()
    control = control_of(forwarder, clock)
    async with control._lock, trio.open_nursery() as nursery:
        nursery.start_soon(control.refresh)
        await wait_all_tasks_blocked()
        mock_clock.jump(BEFORE_ANSWERS)
    assert forwarder.threads == []


async def test_a_kernel_that_refuses_is_told_of_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    forwarder = Forwarder()
    control = control_of(forwarder, clock)
    forwarder.packets = 3
    await control.refresh()
    for problem in (_core.PacketError("no counters"), OSError("no counters")):
        forwarder.problem = problem
        clock.now += 1
        await control.refresh()
    assert control._counting.counts.services[0].packets == 3
    assert [record.getMessage() for record in caplog.records] == ["packets: no counters"]


def test_packets_per_second_are_of_one_machine_under_one_number(clock: Clock) -> None:
    forwarder, counting = Forwarder(), Counting(clock)

    def look(packets: int) -> tuple[float, float]:
        forwarder.packets = packets
        counting.look(forwarder)  # type: ignore[arg-type]
        clock.now += 2
        return counting.speed_of_service(0, forwarder.where), counting.speed_of_host(1, forwarder.host)

    assert look(1000) == (0, 0)
    assert look(1500) == (250, 250)
    # Who asks in between does not disturb it.
    clock.now -= 1
    forwarder.packets = 1700
    counting.ask(forwarder)  # type: ignore[arg-type]
    clock.now += 1
    assert look(1900) == (200, 200)
    # Another machine has the number now: what it got is its own, and not so many more than the other.
    forwarder.host = "10.0.0.2"
    assert look(1905) == (2.5, 0)
    assert look(1915) == (5, 5)
    # Dropped, and there again: it began at 0.
    assert look(10) == (5, 5)
