"""A roll: one backend after the other is drained, restarted and taken back. Which, when: ``Roll``.

It looks at pictures of the pool and says what to do next; doing it is somebody else's. Everything is a
function of what was seen and of monotonic seconds that the caller passes in. It holds on to no promise: an
order is given again until it is known to be obeyed, and from the start if another process answers than
before, so a balancer that dies in the middle costs a repetition and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Step = Literal["waiting", "draining", "acting", "checking", "done", "failed", "skipped"]

LEGAL: Final[Mapping[Step, Mapping[Step, str]]] = {
    "waiting": {
        "draining": "its turn has come",
        "skipped": "somebody drained it before, or it has left the pool",
    },
    "draining": {
        "acting": "no tunnel is left, or the deadline has passed",
        "waiting": "the roll stops: it is taken back as it was",
        "failed": "it cannot be drained, or was undrained by somebody",
    },
    "acting": {"checking": "the command has succeeded", "failed": "the command has failed"},
    "checking": {"done": "it is up and taken back", "failed": "it did not come up in time"},
    "done": {},
    "failed": {},
    "skipped": {},
}
"""Every transition there is, and when it happens."""

ACTIVE: Final = ("draining", "acting", "checking")

MARGIN: Final = 5.0
"""Seconds after the deadline of a drain in which what was cut is gone from the books."""


@dataclass(frozen=True, slots=True)
class Settings:
    """``timeout``: for a backend to come up, and for the pool to be fit for the next. ``deadline``: of a
    drain. Both in seconds. ``force``: also the last backend that takes tunnels."""

    max_down: int = 1
    timeout: float = 60.0
    deadline: float = 60.0
    force: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """One backend. ``drained``: its drain is over, whatever is left."""

    up: bool
    draining: bool
    tunnels: int
    drained: bool = False
    reason: str = ""
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Picture:
    """A pool at one moment. ``instance`` tells one balancer process from the next."""

    instance: str
    backends: Mapping[str, Seen]


@dataclass(frozen=True, slots=True)
class Order:
    """Something to be done to a backend. ``undrain`` after an action is ``warm``: it begins with nothing."""

    do: Literal["drain", "act", "recheck", "undrain"]
    backend: str
    warm: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """A transition that has happened."""

    backend: str
    old: Step
    new: Step
    why: str


class IllegalMove(AssertionError):
    """A transition that is not in the table: a defect."""


class _Turn:
    """What is known of one backend's turn."""

    def __init__(self, step: Step, now: float) -> None:
        # How far a command came that was broken off nobody knows, so it is run again.
        self.broken = step in ("acting", "failed")
        self.step: Step = "draining" if self.broken else step
        self.since = now
        self.ordered: set[str] = set()
        """What was obeyed since it came to this step, or since another process took over."""


