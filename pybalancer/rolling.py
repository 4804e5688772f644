"""A roll inside of the balancer's own process: what ``Balancer.roll`` does."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import trio

from pybalancer.errors import RollError
from pybalancer.policy.roll import Picture, Roll, Settings, turns
from pybalancer.status import RollResult, RollStep
from pybalancer.tasks.commands import Command, CommandError
from pybalancer.tasks.rolls import Failed, Tell, conduct, picture_of

if TYPE_CHECKING:
    from pybalancer.operations import Operations
    from pybalancer.policy.draining import Terms

Action = Callable[[str], Awaitable[object]] | Callable[[str], object] | Command


class _Own:
    """The pool, as ``tasks.rolls.Pool`` wants it."""

    def __init__(
        self, balancer: Operations, pool: str, terms: Terms, slow_start: float, *, force: bool
    ) -> None:
        self._balancer = balancer
        self._pool = pool
        self._terms = terms
        self._slow_start = slow_start
        self._force = force

    async def picture(self) -> Picture:
        return picture_of(self._balancer.status().to_dict(), self._pool)

    async def drain(self, backend: str) -> None:
        terms = self._terms
        await self._balancer.drain(
            pool=self._pool,
            backend=backend,
            over=terms.over,
            deadline=terms.deadline,
            code=terms.code,
            rate=terms.rate,
            force=self._force,
            wait=False,
        )

    async def undrain(self, backend: str, *, warm: bool) -> None:
        slow_start = self._slow_start if warm else None
        await self._balancer.undrain(pool=self._pool, backend=backend, slow_start=slow_start)

    async def recheck(self, backend: str) -> None:
        await self._balancer.recheck(self._pool, backend)


async def roll(
    balancer: Operations,
    pool: str,
    action: Action,
    terms: Terms,
    *,
    backends: Sequence[str],
    max_down: int,
    timeout: float,  # noqa: ASYNC109
    slow_start: float,
    force: bool,
    tell: Tell,
) -> RollResult:
    """See ``Operations.roll``."""
    own = _Own(balancer, pool, terms, slow_start, force=force)
    picture = await own.picture()
    order = turns(picture.backends, backends)
    machine = Roll(
        order, check(pool, order, backends, max_down, timeout, terms, force=force), trio.current_time()
    )
    log = RollLog(tell)
    (found,) = (each for each in balancer.status().pools if each.name == pool)
    addresses = {backend.name: backend.address for backend in found.backends}
    act = acting(action, pool, addresses, timeout)
    try:
        await conduct(machine, own, act, log.tell)
    except RollError as error:
        raise RollError(str(error), log.result(pool, machine, "failed")) from error
    result = log.result(pool, machine, "failed")
    if result.outcome == "failed":
        raise RollError(f"the roll of pool {pool} has stopped: {machine.problem}", result)
    return result


def check(
    pool: str,
    order: Sequence[str],
    wanted: Sequence[str],
    max_down: int,
    timeout: float,
    terms: Terms,
    *,
    force: bool,
) -> Settings:
    """What a roll is asked for. Raises ValueError, RollError."""
    if max_down < 1:
        raise ValueError("max_down is at least 1")
    if not timeout > 0:
        raise ValueError("timeout is a number of seconds above 0")
    if missing := [name for name in wanted if name not in order]:
        raise RollError(f"there is no backend {', '.join(map(repr, missing))} in pool {pool}")
    return Settings(max_down=max_down, timeout=timeout, deadline=terms.deadline, force=force)


class RollLog:
    """What became of each, from the events of a roll."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._why: dict[str, str] = {}
        self._output: dict[str, str] = {}

    def tell(self, event: dict[str, Any]) -> None:
        """Note it, and pass it on."""
        if event["event"] == "moved":
            self._why[event["backend"]] = event["why"]
        elif event["event"] == "output":
            self._output[event["backend"]] = event["output"]
        self._tell(event)

    def result(self, pool: str, machine: Roll, broken: Literal["failed", "interrupted"]) -> RollResult:
        """As it was left. ``broken``: what it is if it was broken off in the middle of a step."""
        steps = [
            RollStep(name, step, self._why.get(name, ""), self._output.get(name, ""))
            for name, step in machine.steps.items()
        ]
        return RollResult(pool, broken if machine.outcome == "running" else machine.outcome, steps)


def acting(
    action: Action, pool: str, addresses: Mapping[str, str], timeout: float
) -> Callable[[str], Awaitable[str]]:
    """The action as ``conduct`` wants it: whatever it raises is its failure, and ends the roll, no more."""

    async def act(name: str) -> str:
        if isinstance(action, Command):
            values = {"name": name, "pool": pool, "address": addresses.get(name, "")}
            try:
                return await action.run(values, timeout)
            except CommandError as error:
                raise Failed(str(error), error.output) from error
        try:
            with trio.fail_after(timeout):
                await _call(action, name)
        except trio.TooSlowError as error:
            raise Failed(f"the action took over {timeout:g} s") from error
        except Exception as error:
            raise Failed(f"the action failed: {str(error) or type(error).__name__}") from error
        return ""

    return act


async def _call(action: Callable[[str], object], name: str) -> None:
    if inspect.iscoroutinefunction(action) or inspect.iscoroutinefunction(getattr(action, "__call__", None)):  # noqa: B004
        await action(name)  # type: ignore[misc]
        return

    def call() -> list[object]:
        # A lambda may give a coroutine; trio would refuse it as the result of a thread.
        return [action(name)]

    # It may block, as subprocess.run does.
    (result,) = await trio.to_thread.run_sync(call, abandon_on_cancel=True)
    if inspect.isawaitable(result):
        await result
