"""A roll carried out: ``tasks.rolls.conduct`` with a pool that is a fake, on a clock that jumps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pybalancer.errors import DrainError, PybalancerError, RollError
from pybalancer.policy.roll import Picture, Roll, Seen, Settings
from pybalancer.tasks.rolls import LOOK, TELL, Away, Failed, conduct, picture_of

DRAINS = 4.0
"""Seconds until a drained backend has no tunnel left."""
BOOTS = 3.0
"""Seconds after an action until a check finds it up."""


@dataclass
class Fake:
    """A pool whose backends drain, restart and come up in their time. ``log`` has what was done, and when."""

    names: tuple[str, ...] = ("app-1", "app-2", "app-3")
    tunnels: int = 10
    log: list[tuple[float, str]] = field(default_factory=list)
    away: Callable[[], bool] = lambda: False
    refuse: Mapping[str, str] = field(default_factory=dict)
    sick: set[str] = field(default_factory=set)
    instance: str = "1"

    def __post_init__(self) -> None:
        self.draining: dict[str, float] = {}
        self.up_from: dict[str, float] = {}
        self.began = trio.current_time()

    def _do(self, what: str) -> None:
        if self.away():
            raise Away("no pybalancer answers")
        self.log.append((trio.current_time() - self.began, what))
        if what in self.refuse:
            raise DrainError(self.refuse[what])

    async def picture(self) -> Picture:
        await trio.lowlevel.checkpoint()
        if self.away():
            raise Away("no pybalancer answers")
        now = trio.current_time()
        return Picture(
            self.instance,
            {
                name: Seen(
                    up=now >= self.up_from.get(name, 0) and name not in self.sick,
                    draining=name in self.draining,
                    tunnels=0 if now - self.draining.get(name, now) >= DRAINS else self.tunnels,
                    reason="connection refused" if name in self.sick else "pong",
                )
                for name in self.names
            },
        )

    async def drain(self, backend: str) -> None:
        self._do(f"drain {backend}")
        self.draining.setdefault(backend, trio.current_time())

    async def undrain(self, backend: str, *, warm: bool) -> None:
        self._do(f"undrain {backend}" + (" warm" if warm else ""))
        self.draining.pop(backend, None)

    async def recheck(self, backend: str) -> None:
        self._do(f"recheck {backend}")
        self.up_from[backend] = trio.current_time() + BOOTS

    def restart(self) -> None:
        """The balancer crashes and begins anew: what was drained is forgotten."""
        self.instance += "+"
        self.draining.clear()

    @property
    def done(self) -> list[str]:
        return [what for _, what in self.log]


@dataclass
class Played:
    """What a test looks at."""

    roll: Roll
    pool: Fake
    events: list[dict[str, Any]] = field(default_factory=list)
    kept: list[dict[str, str]] = field(default_factory=list)
    act_takes: float = 1.0
    fails: Mapping[str, str] = field(default_factory=dict)

    async def act(self, name: str) -> str:
        self.pool.log.append((trio.current_time() - self.pool.began, f"act {name}"))
        await trio.sleep(self.act_takes)
        if name in self.fails:
            raise Failed(self.fails[name], f"output of {name}")
        return f"output of {name}"

    async def conduct(self, patience: float = 60.0) -> None:
        await conduct(
            self.roll,
            self.pool,
            self.act,
            self.events.append,
            keep=lambda steps: self.kept.append(dict(steps)),
            patience=patience,
        )

    def moves(self, name: str) -> list[str]:
        return [each["to"] for each in self.events if each["event"] == "moved" and each["backend"] == name]


def played(pool: Fake | None = None, steps: Mapping[str, Any] | None = None, **settings: Any) -> Played:
    pool = pool or Fake()
    return Played(Roll(pool.names, Settings(**settings), trio.current_time(), steps), pool)


TURN = ["drain {}", "act {}", "recheck {}", "undrain {} warm"]


def turn(name: str) -> list[str]:
    return [each.format(name) for each in TURN]


async def test_one_after_the_other(autojump_clock: MockClock) -> None:
    play = played()
    await play.conduct()
    assert play.pool.done == [*turn("app-1"), *turn("app-2"), *turn("app-3")]
    assert play.roll.outcome == "done"
    times = [time for time, what in play.pool.log if what.startswith("act")]
    for first, second in itertools.pairwise(times):
        # Nobody is drained before the one before is back.
        assert DRAINS + BOOTS + 1 <= second - first <= DRAINS + BOOTS + 1 + 4 * LOOK


async def test_two_at_a_time(autojump_clock: MockClock) -> None:
    play = played(max_down=2)
    await play.conduct()
    assert play.pool.done[:2] == ["drain app-1", "drain app-2"]
    down: set[str] = set()
    for what in play.pool.done:
        verb, name = what.split()[:2]
        down = down | {name} if verb == "drain" else down - {name} if verb == "undrain" else down
        assert len(down) <= 2
    assert sorted(play.pool.done) == sorted([*turn("app-1"), *turn("app-2"), *turn("app-3")])


async def test_what_happens_is_told_in_order(autojump_clock: MockClock) -> None:
    play = played()
    await play.conduct()
    for name in play.pool.names:
        assert play.moves(name) == ["draining", "acting", "checking", "done"]
    assert [each["output"] for each in play.events if each["event"] == "output"] == [
        f"output of {name}" for name in play.pool.names
    ]
    progress = [each for each in play.events if each["event"] == "progress" and each["backend"] == "app-1"]
    assert len(progress) <= (DRAINS + BOOTS + 1) / TELL + 2
    assert (progress[0]["step"], progress[0]["tunnels"]) == ("draining", 10)


async def test_a_failure_stops_it_and_leaves_the_rest_untouched(autojump_clock: MockClock) -> None:
    play = played()
    play.fails = {"app-2": "exit code 3"}
    await play.conduct()
    assert play.roll.outcome == "failed"
    assert play.pool.done == [*turn("app-1"), "drain app-2", "act app-2"]
    assert play.roll.steps == {"app-1": "done", "app-2": "failed", "app-3": "waiting"}
    assert play.roll.problem == "app-2: exit code 3"
    assert set(play.pool.draining) == {"app-2"}, "who failed stays drained"
    assert {
        "event": "output",
        "backend": "app-2",
        "output": "output of app-2",
        "error": "exit code 3",
    } in play.events


async def test_of_two_at_a_time_the_other_is_seen_through_or_taken_back(autojump_clock: MockClock) -> None:
    play = played(max_down=2)
    play.fails = {"app-1": "exit code 3"}
    await play.conduct()
    # Both had begun to act, so the other one is brought up again.
    assert play.roll.steps == {"app-1": "failed", "app-2": "done", "app-3": "waiting"}
    assert set(play.pool.draining) == {"app-1"}


async def test_who_does_not_come_up_stops_it(autojump_clock: MockClock) -> None:
    pool = Fake(sick={"app-1"})
    play = played(pool, timeout=20.0)
    await play.conduct()
    assert play.roll.problem == "app-1: it did not come up within 20 s: connection refused"
    assert not any(what.endswith("app-2") for what in pool.done)


async def test_what_is_refused_stops_it(autojump_clock: MockClock) -> None:
    pool = Fake(refuse={"drain app-1": "no other backend takes new tunnels"})
    play = played(pool)
    await play.conduct()
    assert play.roll.problem == "app-1: cannot drain it: no other backend takes new tunnels"
    assert pool.done == ["drain app-1"]


async def test_interrupted_it_takes_back_whom_it_drains(autojump_clock: MockClock) -> None:
    play = played()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.conduct)
        await trio.sleep(DRAINS / 2)
        play.roll.interrupt()
    assert play.pool.done == ["drain app-1", "undrain app-1"]
    assert play.roll.outcome == "interrupted"
    assert not play.pool.draining
    assert play.kept[-1] == dict.fromkeys(play.pool.names, "waiting")


async def test_interrupted_it_sees_through_what_runs(autojump_clock: MockClock) -> None:
    play = played()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.conduct)
        await trio.sleep(DRAINS + 2 * LOOK)
        assert play.roll.steps["app-1"] == "acting"
        play.roll.interrupt()
    assert play.pool.done == turn("app-1")
    assert play.roll.steps == {"app-1": "done", "app-2": "waiting", "app-3": "waiting"}


@pytest.mark.parametrize("after", [DRAINS / 2, DRAINS + 2 * LOOK, DRAINS + 1 + BOOTS / 2])
async def test_cancelled_it_takes_back_whose_action_has_not_begun(
    autojump_clock: MockClock, after: float
) -> None:
    play = played()
    with trio.move_on_after(after):
        await play.conduct()
    begun = "act app-1" in play.pool.done
    assert (play.pool.done[-1] == "undrain app-1") is not begun
    assert set(play.pool.draining) == ({"app-1"} if begun else set())


async def test_a_balancer_that_is_away_is_waited_for(autojump_clock: MockClock) -> None:
    pool = Fake()
    began = trio.current_time()
    pool.away = lambda: 2 < trio.current_time() - began < 12
    play = played(pool)
    await play.conduct(patience=20.0)
    assert play.roll.outcome == "done"
    words = [each["event"] for each in play.events if each["event"] in ("away", "back")]
    assert words == ["away", "back"]


async def test_one_that_stays_away_ends_it(autojump_clock: MockClock) -> None:
    pool = Fake()
    began = trio.current_time()
    pool.away = lambda: trio.current_time() - began > 2
    play = played(pool)
    with pytest.raises(RollError, match="no pybalancer answers; it has been away for 20 s"):
        await play.conduct(patience=20.0)
    assert play.roll.steps["app-1"] == "draining"
    assert 20 <= trio.current_time() - began <= 25


@pytest.mark.parametrize("step", ["draining", "acting", "checking"])
async def test_a_balancer_that_begins_anew_is_told_again(autojump_clock: MockClock, step: str) -> None:
    """It has forgotten what was drained: without another order clients would come while it restarts."""
    play = played()
    tell = play.events.append
    restarted = False

    def restart(event: dict[str, Any]) -> None:
        nonlocal restarted
        tell(event)
        if not restarted and event.get("to") == step:
            restarted = True
            play.pool.restart()

    play.events = type("Events", (list,), {"append": lambda _self, event: restart(event)})()
    await play.conduct()
    assert restarted
    assert play.roll.outcome == "done"
    assert play.pool.done.count("drain app-1") == 2
    assert play.pool.done.count("act app-1") == 1
    assert play.pool.done.count("undrain app-1 warm") == 1
    assert not play.pool.draining


async def test_the_steps_are_kept_before_anything_follows_from_them(autojump_clock: MockClock) -> None:
    """A crash at any moment leaves a journal that has what may have been done."""
    play = played()
    act = play.act

    async def look_first(name: str) -> str:
        assert play.kept[-1][name] == "acting"
        return await act(name)

    play.act = look_first  # type: ignore[method-assign]
    await play.conduct()
    assert play.kept[-1] == dict.fromkeys(play.pool.names, "done")


CRASHES = [0.0, 1.0, DRAINS, DRAINS + 0.5, DRAINS + 1.2, DRAINS + 2, DRAINS + 1 + BOOTS + 1, 14, 17, 20, 24]


@pytest.mark.parametrize("moment", CRASHES)
async def test_after_a_crash_at_any_moment_it_can_be_gone_on_with(
    autojump_clock: MockClock, moment: float
) -> None:
    """The conductor vanishes without a word, what it kept is all that is left; every backend is restarted
    once at least, none twice but the one whose action was broken off, and nobody stays drained."""
    pool = Fake()
    first = played(pool)

    class Crash(Exception):
        pass

    async def crash() -> None:
        await trio.sleep(moment)
        # Nothing of it reaches the pool any more, as from a process that was killed.
        pool.away = lambda: True
        raise Crash

    with pytest.RaisesGroup(Crash, allow_unwrapped=True, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.conduct)
            nursery.start_soon(crash)
    pool.away = lambda: False
    steps = first.kept[-1] if first.kept else dict.fromkeys(pool.names, "waiting")
    second = played(pool, steps)
    await second.conduct()
    assert second.roll.outcome == "done"
    assert not pool.draining
    for name in pool.names:
        acts = pool.done.count(f"act {name}")
        assert acts == 1 or (acts == 2 and steps[name] == "acting"), (name, steps, pool.log)


async def test_a_failed_action_is_tried_again_by_who_goes_on(autojump_clock: MockClock) -> None:
    pool = Fake()
    first = played(pool)
    first.fails = {"app-2": "exit code 3"}
    await first.conduct()
    second = played(pool, first.kept[-1])
    await second.conduct()
    assert second.roll.outcome == "done"
    assert [pool.done.count(f"act {name}") for name in pool.names] == [1, 2, 1]


async def test_an_action_that_raises_what_it_should_not_is_raised(autojump_clock: MockClock) -> None:
    play = played()

    async def broken(name: str) -> str:
        raise RuntimeError(name)

    play.act = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="app-1"):
        await play.conduct()


def status(**drains: Any) -> dict[str, Any]:
    def backend(name: str) -> dict[str, Any]:
        return {
            "name": name,
            "state": "up" if name != "app-2" else "down",
            "draining": name == "app-1",
            "active": 3,
            "reason": "pong",
            "weight": 1,
        }

    return {
        "pid": 7,
        "started": 1.5,
        "pools": [{"name": "chat", "backends": [backend("app-1"), backend("app-2")]}],
        "drains": [
            {"id": number, "pool": pool, "kind": kind, "state": state, "parts": [{"backend": name}]}
            for number, pool, kind, state, name in drains.get("drains", ())
        ],
    }


def test_a_picture_of_a_status() -> None:
    picture = picture_of(status(), "chat")
    assert picture.instance == "7 1.5"
    one = Seen(up=True, draining=True, tunnels=3, drained=False, reason="pong", weight=1)
    assert picture.backends == {"app-1": one, "app-2": replace(one, up=False, draining=False)}


@pytest.mark.parametrize(
    ("drains", "drained"),
    [
        ([(1, "chat", "drain", "done", "app-1")], True),
        ([(1, "chat", "drain", "running", "app-1")], False),
        ([(1, "chat", "drain", "done", "app-1"), (2, "chat", "drain", "running", "app-1")], False),
        ([(2, "chat", "drain", "done", "app-1"), (1, "chat", "drain", "running", "app-1")], True),
        ([(1, "chat", "drain", "cancelled", "app-1")], False),
        ([(1, "chat", "shed", "done", "app-1")], False),
        ([(1, "rooms", "drain", "done", "app-1")], False),
        ([(1, "chat", "drain", "done", "app-2")], False),
    ],
)
def test_drained_is_who_has_had_its_drain(drains: list[Any], drained: bool) -> None:
    assert picture_of(status(drains=drains), "chat").backends["app-1"].drained is drained


def test_a_pool_that_is_not_there_is_said() -> None:
    with pytest.raises(RollError, match="there is no pool 'chatt'; there are: chat"):
        picture_of(status(), "chatt")


def test_away_is_an_error_of_ours() -> None:
    assert issubclass(Away, PybalancerError)
