"""From a configuration and what is known of its backends to a plan for the workers."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import trio

from pybalancer import _core
from pybalancer.config.routes import named
from pybalancer.config.values import join
from pybalancer.errors import ConfigError, Problem

if TYPE_CHECKING:
    from pybalancer.config.model import Config, ListenerConfig, PoolConfig, RouteConfig

Addresses = Mapping[tuple[str, str], str]
"""(pool, backend) to ``ip:port``, ``[ip]:port`` or ``unix:/path``."""

LOOKUP_TIMEOUT: Final = 5.0
"""Seconds for all names of a configuration together."""


class Health(Protocol):
    """What a plan needs to know of a backend's health."""

    @property
    def up(self) -> bool: ...
    @property
    def ramp(self) -> float: ...


class Draining(Protocol):
    """What takes nothing new: backends by pool and name, listeners by name (``policy.draining`` fits)."""

    @property
    def backends(self) -> Collection[tuple[str, str]]: ...
    @property
    def listeners(self) -> Collection[str]: ...


async def resolve(config: Config, before: Addresses | None = None) -> dict[tuple[str, str], str]:
    """Look up every backend's host name, all at once.

    A name is one backend: of several addresses the one that it had ``before`` is taken, since name
    servers list them in another order each time, and a backend that moves is another one to its tunnels;
    else the first of the pool's source family, else the first. Raises ConfigError naming each that does
    not resolve.
    """
    addresses: dict[tuple[str, str], str] = {}
    problems: list[Problem] = []

    async def look_up(pool: str, backend: str, address: str, families: set[int]) -> None:
        host, _, port = address.rpartition(":")
        try:
            found = await trio.socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            why = f"{host!r} does not resolve: {error.strerror or error}"
            problems.append(Problem("name lookup", None, None, f"pools.{pool}.{backend}", why))
            return
        texts = [str(entry[4][0]) for entry in found]
        fitting = [text for text in texts if not families or ipaddress.ip_address(text).version in families]
        choices = [join(text, port) for text in fitting or texts]
        earlier = (before or {}).get((pool, backend))
        addresses[pool, backend] = earlier if earlier in choices else choices[0]

    with trio.move_on_after(LOOKUP_TIMEOUT) as scope:
        async with trio.open_nursery() as nursery:
            for pool_name, pool in config.pools.items():
                families = {int(ipaddress.ip_address(source).version) for source in pool.sources}
                for backend in pool.backends:
                    if is_literal(backend.address):
                        addresses[pool_name, backend.name] = backend.address
                    else:
                        nursery.start_soon(look_up, pool_name, backend.name, backend.address, families)
    if scope.cancelled_caught:
        waiting = [
            f"{pool_name}.{backend.name}"
            for pool_name, pool in config.pools.items()
            for backend in pool.backends
            if (pool_name, backend.name) not in addresses
        ]
        why = f"no answer within {LOOKUP_TIMEOUT:g}s"
        problems += [Problem("name lookup", None, None, f"pools.{name}", why) for name in waiting]
    if problems:
        raise ConfigError(sorted(problems, key=str))
    return addresses


def is_literal(address: str) -> bool:
    """Whether an address needs no look-up."""
    if address.startswith("unix:"):
        return True
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def compile_plan(
    config: Config,
    addresses: Addresses,
    health: Mapping[tuple[str, str], Health],
    secret: bytes,
    previous: _core.Plan | None = None,
    draining: Draining | None = None,
    tickets: Mapping[str, bytes] | None = None,
) -> _core.Plan:
    """The plan. Backends of which ``health`` knows nothing count as up.

    ``tickets`` are the keys of pools whose tickets have one of their own.

    Raises ``PlanError`` if the core finds what the configuration's checks have not: a defect of theirs.
    """
    backends, closed = (draining.backends, draining.listeners) if draining else ((), ())
    pools = [
        _pool(name, pool, addresses, health, backends, drain_rate(config, name), (tickets or {}).get(name))
        for name, pool in config.pools.items()
    ]
    listeners = [
        _listener(listener, draining=listener.name in closed)
        for listener in config.listeners
        # Packets are no business of the workers (``pybalancer.packet``).
        if listener.mode != "packet"
    ]
    return _core.Plan(listeners=listeners, pools=pools, secret=secret, previous=previous)


def drain_rate(config: Config, name: str) -> float:
    """Tunnels of a pool that are told to go per second at most; 0: any number.

    Those that are to come back through a listener come through its ``handshakes``, so it is the smallest
    of these where the pool does not say.
    """
    if (rate := config.pools[name].drain.rate) is not None:
        return rate
    rates = [
        listener.handshakes
        for listener in config.listeners
        if listener.handshakes
        and (listener.pool == name or any(route.pool == name for route in listener.routes))
    ]
    return min(rates, default=0.0)


