"""What an operator does to a running balancer: drain, undrain, shed, roll, diff. A part of ``Balancer``."""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import trio

from pybalancer import _core, targets
from pybalancer.config.compile import drain_rate, resolve
from pybalancer.config.model import Config, PoolConfig
from pybalancer.config.secret import SECRETS, read_secret, secret_digest, ticket_digest
from pybalancer.errors import DrainError, PybalancerError
from pybalancer.packet.part import PacketPart, no_drain
from pybalancer.policy import rebalance
from pybalancer.policy.draining import Draining, Terms, shortfall, terms_of
from pybalancer.status import DrainResult, DrainStatus, RollResult, ShedResult, Status, drain_status, drains
from pybalancer.targets import Target
from pybalancer.tasks.drains import DrainWatcher

if TYPE_CHECKING:
    from pybalancer.diff import Diff
    from pybalancer.policy.health import BackendHealth
    from pybalancer.stats.reader import Stats
    from pybalancer.tasks.commands import Command
    from pybalancer.tasks.health import HealthWatcher

Key = tuple[str, str]
"""Pool and backend."""

LOOK: Final = 0.1
"""Seconds between two looks at a drain that somebody waits for."""

COLD_START: Final = 10.0
"""Seconds in which a backend is brought to its full share after a roll, where its pool has no slow_start:
it comes back empty, and by least-connections alone it would get every new tunnel there is."""

_log = logging.getLogger("pybalancer")