class Roll:
    """The roll over ``order``. ``steps`` has those of one that was broken off, to go on with."""

    def __init__(
        self,
        order: Sequence[str],
        settings: Settings,
        now: float,
        steps: Mapping[str, Step] | None = None,
    ) -> None:
        self.settings = settings
        self.stopping = False
        self.moves: list[Move] = []
        """Transitions, oldest first, until somebody takes them."""
        self.problem: str | None = None
        """Why it has failed."""
        self._turns = {name: _Turn((steps or {}).get(name, "waiting"), now) for name in order}
        self._fresh = {name for name, turn in self._turns.items() if turn.step == "waiting"}
        """Whose drains cannot be ours yet."""
        self._instance: str | None = None
        self._unfit_since: float | None = None
        self._failed = False

    @property
    def steps(self) -> dict[str, Step]:
        """Where each is."""
        return {name: turn.step for name, turn in self._turns.items()}

    @property
    def outcome(self) -> Literal["running", "done", "failed", "interrupted"]:
        """How it stands, or ended."""
        steps = [turn.step for turn in self._turns.values()]
        if any(step in ACTIVE for step in steps):
            return "running"
        if self._failed:
            return "failed"
        if "waiting" in steps:
            return "interrupted" if self.stopping else "running"
        return "done"

    def interrupt(self) -> None:
        """Begin nothing more: who is being drained is taken back, whose command runs is seen through."""
        self.stopping = True

    def look(self, picture: Picture, now: float) -> list[Order]:
        """What to do now. What is not reported as obeyed is ordered again."""
        if picture.instance != self._instance:
            # Another process knows of no drain of ours, and of no check.
            for turn in self._turns.values():
                turn.ordered.clear()
            self._instance = picture.instance
        orders: list[Order] = []
        for name, turn in self._turns.items():
            seen = picture.backends.get(name)
            if turn.step in ACTIVE:
                orders += self._gone(name, turn, now) if seen is None else self._go_on(name, turn, seen, now)
        self._skip(picture, now)
        if not self.stopping:
            orders += self._begin(picture, now)
        return orders

    def obeyed(self, order: Order, now: float) -> None:
        """An order was carried out; of ``act`` that it has begun."""
        turn = self._turns[order.backend]
        turn.ordered.add(order.do)
        if order.do == "undrain" and turn.step == "checking":
            self._move(order.backend, "done", now)
        elif order.do == "undrain" and turn.step == "draining":
            self._move(order.backend, "waiting", now)
        elif order.do == "act":
            self._move(order.backend, "acting", now)

    def refused(self, order: Order, why: str, now: float) -> None:
        """An order cannot be carried out."""
        self._fail(order.backend, f"cannot {order.do} it: {why}", now)

    def acted(self, name: str, now: float, error: str | None = None) -> None:
        """What ``act`` ordered has ended, with an error or without."""
        if self._turns[name].step == "failed":
            return  # It had failed meanwhile for another reason, and stays so.
        if error is None:
            self._move(name, "checking", now)
        else:
            self._fail(name, error, now)

    def _go_on(self, name: str, turn: _Turn, seen: Seen, now: float) -> Iterable[Order]:
        if turn.step == "draining" and self.stopping:
            if not turn.broken:
                return [Order("undrain", name)]
            self._fail(name, "its command had not ended well before", now)
            return []
        if "drain" not in turn.ordered:
            # Also in the later steps, if another process took over: it must not get tunnels yet.
            if not seen.draining or turn.step == "draining":
                return [Order("drain", name)]
            turn.ordered.add("drain")
        elif not seen.draining and turn.step != "acting":
            self._fail(name, "it was undrained by somebody", now)
            return []
        if turn.step == "draining":
            late = now - turn.since >= self.settings.deadline + MARGIN
            return [Order("act", name)] if not seen.tunnels or seen.drained or late else []
        if turn.step == "checking":
            if "recheck" not in turn.ordered:
                return [Order("recheck", name)]
            if seen.up:
                return [Order("undrain", name, warm=True)]
            if now - turn.since >= self.settings.timeout:
                why = f": {seen.reason}" if seen.reason else ""
                self._fail(name, f"it did not come up within {self.settings.timeout:g} s{why}", now)
        return []

    def _gone(self, name: str, turn: _Turn, now: float) -> Iterable[Order]:
        # What runs is seen through: it will be told by `acted`.
        if turn.step != "acting":
            self._fail(name, "it has left the pool", now)
        return []

    def _skip(self, picture: Picture, now: float) -> None:
        for name, turn in self._turns.items():
            seen = picture.backends.get(name)
            if turn.step == "waiting" and seen is None:
                self._move(name, "skipped", now, "it has left the pool")
            elif turn.step == "waiting" and name in self._fresh and seen is not None and seen.draining:
                self._move(name, "skipped", now, "it is drained already, so it is left alone")

    def _begin(self, picture: Picture, now: float) -> list[Order]:
        """The next ones, as many as may be down at once."""
        orders: list[Order] = []
        while True:
            active = [name for name, turn in self._turns.items() if turn.step in ACTIVE]
            waiting = [name for name, turn in self._turns.items() if turn.step == "waiting"]
            if not waiting or len(active) >= self.settings.max_down:
                self._unfit_since = None
                return orders
            # Whoever is down costs nobody anything, and may be cured by it.
            name = min(waiting, key=lambda each: picture.backends[each].up)
            if (why := self._unfit(name, active, picture)) is not None:
                if self._unfit_since is None:
                    self._unfit_since = now
                if now - self._unfit_since >= self.settings.timeout and not active:
                    self._failed = self.stopping = True
                    self.problem = f"not begun with {name}: {why}"
                return orders
            self._unfit_since = None
            self._fresh.discard(name)
            self._move(name, "draining", now)
            orders.append(Order("drain", name))

    def _unfit(self, name: str, active: Sequence[str], picture: Picture) -> str | None:
        """Why the pool cannot do without this one now."""
        if not picture.backends[name].up:
            return None
        others = {each: seen for each, seen in picture.backends.items() if each not in (name, *active)}
        down = [each for each in others if self._step(each) == "done" and not others[each].up]
        if down:
            return f"{', '.join(down)} went down after the restart: {others[down[0]].reason}"
        taking = any(seen.up and not seen.draining and seen.weight for seen in others.values())
        if not taking and not self.settings.force:
            return f"no other backend than {name} takes tunnels"
        return None

    def _step(self, name: str) -> Step | None:
        turn = self._turns.get(name)
        return turn.step if turn is not None else None

    def _fail(self, name: str, why: str, now: float) -> None:
        self._failed = self.stopping = True
        self.problem = self.problem or f"{name}: {why}"
        self._move(name, "failed", now, why)

    def _move(self, name: str, new: Step, now: float, why: str = "") -> None:
        turn = self._turns[name]
        if new not in LEGAL[turn.step]:
            raise IllegalMove(f"{name}: {turn.step} → {new}")
        self.moves.append(Move(name, turn.step, new, why or LEGAL[turn.step][new]))
        turn.step, turn.since = new, now
        # What holds for the drain holds until it is undrained.
        turn.ordered &= {"drain"} if new in ACTIVE else set()


def turns(backends: Mapping[str, Seen], only: Sequence[str] = ()) -> list[str]:
    """In which order: those that are down first, then as the pool has them."""
    chosen = [name for name in backends if not only or name in only]
    return sorted(chosen, key=lambda name: backends[name].up)
