"""What a configuration is: the one definition.

Checks, JSON Schema and ``docs/config.md`` are made from it, so a key's description is written once,
here. Times are float seconds once read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr

from pybalancer.config.values import (
    Admin,
    Bind,
    Duration,
    FieldValue,
    File,
    Mode,
    Name,
    Network,
    Number,
    Origin,
    Rate,
    Source,
    Statuses,
    Target,
    Truth,
    Whole,
)
from pybalancer.errors import Problem

LATER_KEYS: Final = ("path", "host", "header:", "cookie:", "query:")
"""Keys that need the handshake, which mode "tcp" does not read."""

LATER_MODES: Final = ("websocket", "directory", "packet")


def _key(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(LATER_KEYS):
        raise ValueError(f'key {value!r} needs mode = "websocket"; mode "tcp" has "source" and "source-ip"')
    return value


def _mode(value: Any) -> Any:
    if value in LATER_MODES:
        raise ValueError(f'mode {value!r} is not in this version; it has "tcp"')
    return value


def _secret(value: Any) -> Any:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or len(text) != 32 or not all(c in "0123456789abcdefABCDEF" for c in text):
        # The value itself stays out of the message: it is a secret, even a malformed one.
        raise ValueError("a secret is 32 hexadecimal digits, as `openssl rand -hex 16` prints them")
    return SecretStr(text)


class Section(BaseModel):
    """What all sections have in common: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


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
    watch: Truth = Field(False, description="Reload when the file changes (its directory is watched).")
    grace: Duration = Field(
        10.0, description="How long TERM lets live tunnels go on before they are aborted."
    )


class LogConfig(Section):
    """What is written to standard error."""

    format: Literal["human", "json"] = Field("human", description="Lines for people, or JSON objects.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level written.")
    connections: Truth = Field(True, description="One record per connection, when it ends.")


class ListenerConfig(Section):
    """An address that clients connect to."""

    name: Name = Field(description="Known by this name over reloads, in logs and metrics.")
    bind: Bind = Field(
        description="Where to listen: `IP:PORT`, `[IPv6]:PORT`, `:PORT` (all addresses, both families) or "
        "`unix:/path`.",
        examples=["0.0.0.0:8080"],
    )
    mode: Annotated[Literal["tcp"], BeforeValidator(_mode)] = Field(
        "tcp", description="`tcp`: relay the bytes of each connection to a backend, whatever they mean."
    )
    pool: str = Field(description="The pool that its connections go to.")
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
        (), description="Networks whose PROXY headers are believed. Others are served as plain clients."
    )
    proxy_timeout: Duration = Field(3.0, description="How long the PROXY header may take.")
    refuse_unexpected_proxy: Truth = Field(
        True, description="Refuse a client that begins with a PROXY header where none is expected."
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
    headers: dict[Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")], FieldValue] = Field(
        default_factory=dict, description="More headers for http and websocket."
    )


class PoolConfig(Section):
    """Backends that serve the same thing, and how one of them is picked."""

    policy: Literal["maglev", "least-connections", "round-robin", "random-two"] = Field(
        "maglev",
        description="`maglev`: by hash of the key, alike on every balancer. `least-connections`: fewest "
        "live tunnels by weight. `round-robin`: in turn. `random-two`: the emptier of two drawn at random.",
    )
    key: Annotated[Literal["source", "source-ip"], BeforeValidator(_key)] = Field(
        "source", description="What is hashed: `source` (address and port) or `source-ip` (address alone)."
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
    send_proxy: Literal["v1", "v2"] | None = Field(
        None,
        description="Begin each connection to a backend with a PROXY protocol header; health checks say in it "
        "that they are the balancer's own.",
    )
    transparent: Truth = Field(
        False,
        description="Connect to backends from the client's own address (IP_TRANSPARENT). Needs CAP_NET_ADMIN "
        "and routes that bring the answers back here.",
    )
    on_remove: Literal["keep", "close"] = Field(
        "keep", description="Live tunnels of a backend that a reload removes."
    )
    on_down: Literal["keep", "close"] = Field("keep", description="Live tunnels of a backend that goes down.")
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
    pools: dict[Name, PoolConfig] = Field(default_factory=dict, description="Pools of backends, by name.")

    _warnings: tuple[Problem, ...] = PrivateAttr(())

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What works and is probably not meant."""
        return self._warnings

    def note(self, warnings: Iterable[Problem]) -> None:
        """Keep what the loader found doubtful."""
        self._warnings = tuple(warnings)
