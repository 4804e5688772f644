"""What no single value can see: names used twice, pools that are not there, parts that exclude each other."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterator
from typing import Final

from pybalancer.config import directs, packet, routes
from pybalancer.config.model import Config, ListenerConfig, PoolConfig
from pybalancer.config.positions import Path

Finding = tuple[Path, str, str | None]
"""Where, what is wrong, and what to do about it."""

MOST_ENTRIES: Final = 4096
"""Listeners and backends together: the statistics have room for that many."""

CHECKS_OWN: Final = frozenset(
    ("host", "connection", "upgrade", "content-length", "transfer-encoding", "user-agent")
)
"""Headers that a second one of would make a check's request ambiguous."""


def meant(word: str, known: list[str]) -> str | None:
    """A suggestion, if ``word`` looks like one of ``known``."""
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f'did you mean "{close[0]}"?' if close else None


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def mistakes(config: Config) -> Iterator[Finding]:
    """Everything that makes the configuration unusable."""
    yield from _balancer(config)
    yield from _listeners(config)
    yield from packet.mistakes(config)
    for name, pool in config.pools.items():
        yield from _pool(("pools", name), pool)
    yield from directs.mistakes(config)
    entries = len(config.listeners) + sum(len(pool.backends) for pool in config.pools.values())
    if entries > MOST_ENTRIES:
        yield (), f"{entries} listeners and backends together; there may be {MOST_ENTRIES}", None


def _balancer(config: Config) -> Iterator[Finding]:
    section = config.balancer
    for one, other in (("secret", "secret_file"), ("admin_token", "admin_token_file")):
        if getattr(section, one) is not None and getattr(section, other) is not None:
            yield ("balancer", one), f"both {one} and {other} are given", "keep one of them"
    token = section.admin_token
    if token is not None and len(token.get_secret_value()) < 16:
        yield ("balancer", "admin_token"), "is shorter than 16 characters", "try `openssl rand -hex 16`"
    over_tcp = section.admin is not None and section.admin != "none" and not section.admin.startswith("unix:")
    if over_tcp and token is None and section.admin_token_file is None:
        yield (
            ("balancer", "admin"),
            "whoever reaches a TCP address could steer the balancer",
            'set admin_token_file, or use "unix:/run/pybalancer/admin.sock"',
        )


def _listeners(config: Config) -> Iterator[Finding]:
    if not config.listeners:
        yield ("listeners",), "there is none", 'add [[listeners]] with name, bind = ":8080" and pool'
    by_name: dict[str, int] = {}
    by_bind: dict[str, int] = {}
    for index, listener in enumerate(config.listeners):
        here: Path = ("listeners", index)
        if by_name.setdefault(listener.name, index) != index:
            yield (*here, "name"), f"another listener is named {listener.name!r}", None
        # Where packets are for another machine nobody listens: a service may well be here, too.
        served = listener.bind + (f"/{listener.protocol}" if listener.mode == "packet" else "")
        if not listener.bind.endswith(":0") and by_bind.setdefault(served, index) != index:
            other = config.listeners[by_bind[served]].name
            yield (*here, "bind"), f"listener {other!r} binds {listener.bind} already", None
        yield from _leads(here, listener, config)
        yield from _proxy(here, listener)


ONLY_WEBSOCKET: Final = (
    "routes",
    "handshakes",
    "handshakes_burst",
    "handshakes_queue",
    "handshakes_wait",
    "max_message",
    "ping",
    "ping_timeout",
    "close_timeout",
    "reattach",
    "reattach_tries",
    "reattach_timeout",
    "reattach_buffer",
    "request_timeout",
    "keepalive_timeout",
    "head_limit",
    "target_limit",
    "field_limit",
    "client_js",
)
"""Keys of a listener that mean something only where requests are read."""


def _leads(here: Path, listener: ListenerConfig, config: Config) -> Iterator[Finding]:
    """Where its connections go."""
    named = [((*here, "pool"), listener.pool)] if listener.pool is not None else []
    named += [((*here, "routes", index, "pool"), route.pool) for index, route in enumerate(listener.routes)]
    for place, pool in named:
        if pool not in config.pools:
            hint = meant(pool, list(config.pools)) or f"add [{path_text(('pools', pool))}]"
            yield place, f"there is no pool {pool!r}", hint
    if listener.mode == "packet":
        yield from packet.listener_mistakes(here, listener, config)
        return
    if "protocol" in listener.model_fields_set:
        yield (*here, "protocol"), f'means nothing in mode "{listener.mode}"', 'set mode = "packet"'
    if listener.mode == "tcp":
        for key in ONLY_WEBSOCKET:
            if key in listener.model_fields_set:
                yield (*here, key), 'means nothing in mode "tcp"', 'set mode = "websocket"'
        if listener.pool is None and not listener.routes:
            yield (*here, "pool"), "is missing", None
        pool_config = config.pools.get(listener.pool or "")
        if pool_config is not None and pool_config.key.startswith(routes.REQUEST_KEYS):
            why = f'its pool hashes {pool_config.key!r}, which mode "tcp" does not read'
            yield (*here, "pool"), why, 'set mode = "websocket", or key = "source" in the pool'
        return
    if not named:
        hint = "add pool, or [[listeners.routes]] with path and pool"
        yield (*here, "pool"), "is missing, and there are no routes: requests would lead nowhere", hint
    if "target_limit" in listener.model_fields_set and listener.target_limit > listener.head_limit:
        why = f"is more than head_limit, of which it is a part ({listener.head_limit})"
        yield (*here, "target_limit"), why, None
    yield from routes.mistakes(here, listener)


