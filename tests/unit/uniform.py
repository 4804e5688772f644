"""Whether numbers are uniform: Kolmogorov and Smirnov's distance."""

from __future__ import annotations

import math
from collections.abc import Sequence


def distance_from_uniform(numbers: Sequence[float], top: float) -> float:
    """The largest distance between the numbers' distribution and the uniform one on [0, top]."""
    ordered = sorted(number / top for number in numbers)
    count = len(ordered)
    return max(max((at + 1) / count - one, one - at / count) for at, one in enumerate(ordered))


def least_distance(count: int) -> float:
    """What uniform numbers stay below in 999 of 1,000 cases, for any count above 35."""
    return math.sqrt(-math.log(0.001 / 2) / 2) / math.sqrt(count)
