"""The balancer of ``pybalancer serve``: a new process can take its place, and it can be that new process."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import trio

from pybalancer import _core
from pybalancer.admin.sockets import Door
from pybalancer.balancer import Balancer
from pybalancer.cli.notify import notify, reloading
from pybalancer.config import secret as secrets
from pybalancer.config.model import Config
from pybalancer.errors import PybalancerError, UpgradeError
from pybalancer.plans import Key, Source
from pybalancer.status import ReloadResult, UpgradeResult
from pybalancer.upgrade.handing import READY_SECONDS, Command, HandedOver, Offer, Successor
from pybalancer.upgrade.taking import Predecessor

_log = logging.getLogger("pybalancer")

LEAVE_SECONDS: Final = 10.0
"""How long what is under way may take once a new process serves."""
ANSWER_SECONDS: Final = 2.0
"""How long whoever asked for the upgrade may take to read the answer."""


class Served(Balancer):
    """A balancer that is the whole of its process.

    ``command`` starts another one like it. ``predecessor`` is the process that started this one to be
    replaced by it.
    """

    def __init__(
        self,
        config: Source,
        *,
        records: BinaryIO,
        command: Command,
        predecessor: Predecessor | None = None,
    ) -> None:
        super().__init__(config, admin=True, records=records)
        self._command = command
        self._predecessor = predecessor
        self._admin_door = Door()
        self._upgrade_over = trio.Event()
        self._upgrade_over.set()
        self._upgrade_decided = self._upgrade_over
        """Set as soon as it is known which process serves, the admin interface still being this one's."""
        self._told = trio.Event()
        self._told.set()
        self._upgrading = trio.CancelScope()
        self._stats_renamed: tuple[str, str] | None = None
        self.replaced_by: int | None = None
        """Process id of the one that serves in its place."""
        self.taken_over: int | None = None
        """Tunnels that came from the process before."""
        self.took_over_from = 0
        """That process's id."""

    # The process that comes.

    async def _start_engine(self, config: Config) -> _core.Engine:
        engine = await super()._start_engine(config)
        if self._predecessor is not None:
            try:
                await self._predecessor.meet(engine)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(engine.close)
                raise
            self._admin_door = Door(replacing=True, inherited=self._predecessor.admin)
        return engine

    async def _find_secret(self, config: Config) -> bytes:
        section = config.balancer
        generated = section.secret is None and section.secret_file is None
        if generated and self._predecessor is not None and self._predecessor.secret is not None:
            secrets.remember(self._predecessor.secret)
            return self._predecessor.secret
        return await super()._find_secret(config)

    def _stats_path(self, path: str | None) -> str | None:
        if path is None or self._predecessor is None:
            return path
        # The old process's file stays where it is until this one serves.
        self._stats_renamed = (_temporary(path, os.getpid()), path)
        return self._stats_renamed[0]

    async def _before_plan(self, config: Config, addresses: dict[Key, str]) -> None:
        if self._predecessor is None:
            return
        down = self._predecessor.state.get("down", ())
        self._watch(config, addresses)
        self._watcher.begin_down({(pool, name): (where, why) for pool, name, where, why in down})
        self._addresses = addresses
        if (draining := self._predecessor.state.get("draining")) is not None:
            try:
                self.restore(draining)
            except ValueError as error:
                raise UpgradeError(f"what is drained cannot be taken over: {error}") from error
            # Its own file may have other names than the one that the old process has read.
            self._draining = self._draining.among(addresses, {one.name for one in config.listeners})

    async def _before_service(self) -> None:
        if self._predecessor is None:
            return
        try:
            self.taken_over = await self._predecessor.take_over(self._engine)
            self.took_over_from = self._predecessor.pid
        except BaseException:
            if self._stats_renamed is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._stats_renamed[0])
            raise
        if self._stats_renamed is not None:
            with contextlib.suppress(OSError):
                os.rename(*self._stats_renamed)

    async def _start_admin(self, nursery: trio.Nursery, config: Config) -> None:
        try:
            await super()._start_admin(nursery, config)
        except PybalancerError as error:
            if self.taken_over is None:
                raise
            # It serves clients, and nobody else does: this is no reason to end.
            _log.error("no admin interface: %s", error)

    async def _start_packets(self, config: Config, addresses: dict[Key, str], secret: bytes) -> None:
        try:
            await super()._start_packets(config, addresses, secret)
        except PybalancerError as error:
            if self.taken_over is None:
                raise
            # It serves clients, as above, and the kernel goes on as the old process has told it.
            _log.error("packets go as the process before has left it, which is tried again: %s", error)
            self._retry_plan()

    async def settle(self) -> None:
        """Everything that a successor has to do is done."""
        if self._predecessor is not None:
            await self._predecessor.settle()

    # The process that goes.

    def _packets_go_on(self) -> bool:
        return self.replaced_by is not None

    async def upgrade(self, patience: float | None = None) -> UpgradeResult:
        """Start this program anew, and let that process take over listeners and live tunnels.

        It reads the configuration itself and has ``patience`` seconds until it is ready. Raises UpgradeError,
        or ConfigError if its file is wrong; then this process goes on as if nothing had been. Otherwise this
        one finishes what is under way, and ends by itself.
        """
        self._live()
        if (first := container_of(os.getpid(), os.getppid(), Path("/proc/1/comm"))) is not None:
            raise UpgradeError(f"{first}, and the container ends with it: start a new container instead")
        if self._stopping or self.replaced_by is not None:
            raise UpgradeError("this process is ending")
        if not self._upgrade_over.is_set():
            raise UpgradeError("an upgrade is under way already")
        if (why := self.hindrance()) is not None:
            raise UpgradeError(f"not now: {why}")
        self._upgrade_over, self._upgrading = trio.Event(), trio.CancelScope()
        self._upgrade_decided = trio.Event()
        _log.info("upgrading: starting a new process")
        reloading()
        try:
            with self._upgrading:
                async with self._reloading:
                    result = await self._upgrade(READY_SECONDS if patience is None else patience)
            if self._upgrading.cancelled_caught:
                raise UpgradeError("this process is ending")
        except PybalancerError as error:
            _log.error("not upgraded, this process goes on: %s", error)
            raise
        finally:
            if self.replaced_by is None:
                notify("READY=1")
            self._upgrade_decided.set()
            self._upgrade_over.set()
        _log.info(
            "upgraded: process %d serves, with %d tunnels that stood still for %.0f ms",
            result.new_pid,
            result.tunnels,
            result.frozen_seconds * 1000,
        )
        return result

    async def _upgrade(self, patience: float) -> UpgradeResult:
        began = trio.current_time()
        successor = Successor(self._engine, self._offer, self._applying, self.hindrance)
        self._packet.still = True
        try:
            done = await successor.take_over(self._command, patience)
        except BaseException:
            self._packet.still = False
            self._remove_stats_of(successor)
            raise
        # Before anything is awaited: from here on this process only finishes.
        self._stopping, self.replaced_by = True, done.pid
        self._upgrade_decided.set()
        self._packets_wanted = False
        self._nursery.start_soon(partial(self._packet.close, keep=True))
        self._told = trio.Event()
        self._nursery.start_soon(self._leave, done)
        seconds = trio.current_time() - began
        with trio.CancelScope(shield=True):
            await successor.wait_settled()
        # Only the main process is believed, and that is still this one.
        notify(f"MAINPID={done.pid}", "READY=1")
        return UpgradeResult(
            old_pid=os.getpid(),
            new_pid=done.pid,
            old_version=_core.__version__,
            new_version=done.version,
            tunnels=done.tunnels,
            frozen_seconds=round(done.frozen_seconds, 6),
            seconds=round(seconds, 6),
        )

    async def wait_upgraded(self) -> None:
        """Wait until no upgrade is under way."""
        await self._upgrade_over.wait()

    async def give_up_upgrade(self) -> None:
        """This process is to stop: an upgrade that is not decided yet is none."""
        self._upgrading.cancel()
        await self._upgrade_over.wait()

    def _offer(self) -> Offer:
        section = self._config.balancer
        body: dict[str, Any] = {"state": self._carried()}
        if section.secret is None and section.secret_file is None:
            body["secret"] = self._secret.hex()
        listener = self._admin_door.listener if self._admin_door is not None else None
        tcp = self._admin is not None and not self._admin.startswith("unix:")
        return Offer(body, listener.fileno() if listener is not None and tcp else None)

    def _carried(self) -> dict[str, Any]:
        """What policy knows that a new process could not find out at once."""
        down = [
            (pool, name, self._addresses[pool, name], health.reason)
            for (pool, name), health in self._watcher.snapshot().items()
            if not health.up and (pool, name) in self._addresses
        ]
        return {"down": down, "draining": self.snapshot()}

    def _remove_stats_of(self, successor: Successor) -> None:
        path = self._config.balancer.stats
        if path is not None and successor.pid:
            with contextlib.suppress(OSError):
                os.unlink(_temporary(path, successor.pid))

    async def _leave(self, done: HandedOver) -> None:
        """Finish what is under way, then end."""
        hand = _core.HandOver(self._engine)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_admin)
            aborted = await trio.to_thread.run_sync(
                hand.let_go, done.taken, LEAVE_SECONDS, abandon_on_cancel=True
            )
        if aborted:
            _log.warning("%d connections did not end in time after the upgrade", aborted)
        self._closed.set()

    async def _close_admin(self) -> None:
        """Once whoever asked for the upgrade has its answer: the new process has its own."""
        await self._upgrade_over.wait()
        with trio.move_on_after(ANSWER_SECONDS):
            await self._told.wait()
        self._admin_scope.cancel()

    def upgrade_told(self) -> None:
        """Whoever asked for the upgrade has its answer."""
        self._told.set()

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """As of every balancer. During an upgrade it waits: what the new process was told would not have it.
        After one nothing is left here to change, and saying that it was done would be a lie."""
        while True:
            await self._upgrade_decided.wait()
            async with super()._changing():
                if self._upgrade_decided.is_set():
                    yield
                    return

    def _not_ending(self) -> None:
        if self.replaced_by is not None:
            raise PybalancerError(f"process {self.replaced_by} has taken over: ask that one")
        super()._not_ending()

    async def reload(self, config: Source | None = None) -> ReloadResult:
        """As of every balancer. During an upgrade it waits, after one it is the new process's business."""
        await self._upgrade_over.wait()
        if self.replaced_by is not None:
            raise UpgradeError(f"process {self.replaced_by} has taken over: reload that one")
        return await super().reload(config)

    async def reload_and_log(self) -> None:
        """As of every balancer, and silent where the new process does it."""
        await self._upgrade_over.wait()
        if self.replaced_by is None:
            await super().reload_and_log()


INITS: Final = ("tini", "docker-init", "dumb-init", "catatonit", "podman-init")
"""What runs as process 1 of containers and ends when the process that it has started does."""


def container_of(pid: int, parent: int, first: Path) -> str | None:
    """What of a container this process is, if the container cannot outlive it; ``first`` names process 1."""
    if pid == 1:
        return "this is process 1 of its container"
    with contextlib.suppress(OSError):
        name = first.read_text().strip()
        if parent == 1 and name in INITS:
            return f"this is what the container's {name} runs"
    return None


def _temporary(path: str, pid: int) -> str:
    return f"{path}.{pid}"
