"""A running balancer, under trio: ``Balancer``."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import trio

from pybalancer import _core
from pybalancer.config import load
from pybalancer.config.compile import compile_plan, resolve
from pybalancer.config.model import Config
from pybalancer.config.secret import read_secret, read_token
from pybalancer.errors import ConfigError, Problem, StartError
from pybalancer.policy.coalesce import Coalescer
from pybalancer.policy.health import BackendHealth, apply_panic
from pybalancer.status import LastReload, ReloadResult, Status
from pybalancer.tasks import events
from pybalancer.tasks.health import HealthWatcher
from pybalancer.tasks.logs import RecordWriter

if TYPE_CHECKING:
    from pybalancer.stats.reader import Stats

_log = logging.getLogger("pybalancer")

Source = Config | str | os.PathLike[str] | Mapping[str, Any]
"""A configuration, the path of its file, or what the file would parse to."""

SWAP_INTERVAL: Final = 0.1
"""Seconds between two plans that health asks for: a flapping backend must not keep the workers busy."""


class Balancer:
    """Workers that relay, and the tasks around them: health, reload, log, admin interface.

    ``async with Balancer("pybalancer.toml") as lb:`` — on entry everything listens; on leaving the
    block everything is closed, live tunnels too (``await lb.stop(grace=30)`` first, to let them end).

    ``admin`` starts the admin interface at the configured or default address; ``records`` gets a line
    for each connection that ended (binary stream, if ``[log] connections`` is on); ``watch`` overrides
    ``[balancer] watch``.

    Raises on entry ConfigError, StartError (an address is taken: ``filename`` says which).
    """

    def __init__(
        self,
        config: Source,
        *,
        admin: bool = False,
        records: BinaryIO | None = None,
    ) -> None:
        self._path = os.fspath(config) if isinstance(config, str | os.PathLike) else None
        self._given = None if self._path is not None else config
        self._admin_wanted = admin
        self._records = records
        self._admin: str | None = None
        self._started = time.monotonic()
        self._last_reload: LastReload | None = None
        self._reloading = trio.Lock()
        self._closed = trio.Event()
        self._addresses: dict[tuple[str, str], str] = {}
        self._secret = b""
        self._writer: RecordWriter | None = None
        self._config: Config
        self._engine: _core.Engine
        self._plan: _core.Plan
        self._stats: Stats
        self._watcher: HealthWatcher
        self._swaps: Coalescer
        self._stack: contextlib.AsyncExitStack

    # Start and end.

    async def __aenter__(self) -> Self:
        from pybalancer.stats.reader import Stats

        config = await trio.to_thread.run_sync(self._load, None)
        addresses = await resolve(config)
        self._secret = await trio.to_thread.run_sync(read_secret, config)
        self._swaps = Coalescer(self._swap, SWAP_INTERVAL)
        self._watcher = HealthWatcher(self._swaps.request)
        async with contextlib.AsyncExitStack() as stack:
            self._engine = await self._start_engine(config)
            stack.push_async_callback(self._close_engine)
            self._stats = stack.enter_context(Stats(fd=self._engine.stats_fd))
            self._engine.log_connections(self._records is not None and config.log.connections)
            # A nursery that is left is cancelled first: the tasks end before the engine does.
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            await self._apply(config, addresses)
            self._watcher.update(config, addresses)
            await self._start_tasks(nursery, config)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return bool(await self._stack.__aexit__(kind, error, trace))

    async def _start_engine(self, config: Config) -> _core.Engine:
        section = config.balancer
        try:
            return await trio.to_thread.run_sync(
                lambda: _core.Engine(workers=section.workers, stats_path=section.stats)
            )
        except OSError as error:
            raise StartError(error.errno, f"cannot start workers: {error.strerror}", section.stats) from error

    async def _start_tasks(self, nursery: trio.Nursery, config: Config) -> None:
        if self._records is not None:
            self._writer = RecordWriter(self._engine, self._records, config.log.format)
            nursery.start_soon(self._writer.run)
        wake = self._writer.wake if self._writer else _nothing
        nursery.start_soon(events.watch, self._engine, self._watcher.passive_failure, wake)
        nursery.start_soon(self._watcher.run)
        nursery.start_soon(self._swaps.run)
        if config.balancer.watch and self._path is not None:
            from pybalancer.tasks.reload import watch_file

            nursery.start_soon(watch_file, self._path, self.reload_and_log)
        if self._admin_wanted and config.balancer.admin != "none":
            await self._start_admin(nursery, config)

    async def _start_admin(self, nursery: trio.Nursery, config: Config) -> None:
        from pybalancer.admin import address, server

        explicit = config.balancer.admin
        where = explicit or str(address.default())
        try:
            self._admin = await nursery.start(
                lambda task_status: server.serve(
                    self,
                    where,
                    token=read_token(config.balancer),
                    origins=config.balancer.admin_origins,
                    task_status=task_status,
                )
            )
        except* server.AlreadyRunning as group:
            if explicit is not None:
                raise StartError(None, str(group.exceptions[0]), where) from group
            _log.warning("no admin interface: %s; use --admin or balancer.admin", group.exceptions[0])

    async def stop(self, grace: float = 0.0) -> int:
        """Accept no more, let tunnels end for ``grace`` seconds, abort the rest; how many those were.

        May be called again with less grace while it runs.
        """
        aborted = await trio.to_thread.run_sync(self._engine.close, grace)
        self._closed.set()
        return aborted

    async def wait_closed(self) -> None:
        """Wait until ``stop`` has ended."""
        await self._closed.wait()

    async def _close_engine(self) -> None:
        with trio.CancelScope(shield=True):
            await self.stop()

    # Plans.

    def _load(self, config: Source | None) -> Config:
        source = config if config is not None else self._path if self._path is not None else self._given
        if isinstance(source, Config):
            return source
        if isinstance(source, Mapping):
            return load.load_mapping(source)
        assert source is not None
        return load.load_file(source)

    def _health(self, config: Config) -> dict[tuple[str, str], BackendHealth]:
        """What is known of the backends' health, each pool's panic threshold applied."""
        known = self._watcher.snapshot()
        effective: dict[tuple[str, str], BackendHealth] = {}
        for name, pool in config.pools.items():
            states = {
                (name, backend.name): known[name, backend.name]
                for backend in pool.backends
                if (name, backend.name) in known
            }
            effective.update(apply_panic(states, pool.panic))
        return effective

    async def _apply(self, config: Config, addresses: dict[tuple[str, str], str]) -> int:
        health = self._health(config)
        previous = getattr(self, "_plan", None)

        def build() -> tuple[_core.Plan, int]:
            plan = compile_plan(config, addresses, health, self._secret, previous)
            return plan, self._engine.apply(plan)

        try:
            # Not to be left halfway: the workers would run a plan that nobody remembers.
            with trio.CancelScope(shield=True):
                plan, generation = await trio.to_thread.run_sync(build)
        except OSError as error:
            raise StartError(error.errno, error.strerror, error.filename) from None
        except _core.PlanError as error:
            raise ConfigError([Problem(self._path or "configuration", None, None, "", str(error))]) from None
        self._config, self._addresses, self._plan = config, addresses, plan
        return generation

    async def _swap(self) -> None:
        """Health changed: the same configuration, other states."""
        async with self._reloading:
            if not self._closed.is_set():
                with contextlib.suppress(_core.EngineError):  # It was closed meanwhile.
                    await self._apply(self._config, self._addresses)

    async def reload(self, config: Source | None = None) -> ReloadResult:
        """Run another configuration; without one, read the file again.

        Raises ConfigError or StartError, and then nothing has changed. Tunnels that the change does
        not concern go on untouched.
        """
        async with self._reloading:
            try:
                return await self._reload(config)
            except (ConfigError, StartError) as error:
                self._last_reload = LastReload(ok=False, at=time.time(), error=str(error))
                raise

    async def _reload(self, given: Source | None) -> ReloadResult:
        config = await trio.to_thread.run_sync(self._load, given)
        addresses = await resolve(config)
        before, secret = self._config, self._secret
        self._secret = await trio.to_thread.run_sync(read_secret, config)
        try:
            generation = await self._apply(config, addresses)
        except (ConfigError, StartError):
            self._secret = secret
            raise
        if isinstance(given, str | os.PathLike):
            self._path = os.fspath(given)
        elif given is not None:
            self._path, self._given = None, given
        self._watcher.update(config, addresses)
        self._engine.log_connections(self._records is not None and config.log.connections)
        if self._writer is not None:
            self._writer.format = config.log.format
        self._last_reload = LastReload(ok=True, at=time.time(), error=None)
        return ReloadResult(
            generation=generation,
            changes=changes(before, config),
            ignored=ignored(before, config),
            warnings=[str(problem) for problem in config.warnings],
        )

    async def reload_and_log(self) -> None:
        """``reload`` where nobody waits for the result (a signal, a changed file): the log gets it."""
        try:
            result = await self.reload()
        except (ConfigError, StartError) as error:
            _log.error("not reloaded, the old configuration stays in force: %s", error)
            return
        changed = "; ".join(result.changes) or "no change"
        _log.info("reloaded (generation %d): %s", result.generation, changed)
        for key in result.ignored:
            _log.warning("%s takes effect at the next start only", key)
        for warning in result.warnings:
            _log.warning("%s", warning)

    # Questions.

    @property
    def config(self) -> Config:
        """What runs."""
        return self._config

    @property
    def bound(self) -> dict[str, str]:
        """Listener names and the addresses really bound (port 0 resolved)."""
        return self._engine.bound()

    @property
    def admin(self) -> str | None:
        """Where the admin interface listens, if it does."""
        return self._admin

    def status(self) -> Status:
        """A picture of this moment."""
        from pybalancer import status

        return Status(
            version=_core.__version__,
            pid=os.getpid(),
            uptime_seconds=time.monotonic() - self._started,
            generation=self._engine.generation,
            config_file=self._path,
            admin=self._admin,
            active=self._engine.active(),
            workers=status.workers(self._stats),
            listeners=status.listeners(self._config, self._engine, self._stats),
            pools=status.pools(
                self._config,
                self._addresses,
                self._plan,
                self._engine,
                self._stats,
                self._health(self._config),
                trio.current_time(),
            ),
            last_reload=self._last_reload,
        )

    def explain(self, source: str, pool: str | None = None) -> dict[str, Any]:
        """Which backend a client at ``source`` gets now, why, and what next.

        ``source`` is ``ip:port``; ``ip`` alone means port 0.
        Raises ValueError for what is no address, LookupError for a pool that is not there or not given
        where there are several.
        """
        name = choose_pool(self._config, pool)
        address = client_address(source)
        order = self._engine.explain(name, address)
        return explanation(self._config, name, address, order)

    def metrics(self) -> str:
        """All counters in the Prometheus text format."""
        from pybalancer.stats.collector import render

        ports = {
            (pool, backend): usage
            for pool, backends in self._engine.ports().items()
            for backend, usage in backends.items()
        }
        return render(self._stats, self._health(self._config), ports)


def _nothing() -> None:
    pass


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


def explanation(config: Config, pool: str, source: str, order: list[_core.Choice]) -> dict[str, Any]:
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


def changes(before: Config, after: Config) -> list[str]:
    """What differs between two configurations, for people."""
    found = []
    old_listeners = {listener.name: listener for listener in before.listeners}
    new_listeners = {listener.name: listener for listener in after.listeners}
    found += _differences("listener", old_listeners, new_listeners)
    found += _differences("pool", before.pools, after.pools)
    for name in before.pools.keys() & after.pools.keys():
        old = {backend.name: backend for backend in before.pools[name].backends}
        new = {backend.name: backend for backend in after.pools[name].backends}
        found += _differences(f"backend {name}/", old, new)
    return found


def _differences(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    gap = "" if kind.endswith("/") else " "
    found = [f"{kind}{gap}{name} added" for name in new if name not in old]
    found += [f"{kind}{gap}{name} removed" for name in old if name not in new]
    return found + [f"{kind}{gap}{name} changed" for name in new if name in old and new[name] != old[name]]


def ignored(before: Config, after: Config) -> list[str]:
    """Keys that differ and take effect at the next start only."""
    fixed = ("workers", "stats", "admin", "admin_token", "admin_token_file", "admin_origins", "watch")
    return [
        f"balancer.{key}" for key in fixed if getattr(before.balancer, key) != getattr(after.balancer, key)
    ]
