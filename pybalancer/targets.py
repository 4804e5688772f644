"""What an operator means by a name: a backend, a pool, a listener, or everything."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pybalancer.errors import TargetError

if TYPE_CHECKING:
    from pybalancer.config.model import Config


@dataclass(frozen=True, slots=True)
class Target:
    """One of: backends of a pool (all of them where ``backend`` is None), a listener, everything."""

    pool: str | None = None
    backend: str | None = None
    listener: str | None = None

    @property
    def everything(self) -> bool:
        """Whether it is all of it."""
        return self.pool is None and self.listener is None

    def __str__(self) -> str:
        if self.listener is not None:
            return f"listener {self.listener}"
        if self.pool is None:
            return "everything"
        return f"{self.pool}/{self.backend}" if self.backend is not None else f"pool {self.pool}"

    def backends(self, config: Config) -> list[tuple[str, str]]:
        """Those that it is about, by pool and name."""
        if self.pool is None:
            return []
        names = [backend.name for backend in config.pools[self.pool].backends]
        return [(self.pool, name) for name in names if self.backend in (None, name)]

    def listeners(self, config: Config) -> list[str]:
        """Those that it is about."""
        names = [listener.name for listener in config.listeners]
        return [name for name in names if self.everything or name == self.listener]


def choose(
    config: Config,
    name: str | None = None,
    *,
    pool: str | None = None,
    backend: str | None = None,
    listener: str | None = None,
    everything: bool = False,
) -> Target:
    """The one thing that is meant.

    ``name`` is that of a backend, pool or listener, or ``pool/backend``; the others say it exactly, and
    ``backend`` alone is enough where one pool has it. Raises TargetError for nothing, several, or what is
    not there; ValueError for contradictions.
    """
    named = pool is not None or backend is not None
    if (name is not None) + named + (listener is not None) + everything != 1:
        raise ValueError("say one thing: a name, a pool with or without a backend, a listener, or everything")
    if everything:
        return Target()
    if name is not None:
        return _by_name(config, name)
    if listener is not None:
        return _one(_listeners(config, listener), config, "listener", listener)
    if pool is not None and pool not in config.pools:
        raise _unknown("pool", pool, list(config.pools))
    if backend is None:
        return Target(pool=pool)
    found = [target for target in _backends(config, backend) if pool in (None, target.pool)]
    return _one(found, config, "backend", backend)


def _by_name(config: Config, name: str) -> Target:
    found = [*_backends(config, name), *_listeners(config, name)]
    if name in config.pools:
        found.append(Target(pool=name))
    # Names may have a slash in them, so the first place where it makes sense is as good as any other.
    for place in (place for place, letter in enumerate(name) if letter == "/"):
        found += [each for each in _backends(config, name[place + 1 :]) if each.pool == name[:place]]
    return _one(found, config, "backend, pool or listener", name)


def _backends(config: Config, name: str) -> list[Target]:
    return [
        Target(pool=pool, backend=name)
        for pool, content in config.pools.items()
        if any(backend.name == name for backend in content.backends)
    ]


def _listeners(config: Config, name: str) -> list[Target]:
    return [Target(listener=name) for listener in config.listeners if listener.name == name]


def _one(found: list[Target], config: Config, kind: str, name: str) -> Target:
    if len(found) == 1:
        return found[0]
    if found:
        # Not by the very words that were not enough.
        ways = ", ".join(said(target, exact=said(target) == name) for target in found)
        raise TargetError(f"{name!r} may be one of several; say which: {ways}")
    known: list[str] = []
    if "backend" in kind:
        known += [f"{pool}/{one.name}" for pool, content in config.pools.items() for one in content.backends]
    if "pool" in kind:
        known += list(config.pools)
    if "listener" in kind:
        known += [listener.name for listener in config.listeners]
    raise _unknown(kind, name, known)


def said(target: Target, *, exact: bool = False) -> str:
    """As the command line takes it. ``exact``: in a way that means nothing else, whatever the names."""
    if target.listener is not None:
        return f"--listener {target.listener}"
    if target.pool is None:
        return "--all"
    if target.backend is None or exact:
        return f"--pool {target.pool}" + ("" if target.backend is None else f" --backend {target.backend}")
    return f"{target.pool}/{target.backend}"


MOST_NAMES = 20


def _unknown(kind: str, name: str, known: list[str]) -> TargetError:
    words = {word.rpartition("/")[2]: word for word in reversed(known)} | {word: word for word in known}
    close = difflib.get_close_matches(name, list(words), 1, 0.6)
    hint = f'did you mean "{words[close[0]]}"?' if close else f"there are: {', '.join(known[:MOST_NAMES])}"
    if not close and len(known) > MOST_NAMES:
        hint += f" and {len(known) - MOST_NAMES} more"
    return TargetError(f"there is no {kind} {name!r}; {hint}")
