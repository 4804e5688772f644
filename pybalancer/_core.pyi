"""The Rust core and engine of pybalancer, as Python sees them.

Checked against the compiled module by stubtest; written by hand so that it can say more than types.
Times are seconds (float), sizes bytes, addresses text: ``"192.0.2.1:80"``, ``"[2001:db8::1]:80"``,
``"unix:/run/app.sock"``. Host names are resolved before they get here.
"""

from collections.abc import Sequence
from typing import Final, Literal, final

__all__ = [
    "BackendSpec",
    "Choice",
    "DirectSpec",
    "Drain",
    "Engine",
    "EngineError",
    "Event",
    "HandOver",
    "Lent",
    "ListenerSpec",
    "PacketError",
    "PacketPath",
    "PacketRows",
    "Plan",
    "PlanError",
    "PoolSpec",
    "RouteSpec",
    "WebSpec",
    "__version__",
    "check_host",
    "check_key",
    "check_path",
    "check_url",
    "packet_support",
    "probe",
    "skew",
    "surplus",
]

__version__: Final[str]

class PlanError(ValueError):
    """The plan contradicts itself (unknown pool, duplicate name, bad address): the configuration's fault."""

class EngineError(RuntimeError):
    """The engine cannot do this: it is closed, or it was made before a ``fork`` in another process."""

@final
class BackendSpec:
    """One server of a pool. ``ramp`` in (0, 1] is the share of its keys it takes during slow start."""

    def __new__(
        cls,
        *,
        name: str,
        address: str,
        weight: int = 1,
        state: Literal["up", "down", "draining"] = "up",
        ramp: float = 1.0,
    ) -> BackendSpec: ...
    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def weight(self) -> int: ...
    @property
    def state(self) -> Literal["up", "down", "draining"]: ...
    @property
    def ramp(self) -> float: ...

@final
class PoolSpec:
    """Backends that serve the same thing, and how one of them is picked. A timeout of 0 means never."""

    def __new__(
        cls,
        *,
        name: str,
        backends: Sequence[BackendSpec],
        policy: Literal["maglev", "least-connections", "round-robin", "random-two"] = "maglev",
        key: str = "source",
        table_size: int = 65537,
        max_skew: float | None = None,
        sources: Sequence[str] = ...,  # none
        tries: int = 3,
        connect_timeout: float = 5.0,
        idle_timeout: float = 0.0,
        half_closed_timeout: float = 30.0,
        keepalive: float = 60.0,
        user_timeout: float = 120.0,
        response_timeout: float = 60.0,
        body_timeout: float = 60.0,
        send_proxy: Literal["v1", "v2"] | None = None,
        transparent: bool = False,
        on_remove: Literal["keep", "drain", "close"] = "keep",
        on_down: Literal["keep", "drain", "close"] = "keep",
        drain_over: float = 30.0,
        drain_deadline: float = 60.0,
        drain_code: int = 1012,
        drain_rate: float = 0.0,
        direct: DirectSpec | None = None,
    ) -> PoolSpec: ...
    @property
    def name(self) -> str: ...
    @property
    def backends(self) -> list[BackendSpec]: ...

@final
class RouteSpec:
    """Requests that match go to ``pool``; everything that is given must match.

    ``headers``, ``cookies`` and ``query`` are names with the value that each must have, or None for any.
    """

    def __new__(
        cls,
        *,
        name: str,
        pool: str,
        path: str | None = None,
        host: str | None = None,
        headers: Sequence[tuple[str, str | None]] = ...,  # none
        cookies: Sequence[tuple[str, str | None]] = ...,  # none
        query: Sequence[tuple[str, str | None]] = ...,  # none
        key: str | None = None,
        strip_prefix: str | None = None,
        origins: Sequence[str] = ...,  # all
        request_set: Sequence[tuple[str, str]] = ...,  # none
        request_remove: Sequence[str] = ...,  # none
        response_set: Sequence[tuple[str, str]] = ...,  # none
        response_remove: Sequence[str] = ...,  # none
        max_message: int = 0,
        ping: float = 0.0,
        ping_timeout: float = 20.0,
        close_timeout: float = 5.0,
        reattach: Literal["off", "replay"] = "off",
        reattach_tries: int = 5,
        reattach_timeout: float = 15.0,
        reattach_buffer: int = 65536,
        action: Literal["proxy", "directory", "redirect"] = "proxy",
        target: str | None = None,
    ) -> RouteSpec: ...
    @property
    def name(self) -> str: ...
    @property
    def pool(self) -> str: ...

