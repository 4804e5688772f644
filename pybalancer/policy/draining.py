"""What takes nothing new, how a drain goes, and whether it can end in its time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pybalancer.config.model import NEVER_SENT

Key = tuple[str, str]
"""Pool and backend."""

VERSION: Final = 1
"""Of what ``snapshot`` gives."""


@dataclass(frozen=True, slots=True)
class Draining:
    """Backends by pool and name, and listeners by name, that take nothing new until they are undrained.

    Known by names alone, so they stay through reloads and through what health says; one whose name a
    reload removes is forgotten with it.
    """

    backends: frozenset[Key] = frozenset()
    listeners: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.backends or self.listeners)

    def with_(self, backends: Collection[Key] = (), listeners: Collection[str] = ()) -> Draining:
        """And these."""
        return Draining(self.backends | set(backends), self.listeners | set(listeners))

    def without(self, backends: Collection[Key] = (), listeners: Collection[str] = ()) -> Draining:
        """But these."""
        return Draining(self.backends - set(backends), self.listeners - set(listeners))

    def among(self, backends: Collection[Key], listeners: Collection[str]) -> Draining:
        """As far as they are there."""
        return Draining(self.backends & set(backends), self.listeners & set(listeners))

    def snapshot(self) -> dict[str, Any]:
        """As JSON has it, for whoever takes over."""
        return {
            "version": VERSION,
            "backends": sorted(map(list, self.backends)),
            "listeners": sorted(self.listeners),
        }

    @staticmethod
    def restore(given: Mapping[str, Any]) -> Draining:
        """Of a ``snapshot``. Raises ValueError for what is none."""
        try:
            if given["version"] != VERSION:
                raise ValueError(f"draining states of version {given['version']}, not {VERSION}")
            backends = frozenset((str(pool), str(name)) for pool, name in given["backends"])
            return Draining(backends, frozenset(map(str, given["listeners"])))
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no draining states: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Terms:
    """How a drain goes. Times in seconds; ``rate`` per second, 0: any."""

    over: float
    deadline: float
    code: int
    rate: float

    def __post_init__(self) -> None:
        """Raises ValueError for what makes no sense."""
        if not 0 <= self.over <= self.deadline:
            raise ValueError(
                f"the deadline of a drain ({self.deadline:g} s) "
                f"comes after the time that it takes ({self.over:g} s)"
            )
        if not 1000 <= self.code <= 4999 or self.code in NEVER_SENT:
            raise ValueError(f"{self.code} may not be sent in a Close; try 1012")
        if self.rate < 0:
            raise ValueError("a rate is more than 0")


def terms_of(
    default: Terms,
    *,
    over: float | None = None,
    deadline: float | None = None,
    code: int | None = None,
    rate: float | None = None,
) -> Terms:
    """What is given, and the rest by default. Of two times that do not fit the one not given yields."""
    asked_over = default.over if over is None else over
    asked_deadline = default.deadline if deadline is None else deadline
    if asked_deadline < asked_over:
        if deadline is None:
            asked_deadline = asked_over + default.deadline - default.over
        elif over is None:
            asked_over = asked_deadline / 2
    return Terms(
        asked_over,
        asked_deadline,
        default.code if code is None else code,
        default.rate if rate is None else rate,
    )


def shortfall(tunnels: int, *, over: float, deadline: float, rate: float) -> str | None:
    """What of a drain of so many tunnels will not go as asked for, because of its ``rate`` (0: any).

    None: all can be told to go within ``over`` seconds.
    """
    if rate <= 0 or tunnels <= rate * over:
        return None
    cut = tunnels - int(rate * deadline)
    if cut > 0:
        return f"{cut:,} of {tunnels:,} will be cut: {rate:,.6g}/s for {deadline:g} s"
    return f"{tunnels:,} at {rate:,.6g}/s take {tunnels / rate:.0f} s, more than the {over:g} s asked for"


def hurry(tunnels: int, *, over: float, rate: float) -> str | None:
    """That so many are told to go faster than ``rate`` (0: any) in ``over`` seconds, if so."""
    pace = tunnels / over if over > 0 else float(tunnels)
    if rate <= 0 or pace <= rate:
        return None
    return f"{tunnels:,} tunnels in {over:g} s are {pace:,.6g}/s, more than the {rate:,.6g}/s that come back"
