"""The counters of a running pybalancer, read from shared memory without disturbing a worker.

``Stats`` reads them; ``render`` gives them to Prometheus. The layout is in ``pybalancer_stats.h``.
"""

from pybalancer.stats.reader import (
    Backend,
    Entry,
    Listener,
    Stats,
    StatsError,
    Worker,
)

__all__ = ["Backend", "Entry", "Listener", "Stats", "StatsError", "Worker"]
