"""What a change costs: rows built from generations, and a table taken in by the kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.packet.costs import SECRET, VIP
from pybalancer._core import PacketPath, PacketRows
from tests.wire.namespace import namespace

SLOTS, BACKENDS = 65537, 1000
GRACE = 0.1
"""Seconds in which the kernel is sure that no packet sees the table of before."""


@dataclass
class Change:
    name: str
    most: float | None
    """Milliseconds that are wanted."""
    took: list[float] = field(default_factory=list)


def milliseconds(act: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    act()
    return (time.perf_counter_ns() - began) / 1e6


def generations(count: int) -> list[list[tuple[str, int, int]]]:
    """1,000 backends, and before them as many with another one missing each."""
    members = [(f"app-{id}", 1, id) for id in range(1, BACKENDS + 1)]
    return [[member for member in members if not number or member[2] != number] for number in range(count)]


def measure(rounds: int) -> list[Change]:
    one = Change("rows of 1 generation built", 5)
    two = Change("rows of 2 generations built", None)
    sixteen = Change("rows of 16 generations built", None)
    swap = Change("table swapped", 2)
    again = Change("swapped again at once", None)
    rows = [PacketRows(generations(count), secret=SECRET, size=SLOTS) for count in (1, 2)]
    with namespace() as made, made.inside():
        path = PacketPath("director", secret=SECRET, size=SLOTS)
        try:
            for number in range(rounds):
                for change, count in ((one, 1), (two, 2), (sixteen, 16)):
                    sets = generations(count)
                    change.took.append(milliseconds(lambda: PacketRows(sets, secret=SECRET, size=SLOTS)))  # noqa: B023
                for change in (swap, again):
                    if change is swap or number == 0:
                        time.sleep(GRACE)
                    given = rows[(number + (change is again)) % 2]
                    took = milliseconds(lambda: path.set_service(0, VIP[4], 443, "tcp", given))  # noqa: B023
                    # The first makes the tables.
                    if number:
                        change.took.append(took)
        finally:
            path.close(keep=False)
    return [one, two, sixteen, swap, again]
