"""Directory and redirect: what no single value of them can see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pybalancer.config.routes import named

if TYPE_CHECKING:
    from pybalancer.config.direct_model import DirectConfig
    from pybalancer.config.model import Config, ListenerConfig, RouteConfig
    from pybalancer.config.positions import Path
    from pybalancer.config.rules import Finding

RELAYED: Final = (
    "request_headers",
    "response_headers",
    "max_message",
    "ping",
    "reattach",
    "reattach_tries",
    "reattach_timeout",
    "reattach_buffer",
)
"""Keys of a route that are about what is relayed."""

NOT_TOLD: Final = (
    "max_message",
    "ping",
    "ping_timeout",
    "close_timeout",
    "reattach",
    "reattach_tries",
    "reattach_timeout",
    "reattach_buffer",
    "handshakes_queue",
    "handshakes_wait",
)
"""Keys of a listener that mean nothing where nothing is relayed."""


def mistakes(config: Config) -> Iterator[Finding]:
    """What makes them unusable."""
    for index, listener in enumerate(config.listeners):
        if listener.reads:
            yield from _listener(("listeners", index), listener)
    users = _users(config)
    for name, pool in config.pools.items():
        here: Path = ("pools", name)
        yield from _direct((*here, "direct"), pool.direct)
        if name not in users:
            continue
        for index, backend in enumerate(pool.backends):
            if backend.public_url is None:
                why = f"is missing: {users[name]} sends clients there"
                hint = f'add public_url = "wss://{_host(backend.name)}", as clients reach it'
                yield (*here, "backends", index, "public_url"), why, hint


def _listener(here: Path, listener: ListenerConfig) -> Iterator[Finding]:
    if listener.mode == "directory":
        for key in NOT_TOLD:
            if key in listener.model_fields_set:
                yield (*here, key), 'means nothing in mode "directory", which relays nothing', None
    for index, route in enumerate(listener.routes):
        yield from _route((*here, "routes", index), listener, route)


def _route(here: Path, listener: ListenerConfig, route: RouteConfig) -> Iterator[Finding]:
    action = listener.action(route)
    if action == "proxy":
        if route.action is not None and listener.mode == "directory":
            yield (*here, "action"), 'mode "directory" relays nothing', 'set mode = "websocket"'
        if route.target is not None:
            why = "means nothing where requests are relayed"
            yield (*here, "target"), why, 'add action = "directory" or action = "redirect"'
        return
    for key in RELAYED:
        if key in route.model_fields_set:
            yield (*here, key), f'means nothing with action = "{action}", which relays nothing', None
    if route.target is not None and route.strip_prefix is not None:
        why = "means nothing with target, which takes the place of the whole path"
        yield (*here, "strip_prefix"), why, None


def _direct(here: Path, direct: DirectConfig) -> Iterator[Finding]:
    if direct.ticket_secret is not None and direct.ticket_secret_file is not None:
        why = "both ticket_secret and ticket_secret_file are given"
        yield (*here, "ticket_secret"), why, "keep one of them"
    for key in ("retry_min", "retry_base"):
        if getattr(direct, key) > direct.retry_max:
            given = key if key in direct.model_fields_set else "retry_max"
            why = f"{key} ({getattr(direct, key):g}s) is more than retry_max ({direct.retry_max:g}s)"
            yield (*here, given), why, None


def _users(config: Config) -> dict[str, str]:
    """A route that sends clients to it, by pool."""
    users: dict[str, str] = {}
    for listener in config.listeners:
        for name, route in (named(listener) if listener.reads else {}).items():
            if listener.action(route) != "proxy":
                users.setdefault(route.pool, f"route {name!r} of listener {listener.name!r}")
    return users


def doubts(config: Config) -> Iterator[Finding]:
    """What works and is probably not meant."""
    users = _users(config)
    for index, listener in enumerate(config.listeners):
        routes = named(listener).values() if listener.reads else ()
        tells = any(listener.action(route) == "directory" for route in routes)
        if "client_js" in listener.model_fields_set and not tells:
            yield ("listeners", index, "client_js"), "means nothing without a directory", None
    for name, pool in config.pools.items():
        here: Path = ("pools", name)
        urls: dict[str, str] = {}
        for index, backend in enumerate(pool.backends):
            if (url := backend.public_url) is None:
                continue
            place = (*here, "backends", index, "public_url")
            if name not in users:
                hint = 'add [[listeners.routes]] with action = "directory" or "redirect"'
                yield place, "means nothing without a route that sends clients there", hint
            elif urls.setdefault(url, backend.name) != backend.name:
                yield place, f"backend {urls[url]!r} has the same", None
        direct = pool.direct
        if "direct" in pool.model_fields_set and name not in users:
            yield (*here, "direct"), "means nothing without a directory or redirect to this pool", None
        for key in ("ticket_secret", "ticket_secret_file", "ticket_address"):
            if key in direct.model_fields_set and not direct.ticket:
                yield (*here, "direct", key), "means nothing without ticket", "add ticket = true"
        if name in users and pool.health is None:
            why = (
                f"is missing: {users[name]} would go on to name a backend that is down, since nobody asks it"
            )
            yield (*here, "health"), why, f"add [pools.{name}.health]"


def _host(name: str) -> str:
    """What the host of a backend might be called."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name).strip("-")
    return f"{plain.lower() or 'node'}.example.com"
