"""Carries a roll out: ``conduct`` looks, obeys, and tells what happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

import trio

from pybalancer.errors import PybalancerError, RollError, plain
from pybalancer.policy.roll import ACTIVE, Order, Picture, Roll, Seen

LOOK: Final = 0.25
"""Seconds between two looks at the pool."""

TELL: Final = 2.0
"""Seconds between two words about the progress of a drain."""


MERCY: Final = 2.0
"""Seconds to leave things in order when all of it is broken off."""


class Away(PybalancerError):
    """The balancer does not answer just now: it may be restarting."""


class Pool(Protocol):
    """The pool of a running balancer, from inside of its process or by the admin interface.

    Each may raise Away, and any other PybalancerError if it cannot be done.
    """

    async def picture(self) -> Picture: ...
    async def drain(self, backend: str) -> None: ...
    async def undrain(self, backend: str, *, warm: bool) -> None: ...
    async def recheck(self, backend: str) -> None: ...


class Failed(Exception):
    """What an action raises to say why it failed, in words for people; ``output`` is what it said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


Act = Callable[[str], Awaitable[str]]
"""The action on one backend, by its name; what it said. Raises Failed."""

Tell = Callable[[dict[str, Any]], None]
"""Gets what happens: ``event`` is moved, progress, output, away, back, and ``backend``."""


async def conduct(
    roll: Roll,
    pool: Pool,
    act: Act,
    tell: Tell,
    *,
    keep: Callable[[Mapping[str, str]], None] | None = None,
    patience: float = 60.0,
) -> None:
    """Carry ``roll`` out until it has ended. ``keep`` gets the steps before anything that follows from them.

    A balancer that does not answer is waited for, for ``patience`` seconds; then RollError. Cancelled, it
    takes back what it has only begun to drain, and leaves alone whose action was under way.
    """
    conductor = _Conductor(roll, pool, act, tell, keep, patience)
    ended = False
    try:
        async with trio.open_nursery() as nursery:
            await conductor.run(nursery)
        ended = True
    except BaseExceptionGroup as group:
        only = plain(group)
        raise only from only.__cause__
    finally:
        if not ended:
            with trio.CancelScope(shield=True), trio.move_on_after(MERCY), suppress(PybalancerError):
                await conductor.take_back()


class _Conductor:
    def __init__(
        self,
        roll: Roll,
        pool: Pool,
        act: Act,
        tell: Tell,
        keep: Callable[[Mapping[str, str]], None] | None,
        patience: float,
    ) -> None:
        self.roll = roll
        self.pool = pool
        self.act = act
        self.tell = tell
        self.keep = keep
        self.patience = patience
        self.stirred = trio.Event()
        self.away_since: float | None = None
        self.told: dict[str, float] = {}

    async def run(self, nursery: trio.Nursery) -> None:
        while True:
            await self._turn(nursery)
            if self.roll.outcome != "running":
                return
            with trio.move_on_after(LOOK):
                await self.stirred.wait()
            self.stirred = trio.Event()

    async def _turn(self, nursery: trio.Nursery) -> None:
        try:
            picture = await self.pool.picture()
            now = trio.current_time()
            orders = self.roll.look(picture, now)
            self._note()
            self._progress(picture, now)
            for order in orders:
                await self._obey(order, nursery)
                self._note()
        except Away as error:
            self._wait_for_it(error)
        else:
            if self.away_since is not None:
                self.away_since = None
                self.tell({"event": "back"})

    async def _obey(self, order: Order, nursery: trio.Nursery) -> None:
        try:
            if order.do == "drain":
                await self.pool.drain(order.backend)
            elif order.do == "undrain":
                await self.pool.undrain(order.backend, warm=order.warm)
            elif order.do == "recheck":
                await self.pool.recheck(order.backend)
        except Away:
            raise
        except PybalancerError as error:
            self.roll.refused(order, str(error), trio.current_time())
            return
        self.roll.obeyed(order, trio.current_time())
        if order.do == "act":
            # Kept before it begins: whoever goes on must know that it may have run.
            self._note()
            nursery.start_soon(self._act, order.backend)

    async def _act(self, backend: str) -> None:
        error = None
        try:
            output = await self.act(backend)
        except Failed as failed:
            output, error = failed.output, str(failed)
        if output or error:
            self.tell({"event": "output", "backend": backend, "output": output, "error": error})
        self.roll.acted(backend, trio.current_time(), error)
        self._note()
        self.stirred.set()

    def _note(self) -> None:
        """Keep where everybody is, and tell of what has moved."""
        moves, self.roll.moves = self.roll.moves, []
        if moves and self.keep is not None:
            self.keep(self.roll.steps)
        for move in moves:
            self.tell(
                {"event": "moved", "backend": move.backend, "from": move.old, "to": move.new, "why": move.why}
            )

    def _progress(self, picture: Picture, now: float) -> None:
        for name, step in self.roll.steps.items():
            seen = picture.backends.get(name)
            if step not in ACTIVE or seen is None or now - self.told.get(name, -TELL) < TELL:
                continue
            self.told[name] = now
            self.tell(
                {
                    "event": "progress",
                    "backend": name,
                    "step": step,
                    "tunnels": seen.tunnels,
                    "up": seen.up,
                    "reason": seen.reason,
                }
            )

    def _wait_for_it(self, error: Away) -> None:
        now = trio.current_time()
        if self.away_since is None:
            self.away_since = now
            self.tell({"event": "away", "why": str(error)})
        elif now - self.away_since >= self.patience:
            raise RollError(f"{error}; it has been away for {self.patience:g} s") from error

    async def take_back(self) -> None:
        """Undrain those whose action has not begun."""
        self.roll.interrupt()
        try:
            for order in self.roll.look(await self.pool.picture(), trio.current_time()):
                if order.do == "undrain":
                    await self.pool.undrain(order.backend, warm=order.warm)
                    self.roll.obeyed(order, trio.current_time())
        finally:
            self._note()


def picture_of(status: Mapping[str, Any], pool: str) -> Picture:
    """The pool in a status as JSON has it. Raises RollError if it is not there."""
    found = next((one for one in status["pools"] if one["name"] == pool), None)
    if found is None:
        names = ", ".join(one["name"] for one in status["pools"])
        raise RollError(f"there is no pool {pool!r}; there are: {names}")
    over = {
        part["backend"]: drain["state"] == "done"
        for drain in sorted(status["drains"], key=lambda drain: drain["id"])
        if drain["pool"] == pool and drain["kind"] == "drain"
        for part in drain["parts"]
    }
    return Picture(
        f"{status['pid']} {status['started']}",
        {
            backend["name"]: Seen(
                up=backend["state"] == "up",
                draining=backend["draining"],
                tunnels=backend["active"],
                drained=over.get(backend["name"], False),
                reason=backend["reason"],
                weight=backend["weight"],
            )
            for backend in found["backends"]
        },
    )
