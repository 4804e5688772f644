"""What was counted of packets, kept until the kernel is asked again: ``Counting``."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from pybalancer.packet.forwarder import Address, Counts, Forwarder
from pybalancer.packet.report import Speed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

RECENT: Final = 0.1
"""Seconds for which nobody who asks needs newer ones."""


class Counting:
    """Counts, when they were asked for, and how fast packets come.

    To ask waits for the kernel, so it is done in threads; the answer is there for everybody, at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.counts = Counts()
        self._asked = -math.inf
        self._speed = Speed()

    def is_recent(self) -> bool:
        return self._clock() - self._asked < RECENT

    def ask(self, forwarder: Forwarder) -> None:
        """Raises ``_core.PacketError`` or OSError; then what was known stays."""
        asked = self._clock()
        self.counts = forwarder.counts()
        self._asked = asked

    def look(self, forwarder: Forwarder) -> None:
        """The same, now and then, whether anybody wants to know or not: packets per second come of it."""
        self.ask(forwarder)
        # A number may come to be another's, and then is counted from 0 on.
        counts: dict[Hashable, int] = {
            (number, where): self.counts.services[number].packets
            for number, where in forwarder.services().items()
            if number in self.counts.services
        }
        counts |= {
            (number, host): self.counts.hosts[number].packets
            for number, host in forwarder.hosts().items()
            if number in self.counts.hosts
        }
        self._speed.observe(self._asked, counts)

    def speed_of_service(self, number: int, where: Address) -> float:
        return self._speed.of((number, where))

    def speed_of_host(self, number: int, host: str) -> float:
        return self._speed.of((number, host))
