"""Flap damping: a backend that keeps going down is brought back later each time.

The idea is BGP's (RFC 2439): every fall adds to a penalty that halves with time. A backend that falls
now and then is never held; one that flaps every second soon spends most of its time held down, so that its
clients are moved, and the plan rebuilt, a few times a minute instead of twice a second.
"""

from __future__ import annotations

import math
from typing import Final

HALF_LIFE: Final = 60.0
"""Seconds in which a penalty halves."""

FREE: Final = 2.0
"""Penalty up to which a fall costs nothing. One fall each half-life comes near it and never above: that
is an ordinary restart."""

UNIT: Final = 2.0
"""Seconds that the length of a hold is made of."""

LONGEST: Final = 60.0
"""No hold is longer, in seconds: even a backend that flapped all night is tried once a minute."""


class FlapDamping:
    """The memory of how often one backend fell. Times are monotonic seconds."""

    __slots__ = ("_at", "_penalty")

    def __init__(self) -> None:
        self._penalty = 0.0
        self._at = 0.0

    def penalty(self, now: float) -> float:
        """What is left of the falls, each of which counted 1 when it happened."""
        if self._penalty == 0.0:
            return 0.0
        return self._penalty * math.exp2(-max(0.0, now - self._at) / HALF_LIFE)

    def fell(self, now: float) -> float:
        """Count a fall; the seconds for which to hold the backend down (0: come back when it answers)."""
        self._penalty = self.penalty(now) + 1.0
        self._at = now
        if self._penalty <= FREE:
            return 0.0
        # The exponent stays small because holds let the penalty decay: it settles near 5 at any rate of
        # flapping. The bound on it is for callers that report falls while the backend is held.
        return min(LONGEST, UNIT * (math.exp2(min(self._penalty - FREE, 10.0)) - 1.0))
