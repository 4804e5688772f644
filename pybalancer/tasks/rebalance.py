"""Sheds by itself where the configuration says so: ``watch``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NoReturn, Protocol

import trio

from pybalancer.config.model import Config
from pybalancer.errors import PybalancerError
from pybalancer.policy.rebalance import Load, Rebalance, skew, target

_log = logging.getLogger("pybalancer")

LOOK: Final = 1.0
"""Seconds between two looks at the loads; they are in memory that we read, so it costs nothing."""


class Pools(Protocol):
    """What is asked of a running balancer."""

    @property
    def config(self) -> Config: ...
    def loads(self, pool: str) -> Mapping[str, Load]: ...
    def busy(self, pool: str) -> bool: ...
    async def shed(
        self, pool: str, to_skew: float, *, rate: float | None = None, wait: bool = True
    ) -> Any: ...


async def watch(balancer: Pools) -> NoReturn:
    """Look at every pool that is to be rebalanced, until cancelled."""
    known: dict[str, Rebalance] = {}
    while True:
        wanted = {
            name: pool.rebalance for name, pool in balancer.config.pools.items() if pool.rebalance is not None
        }
        for name, settings in wanted.items():
            if name not in known or known[name].limit != settings.skew:
                known[name] = Rebalance(settings.skew)
            await _look(balancer, name, known[name], settings.rate)
        known = {name: machine for name, machine in known.items() if name in wanted}
        await trio.sleep(LOOK)


async def _look(balancer: Pools, pool: str, machine: Rebalance, rate: float) -> None:
    loads = balancer.loads(pool)
    if not machine.look(loads, trio.current_time(), busy=balancer.busy(pool)):
        return
    to_skew = target(machine.limit)
    _log.info(
        "pool %s is skewed, %s times the fair share: shedding to %s",
        pool,
        f"{skew(loads):.3g}",
        f"{to_skew:.3g}",
    )
    try:
        await balancer.shed(pool, to_skew, rate=rate, wait=False)
    except (PybalancerError, ValueError) as error:
        # A reload may have taken the pool meanwhile; the next look is at what there is then.
        _log.warning("pool %s is not rebalanced: %s", pool, error)
