"""A balancer as a service: signals, readiness, and what the log says of both."""

import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import trio

from pybalancer.admin import address
from pybalancer.admin.client import Client
from pybalancer.balancer import Balancer, Source
from pybalancer.cli import exits
from pybalancer.cli.notify import notify, reloading
from pybalancer.config.load import load_file
from pybalancer.config.model import Config
from pybalancer.errors import AdminError, StartError
from pybalancer.status import ReloadResult
from pybalancer.tasks.logs import configure_logging

_log = logging.getLogger("pybalancer")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _FileBalancer(Balancer):
    """A balancer whose flags stay in force when its file is read again."""

    def __init__(
        self, file: Path, overrides: Mapping[tuple[str, str], Any], *, admin: bool, records: BinaryIO
    ) -> None:
        super().__init__(file, admin=admin, records=records)
        self._overrides = overrides

    def _load(self, config: Source | None) -> Config:
        if config is None and self._path is not None:
            return load_file(self._path, os.environ, self._overrides)
        return super()._load(config)

    async def reload(self, config: Source | None = None) -> ReloadResult:
        result = await super().reload(config)
        # The log of the daemon is ours to set up; the log of a host program would not be.
        configure_logging(self.config.log.format, self.config.log.level)
        return result


def refuse_second(config: Config) -> None:
    """Raise StartError if this file's balancer runs already.

    Asked before anything is bound: listeners are shared with SO_REUSEPORT, so a second balancer
    would not fail to bind but take half of the first one's clients.
    """
    where = config.balancer.admin
    if where == "none":
        return
    client = Client(where or address.default(), timeout=2.0)
    if isinstance(client.address, address.TcpAddress):
        return  # binding it fails by itself
    try:
        client.get("/livez")
    except AdminError:
        return  # the admin server finds out what is in the way, if anything is
    raise StartError(
        f"already running: another pybalancer answers at {client.address}; "
        "change it with `pybalancer reload`, or give this one its own socket with --admin"
    )


async def run(
    config: Config, file: Path | None, overrides: Mapping[tuple[str, str], Any], records: BinaryIO
) -> int:
    """Serve until a signal says to stop; the exit code. Raises ConfigError, StartError."""
    if file is None:
        balancer = Balancer(config, admin=True, records=records)
    else:
        balancer = _FileBalancer(file, overrides, admin=True, records=records)
    # From the first moment on: a TERM during a slow start must not leave a socket behind.
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            started = trio.Event()
            nursery.start_soon(_obey, signals, balancer, started, nursery)
            async with balancer:
                started.set()
                _announce(balancer)
                notify("READY=1")
                await balancer.wait_closed()
            nursery.cancel_scope.cancel()
    _log.info("stopped")
    return exits.FINE


async def _obey(
    signals: AsyncIterator[int], balancer: Balancer, started: trio.Event, nursery: trio.Nursery
) -> None:
    stopping = False
    async for number in signals:
        if number == signal.SIGHUP:
            if started.is_set() and not stopping:
                nursery.start_soon(_reload, balancer)
        elif not started.is_set():
            nursery.cancel_scope.cancel()
        else:
            nursery.start_soon(_stop, balancer, 0.0 if stopping else balancer.config.balancer.grace)
            stopping = True


async def _reload(balancer: Balancer) -> None:
    reloading()
    try:
        await balancer.reload_and_log()
    except Exception:
        # A defect of ours in reading a file must not cost anybody a connection.
        _log.exception("reload failed, the old configuration stays in force")
    notify("READY=1")


async def _stop(balancer: Balancer, grace: float) -> None:
    notify("STOPPING=1")
    if grace and (live := balancer.status().active):
        _log.info("stopping: %d tunnels have %g s to end; a second signal ends them at once", live, grace)
    aborted = await balancer.stop(grace)
    if aborted:
        _log.warning("%d tunnels were aborted", aborted)


def _announce(balancer: Balancer) -> None:
    bound = balancer.bound
    for listener in balancer.config.listeners:
        names = dict.fromkeys(route.pool for route in listener.routes)
        if listener.pool is not None:
            names[listener.pool] = None
        for name in names:
            pool = balancer.config.pools[name]
            count = len(pool.backends)
            _log.info(
                "listening on %s → pool %s (%d %s, %s)",
                bound[listener.name],
                name,
                count,
                "backend" if count == 1 else "backends",
                pool.policy,
            )
    if balancer.admin is not None:
        _log.info("admin interface at %s", balancer.admin)
