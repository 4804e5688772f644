"""Who owns a service's flows, and who owned them before: ``History``. What machines are called: ``Numbers``.

Pure: no clock, no sockets. A **generation** is a set of backends that new flows went to for a while. A row of
the table has the owners of its slot in the newest generation and in those before, each once: that is where
the packets of a connection may find it, however often the set has changed since it began.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pybalancer import _core
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
class Known:
    """What a machine makes its rows of."""

    generations: tuple[Generation, ...] = ()
    """Newest first."""
    joined: tuple[Member, ...] = ()
    """Those among which it has begun, if it was told of nothing before: who had flows then is supposed."""
    me: str = ""
    """Its own host; of a director, which supposes nothing, empty."""
    late: tuple[str, ...] = ()
    """Hosts that it asks behind all others: they do not answer, and may have died."""

    @property
    def hosts(self) -> set[str]:
        """Every machine that a packet may have to go to."""
        return {member.host for each in (*self.generations, self.joined) for member in each}


@dataclass(frozen=True, slots=True)
class History:
    """Generations of one service, newest first, each once.

    Each once, because a set that comes back (a backend that was sick for a moment) has the same table as
    before: to remember it twice would push out one that still matters.
    """

    generations: tuple[Generation, ...] = ()
    joined: tuple[Member, ...] = ()
    """Of a backend that had no history: all among which it began, those of weight 0 too. It may have come
    with any of them, so which set was there before can only be supposed."""

    def with_(self, newest: Generation) -> History:
        """From now on new flows go to ``newest``. An empty one changes nothing: there is nobody better."""
        if not newest:
            return self
        kept = tuple(each for each in self.generations if each != newest)
        return replace(self, generations=(newest, *kept)[:MOST_GENERATIONS])

    def shorter(self) -> History:
        """Without its oldest part; the newest generation stays."""
        if len(self.generations) > 1:
            return replace(self, generations=self.generations[:-1])
        return replace(self, joined=())

    def joined_by(self, host: str, members: Collection[Member]) -> History:
        """Where nothing is known: a backend that begins has come to ``members``, or with some of them."""
        if self.generations or not any(member.host != host for member in members):
            return self
        return History(joined=tuple(sorted(members)))

    @property
    def newest(self) -> Generation:
        return self.generations[0] if self.generations else ()

    def seen_by(self, host: str | None, silent: Collection[str] = ()) -> Known:
        """What a backend has to know; ``None`` is a director. ``silent`` are hosts that do not answer.

        What directors do about their backends (a check that failed, a drain) a backend is not told. But if
        packets of its slots have gone elsewhere, then to whom the table names where it is missing.
        """
        if host is None:
            return Known(self.generations)
        without = [
            generation([member for member in each if member.host != host])
            for each in (self.joined, self.newest)
        ]
        supposed = [each for each in dict.fromkeys(without) if each and each not in self.generations]
        told = self.generations[: MOST_GENERATIONS - len(supposed)]
        known = Known((*told, *supposed), self.joined, host)
        return replace(known, late=tuple(sorted(known.hosts & set(silent))))

    def to_json(self) -> list[list[list[Any]]]:
        """For the state file: the generations."""
        return [_json(each) for each in self.generations]

    def joined_to_json(self) -> list[list[Any]]:
        """For the state file, beside the generations: versions that do not know it have those alone."""
        return _json(self.joined)

    @staticmethod
    def from_json(given: Any, joined: Any = ()) -> History:
        """Raises ValueError for what is none."""
        try:
            read = [generation(_members(each)) for each in given]
            history = History(joined=tuple(sorted(_members(joined))))
        except TypeError as error:
            raise ValueError(f"this is no history: {error}") from None
        for each in reversed(read[:MOST_GENERATIONS]):
            history = history.with_(each)
        return history


def _json(members: Collection[Member]) -> list[list[Any]]:
    return [[member.name, member.weight, member.host] for member in members]


def _members(given: Any) -> list[Member]:
    return [Member(str(name), int(weight), str(host)) for name, weight, host in given]


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

    def rows(self, known: Known, secret: bytes, size: int) -> _core.PacketRows:
        """Raises ``_core.PlanError``. Every machine of ``known`` has a number."""
        return _core.PacketRows(
            [self._ids(each) for each in known.generations],
            me=self.by_host.get(known.me, 0),
            joined=self._ids(known.joined),
            late=[self.by_host[host] for host in known.late],
            secret=secret,
            size=size,
        )

    def _ids(self, members: Collection[Member]) -> list[tuple[str, int, int]]:
        return [(member.name, member.weight, self.by_host[member.host]) for member in members]
