"""Who owns a service's flows, and who owned them before: ``History``. What machines are called: ``Numbers``.

Pure: no clock, no sockets. A **generation** is a set of backends that new flows went to for a while. A row of
the table has the owners of its slot in the newest generation and in those before, each once: that is where
the packets of a connection may find it, however often the set has changed since it began.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pybalancer.errors import PybalancerError

MOST_GENERATIONS: Final = 16
"""That rows are made from (``_core.PacketRows``). A row has six owners, but few changes concern one slot."""

MOST_NUMBERS: Final = 1023
"""A row has 10 bits for a machine."""


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A backend in a generation. ``host`` is its address without a port: rows name machines, not services."""

    name: str
    weight: int
    host: str


Generation = tuple[Member, ...]
"""In the order of names: two that are equal make equal tables."""


def generation(members: Collection[Member]) -> Generation:
    """Those that take new flows."""
    return tuple(sorted(member for member in members if member.weight))


@dataclass(frozen=True, slots=True)
class History:
    """Generations of one service, newest first, each once.

    Each once, because a set that comes back (a backend that was sick for a moment) has the same table as
    before: to remember it twice would push out one that still matters.
    """

    generations: tuple[Generation, ...] = ()

    def with_(self, newest: Generation) -> History:
        """From now on new flows go to ``newest``. An empty one changes nothing: there is nobody better."""
        if not newest:
            return self
        kept = tuple(each for each in self.generations if each != newest)
        return History((newest, *kept)[:MOST_GENERATIONS])

    def joined_by(self, host: str, newest: Generation) -> History:
        """Where nothing is known: a backend that begins has just come to those that were there."""
        if self.generations:
            return self
        return self.with_(generation([member for member in newest if member.host != host]))

    @property
    def newest(self) -> Generation:
        return self.generations[0] if self.generations else ()

    @property
    def hosts(self) -> set[str]:
        """Every machine that a packet may have to go to."""
        return {member.host for each in self.generations for member in each}

    def seen_by(self, host: str) -> tuple[Generation, ...]:
        """The generations as a backend has to know them: at last those of which it has not heard.

        What directors do about their backends (a check that failed, a drain) this one is not told. But if
        packets of its slots have gone elsewhere, then to whom the table names where it is missing.
        """
        without = generation([member for member in self.newest if member.host != host])
        if not without or without in self.generations or len(without) == len(self.newest):
            return self.generations
        return (*self.generations[: MOST_GENERATIONS - 1], without)

    def to_json(self) -> list[list[list[Any]]]:
        """For the state file."""
        return [[[member.name, member.weight, member.host] for member in each] for each in self.generations]

    @staticmethod
    def from_json(given: Any) -> History:
        """Raises ValueError for what is none."""
        try:
            read = [
                generation([Member(str(name), int(weight), str(host)) for name, weight, host in each])
                for each in given
            ]
        except TypeError as error:
            raise ValueError(f"this is no history: {error}") from None
        history = History()
        for each in reversed(read[:MOST_GENERATIONS]):
            history = history.with_(each)
        return history


@dataclass(frozen=True, slots=True)
class Numbers:
    """What machines are called in rows: their addresses, numbered from 1.

    A number stays with its machine for as long as any row names it, over restarts and upgrades too: the
    kernel goes on forwarding by the old rows meanwhile.
    """

    by_host: Mapping[str, int]

    def among(self, hosts: Collection[str]) -> Numbers:
        """Numbers for ``hosts``, and for nobody else. Raises PybalancerError if they are too many."""
        kept = {host: number for host, number in self.by_host.items() if host in hosts}
        # Of those that are free, the ones that nobody had just now come first: whoever reads an old row
        # during the change must not take one machine for another.
        used, recent = set(kept.values()), set(self.by_host.values())
        free = [number for number in range(1, MOST_NUMBERS + 1) if number not in used]
        free.sort(key=lambda number: number in recent)
        new = sorted(set(hosts) - set(kept))
        if len(new) > len(free):
            total = len(kept) + len(new)
            raise PybalancerError(
                f"{total} machines get packets or have got some; there may be {MOST_NUMBERS}"
            )
        return Numbers(kept | dict(zip(new, free, strict=False)))

    def as_in(self, rows: Mapping[int, str]) -> Numbers:
        """As machines are called by rows that packets go by already (addresses by number).

        Those win: a number that we took for another's would lead packets to a wrong machine, from when it is
        given its new way until the last row has changed.
        """
        others = {host: number for host, number in self.by_host.items() if number not in rows}
        return Numbers(others | {host: number for number, host in sorted(rows.items(), reverse=True)})

    def __getitem__(self, host: str) -> int:
        return self.by_host[host]

    def rows(self, generations: Sequence[Generation]) -> list[list[tuple[str, int, int]]]:
        """As ``_core.PacketRows`` takes them."""
        return [
            [(member.name, member.weight, self.by_host[member.host]) for member in each]
            for each in generations
        ]
