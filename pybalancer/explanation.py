"""Which backend a client gets, and why: what ``explain`` answers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pybalancer import _core
from pybalancer.config import routes, values

if TYPE_CHECKING:
    from pybalancer._core import Choice, Engine
    from pybalancer.config.model import Config, ListenerConfig, RouteConfig


def choose_pool(config: Config, pool: str | None) -> str:
    """The pool that is meant. Raises LookupError."""
    if pool is None:
        if len(config.pools) == 1:
            return next(iter(config.pools))
        raise LookupError(f"there are several pools, name one: {', '.join(config.pools)}")
    if pool not in config.pools:
        raise LookupError(f"there is no pool {pool!r}; there are: {', '.join(config.pools)}")
    return pool


def client_address(source: str) -> str:
    """``ip:port`` of what a person writes. Raises ValueError."""
    try:
        address = ipaddress.ip_address(source.strip("[]"))
    except ValueError:
        pass
    else:
        return f"[{address}]:0" if address.version == 6 else f"{address}:0"
    host, _, port = source.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        raise ValueError(f"{source!r} is not a client's address: IP:PORT or [IPv6]:PORT") from None
    if not 0 <= number <= 65535 or not port.isascii():
        raise ValueError(f"{port} is not a port")
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


def explanation(config: Config, pool: str, source: str, order: list[Choice]) -> dict[str, Any]:
    """What ``explain`` answers."""
    picked = next((choice.backend for choice in order if choice.verdict == "picked"), None)
    return {
        "source": source,
        "pool": pool,
        "policy": config.pools[pool].policy,
        "key": config.pools[pool].key,
        "backend": picked,
        "choices": [
            {
                "backend": choice.backend,
                "address": choice.address,
                "state": choice.state,
                "active": choice.active,
                "verdict": choice.verdict,
            }
            for choice in order
        ],
    }


# Where requests are read, what the client asks for decides.

HANDSHAKE: Final = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
)
"""What makes a request a handshake (RFC 6455 section 4.1); the key is 16 zeros."""

NOT_OPENED: Final = "this origin may not open WebSockets here"

_REFUSAL: Final = re.compile(r"([1-5][0-9]{2}) (.*)", re.DOTALL)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as a person says it: a handshake, unless it has its own Connection or Upgrade."""

    listener: str | None = None
    """None: the only one of mode "websocket"."""
    host: str | None = None
    path: str | None = None
    """With the query."""
    headers: Sequence[tuple[str, str]] = ()

    @property
    def names(self) -> set[str]:
        """Of the headers, in lower case."""
        return {name.lower() for name, _ in self.headers}

    @property
    def handshake(self) -> bool:
        """Whether it asks for a WebSocket."""
        return not self.names & {"connection", "upgrade"}

    def lines(self) -> list[tuple[str, str]]:
        """All its headers. A Host that is given is the only one, if none is given otherwise."""
        hosts = [] if self.host is None and "host" in self.names else [("Host", self.host or "localhost")]
        rest = HANDSHAKE if self.handshake else ()
        return [
            *hosts,
            *self.headers,
            *((name, value) for name, value in rest if name.lower() not in self.names),
        ]

    def head(self) -> bytes:
        """As it is sent. What HTTP does not allow is in it as given: what becomes of that is the engine's.

        Raises ValueError for what would end a line, since the rest of it would be another one.
        """
        lines = [(values.field_name(name), value) for name, value in self.lines()]
        path = self.path or "/"
        for what, text in (("path", path), *lines):
            if _CONTROL.search(text):
                raise ValueError(f"{what}: {text!r} has control characters")
        fields = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return f"GET {path} HTTP/1.1\r\n{fields}\r\n".encode("utf-8", "surrogateescape")


def parse_header(text: str) -> tuple[str, str]:
    """``"X-User: 5"`` as name and value. Raises ValueError."""
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError(f'{text!r} is no header such as "X-User: 5"')
    return name, value.strip(" \t")


def explain_request(engine: Engine, config: Config, source: str, asked: Asked) -> dict[str, Any]:
    """What ``explain`` answers of a request: its route besides, or with what status it is ``refused``.

    The engine decides, by the same code as for clients. Raises LookupError for a listener that is not
    there, not of mode "websocket", or not given where there are several; ValueError for what cannot be
    in a request.
    """
    listener = _choose_listener(config, asked.listener)
    head = asked.head()
    answer: dict[str, Any] = {
        "source": source,
        "listener": listener.name,
        "host": next(value for name, value in asked.lines() if name.lower() == "host"),
        "path": asked.path or "/",
        "handshake": asked.handshake,
        "action": None,
        "urls": [],
        "route": None,
        "conditions": {},
        "refused": None,
        "pool": None,
        "policy": None,
        "key": None,
        "backend": None,
        "choices": [],
    }
    try:
        name, pool, order, sent = engine.explain_request(listener.name, source, head)
    except _core.PlanError as error:
        refusal = _REFUSAL.fullmatch(str(error))
        if refusal is None:
            raise LookupError(str(error)) from None
        return {**answer, "refused": {"status": int(refusal[1]), "why": refusal[2]}}
    route = routes.named(listener).get(name)
    if route is None or pool not in config.pools:
        raise LookupError("a reload is under way: ask again")
    answer |= explanation(config, pool, source, order)
    answer |= {"route": name, "conditions": _conditions(route)}
    if route.key is not None:
        answer["key"] = route.key
    action = listener.action(route)
    answer["action"] = action
    if sent is not None:
        # A handshake at a directory is sent at once.
        answer |= {"action": sent[0], "urls": sent[1]}
    if (asked.handshake or action == "directory") and not _may_open(route, asked.headers):
        why = "this origin may not ask here" if action == "directory" else NOT_OPENED
        answer |= {"refused": {"status": 403, "why": why}, "backend": None, "choices": [], "urls": []}
    return answer


def _choose_listener(config: Config, name: str | None) -> ListenerConfig:
    """The listener that is meant. Raises LookupError."""
    if name is None:
        found = [listener for listener in config.listeners if listener.reads]
        if len(found) == 1:
            return found[0]
        if not found:
            raise LookupError("no listener reads requests: what clients ask for does not matter")
        names = ", ".join(listener.name for listener in found)
        raise LookupError(f"there are several listeners that read requests, name one: {names}")
    listener = next((listener for listener in config.listeners if listener.name == name), None)
    if listener is None:
        names = ", ".join(listener.name for listener in config.listeners)
        raise LookupError(f"there is no listener {name!r}; there are: {names}")
    if not listener.reads:
        raise LookupError(f"listener {name!r} reads no requests: ask for its pool {listener.pool!r} instead")
    return listener


def _conditions(route: RouteConfig) -> dict[str, Any]:
    """What the route asks for, as the configuration says it."""
    asked: dict[str, Any] = {"path": route.path, "host": route.host}
    for part in ("header", "cookie", "query"):
        wanted: dict[str, str | None] = getattr(route, part)
        asked[part] = {name: True if value is None else value for name, value in wanted.items()}
    return {part: value for part, value in asked.items() if value}


def _may_open(route: RouteConfig, headers: Iterable[tuple[str, str]]) -> bool:
    origins = [value.lower() for name, value in headers if name.lower() == "origin"]
    return not route.origins or all(origin in route.origins for origin in origins)