@final
class WebSpec:
    """Mode "websocket" of a listener: bounds of heads, routes, the pace of handshakes (0: any)."""

    def __new__(
        cls,
        *,
        routes: Sequence[RouteSpec],
        head_limit: int = 16384,
        target_limit: int = 8192,
        field_limit: int = 100,
        request_timeout: float = 10.0,
        keepalive_timeout: float = 60.0,
        handshakes: float = 0.0,
        handshakes_burst: int = 1,
        handshakes_queue: int = 0,
        handshakes_wait: float = 1.0,
        script: bytes | None = None,
        script_etag: str = "",
    ) -> WebSpec: ...

@final
class DirectSpec:
    """Where clients reach the backends of a pool themselves, in their order, and on what terms.

    ``ticket_key`` has 32 bytes; without it the key is derived from the plan's secret and the pool's name.
    """

    def __new__(
        cls,
        *,
        urls: Sequence[str | None],
        expires_in: float = 30.0,
        alternatives: int = 2,
        retry_min: float = 0.0,
        retry_max: float = 30.0,
        retry_base: float = 0.5,
        stable: float = 10.0,
        window: float = 5.0,
        fallback: str | None = None,
        tickets: bool = False,
        ticket_key: bytes | None = None,
        ticket_address: bool = True,
    ) -> DirectSpec: ...

def check_url(text: str) -> None:
    """PlanError if ``text`` is no URL that a backend can have."""

def check_key(text: str) -> None:
    """PlanError if ``text`` is no key."""

def check_path(text: str) -> None:
    """PlanError if ``text`` is no path of a route."""

def check_host(text: str) -> None:
    """PlanError if ``text`` is no host of a route."""

@final
class ListenerSpec:
    """An address that clients connect to. A limit of 0 means none."""

    def __new__(
        cls,
        *,
        name: str,
        bind: str,
        pool: str,
        backlog: int = 4096,
        unix_mode: int = 0o666,
        accept_proxy: Literal["v1", "v2", "any"] | None = None,
        proxy_local: Literal["close", "serve"] = "close",
        trusted: Sequence[str] = ...,  # none
        proxy_timeout: float = 3.0,
        refuse_unexpected_proxy: bool = True,
        max_connections: int = 0,
        max_connections_per_source: int = 0,
        accept_rate: float = 0.0,
        accept_burst: int = 1,
        accept_queue: int = 0,
        queue_timeout: float = 1.0,
        draining: bool = False,
        web: WebSpec | None = None,
    ) -> ListenerSpec: ...
    @property
    def name(self) -> str: ...
    @property
    def bind(self) -> str: ...

