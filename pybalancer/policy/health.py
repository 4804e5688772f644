"""When a backend counts as up, and how much of its share it gets.

Everything here is a function of what was observed and of monotonic seconds that the caller passes in: no
clock is read, so a wall clock that jumps changes nothing, and tests need not wait.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from pybalancer.policy.damping import FlapDamping
from pybalancer.policy.settings import PASSIVE_WINDOW, HealthSettings

RAMP_STEPS: Final = 9
"""Steps from a tenth to all of a backend's share. Each is a new plan, so there are few."""

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """What is known of a backend. ``since`` is when it last went up or down (monotonic seconds).

    ``ramp`` in (0, 1] is the share of its keys that it gets (1 except during slow start). ``held`` means
    down because it flapped, though it may answer just now. ``reason`` is for people. ``load`` is what it
    last said of itself (0 idle, 1 full), which plans do not know of: it may change with every probe.
    """

    up: bool
    ramp: float
    reason: str
    since: float
    held: bool = False
    load: float | None = None

    def same_plan(self, other: BackendHealth) -> bool:
        """Whether a plan made from one would equal a plan made from the other."""
        return (self.up, self.ramp, self.held) == (other.up, other.ramp, other.held)


def unknown(now: float) -> BackendHealth:
    """Of a backend that was never asked. It is up: at the start, asking takes longer than trying."""
    return BackendHealth(True, 1.0, "not checked yet", now)