def _proxy(here: Path, listener: ListenerConfig) -> Iterator[Finding]:
    if listener.mode == "packet":
        return
    if listener.trusted and listener.accept_proxy is None and listener.mode == "tcp":
        yield (*here, "trusted"), "means nothing without accept_proxy", 'add accept_proxy = "any"'
    if listener.accept_proxy and not listener.trusted and not listener.bind.startswith("unix:"):
        hint = 'add trusted = ["10.0.0.0/8"], the networks of your proxies'
        yield (*here, "accept_proxy"), "needs trusted: whose PROXY headers are to be believed", hint


def _pool(here: Path, pool: PoolConfig) -> Iterator[Finding]:
    if not pool.backends:
        hint = f"add [[{path_text((*here, 'backends'))}]] with name and address"
        yield (*here, "backends"), "there are none", hint
    names: dict[str, int] = {}
    for index, backend in enumerate(pool.backends):
        if names.setdefault(backend.name, index) != index:
            yield (*here, "backends", index, "name"), f"another backend is named {backend.name!r}", None
    if not is_prime(pool.table_size):
        primes = (size for size in range(pool.table_size, 655374) if is_prime(size))
        yield (
            (*here, "table_size"),
            f"{pool.table_size} is not prime",
            f"the next one is {next(primes, 655373)}",
        )
    for header in pool.health.headers if pool.health else ():
        if header.lower() in CHECKS_OWN or header.lower().startswith("sec-websocket-"):
            place = (*here, "health", "headers", header)
            yield place, "is sent by the check itself", "see host" if header.lower() == "host" else None
    if pool.transparent and pool.sources:
        yield (*here, "sources"), "transparent takes the client's address: there is none to choose", None
    families = {ipaddress.ip_address(source).version for source in pool.sources}
    for index, backend in enumerate(pool.backends):
        family = _family(backend.address)
        if families and family and family not in families:
            place = (*here, "backends", index, "address")
            yield place, f"no source address of the pool is IPv{family}", "add one to sources"
    yield from _drain(here, pool)


def _drain(here: Path, pool: PoolConfig) -> Iterator[Finding]:
    """How tunnels are closed that should be elsewhere."""
    drain = pool.drain
    if drain.deadline < drain.over:
        key = "over" if "over" in drain.model_fields_set else "deadline"
        why = f"over ({drain.over:g}s) is more than deadline ({drain.deadline:g}s): many would be cut"
        yield (*here, "drain", key), why, f'set deadline = "{2 * drain.over:g}s"'
    if pool.rebalance is not None and pool.key == "sticky":
        why = "clients of a sticky pool come back to the backend that they had: nothing would be gained"
        yield (*here, "rebalance"), why, 'leave it out, or choose another key than "sticky"'


def _family(address: str) -> int | None:
    """4 or 6; None for names and Unix sockets."""
    if address.startswith("unix:"):
        return None
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).version
    except ValueError:
        return None


def doubts(config: Config) -> Iterator[Finding]:
    """What works and is probably not meant."""
    used: set[str | None] = set()
    read: set[str | None] = set()
    for index, listener in enumerate(config.listeners):
        yield from routes.doubts(("listeners", index), listener, config)
        pools = {listener.pool, *(route.pool for route in listener.routes)}
        used |= pools
        read |= pools if listener.reads else set()
    yield from packet.doubts(config)
    for name, pool in config.pools.items():
        here: Path = ("pools", name)
        if name not in used:
            yield here, "no listener uses this pool", None
        yield from routes.pool_doubts(here, pool, reads=name in read)
        if pool.backends and not any(backend.weight for backend in pool.backends):
            yield here, "all backends have weight 0: nobody will be served", None
        if len(pool.backends) * 100 > pool.table_size:
            why = f"{len(pool.backends)} backends share {pool.table_size} slots: shares are coarse"
            yield (*here, "table_size"), why, "a larger prime, 655373 at most"
        seen: dict[str, str] = {}
        for index, backend in enumerate(pool.backends):
            if seen.setdefault(backend.address, backend.name) != backend.name:
                why = f"backend {seen[backend.address]!r} has the same address"
                yield (*here, "backends", index, "address"), why, None
        yield from _drain_doubts(here, pool)
        if (health := pool.health) is not None:
            if health.timeout > health.interval:
                yield (*here, "health", "timeout"), "is longer than the interval", None
            if health.kind == "tcp" and (health.path != "/" or health.host or health.headers):
                yield (*here, "health", "kind"), "tcp asks for no path", 'did you mean kind = "http"?'

    yield from directs.doubts(config)


def _drain_doubts(here: Path, pool: PoolConfig) -> Iterator[Finding]:
    if pool.rebalance is not None and len(pool.backends) == 1:
        yield (*here, "rebalance"), "there is one backend: nothing can be evened out", None
    if pool.rebalance is not None and pool.max_skew is not None and pool.rebalance.skew < pool.max_skew:
        why = f"is less than max_skew ({pool.max_skew:g}): what is closed may come back to the same backend"
        yield (*here, "rebalance", "skew"), why, None


def path_text(path: Path) -> str:
    """A path as one would write it: ``pools.chat.backends[0].name``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = part.replace("-", "").replace("_", "").isalnum() and part.isascii()
            text += ("." if text else "") + (part if plain else _quoted(part))
    return text


def _quoted(key: str) -> str:
    """A key in quotes, fit to be shown: what would move a terminal's cursor is escaped."""
    shown = (
        f"\\{one}"
        if one in '"\\'
        else one
        if one.isprintable()
        else (f"\\u{ord(one):04x}" if one <= "\uffff" else f"\\U{ord(one):08x}")
        for one in key
    )
    return f'"{"".join(shown)}"'
