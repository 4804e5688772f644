"""What a running balancer says of itself. Everything here goes into JSON as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from pybalancer._core import Drain, Engine, Plan
    from pybalancer.config.model import Config
    from pybalancer.packet.report import PacketStatus
    from pybalancer.policy.health import BackendHealth
    from pybalancer.stats.reader import Stats


KINDS: Final = ("drain", "shed", "removed", "down")
"""Of drains: asked for, of surplus, and those that began as a backend was removed or went down."""

HOWS: Final = ("closed", "cut", "moved")
"""What becomes of a drain's tunnels: told to go in time, ended at the deadline, carried over elsewhere."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker. Counters since the start, except for those called gauges."""

    index: int
    tunnels: int
    """Gauge: live tunnels."""
    waiting: int
    """Gauge: accepted, not yet relayed."""
    descriptors: int
    """Gauge: open files, of ``descriptors`` there may be as many as ``ulimit -n`` says."""
    accepted: int
    wakeups: int
    bytes_copied: int
    bytes_spliced: int
    accept_pauses: int
    restarts: int
    log_dropped: int


@dataclass(frozen=True, slots=True)
class RouteStatus:
    """Where one route leads. What no other matches goes by ``default`` to the listener's own pool."""

    name: str
    pool: str
    action: str
    """proxy, directory or redirect."""


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """One listener. ``bound`` is None while it is not open."""

    name: str
    bind: str
    bound: str | None
    mode: str
    draining: bool
    """Takes no new tunnels."""
    pool: str | None
    routes: list[RouteStatus]
    """In the order in which they are tried; none in mode "tcp"."""
    active: int
    accepted: int
    opened: int
    queued: int
    refused: dict[str, int]
    """By reason: full, source, rate, proxy, no_backend, request."""
    bytes_in: int
    bytes_out: int
    requests: int
    """Plain HTTP; these and what follows stay 0 in mode "tcp"."""
    handshakes: int
    messages_in: int
    messages_out: int
    pings: int
    closes: dict[str, int]
    """WebSockets that ended, by the code of their Close; codes that came up only."""
    directed: int
    """Clients that a directory told where to connect to."""
    redirected: int
    put_off: int
    """Clients of either that were told to come again later."""


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One backend. ``share`` is its part of the table, 0..1; ``active`` counts connects under way too."""

    name: str
    address: str
    weight: int
    share: float
    state: Literal["up", "down"]
    draining: bool
    """Takes no new tunnels, whatever its state."""
    ramp: float
    reason: str
    since_seconds: float
    active: int
    opened: int
    connect_failures: int
    resets: int
    fallbacks: int
    ports_used: int
    ports_total: int
    ports_exhausted: int
    bad_answers: int
    bytes_to_backend: int
    bytes_to_client: int
    load: float | None
    """What it said of itself at its last check: 0 is idle, 1 full."""
    sent: int
    """Clients that a directory or a redirect sent there."""


@dataclass(frozen=True, slots=True)
class DrainTerms:
    """How a pool is drained where nobody says otherwise; ``rate`` per second, 0: no bound."""

    over_seconds: float
    deadline_seconds: float
    code: int
    rate: float


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """One pool. ``digest`` is equal on balancers that decide equally."""

    name: str
    policy: str
    key: str
    digest: str
    slow_start_seconds: float
    drain: DrainTerms
    backends: list[BackendStatus]


@dataclass(frozen=True, slots=True)
class UpgradeResult:
    """How a new process took the place of an old one."""

    old_pid: int
    new_pid: int
    old_version: str
    new_version: str
    tunnels: int
    """That changed hands."""
    frozen_seconds: float
    """How long they stood still."""
    seconds: float
    """From the start of the new process until it served."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class DrainPart:
    """What of a drain or shed falls to one backend; ``backend`` is "" where it is about listeners."""

    backend: str
    total: int
    left: int


