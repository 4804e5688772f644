"""What pydantic found, in our words, with a hint for who comes from another balancer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from pybalancer.config import model
from pybalancer.config.model import Config
from pybalancer.config.positions import Path
from pybalancer.config.rules import Finding, meant

MOST_HINTS: Final = 200
"""Similar words are searched for so many findings; a file with more is no configuration of ours."""

FOREIGN: Final[Mapping[str, str]] = {
    "upstream": "pools of servers are [pools.NAME]",
    "upstreams": "pools of servers are [pools.NAME]",
    "server": "servers are [[pools.NAME.backends]]",
    "servers": "servers are [[pools.NAME.backends]]",
    "backend": "servers are [[pools.NAME.backends]]",
    "backends": "servers are [[pools.NAME.backends]]",
    "frontend": "addresses to listen on are [[listeners]]",
    "frontends": "addresses to listen on are [[listeners]]",
    "listen": 'addresses to listen on are [[listeners]] with bind = ":8080"',
    "listener": "addresses to listen on are [[listeners]]",
    "pool": "pools are [pools.NAME]",
    "global": "the process as a whole is [balancer]",
    "defaults": "there are no defaults to inherit: each pool says what it needs",
    "maxconn": "the limit of a listener is max_connections",
    "max_conns": "the limit of a listener is max_connections",
    "balance": "how a backend is picked is policy",
    "algorithm": "how a backend is picked is policy",
    "method": "how a backend is picked is policy",
    "timeout": "there are connect_timeout, idle_timeout and half_closed_timeout",
    "timeouts": "there are connect_timeout, idle_timeout and half_closed_timeout",
    "proxy_timeout": "quiet tunnels end after the pool's idle_timeout",
    "proxy_connect_timeout": "the pool's connect_timeout",
    "proxy_protocol": "accept_proxy on a listener, send_proxy on a pool",
    "send-proxy": "send_proxy of the pool",
    "accept-proxy": "accept_proxy of the listener",
    "check": "checks are [pools.NAME.health]",
    "health_check": "checks are [pools.NAME.health]",
    "slowstart": "slow_start of the pool",
    "worker_processes": "workers of [balancer]",
    "nbthread": "workers of [balancer]",
    "threads": "workers of [balancer]",
    "port": 'addresses have their port: bind = ":8080"',
    "host": 'addresses are one text: address = "host:port"',
    "url": 'addresses are address = "host:port"',
    "routes": 'routes need mode = "websocket", which this version does not have',
    "drain": "draining is not in this version",
    "tls": "TLS is not in this version: put it in front, with send_proxy",
    "ssl": "TLS is not in this version: put it in front, with send_proxy",
}
"""Words of nginx, HAProxy and others, and where ours are."""


def findings(error: ValidationError) -> Iterator[Finding]:
    """One for each place, the first that failed there."""
    seen: set[Path] = set()
    for detail in error.errors(include_url=False):
        finding = _translate(detail, hint=len(seen) < MOST_HINTS)
        # A value may fail in several branches of its type: the first says it.
        if finding[0] not in seen:
            seen.add(finding[0])
            yield finding


_PLAIN: Final = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "missing": "is missing",
    "extra_forbidden": "unknown key",
    "string_pattern_mismatch": "has characters that are not allowed there",
}
_BOUNDS: Final = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _translate(detail: Any, *, hint: bool) -> Finding:
    """One of pydantic's findings in our words."""
    path: Path = detail["loc"]
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return path, _PLAIN[kind], _suggest(path) if hint else None
    if path and path[-1] == "[key]":
        # pydantic's mark of a key that is wrong, not its value.
        path = path[:-1]
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context["expected"]))
        given = detail["input"]
        close = meant(given, known) if hint and isinstance(given, str) else None
        choice = f"one of {', '.join(known)}" if len(known) > 1 else known[0]
        return path, f"must be {choice}", close
    if kind == "value_error":
        return path, str(context["error"]), None
    if bounds := [f"{_BOUNDS[key]} {value}" for key, value in context.items() if key in _BOUNDS]:
        return path, f"must be {' and '.join(bounds)}", None
    return path, _PLAIN.get(kind, detail["msg"][:1].lower() + detail["msg"][1:]), None


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone, in a list or in a table."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for candidate in get_args(annotation):
        if (found := _section(candidate)) is not None:
            return found
    return None


def _suggest(path: Path) -> str | None:
    key = str(path[-1])
    here: type[BaseModel] = Config
    skip = False
    for part in path[:-1]:
        if isinstance(part, int) or skip:
            skip = False
            continue
        field = here.model_fields.get(part)
        if field is None:
            return None
        annotation = field.annotation
        section = _section(annotation)
        if section is None:
            return None
        # The keys of a table of tables are names.
        skip = getattr(annotation, "__origin__", None) is dict
        here = section
    if key in FOREIGN:
        return FOREIGN[key]
    for section, title in _SECTIONS.items():
        if key in section.model_fields:
            return f"it belongs into {title}"
    return meant(key, list(here.model_fields))


_SECTIONS: Final[Mapping[type[BaseModel], str]] = {
    model.BalancerConfig: "[balancer]",
    model.LogConfig: "[log]",
    model.ListenerConfig: "[[listeners]]",
    model.PoolConfig: "[pools.NAME]",
    model.BackendConfig: "[[pools.NAME.backends]]",
    model.HealthConfig: "[pools.NAME.health]",
}
