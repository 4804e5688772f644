"""What to ask a backend, how often, and how many answers make a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

Kind = Literal["tcp", "http", "websocket"]

PASSIVE_WINDOW: Final = 10.0
"""Seconds within which failed connects are counted together."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question to a backend. ``timeout`` is in seconds and covers all of it, from the connect on.

    ``path``, ``host`` and ``headers`` are for http and websocket, ``expect`` (inclusive ranges of statuses
    that count as healthy) for http. Without ``host`` the backend's own address is sent. ``send_proxy`` is
    the version of the PROXY protocol header that each connection begins with, as the backend expects it.
    """

    kind: Kind = "tcp"
    timeout: float = 1.0
    path: str = "/"
    host: str | None = None
    expect: tuple[tuple[int, int], ...] = ((200, 399),)
    headers: tuple[tuple[str, str], ...] = ()
    send_proxy: Literal["v1", "v2"] | None = None
    mark: int = 0
    """Of the socket (SO_MARK), where routes go by it; 0: none."""
    refused: bool = False
    """A connection that is refused will do: the machine is there."""

    def expects(self, status: int) -> bool:
        return any(low <= status <= high for low, high in self.expect)


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """How a backend's health is found out. Times are seconds; two equal settings behave the same.

    ``interval`` is from the start of one probe to the start of the next, give or take the share ``jitter``
    of it. ``passive`` asks nothing while the backend is up: only failed connects bring it down.
    """

    check: Check = Check()
    interval: float = 2.0
    jitter: float = 0.2
    rise: int = 2
    fall: int = 3
    slow_start: float = 0.0
    passive: bool = False


class HealthConfig(Protocol):
    """The ``[pools.NAME.health]`` section."""

    @property
    def kind(self) -> Kind: ...
    @property
    def path(self) -> str: ...
    @property
    def host(self) -> str | None: ...
    @property
    def interval(self) -> float: ...
    @property
    def timeout(self) -> float: ...
    @property
    def rise(self) -> int: ...
    @property
    def fall(self) -> int: ...
    @property
    def jitter(self) -> float: ...
    @property
    def expect(self) -> Sequence[tuple[int, int]]: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


class BackendConfig(Protocol):
    """An entry of ``[[pools.NAME.backends]]``."""

    @property
    def name(self) -> str: ...


class PoolConfig(Protocol):
    """A ``[pools.NAME]`` section, as far as health is concerned."""

    @property
    def backends(self) -> Sequence[BackendConfig]: ...
    @property
    def health(self) -> HealthConfig | None: ...
    @property
    def slow_start(self) -> float: ...
    @property
    def send_proxy(self) -> Literal["v1", "v2"] | None: ...


class Config(Protocol):
    """The configuration, as far as health is concerned."""

    @property
    def pools(self) -> Mapping[str, PoolConfig]: ...


def from_config(pool: PoolConfig) -> HealthSettings:
    """The settings that a pool's section asks for; without a health section, the passive ones."""
    health = pool.health
    if health is None:
        check = Check(send_proxy=pool.send_proxy)
        return HealthSettings(check=check, rise=1, slow_start=pool.slow_start, passive=True)
    check = Check(
        kind=health.kind,
        timeout=health.timeout,
        path=health.path,
        host=health.host,
        expect=tuple(health.expect),
        headers=tuple(health.headers.items()),
        send_proxy=pool.send_proxy,
    )
    return HealthSettings(
        check=check,
        interval=health.interval,
        jitter=health.jitter,
        rise=health.rise,
        fall=health.fall,
        slow_start=pool.slow_start,
    )
