"""From a file, a text, a mapping or flags to a checked ``Config``, or to all that is wrong with it."""

from __future__ import annotations

import copy
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from pybalancer.config import model, rules
from pybalancer.config.model import Config
from pybalancer.config.positions import Path, Place, positions
from pybalancer.config.rules import meant, path_text
from pybalancer.errors import ConfigError, Problem

MOST_BYTES: Final = 4 << 20
"""A configuration of thousands of backends has a few hundred KiB."""

ENVIRONMENT: Final[Mapping[str, tuple[str, str]]] = {
    "PYBALANCER_WORKERS": ("balancer", "workers"),
    "PYBALANCER_ADMIN": ("balancer", "admin"),
    "PYBALANCER_SECRET": ("balancer", "secret"),
    "PYBALANCER_SECRET_FILE": ("balancer", "secret_file"),
    "PYBALANCER_LOG_FORMAT": ("log", "format"),
    "PYBALANCER_LOG_LEVEL": ("log", "level"),
}
"""Variables that override the file."""

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


def load_file(
    path: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    overrides: Mapping[tuple[str, str], Any] | None = None,
) -> Config:
    """Read and check a file; flags (``overrides``) go before the environment, that before the file.

    Raises ConfigError with every problem that was found.
    """
    name = os.fspath(path)
    try:
        with FilePath(name).open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        hint = "write one, or: pybalancer serve --listen :8080 --to HOST:PORT"
        missing = isinstance(error, FileNotFoundError)
        raise ConfigError(
            [Problem(name, None, None, "", error.strerror or str(error), hint if missing else None)]
        ) from None
    return load_bytes(raw, name, os.environ if env is None else env, overrides)


def load_bytes(
    raw: bytes,
    name: str,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[tuple[str, str], Any] | None = None,
) -> Config:
    """The same from bytes."""
    if len(raw) > MOST_BYTES:
        raise ConfigError([Problem(name, None, None, "", f"is larger than {MOST_BYTES >> 20} MiB")])
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise ConfigError([Problem(name, line, column, "", "is not UTF-8")]) from None
    return load_text(text, name, env, overrides)


def load_text(
    text: str,
    name: str = "<text>",
    env: Mapping[str, str] | None = None,
    overrides: Mapping[tuple[str, str], Any] | None = None,
) -> Config:
    """The same from text. ``name`` stands for the file in messages."""
    try:
        values = tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax(name, text, str(error))]) from None
    except (RecursionError, ValueError) as error:
        # Nested a thousand deep, or a number of a million digits: no configuration.
        why = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError([Problem(name, None, None, "", why)]) from None
    try:
        places = positions(text)
    except RecursionError:
        places = {}
    return check(values, name, places, env or {}, overrides or {})


def load_mapping(values: Mapping[str, Any], name: str = "<mapping>") -> Config:
    """The same from what a TOML file would parse to."""
    return check(dict(values), name, {}, {}, {})


def from_flags(
    listen: Sequence[str],
    to: Sequence[str],
    *,
    policy: str = "maglev",
    health: str | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[tuple[str, str], Any] | None = None,
    **pool: Any,
) -> Config:
    """The configuration that ``serve --listen … --to …`` means: one pool, named ``default``.

    ``to`` may end in ``,weight=N``. ``health`` is a kind of check.
    """
    name = "command line"
    problems = [
        Problem(name, None, None, flag, "is missing", f"for example {flag} {example}")
        for flag, given, example in (("--listen", listen, ":8080"), ("--to", to, "127.0.0.1:9001"))
        if not given
    ]
    if problems:
        raise ConfigError(problems)
    backends = []
    for address in to:
        where, comma, weight = address.partition(",weight=")
        backends.append({"name": _short(where), "address": where, "weight": weight if comma else 1})
    many = len(listen) > 1
    listeners = [
        {"name": f"public-{index}" if many else "public", "bind": bind, "pool": "default"}
        for index, bind in enumerate(listen, 1)
    ]
    values: dict[str, Any] = {
        "listeners": listeners,
        "pools": {
            "default": {
                "policy": policy,
                "backends": backends,
                **({"health": {"kind": health}} if health else {}),
                **{key: value for key, value in pool.items() if value is not None},
            }
        },
    }
    return check(values, name, {}, env or {}, overrides or {})


def _short(address: str) -> str:
    """A backend named after its address; the names of long socket paths keep their end."""
    return address[-63:] if len(address.encode()) > 63 else address


