"""What pydantic found, in our words, with a hint for who comes from another balancer."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from pybalancer.config import direct_model, model, packet_model
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
    "route": "routes are [[listeners.routes]]",
    "routes": "routes are [[listeners.routes]]",
    "rules": "routes are [[listeners.routes]]",
    "location": "routes are [[listeners.routes]]",
    "locations": "routes are [[listeners.routes]]",
    "acl": "conditions are path, host, header, cookie and query of [[listeners.routes]]",
    "server_name": "host of [[listeners.routes]]",
    "hosts": "a route has one host; *.example.com is every name below it",
    "prefix": 'path = "/prefix/*" of [[listeners.routes]]',
    "path_prefix": 'path = "/prefix/*" of [[listeners.routes]]',
    "rewrite": "strip_prefix of a route is all the rewriting there is",
    "use_backend": "pool of [[listeners.routes]]",
    "default_backend": "pool of the listener",
    "proxy_pass": "pool of the listener, or of its [[listeners.routes]]",
    "proxy_set_header": "request_headers of [[listeners.routes]]",
    "add_header": "response_headers of [[listeners.routes]]",
    "allowed_origins": "origins of [[listeners.routes]]",
    "ip_hash": 'key = "source-ip" of the pool',
    "session_affinity": 'key = "sticky" of the pool',
    "sticky": 'key = "sticky" of the pool',
    "stick": 'key = "sticky" of the pool',
    "limit_req": "handshakes of the listener, or its accept_rate for connections of all kinds",
    "rate_limit": "handshakes of the listener, or its accept_rate for connections of all kinds",
    "ping_interval": "ping of the listener",
    "heartbeat": "ping of the listener",
    "max_frame_size": "max_message of the listener",
    "max_message_size": "max_message of the listener",
    "max_payload": "max_message of the listener",
    "client_header_timeout": "request_timeout of the listener",
    "http-request": "conditions and changes are those of [[listeners.routes]]",
    "large_client_header_buffers": "head_limit of the listener",
    "client_max_body_size": "bodies are passed on while they come, so there is no limit to them",
    "proxy_read_timeout": "response_timeout and body_timeout of the pool, for tunnels its idle_timeout",
    "websocket": 'mode = "websocket" of the listener',
    "drain": "how tunnels are drained is [pools.NAME.drain]",
    "drain_timeout": "deadline of [pools.NAME.drain]",
    "worker_shutdown_timeout": "grace of [balancer]",
    "hard-stop-after": "grace of [balancer]",
    "on-marked-down": 'on_down = "drain" or "close" of the pool',
    "rebalance": 'rebalance = { skew = 1.2, rate = "50/s" } of the pool',
    "interface": 'interfaces = ["eth0"] of [packet]',
    "interfaces": "interfaces of [packet]",
    "dev": 'interfaces = ["eth0"] of [packet]',
    "role": "role of [packet]",
    "forward": "forward of [packet]",
    "virtual_server": 'virtual services are [[listeners]] with mode = "packet"',
    "real_server": "servers are [[pools.NAME.backends]]",
    "vip": 'virtual services are [[listeners]] with mode = "packet" and bind = "ADDRESS:PORT"',
    "vips": 'virtual services are [[listeners]] with mode = "packet" and bind = "ADDRESS:PORT"',
    "reals": "servers are [[pools.NAME.backends]]",
    "lb_kind": 'forward = "l2" or "ipip" of [packet]',
    "lvs_method": 'forward = "l2" or "ipip" of [packet]',
    "lvs_sched": "packets go by a hash: policy is maglev",
    "packet_mode": 'mode = "packet" of the listener',
    "tls": "TLS is not in this version: put it in front, with send_proxy",
    "ssl": "TLS is not in this version: put it in front, with send_proxy",
}
"""Words of nginx, HAProxy and others, and where ours are."""

THERE: Final[Mapping[type[BaseModel], Mapping[str, str]]] = {
    model.ListenerConfig: {
        "host": 'the address is bind = ":8080"; what a request names is host of [[listeners.routes]]',
    },
    model.RouteConfig: {
        "backend": "pool: routes lead to pools, of one backend if need be",
        "headers": "conditions are header; changes are request_headers and response_headers",
        "cookies": "conditions are cookie",
        "method": "routes do not look at the method",
        "methods": "routes do not look at the method",
    },
    packet_model.PacketConfig: {
        "interface": 'interfaces = ["eth0"]',
        "dev": 'interfaces = ["eth0"]',
        "mode": 'whether in the driver or after it is xdp = "native" or "generic"',
        "method": 'forward = "l2" or "ipip"',
        "name": "which backend this is: backend",
    },
    model.PoolConfig: {
        "drain_over": "over of [pools.NAME.drain]",
        "drain_deadline": "deadline of [pools.NAME.drain]",
        "drain_code": "code of [pools.NAME.drain]",
        "drain_rate": "rate of [pools.NAME.drain]",
        "cookie": 'key = "cookie:NAME" for one of the application, key = "sticky" for one of the balancer',
    },
}
"""Words that mean something else in one section."""

_KEYS: Final = ("source", "source-ip", "path", "host", "sticky", "header", "cookie", "query")
"""Words that a ``key`` begins with; the last three have a name behind them."""


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
        given = detail["input"]
        asked = hint and path[-1:] == ("key",) and isinstance(given, str)
        return path, str(context["error"]), _meant_key(given) if asked else None
    if bounds := [f"{_BOUNDS[key]} {value}" for key, value in context.items() if key in _BOUNDS]:
        return path, f"must be {' and '.join(bounds)}", None
    return path, _PLAIN.get(kind, detail["msg"][:1].lower() + detail["msg"][1:]), None


def _meant_key(given: str) -> str | None:
    """A suggestion for what is no ``key``."""
    word, _, name = given.partition(":")
    close = difflib.get_close_matches(word.lower(), _KEYS, 1, 0.6)
    if not close:
        return None
    key = f"{close[0]}:{name or 'NAME'}" if close[0] in _KEYS[-3:] else close[0]
    return f'did you mean "{key}"?' if key != given and key.isprintable() else None


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
    if word := THERE.get(here, {}).get(key) or FOREIGN.get(key):
        return word
    # Rather one of the sections in here than any other.
    inner = {_section(field.annotation) for field in here.model_fields.values()}
    for section, title in sorted(_SECTIONS.items(), key=lambda item: item[0] not in inner):
        if key in section.model_fields:
            return f"it belongs into {title}"
    return meant(key, list(here.model_fields))


_SECTIONS: Final[Mapping[type[BaseModel], str]] = {
    model.BalancerConfig: "[balancer]",
    model.LogConfig: "[log]",
    model.ListenerConfig: "[[listeners]]",
    packet_model.PacketConfig: "[packet]",
    model.PoolConfig: "[pools.NAME]",
    model.BackendConfig: "[[pools.NAME.backends]]",
    model.HealthConfig: "[pools.NAME.health]",
    model.DrainConfig: "[pools.NAME.drain]",
    direct_model.DirectConfig: "[pools.NAME.direct]",
    model.RebalanceConfig: "rebalance of [pools.NAME]",
    model.RouteConfig: "[[listeners.routes]]",
    model.FieldsConfig: "request_headers or response_headers of [[listeners.routes]]",
}
