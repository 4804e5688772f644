"""What a reload would change, and what it would do to live tunnels: ``difference``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pybalancer import _core
from pybalancer.config.compile import compile_plan
from pybalancer.config.differences import changes, ignored
from pybalancer.errors import ConfigError, Problem

if TYPE_CHECKING:
    from pybalancer.config.compile import Draining, Health
    from pybalancer.config.model import Config

Key = tuple[str, str]

Change = Literal["added", "removed", "changed"]
Fate = Literal["kept", "drained", "closed"]
"""Of live tunnels."""

_FATES: dict[str, Fate] = {"keep": "kept", "drain": "drained", "close": "closed"}


@dataclass(frozen=True, slots=True)
class BackendDiff:
    """A backend that comes, goes or changes. ``tunnels`` are its live ones, of which ``fate`` says what
    becomes; a changed address makes it another server, so its tunnels are those of one removed."""

    name: str
    change: Change
    what: list[str]
    """Which of its keys changed."""
    tunnels: int
    fate: Fate


@dataclass(frozen=True, slots=True)
class PoolDiff:
    """A pool. ``moved`` is the share of keys, 0..1, that new tunnels take elsewhere; None where nothing
    is hashed before or after, or the pool is not there."""

    name: str
    change: Change
    moved: float | None
    tunnels: int
    backends: list[BackendDiff]


@dataclass(frozen=True, slots=True)
class ListenerDiff:
    """A listener; its live ``tunnels`` go on in any case."""

    name: str
    change: Change
    what: list[str]
    tunnels: int


@dataclass(frozen=True, slots=True)
class Diff:
    """All of it. ``changes`` is for people, as ``reload`` says it."""

    changes: list[str]
    ignored: list[str]
    """What needs a restart to take effect."""
    warnings: list[str]
    listeners: list[ListenerDiff]
    pools: list[PoolDiff]
    tunnels: dict[str, int]
    """Live tunnels of backends that go or change address, by what becomes of them: kept, drained, closed."""

    @property
    def nothing(self) -> bool:
        """Whether a reload would change nothing."""
        return not (self.changes or self.ignored)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"nothing": self.nothing, **dataclasses.asdict(self)}


def difference(
    before: Config,
    after: Config,
    old_addresses: Mapping[Key, str],
    new_addresses: Mapping[Key, str],
    *,
    plan: _core.Plan,
    secret: bytes,
    same_secret: bool,
    health: Mapping[Key, Health],
    draining: Draining,
    active: Mapping[Key, int],
) -> Diff:
    """What a reload from ``before`` (that ``plan`` runs) to ``after`` changes.

    ``active`` has the live tunnels of backends, and of listeners with "" as their pool. Raises ConfigError.
    """
    try:
        wanted = compile_plan(after, new_addresses, health, secret, plan, draining)
    except _core.PlanError as error:
        raise ConfigError([Problem("configuration", None, None, "", str(error))]) from None
    found = changes(before, after)
    if not same_secret:
        found.append("secret changed: clients go to other backends than before")
    moved_away = {
        key for key, address in new_addresses.items() if old_addresses.get(key) not in (None, address)
    }
    found += [
        f"backend {pool}/{name} has another address: {new_addresses[pool, name]}"
        for pool, name in sorted(moved_away)
        if f"backend {pool}/{name} changed" not in found
    ]
    pools = _pools(before, after, moved_away, plan, wanted, active)
    tunnels = dict.fromkeys(_FATES.values(), 0)
    for pool in pools:
        for backend in pool.backends:
            if backend.change == "removed" or (pool.name, backend.name) in moved_away:
                tunnels[backend.fate] += backend.tunnels
    return Diff(
        changes=found,
        ignored=ignored(before, after),
        warnings=[str(problem) for problem in after.warnings],
        listeners=_listeners(before, after, active),
        pools=pools,
        tunnels={str(fate): count for fate, count in tunnels.items()},
    )


def _listeners(before: Config, after: Config, active: Mapping[Key, int]) -> list[ListenerDiff]:
    old = {listener.name: listener for listener in before.listeners}
    new = {listener.name: listener for listener in after.listeners}
    return [
        ListenerDiff(name, change, what, active.get(("", name), 0))
        for name, change, what in _compare(old, new)
    ]


def _pools(
    before: Config,
    after: Config,
    moved_away: set[Key],
    plan: _core.Plan,
    wanted: _core.Plan,
    active: Mapping[Key, int],
) -> list[PoolDiff]:
    found = []
    for name in [*after.pools, *(name for name in before.pools if name not in after.pools)]:
        old, new = before.pools.get(name), after.pools.get(name)
        # Of a pool that is gone its own last word counts.
        fate = _FATES[(new or old).on_remove]  # type: ignore[union-attr]
        backends = [
            BackendDiff(
                backend,
                change,
                what if (name, backend) not in moved_away or "address" in what else ["address", *what],
                active.get((name, backend), 0),
                fate if change == "removed" or (name, backend) in moved_away else "kept",
            )
            for backend, change, what in _compare(
                {backend.name: backend for backend in old.backends} if old else {},
                {backend.name: backend for backend in new.backends} if new else {},
                {backend for pool, backend in moved_away if pool == name},
            )
        ]
        moved = plan.moved(wanted, name) if old and new and "maglev" in (old.policy, new.policy) else None
        if old == new and not backends and not moved:
            continue
        change: Change = "added" if old is None else "removed" if new is None else "changed"
        tunnels = sum(active.get((name, backend.name), 0) for backend in old.backends) if old else 0
        found.append(PoolDiff(name, change, moved, tunnels, backends))
    return found


def _compare(
    old: Mapping[str, Any], new: Mapping[str, Any], besides: set[str] | None = None
) -> list[tuple[str, Change, list[str]]]:
    """Name, change, and which keys changed, of those that differ; ``besides`` names more that do."""
    found: list[tuple[str, Change, list[str]]] = []
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in old:
            found.append((name, "added", []))
        elif name not in new:
            found.append((name, "removed", []))
        else:
            fields = type(new[name]).model_fields
            what = [key for key in fields if getattr(old[name], key) != getattr(new[name], key)]
            if what or name in (besides or ()):
                found.append((name, "changed", what))
    return found