@dataclass(frozen=True, slots=True)
class DrainStatus:
    """One drain or shed: one that runs, or that ended within the last minute.

    ``what`` names it as people do. ``kind``: drain, shed, or what began by itself as a backend was
    removed or went down. Without ``pool`` and ``listener`` it is of everything.
    """

    id: int
    kind: Literal["drain", "shed", "removed", "down"]
    what: str
    pool: str | None
    listener: str | None
    parts: list[DrainPart]
    total: int
    left: int
    closed: int
    """Told to go in time."""
    cut: int
    """Ended at the deadline."""
    moved: int
    """Carried over to another backend."""
    age_seconds: float
    over_seconds: float
    deadline_seconds: float
    """0 of a shed: it has none."""
    rate: float
    """Per second; 0: no bound."""
    code: int
    state: Literal["running", "done", "cancelled"]

    @property
    def seconds_left(self) -> float:
        """Until all have been told to go, at most; until the deadline once that has passed."""
        for end in (self.over_seconds, self.deadline_seconds):
            if end > self.age_seconds:
                return end - self.age_seconds
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "seconds_left": self.seconds_left}


@dataclass(frozen=True, slots=True)
class DrainResult:
    """What ``drain``, ``undrain`` and ``shed`` answer.

    ``drains`` are those that were begun or, of ``undrain``, stopped; ``warnings`` is what will not go as
    one may have hoped.
    """

    what: str
    drains: list[DrainStatus]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        drains = [drain.to_dict() for drain in self.drains]
        return {"what": self.what, "drains": drains, "warnings": self.warnings}


@dataclass(frozen=True, slots=True)
class ShedResult:
    """What ``shed`` answers. ``surplus``: of each backend that has too many, how many.

    ``drain`` is the shed itself, None if there is no surplus; of a dry run it says how many tunnels could
    be closed, of each backend.
    """

    pool: str
    dry_run: bool
    skew: float
    """Load of the fullest backend over its fair share, before."""
    to_skew: float
    surplus: dict[str, int]
    drain: DrainStatus | None
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        drain = self.drain.to_dict() if self.drain is not None else None
        return {**dataclasses.asdict(self), "drain": drain}


@dataclass(frozen=True, slots=True)
class RollStep:
    """Where one backend of a roll has come to, and why; ``output`` is what the action said."""

    backend: str
    step: Literal["waiting", "draining", "acting", "checking", "done", "failed", "skipped"]
    why: str
    output: str


@dataclass(frozen=True, slots=True)
class RollResult:
    """How a roll ended."""

    pool: str
    outcome: Literal["planned", "done", "failed", "interrupted"]
    steps: list[RollStep]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class LastReload:
    """How the newest reload went. ``at`` is Unix time."""

    ok: bool
    at: float
    error: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """All of it."""

    version: str
    pid: int
    started: float
    """Unix time."""
    uptime_seconds: float
    generation: int
    config_file: str | None
    admin: str | None
    active: int
    workers: list[WorkerStatus]
    listeners: list[ListenerStatus]
    pools: list[PoolStatus]
    drains: list[DrainStatus]
    last_reload: LastReload | None
    packet: PacketStatus | None = None
    """Mode "packet"; None where no listener is of that mode."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "drains": [drain.to_dict() for drain in self.drains]}


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload did."""

    generation: int
    changes: list[str]
    ignored: list[str]
    """What changed in the file and needs a restart to take effect."""
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def workers(stats: Stats) -> list[WorkerStatus]:
    return [
        WorkerStatus(
            index=index,
            tunnels=worker.tunnels,
            waiting=worker.waiting,
            descriptors=worker.descriptors,
            accepted=worker.accepted,
            wakeups=worker.wakeups,
            bytes_copied=worker.bytes_copied,
            bytes_spliced=worker.bytes_spliced,
            accept_pauses=worker.accept_pauses,
            restarts=worker.restarts,
            log_dropped=worker.log_dropped,
        )
        for index, worker in enumerate(stats.workers())
    ]


def drains(engine: Engine) -> list[DrainStatus]:
    """Those that run and those that have just ended, oldest first; without those that only count."""
    found = sorted(engine.drains(), key=lambda drain: drain.id)
    return [drain_status(drain) for drain in found if not drain.counts_only]


def drain_status(drain: Drain) -> DrainStatus:
    return DrainStatus(
        id=drain.id,
        kind=drain.kind,
        what=_what(drain),
        pool=drain.pool,
        listener=drain.listener,
        parts=[DrainPart(*part) for part in drain.parts],
        total=drain.total,
        left=drain.left,
        closed=drain.closed,
        cut=drain.cut,
        moved=drain.moved,
        age_seconds=drain.age,
        over_seconds=drain.over,
        deadline_seconds=drain.deadline,
        rate=drain.rate,
        code=drain.code,
        state=drain.state,
    )