def check(
    values: dict[str, Any],
    name: str,
    places: Mapping[Path, Place],
    env: Mapping[str, str],
    overrides: Mapping[tuple[str, str], Any],
) -> Config:
    """Values to ``Config``. ``places`` tells where a key stands, by its path."""
    foreign: dict[Path, str] = {}
    for variable, path in ENVIRONMENT.items():
        if variable in env:
            _put(values, path, env[variable])
            foreign[path] = variable
    for path, value in overrides.items():
        _put(values, path, value)
        foreign[path] = "--" + path[1].replace("_", "-")

    def problem(path: Path, message: str, suggestion: str | None) -> Problem:
        if path in foreign:
            origin = "command line" if foreign[path].startswith("--") else "environment"
            return Problem(origin, None, None, foreign[path], message, suggestion)
        # The nearest place that is known: of a missing key, its table.
        near = next((path[:length] for length in range(len(path), 0, -1) if path[:length] in places), None)
        line, column = places[near] if near else (None, None)
        return Problem(name, line, column, path_text(path), message, suggestion)

    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        found = list(_translated(error))
        # So that all is said at once: what else would be wrong if these were right.
        reported = {path for path, _, _ in found}
        found += [finding for finding in _beyond(values, found) if finding[0] not in reported]
        raise ConfigError(_in_order(problem(*finding) for finding in found)) from None
    if found := list(rules.mistakes(config)):
        raise ConfigError(_in_order(problem(*finding) for finding in found))
    config.note(problem(*finding) for finding in rules.doubts(config))
    return config


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0))


def _translated(error: ValidationError) -> Iterator[rules.Finding]:
    seen: set[Path] = set()
    for detail in error.errors(include_url=False):
        finding = _translate(detail)
        # A value may fail in several branches of its type: the first says it.
        if finding[0] not in seen:
            seen.add(finding[0])
            yield finding


_STAND_INS: Final = {"bind": "127.0.0.1:0", "address": "127.0.0.1:1"}


def _beyond(values: dict[str, Any], found: Sequence[rules.Finding]) -> list[rules.Finding]:
    """The mistakes that remain with every wrong value left out, or replaced where it must be there."""
    repaired = copy.deepcopy(values)
    pools = [name for name in repaired.get("pools", {}) if isinstance(name, str)]
    for number, (path, _, _) in enumerate(found):
        table: Any = repaired
        try:
            for part in path[:-1]:
                table = table[part]
            table.pop(path[-1], None)
            if path[-1] == "name":
                table["name"] = f"? {number}"
            elif path[-1] == "pool" and pools:
                table["pool"] = pools[0]
            elif path[-1] in _STAND_INS:
                table[path[-1]] = _STAND_INS[str(path[-1])]
        except (KeyError, IndexError, TypeError, AttributeError):
            return []
    try:
        return list(rules.mistakes(Config.model_validate(repaired)))
    except ValidationError:
        return []


def _put(values: dict[str, Any], path: tuple[str, str], value: Any) -> None:
    section = values.setdefault(path[0], {})
    if isinstance(section, dict):
        section[path[1]] = (
            int(value) if isinstance(value, str) and value.isdecimal() and path[1] == "workers" else value
        )


def _syntax(name: str, text: str, message: str) -> Problem:
    match = re.fullmatch(r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if not match:
        return Problem(name, None, None, "", message)
    line = int(match[2]) if match[2] else text.count("\n") + 1
    column = int(match[3]) if match[3] else len(text) - text.rfind("\n")
    said = match[1][:1].lower() + match[1][1:]
    return Problem(name, line, column, "", f"not TOML: {said}")


_PLAIN: Final = {
    "missing": "is missing",
    "int_type": "is a whole number",
    "int_parsing": "is a whole number",
    "int_from_float": "is a whole number",
    "float_type": "is a number",
    "float_parsing": "is a number",
    "string_type": "is text",
    "bool_type": "is true or false",
    "bool_parsing": "is true or false",
    "tuple_type": "is a list",
    "dict_type": "is a table",
    "model_type": "is a table",
}


def _translate(detail: Any) -> rules.Finding:
    """One of pydantic's findings in our words."""
    path: Path = tuple(part for part in detail["loc"] if part != "[key]")
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return path, "unknown key", _suggest(path)
    if kind in ("literal_error", "enum"):
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        given = detail.get("input")
        hint = meant(given, known) if isinstance(given, str) else None
        return path, f"is one of {', '.join(known)}", hint
    if kind in ("value_error", "assertion_error"):
        return path, str(context.get("error", detail["msg"])), None
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        word = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
        limits = [f"{word[key]} {value:g}" for key, value in context.items() if key in word]
        return path, f"is {' and '.join(limits)}", None
    if kind == "string_pattern_mismatch":
        return path, "has characters that are not allowed there", None
    if kind == "missing":
        return path, "is missing", None
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
    if found := meant(key, list(here.model_fields)):
        return found
    if key in FOREIGN:
        return FOREIGN[key]
    for section, title in _SECTIONS.items():
        if key in section.model_fields:
            return f"it belongs into {title}"
    return None


_SECTIONS: Final[Mapping[type[BaseModel], str]] = {
    model.BalancerConfig: "[balancer]",
    model.LogConfig: "[log]",
    model.ListenerConfig: "[[listeners]]",
    model.PoolConfig: "[pools.NAME]",
    model.BackendConfig: "[[pools.NAME.backends]]",
    model.HealthConfig: "[pools.NAME.health]",
}