class Operations(PacketPart):
    """Needs what ``Balancer`` has: a plan that runs, health, statistics."""

    _config: Config
    _addresses: dict[Key, str]
    _secret: bytes
    _plan: _core.Plan
    _stats: Stats
    _watcher: HealthWatcher
    _applying: trio.Lock
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._draining = Draining()
        self._drain_watcher = DrainWatcher(self._drains)

    def _live(self) -> _core.Engine:
        raise NotImplementedError

    async def _apply(self, config: Config, addresses: dict[Key, str], secret: bytes) -> int:
        raise NotImplementedError

    def _health(self, config: Config, addresses: Mapping[Key, str]) -> dict[Key, BackendHealth]:
        raise NotImplementedError

    def _load(self, config: Any) -> Config:
        raise NotImplementedError

    def status(self) -> Status:
        raise NotImplementedError

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """What is done in here is done to what runs; a process that takes over goes on with all of it.

        Raises PybalancerError where it is ending: what was said to be done would end with it.
        """
        async with self._applying:
            self._not_ending()
            try:
                yield
            except _core.EngineError:
                self._not_ending()
                raise

    def _not_ending(self) -> None:
        if self._stopping:
            raise PybalancerError("this balancer is ending: nothing can be changed any more")

    def _drains(self) -> list[DrainStatus]:
        try:
            return drains(self._live())
        except _core.EngineError:
            return []  # It has been closed meanwhile.

    # Drain.

    async def drain(
        self,
        name: str | None = None,
        *,
        pool: str | None = None,
        backend: str | None = None,
        listener: str | None = None,
        everything: bool = False,
        over: float | None = None,
        deadline: float | None = None,
        code: int | None = None,
        rate: float | None = None,
        force: bool = False,
        wait: bool = True,
    ) -> DrainResult:
        """Give it no new tunnels, and close its live ones over a time; returns when that has ended.

        ``name`` is that of a backend, pool or listener, ``"pool/backend"`` where there are several; or say
        it by the keywords. Over ``over`` seconds its tunnels are told to go, at most ``rate`` per second
        (0: any number), and what is left after ``deadline`` seconds is cut; by default as its pool says.
        It stays drained until ``undrain``. Without ``wait``, or cancelled, it goes on by itself.

        One that is being drained already is waited for, or goes by the new terms if there are any.

        Raises TargetError, ValueError, and DrainError where nobody would be left to take the pool's
        tunnels (``force``: then clients get 503).
        """
        engine = self._live()
        given = {"over": over, "deadline": deadline, "code": code, "rate": rate}
        named = {"pool": pool, "backend": backend, "listener": listener}
        async with self._changing():
            target = targets.choose(self._config, name, everything=everything, **named)
            backends = target.backends(self._config)
            terms = self._terms(target, given)
            warnings = self._warnings(target, terms, force=force)
            running = [each for each in self._drains() if _is(each, target, backends)]
            self._refuse_packets(target)
            wanted = self._draining.with_(backends, target.listeners(self._config))
            if wanted != self._draining:
                await self._set_draining(wanted)
            if self._only_packets(target):
                # The workers know nothing of it: what stands ends when clients end it.
                return DrainResult(str(target), [no_drain(target, terms)], warnings)
            if running and all(value is None for value in given.values()):
                number = running[-1].id
            else:
                for each in running:
                    engine.cancel_drain(each.id)
                number = self._begin(target, terms)
        self._drain_watcher.stir()
        status = await self._wait(number) if wait else self._drain(number)
        return DrainResult(str(target), [status], warnings)

    async def undrain(
        self,
        name: str | None = None,
        *,
        pool: str | None = None,
        backend: str | None = None,
        listener: str | None = None,
        everything: bool = False,
        slow_start: float | None = None,
    ) -> DrainResult:
        """Take it back: its drain stops at once, and it gets new tunnels again. Named as for ``drain``.

        A shed of its pool stops, too, whole: what is surplus changes with it.

        A backend whose drain had ended is brought to its share over ``slow_start`` seconds, by default
        those of its pool; it has nothing, so it would get everything.
        """
        engine = self._live()
        if slow_start is not None and slow_start < 0:
            raise ValueError("slow_start is a number of seconds from 0")
        named = {"pool": pool, "backend": backend, "listener": listener}
        async with self._changing():
            target = targets.choose(self._config, name, everything=everything, **named)
            keys = set(self._draining.backends if target.everything else target.backends(self._config))
            stopped = [each for each in self._drains() if _concerns(each, target)]
            for each in stopped:
                engine.cancel_drain(each.id)
                if each.kind != "shed":
                    self._go_on_with_others(each, target)
            before = self._draining
            after = before.without(keys, target.listeners(self._config))
            drains = [each for each in stopped if each.kind != "shed"]
            under_way = {(each.pool, part.backend) for each in drains for part in each.parts}
            for key in keys & before.backends:
                seconds = self._config.pools[key[0]].slow_start if slow_start is None else slow_start
                if slow_start is not None or (seconds and key not in under_way):
                    self._watcher.warm_up(key, seconds)
            if after != before:
                await self._set_draining(after)
        self._drain_watcher.stir()
        warnings = [] if after != before or stopped else [f"{target} was not drained"]
        health = self._health(self._config, self._addresses)
        if down := [
            name for pool, name in sorted(keys) if (pool, name) in health and not health[pool, name].up
        ]:
            warnings.append(f"down, so it takes no tunnels yet: {', '.join(down)}")
        others = after.listeners and not target.listener and not target.everything
        if others:
            warnings.append(f"still drained: listener {', '.join(sorted(after.listeners))}")
        return DrainResult(str(target), [self._drain(each.id) for each in stopped], warnings)

    def _terms(self, target: Target, given: Mapping[str, Any]) -> Terms:
        config = self._config
        if target.pool is not None:
            section = config.pools[target.pool].drain
            rate = drain_rate(config, target.pool)
            return terms_of(Terms(section.over, section.deadline, section.code, rate), **given)
        # Several pools, perhaps: the most patient of them says how long, the most cautious how fast.
        met = [each for each in config.listeners if target.listener in (None, each.name)]
        led = {pool for each in met for pool in (each.pool, *(route.pool for route in each.routes)) if pool}
        sections = [config.pools[pool].drain for pool in led]
        codes = {section.code for section in sections}
        rates = [each.handshakes for each in met if each.handshakes]
        rates += [section.rate for section in sections if section.rate]
        default = Terms(
            max(section.over for section in sections),
            max(section.deadline for section in sections),
            codes.pop() if len(codes) == 1 else 1012,
            min(rates, default=0.0),
        )
        return terms_of(default, **given)

    def _warnings(self, target: Target, terms: Terms, *, force: bool) -> list[str]:
        """What an operator must hear before it is too late. Raises DrainError for what rather not."""
        warnings = []
        if target.pool is not None:
            left = self._taking(target.pool)
            mine = {name for _, name in target.backends(self._config)}
            if left and not left - mine:
                why = f"no other backend of pool {target.pool} takes new tunnels: clients get 503"
                if target.backend is not None and not force:
                    raise DrainError(f"{target} is not drained: {why}; force it if that is meant")
                warnings.append(why)
        warnings += self._packet_warnings(target)
        short = shortfall(self._tunnels(target), over=terms.over, deadline=terms.deadline, rate=terms.rate)
        return warnings + ([short] if short else [])

    def _taking(self, pool: str) -> set[str]:
        """Backends of a pool that get new tunnels now."""
        health = self._health(self._config, self._addresses)
        return {
            backend.name
            for backend in self._config.pools[pool].backends
            if backend.weight
            and health[pool, backend.name].up
            and (pool, backend.name) not in self._draining.backends
        }

    def _tunnels(self, target: Target) -> int:
        if target.everything:
            return self._live().active()
        where = target.backends(self._config) or [("", name) for name in target.listeners(self._config)]
        return sum(self._active(pool, name) for pool, name in where)

    def _active(self, pool: str, name: str) -> int:
        try:
            return self._stats.active(pool, name)
        except KeyError:
            return 0  # The workers run a newer plan already, without it.

    async def _set_draining(self, wanted: Draining) -> None:
        before, self._draining = self._draining, wanted
        try:
            await self._apply(self._config, self._addresses, self._secret)
        except BaseException:
            self._draining = before
            raise

    def _begin(self, target: Target, terms: Terms, backends: Sequence[str] | None = None) -> int:
        names = [target.backend] if target.backend is not None else backends
        try:
            return self._live().drain(
                pool=target.pool,
                backends=names,
                listener=target.listener,
                over=terms.over,
                deadline=terms.deadline,
                code=terms.code,
                rate=terms.rate,
            )
        except (_core.PlanError, LookupError) as error:
            raise DrainError(str(error)) from error

    def _go_on_with_others(self, drain: DrainStatus, target: Target) -> None:
        """Of a drain that was stopped for a part of what it was about."""
        terms = Terms(
            max(0.0, drain.over_seconds - drain.age_seconds),
            max(0.0, drain.deadline_seconds - drain.age_seconds),
            drain.code,
            drain.rate,
        )
        if target.backend is not None:
            # A reload may have removed one of them meanwhile.
            known = {name for _, name in Target(pool=drain.pool).backends(self._config)} - {target.backend}
            others = [part.backend for part in drain.parts if part.backend in known]
            if others:
                self._begin(Target(pool=drain.pool), terms, others)
        elif target.listener is not None and drain.listener is None:
            for name in sorted(self._draining.listeners - {target.listener}):
                self._begin(Target(listener=name), terms)

    def _drain(self, number: int, last: DrainStatus | None = None) -> DrainStatus:
        """How a drain stands, or stood when it was last seen: those that are long over are forgotten."""
        for each in self._live().drains():
            if each.id == number:
                return drain_status(each)
        if last is None:
            raise DrainError("the drain was forgotten before it was looked at")
        return replace(last, state="done")

    async def _wait(self, number: int) -> DrainStatus:
        status = self._drain(number)
        while status.state == "running":
            await trio.sleep(LOOK)
            status = self._drain(number, status)
        return status

    async def recheck(self, pool: str, backend: str) -> None:
        """This backend was restarted: forget what its check has found, and ask anew.

        It is down until ``rise`` checks have found it well; without a check, until a connect succeeds.
        """
        self._live()
        async with self._changing():
            target = targets.choose(self._config, pool=pool, backend=backend)
            for key in target.backends(self._config):
                self._watcher.recheck(key)

    # Shed.

    async def shed(
        self,
        pool: str,
        to_skew: float = 1.05,
        *,
        rate: float | None = None,
        code: int | None = None,
        dry_run: bool = False,
        wait: bool = True,
    ) -> ShedResult:
        """Close the surplus of the fullest backends, so that their clients come back where there is room.

        What a backend has above ``to_skew`` times its fair share is surplus. In a pool that hashes only
        those are closed that the table would place elsewhere now. At most ``rate`` per second go: by
        default as the pool's ``rebalance`` or ``drain`` says, else as many as end within its drain time.
        ``dry_run`` counts only. A shed of this pool that is under way gives way to a new one.

        Raises TargetError, ValueError, and DrainError for a sticky pool, whose clients come back to the
        backend that they had.
        """
        if not to_skew >= 1:
            raise ValueError(f"a skew is a number from 1, not {to_skew}")
        self._live()
        async with self._changing():
            target = targets.choose(self._config, pool=pool)
            section = self._config.pools[pool]
            if section.key == "sticky":
                why = "clients would come back to the backend that they had"
                raise DrainError(f"pool {pool} is sticky: {why}")
            loads = self.loads(pool)
            surplus = rebalance.surpluses(loads, to_skew, _core.surplus)
            skew = rebalance.skew(loads)
            if not dry_run:
                for each in self._drains():
                    if each.state == "running" and each.kind == "shed" and each.pool == pool:
                        self._live().cancel_drain(each.id)
            if not surplus:
                return ShedResult(pool, dry_run, skew, to_skew, {}, None, [])
            number = self._begin_shed(pool, surplus, rate, code, dry_run=dry_run)
        self._drain_watcher.stir()
        status = await self._wait(number) if wait or dry_run else self._drain(number)
        return ShedResult(pool, dry_run, skew, to_skew, surplus, status, self._shed_warnings(target))

    def _begin_shed(
        self, pool: str, surplus: Mapping[str, int], rate: float | None, code: int | None, *, dry_run: bool
    ) -> int:
        section = self._config.pools[pool]
        if rate is None:
            rate = section.rebalance.rate if section.rebalance else drain_rate(self._config, pool)
            # Never all at once: without any bound they are spread as a drain would be.
            rate = rate or max(1.0, sum(surplus.values()) / max(section.drain.over, 1.0))
        terms = Terms(0.0, 0.0, section.drain.code if code is None else code, rate)
        try:
            return self._live().shed(
                pool, list(surplus.items()), rate=terms.rate, code=terms.code, dry_run=dry_run
            )
        except (_core.PlanError, LookupError) as error:
            raise DrainError(str(error)) from error

    def _shed_warnings(self, target: Target) -> list[str]:
        health = self._health(self._config, self._addresses)
        cold = [name for pool, name in target.backends(self._config) if health[pool, name].ramp < 1]
        if not cold:
            return []
        return [f"in slow start, so it takes a part of its share only: {', '.join(cold)}"]

    def loads(self, pool: str) -> dict[str, rebalance.Load]:
        """Of the backends that take new tunnels: the others lose theirs in other ways."""
        taking = self._taking(pool)
        return {
            backend.name: rebalance.Load(self._active(pool, backend.name), backend.weight)
            for backend in self._config.pools[pool].backends
            if backend.name in taking
        }

    def busy(self, pool: str) -> bool:
        """Whether something else than load moves the tunnels of a pool."""
        if any(each.state == "running" and each.pool in (None, pool) for each in self._drains()):
            return True
        if self._draining.listeners or any(key[0] == pool for key in self._draining.backends):
            return True
        known, effective = self._watcher.snapshot(), self._health(self._config, self._addresses)
        return any(
            state.ramp < 1 or (key in known and state.up != known[key].up)
            for key, state in effective.items()
            if key[0] == pool
        )

    # Roll.

    async def roll(
        self,
        pool: str,
        action: Callable[[str], Awaitable[object]] | Callable[[str], object] | Command,
        *,
        backends: Sequence[str] = (),
        max_down: int = 1,
        timeout: float = 60.0,  # noqa: ASYNC109 - of each action and check, not of the call
        over: float | None = None,
        deadline: float | None = None,
        code: int | None = None,
        rate: float | None = None,
        slow_start: float | None = None,
        force: bool = False,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> RollResult:
        """Restart a pool without a ripple: drain each backend, await ``action(name)``, take it back.

        ``action`` is a function, async or not (then it runs in a thread), or a ``Command``; it has
        ``timeout`` seconds, and the backend as many to come up again by its check (without one: to take a
        connect). ``max_down`` may be away at once; ``backends`` names those to roll, in any order, else
        all are. Those that are down come first. Each begins again with slow start. A failure stops the
        roll: the one that failed stays drained, the rest is untouched.

        Raises RollError with the result if it fails; cancelled, it takes back whom it had only begun to
        drain, and leaves alone whose action was under way.
        """
        from pybalancer.rolling import roll

        self._live()
        targets.choose(self._config, pool=pool)
        self._refuse_roll_of_packets(pool)
        terms = self._terms(
            Target(pool=pool), {"over": over, "deadline": deadline, "code": code, "rate": rate}
        )
        return await roll(
            self,
            pool,
            action,
            terms,
            backends=backends,
            max_down=max_down,
            timeout=timeout,
            slow_start=self._cold_start(pool) if slow_start is None else slow_start,
            force=force,
            tell=on_event or (lambda _event: None),
        )

    def _cold_start(self, pool: str) -> float:
        return self._config.pools[pool].slow_start or COLD_START

    # Diff.

    async def diff(self, config: Config | Mapping[str, Any] | str | os.PathLike[str]) -> Diff:
        """What a reload with ``config`` would change: nothing is changed by asking.

        Raises ConfigError.
        """
        self._live()
        wanted = await trio.to_thread.run_sync(self._load, config)
        secret = await trio.to_thread.run_sync(read_secret, wanted)
        return await self._differ(wanted, secret)

    async def diff_without_secrets(self, config: Mapping[str, Any], digest: str | None) -> Diff:
        """The same of what a command has read: stand-ins are in the place of secrets.

        ``digest`` is ``secret_digest`` of the secret that it would run with; None: unknown, so as now.
        """
        self._live()
        wanted = await trio.to_thread.run_sync(self._load, config)
        ours = {key: getattr(self._config.balancer, key) for key in SECRETS}
        pools = {name: self._with_our_ticket_secret(name, pool) for name, pool in wanted.pools.items()}
        wanted = wanted.model_copy(
            update={"balancer": wanted.balancer.model_copy(update=ours), "pools": pools}
        )
        same = digest is None or hmac.compare_digest(digest, secret_digest(self._secret))
        # With any other secret as many keys move.
        return await self._differ(wanted, self._secret if same else os.urandom(16))

    def _with_our_ticket_secret(self, name: str, wanted: PoolConfig) -> PoolConfig:
        """With the one that runs, if the digest in its place is that one's."""
        mine = self._config.pools[name].direct.ticket_secret if name in self._config.pools else None
        given = wanted.direct.ticket_secret
        if mine is None or given is None:
            return wanted
        if not hmac.compare_digest(given.get_secret_value(), ticket_digest(mine.get_secret_value())):
            return wanted
        return wanted.model_copy(update={"direct": wanted.direct.model_copy(update={"ticket_secret": mine})})

    async def _differ(self, wanted: Config, secret: bytes) -> Diff:
        from pybalancer.diff import difference

        addresses = await resolve(wanted, self._addresses)
        health = self._health(wanted, addresses)
        active = {
            (pool, backend.name): self._active(pool, backend.name)
            for pool, section in self._config.pools.items()
            for backend in section.backends
        }
        active |= {
            ("", listener.name): self._active("", listener.name) for listener in self._config.listeners
        }
        return await trio.to_thread.run_sync(
            lambda: difference(
                self._config,
                wanted,
                self._addresses,
                addresses,
                plan=self._plan,
                secret=secret,
                same_secret=secret == self._secret,
                health=health,
                draining=self._draining,
                active=active,
            )
        )

    # Hand-over.

    def snapshot(self) -> dict[str, Any]:
        """What is drained, and how far that is, as JSON has it: for a process that takes over."""
        running = [each.to_dict() for each in self._drains() if each.state == "running"]
        return {**self._draining.snapshot(), "drains": [each for each in running if each["kind"] == "drain"]}

    def restore(self, given: Mapping[str, Any]) -> None:
        """Take over what ``snapshot`` gave, before the block is entered. Raises ValueError."""
        self._draining = Draining.restore(given)
        self._restored = list(given.get("drains", ()))

    _restored: Sequence[Mapping[str, Any]] = ()

    def _resume_drains(self) -> None:
        """Go on with the drains that were restored, as soon as a plan runs."""
        for each in self._restored:
            age = each["age_seconds"]
            names = [part["backend"] for part in each["parts"] if part["backend"]]
            target = Target(pool=each["pool"], listener=each["listener"])
            terms = Terms(
                max(0.0, each["over_seconds"] - age),
                max(0.0, each["deadline_seconds"] - age),
                each["code"],
                each["rate"],
            )
            try:
                self._begin(target, terms, names or None)
            except DrainError as error:
                _log.warning("a drain of the process before is not gone on with: %s", error)
        self._restored = ()


def _is(drain: DrainStatus, target: Target, backends: Sequence[Key]) -> bool:
    """Whether it is a drain of just this, and runs."""
    if drain.state != "running" or drain.kind != "drain":
        return False
    names = {part.backend for part in drain.parts if part.backend}
    same = (drain.pool, drain.listener) == (target.pool, target.listener)
    return same and names == {name for _, name in backends}


def _concerns(drain: DrainStatus, target: Target) -> bool:
    """Whether it runs, and undraining this stops it or a part of it."""
    if drain.state != "running" or drain.kind not in ("drain", "down", "shed"):
        return False
    if target.everything:
        return True
    if target.listener is not None:
        return drain.listener == target.listener or (drain.listener is None and drain.pool is None)
    names = {part.backend for part in drain.parts}
    whole = target.backend is None or drain.kind == "shed"
    return drain.pool == target.pool and (whole or target.backend in names)
