"""When a pool's live tunnels are to be evened out, and how many are to go: ``Rebalance``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

PATIENCE: Final = 10.0
"""Seconds for which a pool must be skewed before anything is done: a crowd that comes in is no skew yet."""

PAUSE: Final = 30.0
"""Seconds after a shed before the next look: whom it closed must have come back somewhere first."""

WORTH: Final = 0.1
"""A shed that took less of the skew than this gained nothing: that pool is as even as its keys allow."""

LONGEST: Final = 1800.0
"""Patience, in seconds, does not grow beyond."""

CHANCE: Final = 3.0
"""Standard deviations. What is spread by chance differs by this much without any fault."""

Surplus = Callable[[Sequence[tuple[int, int]], float], Sequence[int]]
"""The core's: (tunnels, weight) of each backend and a skew, to how many each has too many."""


@dataclass(frozen=True, slots=True)
class Load:
    """Of a backend that takes new tunnels at its full share."""

    tunnels: int
    weight: int


def skew(loads: Mapping[str, Load]) -> float:
    """Load of the fullest over its fair share: 1 is even, 0 if there is nothing to compare."""
    return max((load.tunnels / fair for load, fair in _fair(loads) if fair), default=0.0)


def surpluses(loads: Mapping[str, Load], to_skew: float, surplus: Surplus) -> dict[str, int]:
    """How many tunnels each backend is to lose, of those that are to lose any."""
    counts = surplus([(load.tunnels, load.weight) for load in loads.values()], to_skew)
    return {name: count for name, count in zip(loads, counts, strict=True) if count}


def target(limit: float) -> float:
    """To which skew to shed when ``limit`` is passed: halfway, or the next tunnel would begin it again."""
    return 1.0 + (limit - 1.0) / 2.0


class Rebalance:
    """One pool. Times are monotonic seconds that the caller passes in.

    =======  ==================================================  =======
    from     on                                                  to
    =======  ==================================================  =======
    even     skew above the limit, and more than chance makes    skewed
    skewed   skew at or below it, or busy                        even
    skewed   it has lasted: shed                                 resting
    resting  nothing was busy for ``PAUSE``                      even
    =======  ==================================================  =======

    Busy is a pool in which something else moves tunnels: a drain, a roll, a panic, and the shed itself.
    How long skew must last is ``PATIENCE``, and twice as long after each shed that gained next to nothing.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.state: Literal["even", "skewed", "resting"] = "even"
        self.patience = PATIENCE
        self._since = 0.0
        self._before = 0.0
        """Skew when the last shed began."""

    def look(self, loads: Mapping[str, Load], now: float, *, busy: bool) -> bool:
        """Whether to shed now, to ``target(limit)``."""
        if self.state == "resting":
            if busy:
                self._since = now
            elif now - self._since >= PAUSE:
                gained = (self._before - skew(loads)) / (self._before - 1.0)
                self.patience = PATIENCE if gained > WORTH else min(2 * self.patience, LONGEST)
                self.state = "even"
            return False
        if busy:
            self.state = "even"
        elif not self._skewed(loads):
            self.state, self.patience = "even", PATIENCE
        elif self.state == "even":
            self.state, self._since = "skewed", now
        elif now - self._since >= self.patience:
            self.state, self._since, self._before = "resting", now, skew(loads)
            return True
        return False

    def _skewed(self, loads: Mapping[str, Load]) -> bool:
        if skew(loads) <= self.limit:
            return False
        return any(load.tunnels > fair + CHANCE * math.sqrt(fair) for load, fair in _fair(loads) if fair)


def _fair(loads: Mapping[str, Load]) -> list[tuple[Load, float]]:
    """Each with its fair share of all tunnels."""
    tunnels = sum(load.tunnels for load in loads.values())
    weights = sum(load.weight for load in loads.values())
    return [(load, tunnels * load.weight / weights if weights else 0.0) for load in loads.values()]
