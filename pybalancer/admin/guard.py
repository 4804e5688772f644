"""Who may ask: the checks before any request reaches the admin interface.

A web page in the operator's browser is the likeliest stranger to reach a TCP admin address. It can
send requests there (so an Origin that was not allowed is refused), and can give its own name the
balancer's address to read the answers (DNS rebinding: so a Host that is not this server's is
refused). Both get 403 before the token is even looked at, and no CORS header is ever sent.
"""

import hmac
from collections.abc import Collection
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pybalancer.admin.replies import JSONReply

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "pybalancer"})
"""Names that a Host header may always have; ``pybalancer`` is what the commands send."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the guard lets through. Without a ``token`` none is asked for: right for a Unix socket only."""

    token: str | None = field(default=None, repr=False)
    hosts: Collection[str] = ()
    """More names for the Host header, without port."""
    origins: Collection[str] = ()
    """Origins that may POST, such as ``https://ops.example.com``."""


class Guard:
    """ASGI middleware that answers 401 or 403 itself."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._hosts = LOCAL_HOSTS | {host.lower() for host in policy.hosts}
        self._origins = frozenset(policy.origins)
        self._token = policy.token.encode() if policy.token is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass the request on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before accept: the handshake gets 403
        else:
            await (self._refusal(scope) or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONReply | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._knows(hosts[0], scope):
            return _forbidden("this Host is not served here; use localhost or the admin address")
        if scope["method"] not in ("GET", "HEAD"):
            origins = headers.getlist("origin")
            if any(origin not in self._origins for origin in origins):
                return _forbidden("this Origin may not change anything here; see balancer.admin_origins")
        if self._token is not None and not self._has_token(headers.getlist("authorization")):
            return JSONReply(
                {"error": "the token is missing or wrong; send Authorization: Bearer TOKEN"},
                status_code=401,
                headers={"www-authenticate": "Bearer"},
            )
        return None

    def _knows(self, host: str, scope: Scope) -> bool:
        name = _without_port(host).lower()
        if name in self._hosts:
            return True
        # Bound to all addresses, the one that the client really reached is as good as a name that
        # was configured: no web page can have a bare address of ours as its own Host.
        server = scope.get("server")
        return server is not None and name.strip("[]") == server[0]

    def _has_token(self, values: list[str]) -> bool:
        assert self._token is not None
        if len(values) != 1:
            return False
        scheme, _, given = values[0].partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        return same and scheme.lower() == "bearer"


def _without_port(host: str) -> str:
    if host.startswith("["):
        end = host.find("]")
        return host[: end + 1] if end > 0 else host
    return host.partition(":")[0]


def _forbidden(why: str) -> JSONReply:
    return JSONReply({"error": why}, status_code=403)
