"""What runs, and how it becomes something else: plans, reloads. A part of ``Balancer``."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import trio

from pybalancer import _core
from pybalancer.config import packet
from pybalancer.config.compile import compile_plan, resolve
from pybalancer.config.differences import changes, ignored
from pybalancer.config.model import Config
from pybalancer.config.secret import read_secret, read_ticket_keys
from pybalancer.errors import ConfigError, Problem, PybalancerError, StartError
from pybalancer.operations import Operations
from pybalancer.status import LastReload, ReloadResult

if TYPE_CHECKING:
    from pybalancer.policy.coalesce import Coalescer
    from pybalancer.policy.health import BackendHealth
    from pybalancer.tasks.logs import RecordWriter

_log = logging.getLogger("pybalancer")

Source = Config | str | os.PathLike[str] | Mapping[str, Any]
"""A configuration, the path of its file, or what the file would parse to."""

Key = tuple[str, str]
"""Pool and backend."""

RETRY: Final = 1.0
"""Seconds after which a plan that could not be applied is made anew."""


class Plans(Operations):
    """Needs what ``Balancer`` has: an engine, health, records."""

    _path: str | None
    _given: Source | None
    _stopping: bool
    _last_reload: LastReload | None
    _plan: _core.Plan
    _addresses: dict[Key, str]
    _secret: bytes
    _tickets: dict[str, bytes]
    _swaps: Coalescer
    _records: BinaryIO | None
    _writer: RecordWriter | None

    @property
    def _engine(self) -> _core.Engine:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self._reloading = trio.Lock()
        """One reload at a time."""
        self._applying = trio.Lock()
        """One plan at a time: a reload may wait long for a name server, and health does not wait for that."""
        self._applied: dict[Key, tuple[bool, float]] | None = None
        """Of each backend what the plan that runs says: is it up, and its ramp."""
        self._refusal = ""
        """Why a plan could not be applied, as the log has it already."""

    def _load(self, config: Source | None) -> Config:
        raise NotImplementedError

    async def _apply(
        self,
        config: Config,
        addresses: dict[Key, str],
        secret: bytes,
        tickets: dict[str, bytes] | None = None,
    ) -> int:
        # Not to be left halfway: workers, packets and what is remembered here would go by two configurations.
        with trio.CancelScope(shield=True):
            generation = await self._apply_to_all(config, addresses, secret, tickets)
        return generation  # noqa: RET504 - a scope may end early, says mypy; not this one

    async def _apply_to_all(
        self, config: Config, addresses: dict[Key, str], secret: bytes, tickets: dict[str, bytes] | None
    ) -> int:
        tickets = self._tickets if tickets is None else tickets
        health = self._health(config, addresses)
        running = getattr(self, "_config", None)
        before = self._addresses, self._secret, self._tickets
        generation = await self._apply_to_workers(config, addresses, secret, tickets, health)
        # If packets do not follow, the next look tries again, though nothing has changed since.
        self._applied = None
        if self._packets_wanted:
            try:
                await self._packet.apply(config, addresses, self._takers(config, health), secret)
            except StartError:
                # Of a reload nothing is left. A change of health is tried again, and so is what was there
                # before, if not even that could be set up again.
                if running is not None and running is not config:
                    await self._apply_to_workers(running, *before, self._health(running, before[0]))
                    if packet.listeners(running) and not self._packet.on:
                        self._retry_plan()
                raise
        self._applied = _essence(health)
        # What was removed or went down may be drained from now on.
        self._drain_watcher.stir()
        return generation

    async def _apply_to_workers(
        self,
        config: Config,
        addresses: dict[Key, str],
        secret: bytes,
        tickets: dict[str, bytes],
        health: dict[Key, BackendHealth],
    ) -> int:
        previous = getattr(self, "_plan", None)

        def build() -> tuple[_core.Plan, int]:
            plan = compile_plan(config, addresses, health, secret, previous, self._draining, tickets)
            return plan, self._engine.apply(plan)

        try:
            plan, generation = await trio.to_thread.run_sync(build)
        except OSError as error:
            raise StartError(error.errno, error.strerror, error.filename) from None
        except _core.PlanError as error:
            raise ConfigError([Problem(self._path or "configuration", None, None, "", str(error))]) from None
        self._config, self._addresses, self._secret, self._plan = config, addresses, secret, plan
        self._tickets = tickets
        return generation

    def _retry_plan(self) -> None:
        """Apply what is configured once more, though health has not changed."""
        self._applied = None
        self._swaps.request()

    async def _swap(self) -> None:
        """Health changed: the same configuration, other states."""
        try:
            async with self._applying:
                if _essence(self._health(self._config, self._addresses)) != self._applied:
                    await self._apply(self._config, self._addresses, self._secret)
        except (ConfigError, StartError, _core.EngineError) as error:
            if not self._stopping:
                if str(error) != self._refusal:
                    _log.error("health changed, and the workers did not take it: %s", error)
                self._refusal = str(error)
                await trio.sleep(RETRY)
                self._swaps.request()
        else:
            if self._refusal:
                _log.info("health changed, and the workers have taken it now")
            self._refusal = ""

    async def reload(self, config: Source | None = None) -> ReloadResult:
        """Run another configuration; without one, read the file again.

        Raises ConfigError or StartError, and then nothing has changed. Tunnels that the change does
        not concern go on untouched.
        """
        self._live()
        async with self._reloading:
            self._not_ending()
            try:
                result = await self._reload(config)
            except Exception as error:
                self._last_reload = LastReload(ok=False, at=time.time(), error=str(error) or repr(error))
                raise
            self._last_reload = LastReload(ok=True, at=time.time(), error=None)
            return result

    async def _reload(self, given: Source | None) -> ReloadResult:
        config = await trio.to_thread.run_sync(self._load, given)
        await self._packet.check(config)
        addresses = await resolve(config, self._addresses)
        secret = await trio.to_thread.run_sync(read_secret, config)
        tickets = await trio.to_thread.run_sync(read_ticket_keys, config)
        before, before_secret = self._config, self._secret
        async with self._applying:
            generation = await self._apply(config, addresses, secret, tickets)
            # Nothing is awaited from here on: whoever cancels a reload gets all of it or nothing.
            if isinstance(given, str | os.PathLike):
                self._path = os.fspath(given)
            elif given is not None:
                self._path, self._given = None, given
            self._watch(config, addresses)
            self._draining = self._draining.among(addresses, {one.name for one in config.listeners})
        self._engine.log_connections(self._records is not None and config.log.connections)
        if self._writer is not None:
            self._writer.format = config.log.format
        found = changes(before, config)
        if secret != before_secret:
            found.append("secret changed: clients go to other backends than before")
        return ReloadResult(
            generation=generation,
            changes=found,
            ignored=ignored(before, config),
            warnings=[str(problem) for problem in config.warnings],
        )

    async def reload_and_log(self) -> None:
        """``reload`` where nobody waits for the result (a signal, a changed file): the log gets it."""
        try:
            result = await self.reload()
        except (PybalancerError, _core.EngineError) as error:
            _log.error("not reloaded, the old configuration stays in force: %s", error)
            return
        except Exception:
            # A defect of ours in reading a file must not cost anybody a connection.
            _log.exception("not reloaded, the old configuration stays in force")
            return
        changed = "; ".join(result.changes) or "no change"
        _log.info("reloaded (generation %d): %s", result.generation, changed)
        for key in result.ignored:
            _log.warning("%s takes effect at the next start only", key)
        for warning in result.warnings:
            _log.warning("%s", warning)


def _essence(health: Mapping[Key, BackendHealth]) -> dict[Key, tuple[bool, float]]:
    """As much of the backends' health as a plan is made from."""
    return {key: (known.up, known.ramp) for key, known in health.items()}
