"""What a configuration is: the one definition.

Checks, JSON Schema and ``docs/config.md`` are made from it, so a key's description is written once,
here. Times are float seconds once read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr

from pybalancer.config.direct_model import DirectConfig
from pybalancer.config.packet_model import PacketConfig
from pybalancer.config.section import Section
from pybalancer.config.values import (
    Admin,
    Bind,
    CookieName,
    Duration,
    FieldName,
    FieldValue,
    File,
    HostPattern,
    Key,
    Mode,
    Name,
    Network,
    Number,
    Origin,
    Path,
    Place,
    Prefix,
    PublicUrl,
    QueryName,
    Rate,
    Size,
    Source,
    Statuses,
    Target,
    Truth,
    WantedCookie,
    WantedField,
    WantedParameter,
    Whole,
)
from pybalancer.errors import Problem

NEVER_SENT: Final = (1004, 1005, 1006, *range(1015, 3000))
"""Codes of a Close that stand for something else than a Close, or for nothing yet: a client that gets
one may take it for a violation of the protocol."""


def _secret(value: Any) -> Any:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or len(text) != 32 or not all(c in "0123456789abcdefABCDEF" for c in text):
        # The value itself stays out of the message: it is a secret, even a malformed one.
        raise ValueError("a secret is 32 hexadecimal digits, as `openssl rand -hex 16` prints them")
    return SecretStr(text)


def _close_code(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1000 <= value <= 4999:
            raise ValueError(f"codes of a Close go from 1000 to 4999, not {value}")
        if value in NEVER_SENT:
            raise ValueError(f"{value} may not be sent in a Close (RFC 6455 section 7.4); try 1012")
    return value


class BalancerConfig(Section):
    """The process as a whole."""

    workers: Annotated[Whole, Field(ge=0, le=1024)] = Field(
        0, description="Worker threads; 0: one per core that the process may use. Fixed at the start."
    )
    admin: Admin | None = Field(
        None,
        description="Address of the admin interface: `unix:/path`, `IP:PORT` (needs a token), or `none`. "
        "Default: a socket under the run directory (`$RUNTIME_DIRECTORY`, `/run/pybalancer` for root, else "
        "`$XDG_RUNTIME_DIR/pybalancer`). Fixed at the start.",
        examples=["unix:/run/pybalancer/admin.sock"],
    )
    admin_token: SecretStr | None = Field(
        None, description="Bearer token that a TCP admin address asks for (at least 16 characters)."
    )
    admin_token_file: File | None = Field(
        None, description="File with that token, readable by its owner only."
    )
    admin_origins: tuple[Origin, ...] = Field(
        (), description="Origins (`https://host`) of web pages that may POST to the admin interface."
    )
    secret: Annotated[SecretStr | None, BeforeValidator(_secret)] = Field(
        None,
        description="128-bit key of all hashes, 32 hexadecimal digits. Balancers with the same secret and "
        "backends have the same table. Better kept in `secret_file`.",
    )
    secret_file: File | None = Field(
        None,
        description="File with the secret, readable by its owner only. Without either, a random one is made "
        "and kept in the state directory.",
        examples=["/etc/pybalancer/secret"],
    )
    stats: File | None = Field(
        None,
        description="File for the shared-memory counters; by default they have none. Fixed at the start.",
    )
    pid_file: File | None = Field(
        None,
        description="File with the id of the process that serves, written when it is ready and removed at "
        "its end. Fixed at the start.",
        examples=["/run/pybalancer/pid"],
    )
    watch: Truth = Field(False, description="Reload when the file changes (its directory is watched).")
    grace: Duration = Field(
        10.0,
        description="Time that TERM takes: live tunnels are told to go over three quarters of it, and "
        "aborted at its end.",
    )


class LogConfig(Section):
    """What is written to standard error."""

    format: Literal["human", "json"] = Field("human", description="Lines for people, or JSON objects.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level written.")
    connections: Truth = Field(True, description="One record per connection, when it ends.")


Tries = Annotated[Whole, Field(ge=1, le=1000)]
Patience = Annotated[Duration, Field(ge=0.01)]
Buffer = Annotated[Size, Field(ge=1024, le=1 << 30)]


class FieldsConfig(Section):
    """Changes to header fields, except those that frame a message or belong to the handshake."""

    set: dict[FieldName, FieldValue] = Field(
        default_factory=dict,
        description="Fields to set, in place of those of the same name.",
        examples=[{"X-Tier": "gold"}],
    )
    remove: tuple[FieldName, ...] = Field((), description="Fields to remove.", examples=[["X-Debug"]])


class RouteConfig(Section):
    """Requests that match go to a pool. First match wins; everything that is given must match."""

    name: Name | None = Field(
        None, description="For logs and `explain`. By default its path, or `route` and its number."
    )
    path: Path | None = Field(
        None,
        description="Path, without the query: `{name}` is one segment that is not empty, `*` one segment, a "
        "last `*` all that follows, also nothing.",
        examples=["/rooms/*"],
    )
    host: HostPattern | None = Field(
        None,
        description="Host name, with any port unless one is given; `*.example.com` is every name below it.",
        examples=["chat.example.com"],
    )
    header: dict[FieldName, WantedField] = Field(
        default_factory=dict,
        description="Header fields that it has: with exactly this value, or with `true` whatever it is.",
        examples=[{"X-Beta": True}],
    )
    cookie: dict[CookieName, WantedCookie] = Field(default_factory=dict, description="Cookies, likewise.")
    query: dict[QueryName, WantedParameter] = Field(
        default_factory=dict, description="Query parameters, decoded, likewise."
    )
    pool: str = Field(description="The pool that they go to.")
    action: Literal["proxy", "directory", "redirect"] | None = Field(
        None,
        description="`proxy`: relay them. `directory`: tell the client, in JSON, the URL of the backend that "
        "it would be relayed to. `redirect`: send it there (307). By default `proxy`, in mode `directory` "
        "`directory`. The backends need a `public_url`.",
    )
    target: Place | None = Field(
        None,
        description="Of a directory or redirect: the path that clients are sent to; the query is kept. By "
        "default the path that they ask for, without `strip_prefix`.",
    )
    key: Key | None = Field(None, description="What is hashed, where it is not the pool's own `key`.")
    strip_prefix: Prefix | None = Field(
        None,
        description="Taken off the beginning of the path, at the end of a segment, where it is there.",
        examples=["/chat"],
    )
    origins: tuple[Origin, ...] = Field(
        (),
        description="Origins (`https://host`) of pages that may open WebSockets; others get 403. Empty: all. "
        "Clients that send no Origin are no browsers and are let through. Of a directory: origins of pages "
        "that may ask (CORS). Empty: all may ask, but only pages of its own origin can read the answer.",
    )
    request_headers: FieldsConfig = Field(
        default=FieldsConfig(), description="Changes to requests on their way to the backend."
    )
    response_headers: FieldsConfig = Field(
        default=FieldsConfig(), description="Changes to responses on their way to the client."
    )
    max_message: Annotated[Whole, Field(ge=0, le=2**32 - 1)] | None = Field(
        None, description="As on the listener, for this route. By default the listener's."
    )
    ping: Duration | None = Field(
        None, description="As on the listener, for this route. By default the listener's."
    )
    reattach: Literal["off", "replay"] | None = Field(
        None, description="As on the listener, for this route. By default the listener's."
    )
    reattach_tries: Tries | None = Field(None, description="Likewise.")
    reattach_timeout: Patience | None = Field(None, description="Likewise.")
    reattach_buffer: Buffer | None = Field(None, description="Likewise.")


class ListenerConfig(Section):
    """An address that clients connect to."""

    name: Name = Field(description="Known by this name over reloads, in logs and metrics.")
    bind: Bind = Field(
        description="Where to listen: `IP:PORT`, `[IPv6]:PORT`, `:PORT` (all addresses, both families) or "
        "`unix:/path`.",
        examples=["0.0.0.0:8080"],
    )
    mode: Literal["tcp", "websocket", "directory", "packet"] = Field(
        "tcp",
        description="`tcp`: relay the bytes of each connection to a backend, whatever they mean. "
        "`websocket`: read HTTP/1.1 requests, route on what they ask for, relay WebSockets and plain HTTP. "
        "`directory`: read requests, and relay nothing: tell clients where to connect to. "
        "`packet`: forward the packets for this address to backends that answer clients themselves, as "
        "`[packet]` says.",
    )
    protocol: Literal["tcp", "udp"] = Field(
        "tcp", description="In mode `packet`: whose packets, of the port in `bind`."
    )
    pool: str | None = Field(
        None,
        description="The pool that its connections go to; in mode `websocket` those that no route matches "
        "(without it they get 404).",
    )
    routes: tuple[RouteConfig, ...] = Field(
        (), description="In mode `websocket`: which requests go where. First match wins."
    )
    handshakes: Rate | None = Field(
        None,
        description="In mode `websocket`: WebSocket handshakes per time that reach the backends. What does "
        "not fit waits a little, then gets 503 with Retry-After. Tunnels that stand are not slowed, nor are "
        "other requests. Clients that a directory or a redirect sends on count too; those are told when to "
        "come again.",
        examples=["2000/s"],
    )
    handshakes_burst: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = Field(
        None, description="How many of them may come at once. Default: 0.1 s worth, at least 1."
    )
    handshakes_queue: Annotated[Whole, Field(ge=0, le=10_000_000)] = Field(
        1024, description="How many may wait for `handshakes`; more get 503 at once."
    )
    handshakes_wait: Duration = Field(1.0, description="How long one may wait there before it gets 503.")
    max_message: Annotated[Whole, Field(ge=0, le=2**32 - 1)] = Field(
        0,
        description="In mode `websocket`: bytes of a message at most, as they are on the wire; a larger one "
        "ends the WebSocket with Close 1009. 0: no limit.",
    )
    ping: Duration = Field(
        0.0,
        description="In mode `websocket`: ping the client of a WebSocket that has been quiet for this time; "
        "0: never.",
        examples=["30s"],
    )
    ping_timeout: Annotated[Duration, Field(ge=0.01)] = Field(
        20.0, description="How long it may stay quiet after that before it is given up."
    )
    close_timeout: Annotated[Duration, Field(ge=0.01)] = Field(
        5.0, description="In mode `websocket`: how long peers may take to answer a Close of ours."
    )
    reattach: Literal["off", "replay"] = Field(
        "off",
        description="In mode `websocket`, when the backend of a WebSocket goes away. `off`: it ends. "
        "`replay`: its client is kept, and the handshake is repeated to the next backend with "
        "`Pybalancer-Resumed`. "
        "The application must be able to bear that: see operating.md.",
    )
    reattach_tries: Tries = Field(5, description="How many of these handshakes may fail.")
    reattach_timeout: Patience = Field(
        15.0,
        description="How long a client is kept without a backend; then it gets Close 1012.",
    )
    reattach_buffer: Buffer = Field(
        65536,
        description="Bytes that a client may say meanwhile and that are kept for the next backend. More stay "
        "in its socket.",
        examples=["64KiB"],
    )
    client_js: Truth = Field(
        True,
        description="Where a route is a directory: serve the browser's client at `/.pybalancer/client.js`.",
    )
    request_timeout: Duration = Field(
        10.0, description="In mode `websocket`: for a whole request head (408 after that); 0: any time."
    )
    keepalive_timeout: Duration = Field(
        60.0,
        description="In mode `websocket`: how long a connection may wait for its next request; 0: any time.",
    )
    head_limit: Annotated[Whole, Field(ge=512, le=1 << 20)] = Field(
        16384,
        description="In mode `websocket`: bytes of a head at most. A longer request gets 431, one with a "
        "longer response 502.",
    )
    target_limit: Annotated[Whole, Field(ge=64, le=1 << 20)] = Field(
        8192, description="In mode `websocket`: bytes of a request's target at most; a longer one gets 414."
    )
    field_limit: Annotated[Whole, Field(ge=1, le=256)] = Field(
        100, description="In mode `websocket`: fields of a head at most, else as with `head_limit`."
    )
    backlog: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(
        4096, description="Connections that wait in the kernel to be accepted (see `net.core.somaxconn`)."
    )
    unix_mode: Mode = Field(0o666, description="Permissions of a Unix socket.")
    accept_proxy: Literal["v1", "v2", "any"] | None = Field(
        None, description="Expect a PROXY protocol header of this version from `trusted` peers."
    )
    proxy_local: Literal["close", "serve"] = Field(
        "close", description="What to do with a front proxy's own connections (PROXY LOCAL)."
    )
    trusted: tuple[Network, ...] = Field(
        (),
        description="Networks of front proxies: their PROXY headers are believed, and in mode `websocket` "
        "their Forwarded, X-Forwarded-* and X-Request-Id. Of others these fields are dropped.",
    )
    proxy_timeout: Duration = Field(3.0, description="How long the PROXY header may take.")
    refuse_unexpected_proxy: Truth = Field(
        True,
        description="Refuse a client that begins with a PROXY header where none is expected. In mode "
        "`websocket` that is no request and gets 400 in any case.",
    )
    max_connections: Annotated[Whole, Field(ge=0, le=2**31)] = Field(
        0, description="Live connections at most; more are refused at once. 0: no limit."
    )
    max_connections_per_source: Annotated[Whole, Field(ge=0, le=2**31)] = Field(
        0, description="The same per client address (IPv6: per /64). 0: no limit."
    )
    accept_rate: Rate | None = Field(
        None, description="New connections per time at most.", examples=["2000/s"]
    )
    accept_burst: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = Field(
        None,
        description="How many of them may come at once. Default: 0.1 s worth, at least 1.",
    )
    accept_queue: Annotated[Whole, Field(ge=0, le=10_000_000)] = Field(
        1024, description="How many may wait for `accept_rate`; more are refused at once."
    )
    queue_timeout: Duration = Field(1.0, description="How long one may wait there before it is refused.")

    @property
    def reads(self) -> bool:
        """Whether it reads requests; else streams or packets go through it, whatever they mean."""
        return self.mode in ("websocket", "directory")

    def action(self, route: RouteConfig) -> Literal["proxy", "directory", "redirect"]:
        """What becomes of requests that ``route`` takes."""
        return route.action or ("directory" if self.mode == "directory" else "proxy")


class BackendConfig(Section):
    """A server of a pool."""

    name: Name = Field(
        description="Known by this name over reloads. Its place in the table hangs on the name."
    )
    address: Target = Field(
        description="`HOST:PORT`, `[IPv6]:PORT` or `unix:/path`. Names are looked up at start and reload.",
        examples=["10.0.0.11:9001"],
    )
    weight: Annotated[Whole, Field(ge=0, le=65535)] = Field(
        1, description="Share relative to the others; 0 takes no new connections."
    )
    public_url: PublicUrl | None = Field(
        None,
        description="Where clients reach it themselves, for directory and redirect: `wss://HOST` or "
        "`wss://HOST:PORT` (`ws`, `https`, `http` too), without a path.",
    )


class HealthConfig(Section):
    """How backends are checked. Without this section only failed connects mark them down."""

    kind: Literal["tcp", "http", "websocket"] = Field(
        "tcp", description="`tcp`: connects. `http`: GET answers. `websocket`: handshake, then ping and pong."
    )
    path: Annotated[str, Field(pattern=r"^/[!\"$-~]*$")] = Field(
        "/", description="Request target of http and websocket."
    )
    host: Annotated[str, Field(pattern=r"^[!-~]+$")] | None = Field(
        None, description="Host header of http and websocket; by default the backend's address."
    )
    interval: Annotated[Duration, Field(ge=0.01)] = Field(2.0, description="From probe to probe.")
    timeout: Annotated[Duration, Field(ge=0.001)] = Field(
        1.0, description="For the whole of a probe, from the connect on."
    )
    rise: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        2, description="Good probes in a row that mark it up."
    )
    fall: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        3, description="Bad probes in a row, or failed connects within 10 s, that mark it down."
    )
    jitter: Annotated[Number, Field(ge=0, le=1)] = Field(
        0.2, description="Share of the interval by which probes vary, so that they do not come in step."
    )
    expect: Statuses = Field(((200, 399),), description="Statuses that count as healthy, for http.")
    headers: dict[FieldName, FieldValue] = Field(
        default_factory=dict, description="More headers for http and websocket."
    )


class DrainConfig(Section):
    """How the live tunnels of a backend are closed when it is drained."""

    over: Duration = Field(30.0, description="Time over which they are told to go, evenly and with jitter.")
    deadline: Duration = Field(60.0, description="Time after which those that are left are cut.")
    code: Annotated[Whole, BeforeValidator(_close_code)] = Field(
        1012,
        description="Of the Close that a WebSocket gets (1012: service restart). Streams of mode `tcp` are "
        "ended without a word.",
    )
    rate: Rate | None = Field(
        None,
        description="Tunnels of the pool that are told to go per time at most, however many there are, and "
        "by however many drains at once. Default: the smallest `handshakes` of the listeners that lead "
        "here, so that all may come back; else no bound.",
        examples=["500/s"],
    )


class RebalanceConfig(Section):
    """When surplus tunnels of the fullest backends are closed by themselves."""

    skew: Annotated[Number, Field(gt=1, le=100)] = Field(
        description="Begin when a backend has had more than this many times its fair share for a while.",
        examples=[1.2],
    )
    rate: Rate = Field(description="Tunnels that are closed per time at most.", examples=["50/s"])


class PoolConfig(Section):
    """Backends that serve the same thing, and how one of them is picked."""

    policy: Literal["maglev", "least-connections", "round-robin", "random-two"] = Field(
        "maglev",
        description="`maglev`: by hash of the key, alike on every balancer. `least-connections`: fewest "
        "live tunnels by weight. `round-robin`: in turn. `random-two`: the emptier of two drawn at random.",
    )
    key: Key = Field(
        "source",
        description="What is hashed: `source` (address and port), `source-ip` (address alone); in mode "
        "`websocket` also `path`, `host`, `header:NAME`, `cookie:NAME`, `query:NAME`, and `sticky`: a signed "
        "cookie that the balancer sets and that binds a client to its backend, for long-polling. Of a "
        "request without it the source counts.",
    )
    table_size: Annotated[Whole, Field(ge=16381, le=655373)] = Field(
        65537, description="Slots of the Maglev table, a prime; at least 100 times the backends."
    )
    max_skew: Annotated[Number, Field(gt=1, le=100)] | None = Field(
        None,
        description="Bounded loads: a backend above this many times its fair share passes new connections on "
        "to the key's next choice.",
        examples=[1.25],
    )
    sources: tuple[Source, ...] = Field(
        (), description="Outgoing addresses. Each gives about 28,000 more connections per backend."
    )
    tries: Annotated[Whole, Field(ge=1, le=255)] = Field(
        3, description="Backends tried for one client before it is refused."
    )
    connect_timeout: Duration = Field(5.0, description="For one attempt to connect.")
    idle_timeout: Duration = Field(0.0, description="Quiet time after which a tunnel is aborted; 0: never.")
    half_closed_timeout: Duration = Field(
        30.0, description="The same once one side has ended its direction; 0: never."
    )
    keepalive: Duration = Field(
        60.0, description="Idle time before the kernel probes whether a peer is still there; 0: never."
    )
    user_timeout: Duration = Field(
        120.0,
        description="How long sent bytes may stay unacknowledged, or a peer refuse to read, before the "
        "connection is dead (TCP_USER_TIMEOUT); 0: the kernel's own.",
    )
    response_timeout: Duration = Field(
        60.0,
        description="In mode `websocket`: from a request to the head of its response (504 after that); "
        "0: any time.",
    )
    body_timeout: Duration = Field(
        60.0, description="In mode `websocket`: how long a body may stand still; 0: any time."
    )
    send_proxy: Literal["v1", "v2"] | None = Field(
        None,
        description="Begin each connection to a backend with a PROXY protocol header; health checks say "
        "in it that they are the balancer's own.",
    )
    transparent: Truth = Field(
        False,
        description="Connect to backends from the client's own address (IP_TRANSPARENT). Needs CAP_NET_ADMIN "
        "and routes that bring the answers back here.",
    )
    on_remove: Literal["keep", "drain", "close"] = Field(
        "keep",
        description="Live tunnels of a backend that a reload removes: they go on, are closed over a time "
        "(`drain`), or at once.",
    )
    on_down: Literal["keep", "drain", "close"] = Field(
        "keep", description="Live tunnels of a backend that goes down, likewise."
    )
    drain: DrainConfig = Field(default=DrainConfig(), description="How tunnels are drained.")
    direct: DirectConfig = Field(
        default=DirectConfig(), description="What clients are told that connect to its backends themselves."
    )
    rebalance: RebalanceConfig | None = Field(None, description="Shed surplus tunnels automatically.")
    panic: Annotated[Number, Field(ge=0, le=1)] = Field(
        0.0, description="Share of backends up below which all are treated as up; 0: never."
    )
    slow_start: Duration = Field(
        0.0, description="Time in which a backend that came back is brought to its full share."
    )
    health: HealthConfig | None = Field(None, description="How backends are checked.")
    backends: tuple[BackendConfig, ...] = Field((), description="The servers.")


class Config(Section):
    """All of it."""

    balancer: BalancerConfig = Field(default=BalancerConfig(), description="The process as a whole.")
    log: LogConfig = Field(default=LogConfig(), description="What is written to standard error.")
    listeners: tuple[ListenerConfig, ...] = Field((), description="Addresses that clients connect to.")
    packet: PacketConfig = Field(
        default=PacketConfig(), description="How this machine takes part in mode `packet`."
    )
    pools: dict[Name, PoolConfig] = Field(default_factory=dict, description="Pools of backends, by name.")

    _warnings: tuple[Problem, ...] = PrivateAttr(())

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What works and is probably not meant."""
        return self._warnings

    def note(self, warnings: Iterable[Problem]) -> None:
        """Keep what the loader found doubtful."""
        self._warnings = tuple(warnings)
