"""Routes of a listener: what they are called, and what no single value of one can see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pybalancer import _core
from pybalancer.config.model import RouteConfig

if TYPE_CHECKING:
    from pybalancer.config.model import Config, ListenerConfig, PoolConfig
    from pybalancer.config.positions import Path
    from pybalancer.config.rules import Finding

DEFAULT: Final = "default"
"""The route of what no other matches, to the listener's own pool."""

REQUEST_KEYS: Final = ("path", "host", "sticky", "header:", "cookie:", "query:")
"""How keys begin that need a request."""


def named(listener: ListenerConfig) -> dict[str, RouteConfig]:
    """All routes in their order, by the one name that logs and ``explain`` know each by."""
    given = [route.name or route.path for route in listener.routes]
    found: dict[str, RouteConfig] = {}
    for number, route in enumerate(listener.routes, 1):
        name = route.name
        if name is None:
            # A path is a good name as long as it is nobody else's.
            name = route.path if route.path and given.count(route.path) == 1 else f"route {number}"
            while name in found or (name in given and name != route.path):
                name += "'"
        found[name] = route
    if listener.pool is not None:
        found[DEFAULT] = RouteConfig(name=DEFAULT, pool=listener.pool)
    return found


def mistakes(here: Path, listener: ListenerConfig) -> Iterator[Finding]:
    """What makes the routes of the listener at ``here`` unusable."""
    names: dict[str, int] = {}
    for index, route in enumerate(listener.routes):
        place: Path = (*here, "routes", index)
        if route.name == DEFAULT and listener.pool is not None:
            yield (
                (*place, "name"),
                f"{DEFAULT!r} is what the route to the listener's own pool is called",
                None,
            )
        elif route.name is not None and names.setdefault(route.name, index) != index:
            yield (*place, "name"), f"another route is named {route.name!r}", None
        yield from _twice((*place, "header"), list(route.header))
        for part in ("request_headers", "response_headers"):
            edits = getattr(route, part)
            for name, value in edits.set.items():
                if why := _refused(part, name, value):
                    yield (*place, part, "set", name), f"{name!r} cannot be set: {why}", None
            for number, name in enumerate(edits.remove):
                if why := _refused(part, name, None):
                    yield (*place, part, "remove", number), f"{name!r} cannot be removed: {why}", None
                elif name.lower() in {other.lower() for other in edits.set}:
                    hint = "what is set replaces what was there"
                    yield (*place, part, "remove", number), f"{name!r} is set as well", hint
            yield from _twice((*place, part, "set"), list(edits.set))


def _twice(place: Path, names: list[str]) -> Iterator[Finding]:
    """Header names that differ in case only are one name."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.lower(), name)) != name:
            yield (*place, name), f"is the same header as {other!r}", None


def _refused(part: str, name: str, value: str | None) -> str | None:
    """Why a route may not change this field. What endangers framing is the core's to say."""
    if name.lower().startswith("sec-websocket-") and (part, value) != ("request_headers", None):
        # What one side believes to be agreed on would not be what the other has agreed to.
        return "client and backend agree on it; all that can be done is to remove it from requests"
    changes = {"request_set": [(name, value)]} if value is not None else {"request_remove": [name]}
    try:
        _core.RouteSpec(name="", pool="", **changes)
    except _core.PlanError as error:
        return str(error).removeprefix('route "": ')
    return None


def doubts(here: Path, listener: ListenerConfig, config: Config) -> Iterator[Finding]:
    """What works in the routes of the listener at ``here`` and is probably not meant."""
    all_taken: int | None = None
    seen: dict[str, int] = {}
    for index, route in enumerate(listener.routes):
        place: Path = (*here, "routes", index)
        conditions = route.model_dump_json(include={"path", "host", "header", "cookie", "query"})
        if all_taken is not None:
            yield place, f"no request comes this far: routes[{all_taken}] takes them all", "move it up"
        elif (earlier := seen.setdefault(conditions, index)) != index:
            yield place, f"no request comes this far: routes[{earlier}] asks for the same", None
        elif _takes_all(route):
            all_taken = index
        if route.strip_prefix and route.path and not _begins(route.path, route.strip_prefix):
            why = f"{route.strip_prefix!r} is not what {route.path!r} begins with: nothing will be taken off"
            yield (*place, "strip_prefix"), why, None
        if route.key is not None and (pool := config.pools.get(route.pool)):
            yield from _unused_key((*place, "key"), route.key, pool)
    if all_taken is not None and listener.pool is not None:
        yield (*here, "pool"), f"no request comes this far: routes[{all_taken}] takes them all", None
    if listener.reads and listener.handshakes is None:
        for key in ("handshakes_burst", "handshakes_queue", "handshakes_wait"):
            if key in listener.model_fields_set:
                yield (*here, key), "means nothing without handshakes", 'add handshakes = "2000/s"'
    pings = listener.ping or any(route.ping for route in listener.routes)
    if listener.reattach == "off":
        yield from _idle_reattach(here, listener)
    if "ping_timeout" in listener.model_fields_set and not pings:
        yield (*here, "ping_timeout"), "means nothing without ping", 'add ping = "30s"'


REATTACH_KEYS: Final = ("reattach_tries", "reattach_timeout", "reattach_buffer")


def _idle_reattach(here: Path, listener: ListenerConfig) -> Iterator[Finding]:
    """Keys of re-attach that nothing reads. The listener itself does not re-attach."""
    hint = 'add reattach = "replay"'
    kept = any(route.reattach == "replay" for route in listener.routes)
    for key in REATTACH_KEYS:
        if key in listener.model_fields_set and not kept:
            yield (*here, key), "means nothing without reattach", hint
    for index, route in enumerate(listener.routes):
        for key in REATTACH_KEYS:
            if key in route.model_fields_set and route.reattach != "replay":
                yield (*here, "routes", index, key), "means nothing without reattach", hint


def pool_doubts(here: Path, pool: PoolConfig, *, reads: bool) -> Iterator[Finding]:
    """The same of a pool. ``reads``: requests come to it, not only streams."""
    yield from _unused_key((*here, "key"), pool.key, pool)
    for key in ("response_timeout", "body_timeout"):
        if key in pool.model_fields_set and not reads:
            yield (*here, key), 'means nothing without a listener of mode "websocket"', None


def _unused_key(place: Path, key: str, pool: PoolConfig) -> Iterator[Finding]:
    # What says "sticky" binds clients whatever the policy picks for the new ones.
    if pool.policy != "maglev" and key != "sticky" and key.startswith(REQUEST_KEYS):
        yield place, f"policy {pool.policy!r} hashes nothing", 'did you mean policy = "maglev"?'


def _takes_all(route: RouteConfig) -> bool:
    return route.path in (None, "/*") and not (route.host or route.header or route.cookie or route.query)


def _begins(pattern: str, prefix: str) -> bool:
    """Whether paths that match ``pattern`` may begin with ``prefix``."""
    asked, there = (text.strip("/").split("/") for text in (prefix, pattern))
    if asked == [""]:
        return True
    if there[-1] == "*":
        # All that follows, so any number of segments.
        there += ["*"] * len(asked)
    fits = (b in (a, "*") or re.fullmatch(r"\{\w+\}", b) for a, b in zip(asked, there, strict=False))
    return len(there) >= len(asked) and all(fits)