class HealthMachine:
    """One backend between up and down. It starts up, as ``unknown`` ones are.

    ====  =======================================================  =====================================
    from  on                                                       to
    ====  =======================================================  =====================================
    up    ``fall`` failed probes in a row                          down, or held if it flapped lately
    up    ``fall`` failed connects in 10 s, no success in between  the same
    down  ``rise`` good probes in a row                            up, ramping over ``slow_start``
    held  its time is over, ``rise`` good probes before            up, ramping over ``slow_start``
    held  its time is over otherwise                               down
    any   it was restarted on purpose                              down, without a mark for flapping
    ====  =======================================================  =====================================
    """

    __slots__ = (
        "_asked",
        "_bad",
        "_connects",
        "_damping",
        "_good",
        "_held_for",
        "_held_until",
        "_hurry",
        "_load",
        "_next_ramp",
        "_ramp_from",
        "_ramp_over",
        "_ramp_step",
        "_said",
        "_since",
        "_up",
        "settings",
    )

    def __init__(self, settings: HealthSettings, now: float) -> None:
        self.settings = settings
        self._up = True
        self._since = now
        self._said = unknown(now).reason
        self._asked = False
        self._good = 0
        self._bad = 0
        # Shorter than `fall`: that many bring it down, and it comes back by good probes, which clear it.
        self._connects: deque[tuple[float, int]] = deque()
        self._damping = FlapDamping()
        self._held_for = 0.0
        self._held_until: float | None = None
        self._ramp_from: float | None = None  # When it was at _ramp_step; None: it is over.
        self._ramp_step = 0
        self._ramp_over = settings.slow_start
        """Seconds that the ramp under way takes."""
        self._next_ramp: float | None = None
        """The same of the one that begins when it comes up; None: as the settings say."""
        self._hurry = False
        """Whether the next probe is to come at once."""
        self._load: float | None = None

    def begin_down(self, reason: str, now: float) -> None:
        """It was down when another process watched it. Good probes bring it up, as ever."""
        self._up = False
        self._since = now
        self._said = reason

    def observe(self, ok: bool, reason: str, now: float, load: float | None = None) -> None:
        """A probe ended, with what the backend said of its load."""
        self._settle(now)
        self._said = reason
        self._load = load if ok else None
        if ok:
            self._good += 1
            self._bad = 0
            self._connects.clear()
            if not self._up and self._held_until is None and self._good >= self.settings.rise:
                self._rise(now)
        else:
            self._good = 0
            self._bad += 1
            if self._up and self._bad >= self.settings.fall:
                self._fall(now)

    def passive_failure(self, count: int, now: float, succeeded: int = 0) -> None:
        """Workers failed to connect ``count`` times, and ``succeeded`` times not, since the last report."""
        self._settle(now)
        self._good = 0
        if not self._up:
            return  # Dials that began before it went down; probes decide when it comes back.
        while self._connects and now - self._connects[0][0] > PASSIVE_WINDOW:
            self._connects.popleft()
        if succeeded:
            # In which order they came within the report is not known.
            self._connects.clear()
            if succeeded > count:
                # A server at its limit turns some away and serves the rest: to take it out would push
                # all of its load to others, who are no better off. If it died, the next report says so.
                count = min(count, max(1, self.settings.fall - 1))
        self._connects.append((now, count))
        failed = sum(failures for _, failures in self._connects)
        if failed >= self.settings.fall:
            times = "a connect" if failed == 1 else f"{failed} connects"
            self._said = f"{times} failed within {PASSIVE_WINDOW:g}s"
            self._fall(now)

    def reconfigure(self, settings: HealthSettings, now: float) -> None:
        """Go on under other settings. The verdict stands until the new check has made its own."""
        if settings == self.settings:
            return
        self._settle(now)
        if self._ramp_from is not None:
            # It goes on from where it is: a reload takes no keys away from a backend that has them.
            self._ramp_step, self._ramp_from = self._step(now), now
        if self._ramp_over == self.settings.slow_start:
            self._ramp_over = settings.slow_start
        self.settings = settings
        self._good = self._bad = 0
        self._connects.clear()
        self._asked = False

    def recheck(self, now: float) -> None:
        """It was restarted: what was known counts for nothing, and ``rise`` good probes bring it up.

        Of a passive check these are connects. Nothing is held against it: it fell because it was told to.
        """
        self._up = False
        self._since = now
        self._said = "restarted, not checked yet"
        self._good = self._bad = 0
        self._connects.clear()
        self._ramp_from = self._held_until = None
        self._hurry = True

    def warm_up(self, over: float, now: float) -> None:
        """It has nothing, as after a drain: bring it to its full share over so many seconds, from now on,
        or from when it comes up."""
        self._settle(now)
        if not self._up:
            self._next_ramp = over
            return
        self._ramp_from, self._ramp_step, self._ramp_over = (now if over else None), 0, over

    def health(self, now: float) -> BackendHealth:
        self._settle(now)
        held = self._held_until is not None
        return BackendHealth(self._up, self._ramp(now), self._reason(), self._since, held, self._load)

    def next_probe(self, after: float, rng: random.Random) -> float | None:
        """When to probe next, given when the last probe began; None while nothing is to be asked.

        The first one under these settings comes soon, within the jitter, so that a thousand backends are
        not asked in the same instant: ``after`` is the present for it, and for a passive check, too.
        """
        settings = self.settings
        if settings.passive and self._up:
            return None
        spread = settings.interval * settings.jitter
        if self._hurry:
            self._hurry = False
            return after
        if not self._asked and not settings.passive:
            self._asked = True
            return after + spread * rng.random()
        return after + settings.interval + spread * rng.uniform(-1.0, 1.0)

    def next_change(self, now: float) -> float | None:
        """When ``health`` will change by the passing of time alone; None if it will not."""
        self._settle(now)
        if self._held_until is not None:
            return self._held_until
        if self._ramp_from is None:
            return None
        return self._time_of(self._ramp_from, self._step(now) + 1)

    def _settle(self, now: float) -> None:
        """End a hold or a ramp whose time is over, as of the moment when it was over."""
        if self._held_until is not None and now >= self._held_until:
            ended, self._held_until = self._held_until, None
            if self._good >= self.settings.rise:
                self._rise(ended)
        if self._ramp_from is not None and now >= self._time_of(self._ramp_from, RAMP_STEPS):
            # Forgotten, so that a longer slow_start in the next reload does not begin it again.
            self._ramp_from = None

    def _rise(self, now: float) -> None:
        self._up = True
        self._since = now
        over = self.settings.slow_start if self._next_ramp is None else self._next_ramp
        self._ramp_over, self._next_ramp = over, None
        self._ramp_from = now if over else None
        self._ramp_step = 0

    def _fall(self, now: float) -> None:
        self._up = False
        self._since = now
        self._ramp_from = None
        self._held_for = self._damping.fell(now)
        self._held_until = now + self._held_for if self._held_for else None

    def _step(self, now: float) -> int:
        """How far the ramp is: 0 to RAMP_STEPS."""
        began = self._ramp_from
        if began is None:
            return RAMP_STEPS
        # Compared with the very numbers that next_change gives: who wakes at such a time finds the step
        # taken. A quotient would differ by a rounding error, and have him wake again and again.
        step = self._ramp_step
        while step < RAMP_STEPS and self._time_of(began, step + 1) <= now:
            step += 1
        return step

    def _time_of(self, began: float, step: int) -> float:
        return began + (step - self._ramp_step) * self._ramp_over / RAMP_STEPS

    def _ramp(self, now: float) -> float:
        return (1 + self._step(now)) / (1 + RAMP_STEPS)

    def _reason(self) -> str:
        settings = self.settings
        if self._held_until is not None:
            return f"{self._said} (flapping: held down for {self._held_for:.3g}s)"
        if self._up and self._bad:
            return f"{self._said} ({self._bad} of {settings.fall} failures)"
        if not self._up and self._good:
            return f"{self._said} ({self._good} of {settings.rise} successes)"
        return self._said


def apply_panic(states: Mapping[_Key, BackendHealth], threshold: float) -> dict[_Key, BackendHealth]:
    """The states of one pool's backends, as the plan is to see them.

    When the share that is up is below ``threshold`` (0: never), all count as up: a check that fails
    everywhere says more about the check than about the servers, and the few that are left would drown.
    With nobody up, those held down for flapping are used: what answers half of the time beats nothing.
    """
    up = sum(state.up for state in states.values())
    if states and up / len(states) < threshold:
        why = f"panic: {up} of {len(states)} up"
        return {
            key: replace(state, up=True, ramp=1.0, held=False, reason=f"{why}; {state.reason}")
            for key, state in states.items()
        }
    if up == 0:
        return {
            key: replace(state, up=True, ramp=1.0, reason=f"used, as no other is up; {state.reason}")
            if state.held
            else state
            for key, state in states.items()
        }
    return dict(states)
