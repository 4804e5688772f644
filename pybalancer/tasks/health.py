"""Asks backends and keeps what is known of each: ``HealthWatcher``."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Collection, Mapping

import trio

from pybalancer.policy.health import BackendHealth, HealthMachine
from pybalancer.policy.settings import Check, Config, HealthSettings, from_config
from pybalancer.tasks.probes import ProbeResult, probe

_log = logging.getLogger("pybalancer")

Key = tuple[str, str]
"""Pool and backend."""

Ask = Callable[[Check, str], Awaitable[ProbeResult]]


class _Watched:
    """One backend: its machine, and the tasks that feed it."""

    def __init__(self, machine: HealthMachine, address: str) -> None:
        self.machine = machine
        self.address = address
        self.scope = trio.CancelScope()
        self.asking = trio.CancelScope()
        """Around the probe under way."""
        self.asked_anew = trio.Event()
        """Set when another time may have come for the next probe."""
        self.changed = trio.Event()
        """Set when something else than time changed what is known."""
        self.running = False
        self.unasked = False
        """Whether the last probe failed for reasons of our own."""
        self.told = machine.health(trio.current_time())
        self.opened = 0
        """How many tunnels to it the workers had opened when they last reported a failure."""


class HealthWatcher:
    """Probes every backend of a configuration, each in a task of its own.

    ``on_change`` is called, synchronously, whenever a plan made now would differ from one made
    before. How often plans are made is the caller's to limit. ``on_load`` is told what a backend says of its
    load, when that changes (None: nothing any more).
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        *,
        on_load: Callable[[Key, float | None], None] = lambda key, load: None,
        ask: Ask = probe,
        way: Callable[[str, Check, str], tuple[Check, str]] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._on_change = on_change
        self._on_load = on_load
        self._ask = ask
        self._way = way
        """From pool, check and address to the check and the address that it asks."""
        self._rng = rng or random.Random()  # noqa: S311  # Spreads probes in time; no secret.
        self._watched: dict[Key, _Watched] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Probe until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for key, watched in self._watched.items():
                    self._start(key, watched)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def update(self, config: Config, addresses: Mapping[Key, str], without: Collection[str] = ()) -> None:
        """Watch the backends of ``config``, ``without`` those of some pools.

        One with the same pool, name and address keeps its history.
        """
        wanted: dict[Key, tuple[HealthSettings, str]] = {}
        for name, pool in config.pools.items():
            if name in without:
                continue
            settings = from_config(pool)
            for backend in pool.backends:
                wanted[name, backend.name] = settings, addresses[name, backend.name]
        for key in list(self._watched):
            if key not in wanted or self._watched[key].address != wanted[key][1]:
                self._watched.pop(key).scope.cancel()
        for key, (settings, address) in wanted.items():
            known = self._watched.get(key)
            if known is None:
                known = _Watched(HealthMachine(settings, trio.current_time()), address)
                self._watched[key] = known
                self._start(key, known)
            elif known.machine.settings != settings:
                known.machine.reconfigure(settings, trio.current_time())
                known.changed.set()
                known.asked_anew.set()
                # It asks something else, or may take too long: its answer would count for nothing.
                known.asking.cancel()

    def passive_failure(self, pool: str, backend: str, count: int, opened: int = 0) -> None:
        """Workers could not connect ``count`` times; ``opened`` tunnels to it they have made so far."""
        watched = self._watched.get((pool, backend))
        if watched is None:
            return
        succeeded, watched.opened = max(0, opened - watched.opened), opened
        was_up = watched.told.up
        watched.machine.passive_failure(count, trio.current_time(), succeeded)
        self._tell((pool, backend), watched)
        if watched.told.up != was_up:
            watched.changed.set()
            if watched.machine.settings.passive:
                watched.asked_anew.set()

    def begin_down(self, down: Mapping[Key, tuple[str, str]]) -> None:
        """These were down, at those addresses and for those reasons, when another process watched them."""
        now = trio.current_time()
        for key, (address, reason) in down.items():
            watched = self._watched.get(key)
            if watched is not None and watched.address == address:
                watched.machine.begin_down(reason, now)
                watched.told = watched.machine.health(now)

    def recheck(self, key: Key) -> None:
        """A backend was restarted: it is down until its check has found it well, which begins now."""
        if (watched := self._watched.get(key)) is None:
            return
        watched.machine.recheck(trio.current_time())
        self._tell(key, watched)
        watched.changed.set()
        watched.asked_anew.set()
        # What it asks was asked of the server before.
        watched.asking.cancel()

    def warm_up(self, key: Key, over: float) -> None:
        """A backend begins with nothing: bring it to its full share over so many seconds."""
        if (watched := self._watched.get(key)) is None:
            return
        watched.machine.warm_up(over, trio.current_time())
        self._tell(key, watched)
        watched.changed.set()

    def snapshot(self) -> dict[Key, BackendHealth]:
        """What is known now."""
        now = trio.current_time()
        return {key: watched.machine.health(now) for key, watched in self._watched.items()}

    def _start(self, key: Key, watched: _Watched) -> None:
        if self._nursery is not None and not watched.running:
            watched.running = True
            self._nursery.start_soon(self._watch, key, watched)

    async def _watch(self, key: Key, watched: _Watched) -> None:
        with watched.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_asking, key, watched)
                nursery.start_soon(self._keep_telling, key, watched)

    async def _keep_asking(self, key: Key, watched: _Watched) -> None:
        machine = watched.machine
        due = machine.next_probe(trio.current_time(), self._rng)
        while True:
            with trio.move_on_at(math.inf if due is None else due):
                await watched.asked_anew.wait()
            began = trio.current_time()
            if not watched.asked_anew.is_set():
                await self._probe(key, watched)
                watched.changed.set()
            if watched.asked_anew.is_set():
                watched.asked_anew = trio.Event()
                began = trio.current_time()
            due = machine.next_probe(began, self._rng)

    async def _keep_telling(self, key: Key, watched: _Watched) -> None:
        """Of answers, and of what time alone changes: the end of a hold, a step of the slow start.

        A task of its own, since a probe may hang for long.
        """
        while True:
            change = watched.machine.next_change(trio.current_time())
            with trio.move_on_at(math.inf if change is None else change):
                await watched.changed.wait()
            watched.changed = trio.Event()
            self._tell(key, watched)

    async def _probe(self, key: Key, watched: _Watched) -> None:
        try:
            with trio.CancelScope() as watched.asking:
                check, address = watched.machine.settings.check, watched.address
                if self._way is not None:
                    check, address = self._way(key[0], check, address)
                result = await self._ask(check, address)
            if watched.asking.cancelled_caught:
                return
        except Exception as error:
            # A defect here must not end the checks of all others.
            _log.exception("a health check failed by itself")
            result = ProbeResult(False, f"the check itself failed: {error}", 0.0)
        if result.ours and not watched.unasked:
            _log.warning("cannot check %s/%s, so it counts as before: %s", *key, result.reason)
        watched.unasked = result.ours
        if not result.ours:
            watched.machine.observe(result.ok, result.reason, trio.current_time(), result.load)

    def _tell(self, key: Key, watched: _Watched) -> None:
        health = watched.machine.health(trio.current_time())
        told, watched.told = watched.told, health
        if told.up != health.up:
            self._log_change(key, health)
        if told.load != health.load:
            self._on_load(key, health.load)
        if not told.same_plan(health):
            self._on_change()

    @staticmethod
    def _log_change(key: Key, health: BackendHealth) -> None:
        level = logging.INFO if health.up else logging.WARNING
        _log.log(level, "%s/%s is %s: %s", *key, "up" if health.up else "down", health.reason)