def _what(drain: Drain) -> str:
    if drain.listener is not None:
        return f"listener {drain.listener}"
    if drain.pool is None:
        return "everything"
    names = [backend for backend, _, _ in drain.parts]
    return f"{drain.pool}/{names[0]}" if len(names) == 1 else f"pool {drain.pool}"


def listeners(
    config: Config, engine: Engine, stats: Stats, draining: Collection[str] = ()
) -> list[ListenerStatus]:
    from pybalancer.config.routes import named
    from pybalancer.stats.reader import CLOSES

    bound = engine.bound()
    found = []
    for listener in config.listeners:
        try:
            counters, active = stats.listener(listener.name), stats.active("", listener.name)
        except KeyError:
            continue  # The workers run a newer plan already, without it.
        routes = named(listener) if listener.reads else {}
        found.append(
            ListenerStatus(
                name=listener.name,
                bind=listener.bind,
                bound=bound.get(listener.name),
                mode=listener.mode,
                draining=listener.name in draining,
                pool=listener.pool,
                routes=[
                    RouteStatus(name, route.pool, listener.action(route)) for name, route in routes.items()
                ],
                active=active,
                accepted=counters.accepted,
                opened=counters.opened,
                queued=counters.queued,
                refused={
                    "full": counters.refused_full,
                    "source": counters.refused_source,
                    "rate": counters.refused_rate,
                    "proxy": counters.refused_proxy,
                    "no_backend": counters.refused_no_backend,
                    "request": counters.refused_request,
                },
                bytes_in=counters.bytes_in,
                bytes_out=counters.bytes_out,
                requests=counters.requests,
                handshakes=counters.handshakes,
                messages_in=counters.messages_in,
                messages_out=counters.messages_out,
                pings=counters.pings,
                closes={code: n for code, n in zip(CLOSES, counters.closes, strict=True) if n},
                directed=counters.directed,
                redirected=counters.redirected,
                put_off=counters.put_off,
            )
        )
    return found


def pools(
    config: Config,
    addresses: Mapping[tuple[str, str], str],
    plan: Plan,
    engine: Engine,
    stats: Stats,
    health: Mapping[tuple[str, str], BackendHealth],
    now: float,
    draining: Collection[tuple[str, str]] = (),
    packet_digest: Callable[[str], str | None] = lambda pool: None,
) -> list[PoolStatus]:
    from pybalancer.config import packet
    from pybalancer.config.compile import drain_rate

    ports = engine.ports()
    found = []
    for name, pool in config.pools.items():
        shares = plan.shares(name)
        backends = []
        for backend in pool.backends:
            try:
                counters, active = stats.backend(name, backend.name), stats.active(name, backend.name)
            except KeyError:
                continue  # The workers run a newer plan already, without it.
            known = health.get((name, backend.name))
            used, total = ports.get(name, {}).get(backend.name, (0, 0))
            backends.append(
                BackendStatus(
                    name=backend.name,
                    address=addresses.get((name, backend.name), backend.address),
                    weight=backend.weight,
                    share=shares.get(backend.name, 0.0),
                    state="up" if known is None or known.up else "down",
                    draining=(name, backend.name) in draining,
                    ramp=1.0 if known is None else known.ramp,
                    reason="" if known is None else known.reason,
                    since_seconds=0.0 if known is None else max(0.0, now - known.since),
                    active=active,
                    opened=counters.opened,
                    connect_failures=counters.connect_failures,
                    resets=counters.resets,
                    fallbacks=counters.fallbacks,
                    ports_used=used,
                    ports_total=total,
                    ports_exhausted=counters.ports_exhausted,
                    bad_answers=counters.bad_answers,
                    bytes_to_backend=counters.bytes_to_backend,
                    bytes_to_client=counters.bytes_to_client,
                    load=None if known is None else known.load,
                    sent=counters.sent,
                )
            )
        # Packets go by a table of those that take new flows, tunnels by one of all.
        led = name in packet.only_packets(config)
        found.append(
            PoolStatus(
                name=name,
                policy=pool.policy,
                key=pool.key,
                digest=(packet_digest(name) if led else None) or plan.digest(name),
                slow_start_seconds=pool.slow_start,
                drain=DrainTerms(
                    pool.drain.over, pool.drain.deadline, pool.drain.code, drain_rate(config, name)
                ),
                backends=backends,
            )
        )
    return found
