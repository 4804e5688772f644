"""What the kernel is to do for mode "packet": ``Arrangement``. Pure: it follows from what is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pybalancer.packet.generations import MOST_NUMBERS, History, Known

if TYPE_CHECKING:
    from pybalancer.config.packet_model import PacketConfig
    from pybalancer.packet.peers import Peer
    from pybalancer.packet.services import Service


@dataclass(frozen=True, slots=True)
class Arrangement:
    """All of it; two that are equal need not be made twice."""

    section: PacketConfig
    services: tuple[Service, ...]
    me: str | None
    """Of a backend: the host that rows know it by."""
    silent: frozenset[str]
    """Of a backend: hosts that do not answer."""
    histories: Mapping[str, History]
    """By the keys of services, as they are remembered."""
    known: Mapping[str, Known]
    """By the keys of services, what rows are made of."""

    @staticmethod
    def of(
        section: PacketConfig,
        services: Collection[Service],
        me: str | None,
        known: Mapping[str, History],
        silent: frozenset[str] = frozenset(),
    ) -> Arrangement:
        """From now on new flows go as ``services`` say; ``known`` is what was before.

        A backend takes it that nothing new goes to those that are ``silent``: directors will see that, too.
        But if they do not, it has to know where new flows go.
        """
        histories = {}
        silent = silent if me is not None else frozenset()
        for service in services:
            former = known.get(service.key, History())
            if me is not None:
                former = former.joined_by(me, service.all)
            answering = tuple(member for member in service.newest if member.host not in silent)
            histories[service.key] = former.with_(service.newest).with_(answering)
        told = _known(histories, me, silent)
        return _fitting(Arrangement(section, tuple(services), me, silent, histories, told))

    def hearing(self, silent: frozenset[str]) -> Arrangement:
        """The same, where others are silent than before."""
        return Arrangement.of(self.section, self.services, self.me, self.histories, silent)

    def after(self, tried: Arrangement) -> Arrangement:
        """This one once more, after another that some packets may have gone by for a while."""
        histories = {
            key: tried.histories[key].with_(history.newest) if key in tried.histories else history
            for key, history in self.histories.items()
        }
        known = _known(histories, self.me, self.silent)
        return _fitting(replace(self, histories=histories, known=known))

    @property
    def hosts(self) -> set[str]:
        """Every machine that a packet may have to go to, this one among them."""
        found = set[str]().union(*(known.hosts for known in self.known.values()))
        return found | ({self.me} if self.me is not None else set())

    @property
    def peers(self) -> set[Peer]:
        """Of a backend: machines whose silence matters, each by a port where it is, or was, a server."""
        if self.me is None:
            return set()
        found: dict[str, Peer] = {}
        # Second hops are those of TCP. Those that a service has now come last, and so win.
        with_second_hops = [service for service in self.services if service.where[2] == "tcp"]
        for service in with_second_hops:
            found |= {host: (host, service.where[1]) for host in self.known[service.key].hosts}
        for service in with_second_hops:
            found |= {member.host: (member.host, service.where[1]) for member in service.all}
        found.pop(self.me, None)
        return set(found.values())

    @property
    def vips(self) -> set[str]:
        """Addresses of services."""
        return {service.where[0] for service in self.services}


def _fitting(arrangement: Arrangement) -> Arrangement:
    """With as much of what is remembered as there are numbers for its machines: the oldest is forgotten.

    Fleets get new addresses with each deployment, and what cannot be remembered must not be in the way of it.
    """
    while len(arrangement.hosts) > MOST_NUMBERS:
        most = max((len(history.generations) for history in arrangement.histories.values()), default=0)
        histories = {
            key: history.shorter() if len(history.generations) == most else history
            for key, history in arrangement.histories.items()
        }
        if histories == arrangement.histories:
            break  # So many are in the configuration itself.
        known = _known(histories, arrangement.me, arrangement.silent)
        arrangement = replace(arrangement, histories=histories, known=known)
    return arrangement


def _known(histories: Mapping[str, History], me: str | None, silent: Collection[str]) -> dict[str, Known]:
    return {key: history.seen_by(me, silent) for key, history in histories.items()}