@final
class Choice:
    """One step of the order in which a key would try backends."""

    @property
    def backend(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def state(self) -> Literal["up", "down", "draining"]: ...
    @property
    def active(self) -> int:
        """Tunnels open to it now (0 where no engine was asked)."""
    @property
    def verdict(
        self,
    ) -> Literal["picked", "next", "down", "draining", "weight-0", "over-skew", "slow-start"]: ...

@final
class Plan:
    """Everything the workers need, immutable. Building it checks it: ``PlanError`` names what is wrong.

    ``secret`` is 16 bytes. ``previous`` lets unchanged Maglev tables be shared instead of rebuilt.
    """

    def __new__(
        cls,
        *,
        listeners: Sequence[ListenerSpec],
        pools: Sequence[PoolSpec],
        secret: bytes,
        previous: Plan | None = None,
    ) -> Plan: ...
    def digest(self, pool: str) -> str:
        """SHA-like fingerprint (SipHash-2-4-128, 32 hex digits) of a pool's Maglev table and names."""
    def shares(self, pool: str) -> dict[str, float]:
        """Share of the table, 0..1, by backend name. Sums to 1 where any backend has weight."""
    def moved(self, other: Plan, pool: str) -> float:
        """Share of keys, 0..1, that have another backend in ``other``'s table of that pool.

        Told from a million keys. PlanError where one of the plans has no such pool.
        """
    def explain(self, pool: str, source: str) -> list[Choice]:
        """All backends of the pool in the order in which ``source`` (``"ip:port"``) would try them."""

@final
class Event:
    """Something that policy must hear of. Fields that do not apply are None."""

    @property
    def kind(
        self,
    ) -> Literal[
        "connect-failed",
        "worker-died",
        "worker-restarted",
        "accept-paused",
        "accept-resumed",
        "source-failed",
        "ports-exhausted",
    ]: ...
    @property
    def worker(self) -> int | None: ...
    @property
    def pool(self) -> str | None: ...
    @property
    def backend(self) -> str | None: ...
    @property
    def count(self) -> int:
        """How many of these were folded into this one (failures come at most every 100 ms and worker);
        of ``worker-died`` the tunnels that were lost."""
    @property
    def message(self) -> str | None: ...

def surplus(tunnels_and_weights: Sequence[tuple[int, int]], skew: float) -> list[int]:
    """How many tunnels each backend has above ``skew`` times its fair share, which its weight says."""

def skew(tunnels_and_weights: Sequence[tuple[int, int]]) -> float:
    """The load of the fullest over its fair share: 1 is even; 0 where there is nothing to compare."""

@final
class Drain:
    """A drain or a shed as it stands. Spans are in seconds."""

    @property
    def id(self) -> int: ...
    @property
    def kind(self) -> Literal["drain", "shed", "removed", "down"]:
        """Asked for; or begun by ``apply``, for a backend that was removed or is down."""
    @property
    def pool(self) -> str | None: ...
    @property
    def listener(self) -> str | None: ...
    @property
    def parts(self) -> list[tuple[str, int, int]]:
        """Backend, tunnels found, tunnels left; of a listener or of all one part without a name."""
    @property
    def total(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def closed(self) -> int:
        """Told to go in time."""
    @property
    def cut(self) -> int:
        """Ended at the deadline."""
    @property
    def moved(self) -> int:
        """Carried over to another backend instead."""
    @property
    def age(self) -> float: ...
    @property
    def over(self) -> float: ...
    @property
    def deadline(self) -> float: ...
    @property
    def rate(self) -> float:
        """Closes in a second at most; 0 for no cap."""
    @property
    def code(self) -> int: ...
    @property
    def counts_only(self) -> bool:
        """A dry run of a shed: nobody is told to go."""
    @property
    def state(self) -> Literal["running", "done", "cancelled"]: ...

@final
class Engine:
    """The workers. All methods are thread-safe; those that may wait release the GIL.

    ``workers`` = 0 means one per core that this process may use. Statistics live in a memfd, or in
    the file ``stats_path``.
    """

    def __new__(cls, *, workers: int = 0, stats_path: str | None = None) -> Engine: ...
    @property
    def workers(self) -> int: ...
    @property
    def generation(self) -> int:
        """Generation of the newest plan that every worker runs; 0 before the first."""
    @property
    def stats_fd(self) -> int: ...
    @property
    def event_fd(self) -> int:
        """Becomes readable when events or records came since one of the ``take_`` methods was called.

        An eventfd, for ``trio.lowlevel.wait_readable``; the methods read it.
        """
    def apply(self, plan: Plan) -> int:
        """Bind what is new, hand the plan to every worker, wait for all to run it; its generation.

        OSError (``filename`` is the address) if an address cannot be bound: then nothing changed.
        """
    def take_events(self) -> list[Event]: ...
    def log_connections(self, enabled: bool) -> None: ...
    def take_log(self, format: Literal["json", "human"], max_records: int = 4096) -> bytes:
        """Records of connections that ended, a line each, ready to be written; b"" if none wait."""
    def bound(self) -> dict[str, str]:
        """Listener name to the address really bound (port 0 resolved)."""
    def explain(self, pool: str, source: str) -> list[Choice]:
        """As Plan.explain, with the live number of tunnels and the bounded-load verdicts."""
    def explain_request(
        self, listener: str, source: str, head: bytes
    ) -> tuple[str, str, list[Choice], tuple[Literal["directory", "redirect"], list[str]] | None]:
        """Route, pool, and that pool's backends in the order in which this request would try them; what is
        done instead of relaying it, and the URLs that are named, without their tickets.

        ``head`` is that of an HTTP/1.1 request. PlanError says why it would get no further.
        """
    def report_load(self, pool: str, backend: str, busy: float | None) -> bool:
        """What a backend says of itself: 0 is idle, 1 full; None: nothing. False if it is not there."""
    def ports(self) -> dict[str, dict[str, tuple[int, int]]]:
        """pool → backend → (outgoing ports in use, ports there are, over all source addresses)."""
    def drain(
        self,
        *,
        pool: str | None = None,
        backends: Sequence[str] | None = None,
        listener: str | None = None,
        over: float,
        deadline: float,
        code: int = 1012,
        rate: float = 0.0,
    ) -> int:
        """Begin to tell live tunnels to go; the drain's id.

        Of a pool, of some of its backends, of a listener, or, with none of these, of everything. Spread
        evenly over ``over`` seconds, at most ``rate`` in any second; at ``deadline`` what is left is cut.
        That nothing new comes is for the plan to see to. PlanError for what is not there.
        """
    def shed(
        self,
        pool: str,
        surplus: Sequence[tuple[str, int]],
        *,
        rate: float,
        code: int = 1012,
        dry_run: bool = False,
    ) -> int:
        """Begin to tell up to so many tunnels of each backend to go; the shed's id.

        In a pool that hashes only those that the table would place elsewhere now. ``dry_run`` counts them.
        """
    def cancel_drain(self, id: int) -> bool:
        """Call a drain or shed off; who has been told goes all the same. False if that was over."""
    def drains(self) -> list[Drain]:
        """Those under way, and those that were over less than a minute ago."""
    def stop_accepting(self) -> None:
        """Close the listeners; tunnels go on."""
    def active(self) -> int:
        """Tunnels open now."""
    def close(self, timeout: float = 0.0) -> int:
        """Stop: no new connections; wait up to ``timeout`` for tunnels to end, then abort the rest.

        Returns how many were aborted. Idempotent.
        """

@final
class Lent:
    """Listening sockets of one address, on their way to another process.

    ``number`` is the engine's that lends them. ``chosen_for`` names the listener where the kernel has chosen
    the port. ``file`` is device and inode of a Unix socket's file. ``descriptors`` are this process's.
    """

    def __new__(
        cls,
        *,
        number: int,
        bind: str,
        chosen_for: str | None,
        address: str,
        file: tuple[int, int] | None,
        descriptors: Sequence[int],
    ) -> Lent: ...
    @property
    def number(self) -> int: ...
    @property
    def bind(self) -> str: ...
    @property
    def chosen_for(self) -> str | None: ...
    @property
    def address(self) -> str: ...
    @property
    def file(self) -> tuple[int, int] | None: ...
    @property
    def descriptors(self) -> list[int]: ...

@final
class HandOver:
    """Live tunnels go from one process to another. One side lends, freezes and lets go; the other inherits,
    receives and activates. EngineError says what went wrong; what is frozen stays so until ``thaw``.
    """

    FORMAT: Final[int]
    """Version of all that the two say to each other. Processes of different formats must part at once."""

    def __new__(cls, engine: Engine) -> HandOver: ...
    def lend(self) -> list[Lent]:
        """Copies of all listening sockets; the caller closes their descriptors."""
    def manifest(self) -> bytes:
        """What tunnels may refer to, for ``receive``."""
    def freeze(self, channels: Sequence[int], timeout: float) -> int:
        """Stop accepting, freeze every tunnel that stands, send them over these stream sockets.

        Takes the descriptors over. Returns how many tunnels were sent.
        """
    def thaw(self) -> int:
        """Go on as if nothing had been; with how many tunnels."""
    def bury(self) -> int:
        """The other process has died with what is frozen: abort it, and accept again; how many tunnels."""
    def let_go(self, taken: Sequence[int], grace: float) -> int:
        """What is frozen is the other process's, and so are the listening sockets of these numbers.

        Serves what is under way for up to ``grace`` seconds, hands over what becomes a tunnel meanwhile, and
        ends the engine. Returns how many connections were aborted.
        """
    def inherit(self, lent: Sequence[Lent]) -> None:
        """Before the first ``Engine.apply``: use these sockets, and accept nothing yet.

        Takes the descriptors over.
        """
    def unwanted(self) -> list[int]:
        """Numbers of those that no plan has asked for."""
    def receive(self, manifest: bytes, channels: Sequence[int]) -> None:
        """Hold what comes over these stream sockets. Takes the descriptors over."""
    def wait_received(self, timeout: float) -> int | None:
        """How many tunnels are held, once all have come; None if they have not within ``timeout``."""
    def activate(self) -> int:
        """Serve what is held, and accept; how many tunnels."""

class PacketError(RuntimeError):
    """The kernel refuses packet mode something, or what was asked cannot be; says what to do."""

@final
class PacketRows:
    """Rows of one service: who owns each slot, and who owned it before.

    ``generations`` are sets of backends as (name, weight, id), newest first, 1 to 16 of them; ids are this
    host's own, from 1 to 1023. ``me`` is the id of a backend; 0 of a director, which has nothing of the rest.
    ``joined`` is of a backend that was told of nothing before it began: all among which it began; behind the
    owners that it knows, rows then name those whom it supposes. ``late`` has ids that ``me`` asks behind all
    others of their rows. Tables are keyed by ``secret`` as those of pools are. PlanError for what contradicts
    itself.
    """

    def __new__(
        cls,
        generations: Sequence[Sequence[tuple[str, int, int]]],
        *,
        me: int = 0,
        joined: Sequence[tuple[str, int, int]] | None = None,
        late: Sequence[int] | None = None,
        secret: bytes,
        size: int = 65537,
    ) -> PacketRows: ...
    @property
    def digest(self) -> str:
        """Of owners and former owners, by name: the same for the same history, whatever the ids."""
    @property
    def owners_digest(self) -> str:
        """Of the newest generation alone, as a pool's table has it: what a fleet of directors must share."""
    @property
    def size(self) -> int: ...
    def row(self, slot: int) -> tuple[int, ...]:
        """Six ids: the owner, then former ones; 0 is nobody. IndexError beyond the table."""
    def moved(self) -> int:
        """Slots whose owner is not that of the former generation; 0 without one."""

@final
class PacketPath:
    """Programs and maps of one role on this host, in the calling thread's network namespace.

    ``pin`` is a directory below the BPF file system (``pybalancer/NAME``), which is mounted if it is not:
    what is pinned goes on when the process ends without ``close``. Maps that are found there with the same
    secret and size are taken over (``adopted``). Others are replaced, while packets take the old ones until
    ``attach``: so set backends and services first, then attach. Without ``pin`` nothing outlives the object.

    PacketError from every method says what the kernel refused, and after ``close`` that it is closed.
    """

    def __new__(
        cls,
        role: Literal["director", "agent"],
        *,
        secret: bytes,
        size: int = 65537,
        pin: str | None = None,
    ) -> PacketPath: ...
    @property
    def adopted(self) -> bool: ...
    def attach(
        self, interface: str, mode: Literal["auto", "native", "generic"] = "auto"
    ) -> Literal["native", "generic"]:
        """Handle this interface's packets; the mode that it became.

        Once more to take over a program that a process before or another path left, after its MAC has
        changed, or for another mode. If that fails, what was attached runs as before.
        """
    def attach_probe(self, interface: str) -> None:
        """Encapsulate what leaves by this interface with the mark 0x70620000 | id to that backend (tcx)."""
    def detach(self, interface: str) -> None:
        """Leave its packets alone, probes too."""
    def forget_gone(self) -> None:
        """Keep nothing of interfaces that are gone, or in another namespace now. ``attach`` does it, too."""
    def interfaces(self) -> dict[str, Literal["native", "generic"]]:
        """Those with a program that handles packets; found ones too, which ``attach`` would take over."""
    def set_backend(
        self,
        id: int,
        *,
        address: str,
        mac: bytes | None,
        interface: str | None,
        encapsulate: bool,
        source: str | None,
    ) -> None:
        """The way to a backend: whole from one packet to the next; cheap if nothing changed.

        ``address`` is the underlay's, which an agent also knows itself by. ``mac`` and ``interface`` are of
        the next hop; without either, packets to it are dropped and counted. ``source`` is that of the outer
        header (needed with ``encapsulate``): an address, or a network (``10.9.0.0/16``) whose host bits, at
        most 32, vary with the flow so that routers and cards spread.
        """
    def drop_backend(self, id: int) -> None:
        """Forget it, and its counts."""
    def backends(self) -> dict[int, str]:
        """Ids that are set, with their addresses; of the process before, too."""
    def set_me(self, id: int) -> None:
        """Which backend this host is. Of agents."""
    def set_trusted(self, networks: Sequence[str] | None) -> None:
        """Whose outer headers are taken off: those from these addresses and networks. None: everybody's.

        Everybody's until this is called first, then as it was called last; of the process before, too. Who
        is in the networks of before and in the new ones is so at every moment. Of agents.
        """
    def trusted(self) -> list[str] | None:
        """The networks that were set by that, each with its length (``10.0.0.1/32``)."""
    def set_service(
        self,
        number: int,
        address: str,
        port: int,
        protocol: Literal["tcp", "udp"],
        rows: PacketRows,
        *,
        mtu: int = 1500,
    ) -> None:
        """A service, numbered from 0 to 255, and its rows: a packet sees the old table or the new one, whole.

        ``mtu`` is that of the way to the backends: what does not fit with an outer header is dropped and
        counted.
        """
    def drop_service(self, number: int) -> None:
        """Its packets are no longer ours. Forgets its counts; fine if it is not there."""
    def services(self) -> dict[int, tuple[str, int, Literal["tcp", "udp"]]]:
        """Number → address, port, protocol; of the process before, too."""
    def counters(self) -> dict[str, int]:
        """Packets by reason since the maps were made; ``REASONS`` says what each means."""
    def counts(
        self,
    ) -> tuple[dict[str, int], dict[int, tuple[int, int, int, int]], dict[int, tuple[int, int, int, int]]]:
        """All at once: packets by reason, counts of services by number and of backends by id.

        Counts are packets, bytes, flows (SYN without ACK), and of a service ICMP errors, of a backend second
        hops: those that this host has sent to it.
        """
    def slot(self, number: int, address: str, port: int) -> tuple[int, tuple[int, ...]]:
        """A client's slot, and the row that the kernel has there just now."""
    def test_run(
        self,
        packet: bytes,
        *,
        repeat: int = 1,
        program: str | None = None,
        interface: str | None = None,
        mark: int = 0,
    ) -> tuple[str, bytes, int]:
        """Verdict, packet after it, nanoseconds per run. As if it had come by ``interface``, else ``lo``.

        ``program`` is the role's own, else ``director``, ``agent``, ``probe`` or ``baseline``, which passes
        all. Verdicts are pass, drop, tx, redirect; of ``probe`` also next.
        """
    REASONS: Final[dict[str, str]]
    """Names of ``counters``, and what they mean."""
    def close(self, *, keep: bool) -> None:
        """Let go. With ``keep`` what is pinned goes on, else all is detached and forgotten. Idempotent."""

def packet_support(interface: str | None = None, *, checks: bool = False) -> list[str]:
    """What packet mode lacks on this host, each a sentence that says what to do; [] if nothing.

    ``checks``: with what ``PacketPath.attach_probe`` needs.
    """

@final
class probe:
    """Internals shown to the tests; no stability is promised."""

    @staticmethod
    def flow_hash(secret: bytes, source: str, key: str = "source") -> int: ...
    @staticmethod
    def maglev_table(secret: bytes, backends: Sequence[tuple[str, int]], table_size: int) -> list[int]: ...
    @staticmethod
    def lookups(plan: Plan, pool: str, count: int) -> int:
        """Hash and look up ``count`` clients, for measuring; the sum of their backends' indexes."""
    @staticmethod
    def stats_layout() -> dict[str, dict[str, tuple[int, int]]]:
        """struct name → {field: (offset, size), "": (0, total size)} as Rust lays them out."""
    @staticmethod
    def panic_worker(engine: Engine, worker: int) -> None:
        """Make one worker panic, to show that it is contained."""
