"""What mode "packet" is to a running balancer. A part of ``Balancer``, below its operations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from pybalancer.config import packet
from pybalancer.errors import DrainError
from pybalancer.packet.control import PacketControl
from pybalancer.packet.services import Key

if TYPE_CHECKING:
    from pybalancer.config.model import Config
    from pybalancer.policy.draining import Draining, Terms
    from pybalancer.policy.health import BackendHealth
    from pybalancer.status import DrainStatus
    from pybalancer.targets import Target
    from pybalancer.tasks.health import HealthWatcher


class PacketPart:
    """Needs what ``Balancer`` has: a configuration, health, what is drained."""

    _config: Config
    _draining: Draining
    _watcher: HealthWatcher

    def __init__(self) -> None:
        self._packet = PacketControl()
        self._packets_wanted = False
        """Whether packets are this process's to forward: until it serves they are those of the one before."""
        self._packets_served = False
        """Whether the start is over."""

    def _health(self, config: Config, addresses: Mapping[Key, str]) -> dict[Key, BackendHealth]:
        raise NotImplementedError

    def _watch(self, config: Config, addresses: dict[Key, str]) -> None:
        """Check the backends. Those of packets are checked where packets come from: by directors."""
        others: Collection[str] = packet.only_packets(config) if config.packet.role == "backend" else ()
        self._watcher.update(config, addresses, others)

    def _takers(self, config: Config, health: Mapping[Key, BackendHealth]) -> set[Key]:
        """Backends that get new flows, if their weight is not 0.

        Where none of a pool is up it is all of them, for a check may be wrong: so packets go by the table of
        when all were up, and not to the one that was the last to go down.
        """
        found = set[Key]()
        for pool in packet.pools(config):
            members = {(pool, each.name): each.weight for each in config.pools[pool].backends}
            left = members.keys() - self._draining.backends
            up = {key for key in left if health[key].up}
            found |= next((some for some in (up, left) if any(members[key] for key in some)), members.keys())
        return found

    async def _start_packets(self, config: Config, addresses: dict[Key, str], secret: bytes) -> None:
        self._packets_wanted = True
        await self._packet.apply(
            config, addresses, self._takers(config, self._health(config, addresses)), secret
        )

    async def _close_packets(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # A start that fails, be it at its last step, must not end what went on without it. Whoever breaks it
        # off wants the end of packets.
        failed = not self._packets_served and isinstance(error, Exception) and self._packet.found
        await self._packet.close(keep=failed or self._packets_go_on())

    async def refresh(self) -> None:
        """Look at what has to be waited for, so that status, metrics and explain are of this moment.

        Mode "packet" has to ask the kernel. Without this they say what was counted a second ago at most.
        """
        await self._packet.refresh()

    def _packets_go_on(self) -> bool:
        """Whether another process forwards packets when this one has ended."""
        return False

    def _only_packets(self, target: Target) -> bool:
        return target.pool in packet.only_packets(self._config)

    def _packet_warnings(self, target: Target) -> list[str]:
        if target.pool is None or target.pool not in packet.pools(self._config):
            return []
        why = f"connections that pool {target.pool} has by packets end when they end"
        return [f"{why}: they are neither counted nor closed here"]

    def _refuse_packets(self, target: Target) -> None:
        """Raises DrainError for a listener of mode "packet"."""
        if target.listener in {listener.name for listener in packet.listeners(self._config)}:
            why = f"{target} is of mode packet: connections are its backends'"
            raise DrainError(f"{why}; to take this director out of service, withdraw its route")

    def _refuse_roll_of_packets(self, pool: str) -> None:
        """Raises DrainError for a pool that only packets go to."""
        if pool in packet.only_packets(self._config):
            why = "packets go there, and nobody here knows when its connections have ended"
            raise DrainError(f"pool {pool} is not rolled: {why}; drain its backends one by one")


def no_drain(target: Target, terms: Terms) -> DrainStatus:
    """A drain that had nothing to do."""
    from pybalancer.status import DrainStatus

    return DrainStatus(
        id=0,
        kind="drain",
        what=str(target),
        pool=target.pool,
        listener=target.listener,
        parts=[],
        total=0,
        left=0,
        closed=0,
        cut=0,
        moved=0,
        age_seconds=0.0,
        over_seconds=terms.over,
        deadline_seconds=terms.deadline,
        rate=terms.rate,
        code=terms.code,
        state="done",
    )