def _pool(
    name: str,
    pool: PoolConfig,
    addresses: Addresses,
    health: Mapping[tuple[str, str], Health],
    draining: Collection[tuple[str, str]],
    rate: float,
    ticket_key: bytes | None,
) -> _core.PoolSpec:
    backends = []
    for backend in pool.backends:
        known = health.get((name, backend.name))
        state: Literal["up", "down", "draining"] = "up"
        if known is not None and not known.up:
            # Also one that is drained: what it has is on_down's to judge.
            state = "down"
        elif (name, backend.name) in draining:
            state = "draining"
        backends.append(
            _core.BackendSpec(
                name=backend.name,
                address=addresses[name, backend.name],
                weight=backend.weight,
                state=state,
                ramp=1.0 if known is None else known.ramp,
            )
        )
    return _core.PoolSpec(
        name=name,
        backends=backends,
        policy=pool.policy,
        key=pool.key,
        table_size=pool.table_size,
        max_skew=pool.max_skew,
        sources=pool.sources,
        tries=pool.tries,
        connect_timeout=pool.connect_timeout,
        idle_timeout=pool.idle_timeout,
        half_closed_timeout=pool.half_closed_timeout,
        keepalive=pool.keepalive,
        user_timeout=pool.user_timeout,
        response_timeout=pool.response_timeout,
        body_timeout=pool.body_timeout,
        send_proxy=pool.send_proxy,
        transparent=pool.transparent,
        on_remove=pool.on_remove,
        on_down=pool.on_down,
        drain_over=pool.drain.over,
        drain_deadline=pool.drain.deadline,
        drain_code=pool.drain.code,
        drain_rate=rate,
        direct=_direct(pool, ticket_key),
    )


def _direct(pool: PoolConfig, ticket_key: bytes | None) -> _core.DirectSpec | None:
    """Where clients reach the backends themselves; None if they cannot."""
    urls = [backend.public_url for backend in pool.backends]
    if not any(urls):
        return None
    direct = pool.direct
    return _core.DirectSpec(
        urls=urls,
        expires_in=direct.expires_in,
        alternatives=direct.alternatives,
        retry_min=direct.retry_min,
        retry_max=direct.retry_max,
        retry_base=direct.retry_base,
        stable=direct.stable,
        window=direct.window,
        fallback=direct.fallback,
        tickets=direct.ticket,
        ticket_key=ticket_key,
        ticket_address=direct.ticket_address,
    )


def _listener(listener: ListenerConfig, *, draining: bool) -> _core.ListenerSpec:
    rate = listener.accept_rate or 0.0
    return _core.ListenerSpec(
        name=listener.name,
        bind=listener.bind,
        # One without a pool of its own has routes: the rules see to that.
        pool=listener.pool or listener.routes[0].pool,
        backlog=listener.backlog,
        unix_mode=listener.unix_mode,
        accept_proxy=listener.accept_proxy,
        proxy_local=listener.proxy_local,
        trusted=listener.trusted,
        proxy_timeout=listener.proxy_timeout,
        refuse_unexpected_proxy=listener.refuse_unexpected_proxy,
        max_connections=listener.max_connections,
        max_connections_per_source=listener.max_connections_per_source,
        accept_rate=rate,
        accept_burst=listener.accept_burst or max(1, int(rate / 10)),
        accept_queue=listener.accept_queue,
        queue_timeout=listener.queue_timeout,
        web=_web(listener) if listener.reads else None,
        draining=draining,
    )


@dataclass(frozen=True, slots=True)
class Script:
    """The browser's client, as it is served."""

    body: bytes
    etag: str


@functools.cache
def client_script() -> Script | None:
    """It; None in an installation without it."""
    try:
        body = (Path(__file__).parent.parent / "js" / "client.js").read_bytes()
    except FileNotFoundError:
        return None
    return Script(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _web(listener: ListenerConfig) -> _core.WebSpec:
    rate = listener.handshakes or 0.0
    tells = any(listener.action(route) == "directory" for route in named(listener).values())
    script = client_script() if tells and listener.client_js else None
    return _core.WebSpec(
        script=script.body if script else None,
        script_etag=script.etag if script else "",
        routes=[_route(listener, name, route) for name, route in named(listener).items()],
        head_limit=listener.head_limit,
        target_limit=listener.target_limit,
        field_limit=listener.field_limit,
        request_timeout=listener.request_timeout,
        keepalive_timeout=listener.keepalive_timeout,
        handshakes=rate,
        handshakes_burst=listener.handshakes_burst or max(1, int(rate / 10)),
        handshakes_queue=listener.handshakes_queue,
        handshakes_wait=listener.handshakes_wait,
    )


def _route(listener: ListenerConfig, name: str, route: RouteConfig) -> _core.RouteSpec:
    max_message = listener.max_message if route.max_message is None else route.max_message
    return _core.RouteSpec(
        name=name,
        pool=route.pool,
        path=route.path,
        host=route.host,
        headers=list(route.header.items()),
        cookies=list(route.cookie.items()),
        query=list(route.query.items()),
        key=route.key,
        action=listener.action(route),
        target=route.target,
        strip_prefix=route.strip_prefix,
        origins=route.origins,
        request_set=list(route.request_headers.set.items()),
        request_remove=route.request_headers.remove,
        response_set=list(route.response_headers.set.items()),
        response_remove=route.response_headers.remove,
        max_message=max_message,
        ping=listener.ping if route.ping is None else route.ping,
        ping_timeout=listener.ping_timeout,
        close_timeout=listener.close_timeout,
        reattach=route.reattach or listener.reattach,
        reattach_tries=route.reattach_tries or listener.reattach_tries,
        reattach_timeout=route.reattach_timeout or listener.reattach_timeout,
        reattach_buffer=route.reattach_buffer or listener.reattach_buffer,
    )
