"""A running balancer, under trio: ``Balancer``."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, Self

import trio

from pybalancer import _core
from pybalancer.config import load, packet
from pybalancer.config.compile import resolve
from pybalancer.config.model import Config
from pybalancer.config.secret import read_secret, read_ticket_keys, read_token
from pybalancer.errors import (
    AdminError,
    PybalancerError,
    StartError,
    UpgradeError,
    leaves,
    plain,
)
from pybalancer.explanation import Asked, choose_pool, client_address, explain_request, explanation
from pybalancer.plans import Key, Plans, Source
from pybalancer.policy.coalesce import Coalescer
from pybalancer.policy.draining import hurry
from pybalancer.policy.health import BackendHealth, apply_panic, unknown
from pybalancer.status import LastReload, Status, UpgradeResult
from pybalancer.targets import Target
from pybalancer.tasks import events, rebalance
from pybalancer.tasks.health import HealthWatcher
from pybalancer.tasks.logs import RecordWriter
from pybalancer.tasks.reload import Mark, mark, watch_file

if TYPE_CHECKING:
    from pybalancer.admin.sockets import Door
    from pybalancer.stats.reader import Stats

_log = logging.getLogger("pybalancer")

SWAP_INTERVAL: Final = 0.1
"""Seconds between two plans that health asks for: a flapping backend must not keep the workers busy."""

LEAVING: Final = 0.75
"""Part of the grace in which all are told to go: the last of them must have time to answer, too."""

MARGIN: Final = 60.0
"""Seconds: more than it takes to stop once the grace is over."""


class Balancer(Plans):
    """Workers that relay, and the tasks around them: health, reload, log, admin interface.

    ``async with Balancer("pybalancer.toml") as lb:`` — on entry everything listens; on leaving the
    block everything is closed, live tunnels too (``await lb.stop(grace=30)`` first, to let them end).

    ``admin`` starts the admin interface at the configured or default address; ``records`` gets a line
    for each connection that ended (binary stream, if ``[log] connections`` is on).

    Raises on entry ConfigError, StartError (an address is taken: ``filename`` says which). What is
    raised in the block leaves it as it is. After a ``fork`` the child can only leave it alone: what it
    calls raises EngineError.
    """

    def __init__(
        self,
        config: Source,
        *,
        admin: bool = False,
        records: BinaryIO | None = None,
    ) -> None:
        super().__init__()
        self._path = os.fspath(config) if isinstance(config, str | os.PathLike) else None
        self._given = None if self._path is not None else config
        self._admin_wanted = admin
        self._records = records
        self._admin: str | None = None
        self._admin_scope = trio.CancelScope()
        self._admin_door: Door | None = None
        self._started = time.monotonic()
        self._phase: Literal["new", "starting", "running", "ended"] = "new"
        self._last_reload: LastReload | None = None
        self._stopping = False
        self._closed = trio.Event()
        self._addresses: dict[Key, str] = {}
        self._secret = b""
        self._tickets: dict[str, bytes] = {}
        """Keys of pools whose tickets have one of their own."""
        self._writer: RecordWriter | None = None
        self._config: Config
        self._handle: _core.Engine | None = None
        self._plan: _core.Plan
        self._stats: Stats
        self._watcher: HealthWatcher
        self._swaps: Coalescer
        self._nursery: trio.Nursery
        self._stack: contextlib.AsyncExitStack

    # Start and end.

    async def __aenter__(self) -> Self:
        if self._phase != "new":
            raise RuntimeError("this balancer was started before; make another")
        self._phase = "starting"
        try:
            await self._start()
        except BaseException as error:
            self._release()
            only = plain(error)
            if only is error:
                raise
            raise only from only.__cause__
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            return bool(await self._stack.__aexit__(kind, error, trace))
        except BaseExceptionGroup as group:
            if error is not None and leaves(group) == leaves(error):
                return False
            only = plain(group)
            raise only from only.__cause__
        finally:
            self._release()

    async def _start(self) -> None:
        from pybalancer.stats.reader import Stats

        seen = mark(self._path) if self._path is not None else None
        config = await trio.to_thread.run_sync(self._load, None)
        addresses = await resolve(config)
        self._swaps = Coalescer(self._swap, SWAP_INTERVAL)
        self._watcher = HealthWatcher(self._swaps.request, on_load=self._report_load, way=self._packet.way)
        await self._packet.check(config)
        async with contextlib.AsyncExitStack() as stack:
            self._handle = await self._start_engine(config)
            stack.push_async_callback(self._close_engine)
            secret = await self._find_secret(config)
            tickets = await trio.to_thread.run_sync(read_ticket_keys, config)
            self._stats = stack.enter_context(Stats(fd=self._engine.stats_fd))
            # From here on there is nobody to ask: its tasks have ended, its statistics go next.
            stack.callback(self._end)
            self._engine.log_connections(self._records is not None and config.log.connections)
            # A nursery that is left is cancelled first: the tasks end before the engine does.
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            await self._before_plan(config, addresses)
            await self._apply(config, addresses, secret, tickets)
            self._watch(config, addresses)
            await self._before_service()
            await self._start_packets(config, addresses, secret)
            stack.push_async_exit(self._close_packets)
            self._phase = "running"
            self._nursery = nursery
            self._resume_drains()
            await self._start_tasks(nursery, config, seen)
            self._packets_served = True
            self._stack = stack.pop_all()

    # What one that takes the place of another process does besides (``pybalancer.upgrade.served``).

    async def _find_secret(self, config: Config) -> bytes:
        return await trio.to_thread.run_sync(read_secret, config)

    async def _before_plan(self, config: Config, addresses: dict[Key, str]) -> None:
        """The workers run, without a plan."""

    async def _before_service(self) -> None:
        """The first plan is applied."""

    def hindrance(self) -> str | None:
        """What is under way that a new process could not go on with."""
        for drain in self._live().drains():
            if drain.state == "running":
                what = "a shed" if drain.kind == "shed" else "a drain"
                of = drain.pool or drain.listener
                return f"{what} of {of or 'everything'} is under way"
        return None

    async def upgrade(self, patience: float | None = None) -> UpgradeResult:
        """Put a new process in the place of this one, which only ``pybalancer serve`` can: UpgradeError."""
        raise UpgradeError(
            "this balancer is part of another program: "
            "a new process can take over from `pybalancer serve` only"
        )

    def upgrade_told(self) -> None:
        """Whoever asked for an upgrade has its answer."""

    async def _start_engine(self, config: Config) -> _core.Engine:
        section = config.balancer
        try:
            return await trio.to_thread.run_sync(
                lambda: _core.Engine(workers=section.workers, stats_path=self._stats_path(section.stats))
            )
        except OSError as error:
            what = f"{section.stats}: " if section.stats else ""
            raise StartError(f"cannot start workers: {what}{error.strerror or error}") from error

    def _stats_path(self, path: str | None) -> str | None:
        return path

    async def _start_tasks(self, nursery: trio.Nursery, config: Config, seen: Mark) -> None:
        if self._records is not None:
            self._writer = RecordWriter(self._engine, self._records, config.log.format)
            nursery.start_soon(self._writer.run)
        wake = self._writer.wake if self._writer else _nothing
        nursery.start_soon(events.watch, self._engine, self._connect_failed, wake)
        nursery.start_soon(self._watcher.run)
        nursery.start_soon(self._swaps.run)
        nursery.start_soon(self._drain_watcher.run)
        nursery.start_soon(rebalance.watch, self)
        nursery.start_soon(self._packet.run)
        if config.balancer.watch and self._path is not None:
            nursery.start_soon(watch_file, self._path, self.reload_and_log, seen)
        if self._admin_wanted and config.balancer.admin != "none":
            await self._start_admin(nursery, config)

    async def _start_admin(self, nursery: trio.Nursery, config: Config) -> None:
        from pybalancer.admin import address, server

        explicit = config.balancer.admin
        where = explicit or str(address.default())

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            with self._admin_scope:
                await server.serve(
                    self,
                    where,
                    token=read_token(config.balancer),
                    origins=config.balancer.admin_origins,
                    door=self._admin_door,
                    task_status=task_status,
                )

        try:
            self._admin = await nursery.start(serve)
        except* AdminError as group:
            error = plain(group)
            if explicit is not None or not isinstance(error, server.AlreadyRunning):
                raise StartError(str(error)) from error
            _log.warning("no admin interface: %s; use --admin or balancer.admin", error)

    async def stop(self, grace: float = 0.0) -> int:
        """Accept no more, let tunnels end for ``grace`` seconds, abort the rest; how many those were.

        May be called again with less grace while it runs. If it is cancelled, tunnels keep what is left
        of their time for as long as the block is not left.
        """
        if self._phase == "ended":
            return 0
        engine = self._live()
        self._stopping = True
        aborted = await trio.to_thread.run_sync(engine.close, grace, abandon_on_cancel=grace > 0)
        self._closed.set()
        return aborted

    async def drain_and_stop(self, grace: float) -> int:
        """As ``stop``, and drain meanwhile: all tunnels are told to go within three quarters of the grace,
        WebSockets by Close 1012. How many were aborted at its end.

        All of them, however fast that is: who is not told in time is cut with all the others at once. If
        that is faster than their handshakes are let in elsewhere, a warning says which grace would do.
        """
        engine = self._live()
        self._stopping = True
        over, rate = LEAVING * grace, self._terms(Target(), {}).rate
        if hasty := hurry(engine.active(), over=over, rate=rate):
            _log.warning("%s; a grace of %.0f s would do", hasty, engine.active() / rate / LEAVING + 1)
        engine.stop_accepting()
        # The end of the grace is what ends those that are left; no deadline comes before it.
        engine.drain(over=over, deadline=grace + MARGIN, code=1012)
        self._drain_watcher.stir()
        return await self.stop(grace)

    async def wait_closed(self) -> None:
        """Wait until ``stop`` has ended."""
        await self._closed.wait()

    async def _close_engine(self) -> None:
        self._stopping = True
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._engine.close)
            self._closed.set()

    def _end(self) -> None:
        self._phase = "ended"

    def _release(self) -> None:
        """The engine's last descriptors go with it, so they must not live as long as this object does."""
        self._end()
        self._writer = self._handle = None

    @property
    def _engine(self) -> _core.Engine:
        # Asked for anew each time: a local variable would live on in the traceback of an error.
        if self._handle is None:
            raise PybalancerError("this balancer has ended")
        return self._handle

    def _live(self) -> _core.Engine:
        """The engine. Raises PybalancerError where there is none."""
        if self._phase != "running":
            why = "has ended" if self._phase == "ended" else "does not run: enter its block first"
            raise PybalancerError(f"this balancer {why}")
        return self._engine

    # Plans.

    def _load(self, config: Source | None) -> Config:
        source = config if config is not None else self._path if self._path is not None else self._given
        if isinstance(source, Config):
            return source
        if isinstance(source, Mapping):
            return load.load_mapping(source)
        assert source is not None
        return load.load_file(source)

    def _health(self, config: Config, addresses: Mapping[Key, str]) -> dict[Key, BackendHealth]:
        """What is known of the backends' health, each pool's panic threshold applied."""
        known, now = self._watcher.snapshot(), trio.current_time()
        effective: dict[Key, BackendHealth] = {}
        for name, pool in config.pools.items():
            states: dict[Key, BackendHealth] = {}
            spares: dict[Key, BackendHealth] = {}
            for backend in pool.backends:
                key = name, backend.name
                # At another address it is another server, of which nothing is known.
                same = key in known and addresses.get(key) == self._addresses.get(key)
                # One of weight 0 takes nothing whatever its state, so it is no help to the others; nor
                # is one that is drained.
                takes = backend.weight and key not in self._draining.backends
                (states if takes else spares)[key] = known[key] if same else unknown(now)
            effective |= apply_panic(states, pool.panic) | spares
        return effective

    def _connect_failed(self, pool: str, backend: str, count: int) -> None:
        try:
            opened = self._stats.backend(pool, backend).opened
        except KeyError:
            return  # A reload has removed it since.
        self._watcher.passive_failure(pool, backend, count, opened)

    def _report_load(self, key: Key, load: float | None) -> None:
        pool, backend = key
        # Where a reload has just removed it, there is nobody to be told.
        with contextlib.suppress(_core.EngineError):
            self._engine.report_load(pool, backend, load)

    # Questions.

    @property
    def config(self) -> Config:
        """What runs."""
        self._live()
        return self._config

    @property
    def bound(self) -> dict[str, str]:
        """Listener names and the addresses really bound (port 0 resolved)."""
        return self._live().bound()

    @property
    def admin(self) -> str | None:
        """Where the admin interface listens, if it does."""
        return self._admin

    def status(self) -> Status:
        """A picture of this moment; of packets, as of the last ``refresh``."""
        from pybalancer import status

        engine = self._live()
        return Status(
            version=_core.__version__,
            pid=os.getpid(),
            started=self._stats.started,
            uptime_seconds=time.monotonic() - self._started,
            generation=engine.generation,
            config_file=self._path,
            admin=self._admin,
            active=engine.active(),
            workers=status.workers(self._stats),
            listeners=status.listeners(self._config, engine, self._stats, self._draining.listeners),
            pools=status.pools(
                self._config,
                self._addresses,
                self._plan,
                engine,
                self._stats,
                self._health(self._config, self._addresses),
                trio.current_time(),
                self._draining.backends,
                self._packet.digest,
            ),
            drains=status.drains(engine),
            last_reload=self._last_reload,
            packet=self._packet.status(),
        )

    def explain(
        self,
        source: str,
        pool: str | None = None,
        *,
        listener: str | None = None,
        host: str | None = None,
        path: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> dict[str, Any]:
        """Which backend a client at ``source`` gets now, why, and what next.

        ``source`` is ``ip:port``; ``ip`` alone means port 0. Where requests are read, what the client asks
        for decides: a ``listener`` of mode "websocket" (the only one, by default), the ``host`` that it
        names, the ``path`` with its query, more ``headers``; then the answer has a route too.

        Raises ValueError for what is no address or no request, LookupError for a pool or listener that is
        not there, or not given where there are several.
        """
        engine = self._live()
        address = client_address(source)
        if listener in {each.name for each in packet.listeners(self._config)}:
            pool = next(each.pool for each in self._config.listeners if each.name == listener)
            answer = explanation(self._config, str(pool), address, [])
            return answer | self._packet.explain(self._config, str(pool), listener, address)
        if listener is not None or host is not None or path is not None or headers:
            if pool is not None:
                raise ValueError("either a pool or a request: the route of the request says which pool")
            asked = Asked(listener, host, path, headers)
            return explain_request(engine, self._config, address, asked)
        name = choose_pool(self._config, pool)
        led = name in packet.only_packets(self._config)
        answer = explanation(self._config, name, address, [] if led else engine.explain(name, address))
        return answer | self._packet.explain(self._config, name, None, address)

    def metrics(self) -> str:
        """All counters in the Prometheus text format."""
        from pybalancer.stats.collector import Drained, render

        ports = {
            (pool, backend): usage
            for pool, backends in self._live().ports().items()
            for backend, usage in backends.items()
        }
        return render(
            self._stats,
            self._health(self._config, self._addresses),
            ports,
            Drained(self._draining.backends, self._drains(), self._drain_watcher.totals()),
            self._packet.status(),
        )


def _nothing() -> None:
    pass
