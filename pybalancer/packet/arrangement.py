"""What the kernel is to do for mode "packet": ``Arrangement``. Pure: it follows from what is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pybalancer.packet.generations import MOST_NUMBERS, History, Known

if TYPE_CHECKING:
    from pybalancer.config.packet_model import PacketConfig
    from pybalancer.packet.services import Service


@dataclass(frozen=True, slots=True)
class Arrangement:
    """All of it; two that are equal need not be made twice."""

    section: PacketConfig
    services: tuple[Service, ...]
    me: str | None
    """Of a backend: the host that rows know it by."""
    histories: Mapping[str, History]
    """By the keys of services, as they are remembered."""
    known: Mapping[str, Known]
    """By the keys of services, what rows are made of."""

    @staticmethod
    def of(
        section: PacketConfig, services: Collection[Service], me: str | None, known: Mapping[str, History]
    ) -> Arrangement:
        """From now on new flows go as ``services`` say; ``known`` is what was before."""
        histories = {}
        for service in services:
            former = known.get(service.key, History())
            if me is not None:
                former = former.joined_by(me, service.all)
            histories[service.key] = former.with_(service.newest)
        told = _known(histories, services, me)
        return _fitting(Arrangement(section, tuple(services), me, histories, told))

    def after(self, tried: Arrangement) -> Arrangement:
        """This one once more, after another that some packets may have gone by for a while."""
        histories = {
            key: tried.histories[key].with_(history.newest) if key in tried.histories else history
            for key, history in self.histories.items()
        }
        known = _known(histories, self.services, self.me)
        return _fitting(replace(self, histories=histories, known=known))

    @property
    def hosts(self) -> set[str]:
        """Every machine that a packet may have to go to, this one among them."""
        found = set[str]().union(*(known.hosts for known in self.known.values()))
        return found | ({self.me} if self.me is not None else set())

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
        known = _known(histories, arrangement.services, arrangement.me)
        arrangement = replace(arrangement, histories=histories, known=known)
    return arrangement


def _known(
    histories: Mapping[str, History], services: Collection[Service], me: str | None
) -> dict[str, Known]:
    return {one.key: histories[one.key].seen_by(me, one.all, one.silent) for one in services}
