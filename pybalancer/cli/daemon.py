"""A balancer as a service: signals, readiness, and what the log says of both."""

import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import trio

from pybalancer.admin import address
from pybalancer.admin.client import Client
from pybalancer.cli import exits, pid_file
from pybalancer.cli.notify import notify, reloading
from pybalancer.config.load import check, load_file
from pybalancer.config.model import Config
from pybalancer.errors import AdminError, PybalancerError, StartError
from pybalancer.plans import Source
from pybalancer.status import ReloadResult
from pybalancer.tasks.logs import configure_logging
from pybalancer.upgrade.handing import Command
from pybalancer.upgrade.served import Served
from pybalancer.upgrade.taking import Predecessor

if TYPE_CHECKING:
    from pybalancer.diff import Diff

_log = logging.getLogger("pybalancer")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


class _FileBalancer(Served):
    """A balancer whose flags stay in force when its file is read again."""

    def __init__(
        self,
        file: Path,
        overrides: Mapping[tuple[str, str], Any],
        *,
        records: BinaryIO,
        command: Command,
        predecessor: Predecessor | None,
    ) -> None:
        super().__init__(file, records=records, command=command, predecessor=predecessor)
        self._overrides = overrides

    def _load(self, config: Source | None) -> Config:
        if config is None and self._path is not None:
            return load_file(self._path, os.environ, self._overrides)
        if isinstance(config, Mapping):
            # What a command has read, to compare: as it would be once it is this file.
            return check(dict(config), "<mapping>", {}, os.environ, self._overrides)
        return super()._load(config)

    async def diff_without_secrets(self, config: Mapping[str, Any], digest: str | None) -> "Diff":
        # A secret that a flag or the environment gives stays in force, whatever a file says.
        given = any(os.environ.get(name) for name in ("PYBALANCER_SECRET", "PYBALANCER_SECRET_FILE"))
        given = given or ("balancer", "secret_file") in self._overrides
        return await super().diff_without_secrets(config, None if given else digest)

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
    config: Config,
    file: Path | None,
    overrides: Mapping[tuple[str, str], Any],
    records: BinaryIO,
    predecessor: Predecessor | None = None,
) -> int:
    """Serve until a signal says to stop; the exit code. Raises ConfigError, StartError.

    ``predecessor`` is the process that this one takes over from.
    """
    command = Command()
    balancer: Served
    if file is None:
        balancer = Served(config, records=records, command=command, predecessor=predecessor)
    else:
        balancer = _FileBalancer(file, overrides, records=records, command=command, predecessor=predecessor)
    # From the first moment on: a TERM during a slow start must not leave a socket behind.
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            started = trio.Event()
            nursery.start_soon(_obey, signals, balancer, started, nursery)
            async with balancer:
                started.set()
                path = balancer.config.balancer.pid_file
                _announce(balancer)
                pid_file.write(path)
                notify("READY=1")
                await balancer.settle()
                await balancer.wait_closed()
                pid_file.remove(path)
            nursery.cancel_scope.cancel()
    _log.info("stopped" if balancer.replaced_by is None else "stopped: another process serves now")
    return exits.FINE


async def _obey(
    signals: AsyncIterator[int], balancer: Served, started: trio.Event, nursery: trio.Nursery
) -> None:
    stopping = False
    async for number in signals:
        if number == signal.SIGHUP:
            if started.is_set() and not stopping:
                nursery.start_soon(_reload, balancer)
        elif number == signal.SIGUSR2:
            if started.is_set() and not stopping:
                nursery.start_soon(_upgrade, balancer)
        elif not started.is_set():
            nursery.cancel_scope.cancel()
        else:
            nursery.start_soon(_stop, balancer, 0.0 if stopping else balancer.config.balancer.grace)
            stopping = True


async def _reload(balancer: Served) -> None:
    await balancer.wait_upgraded()
    if balancer.replaced_by is not None:
        with contextlib.suppress(OSError):
            os.kill(balancer.replaced_by, signal.SIGHUP)
        return
    reloading()
    try:
        await balancer.reload_and_log()
    except Exception:
        # A defect of ours in reading a file must not cost anybody a connection.
        _log.exception("reload failed, the old configuration stays in force")
    notify("READY=1")


async def _upgrade(balancer: Served) -> None:
    try:
        await balancer.upgrade()
    except PybalancerError:
        pass  # The log has it already.
    except Exception:
        # A defect of ours must not cost anybody a connection.
        _log.exception("upgrade failed, this process goes on")
    finally:
        balancer.upgrade_told()


async def _stop(balancer: Served, grace: float) -> None:
    await balancer.give_up_upgrade()
    if balancer.replaced_by is None:
        notify("STOPPING=1")
    if not grace:
        aborted = await balancer.stop()
    else:
        if live := balancer.status().active:
            _log.info("stopping: %d tunnels have %g s to end; a second signal ends them at once", live, grace)
        aborted = await balancer.drain_and_stop(grace)
    if aborted:
        _log.warning("%d tunnels were aborted", aborted)


def _announce(balancer: Served) -> None:
    if balancer.taken_over is not None:
        _log.info("took over %d tunnels from process %d", balancer.taken_over, balancer.took_over_from)
    bound = balancer.bound
    for listener in balancer.config.listeners:
        names = dict.fromkeys(route.pool for route in listener.routes)
        if listener.pool is not None:
            names[listener.pool] = None
        for name in names:
            pool = balancer.config.pools[name]
            count = len(pool.backends)
            _log.info(
                "%s %s → pool %s (%d %s, %s)",
                "listening on" if listener.mode != "packet" else f"packets of {listener.protocol} for",
                bound.get(listener.name, listener.bind),
                name,
                count,
                "backend" if count == 1 else "backends",
                pool.policy,
            )
    if (packets := balancer.status().packet) is not None:
        how = ", ".join(f"{name} ({mode})" for name, mode in packets.interfaces.items())
        me = f" as {packets.me}" if packets.me is not None else ""
        _log.info("packet mode: %s%s on %s, forward by %s", packets.role, me, how, packets.forward)
    if balancer.admin is not None:
        _log.info("admin interface at %s", balancer.admin)
