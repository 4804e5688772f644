"""Which backend is drained, restarted, taken back, and when: ``policy.roll`` on pictures and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybalancer.policy.roll import (
    ACTIVE,
    LEGAL,
    MARGIN,
    IllegalMove,
    Order,
    Picture,
    Roll,
    Seen,
    Settings,
    turns,
)

UP = Seen(up=True, draining=False, tunnels=10)
DOWN = Seen(up=False, draining=False, tunnels=0, reason="connection refused")


class Pool:
    """A pool that obeys at once; what else happens to it the test says."""

    def __init__(self, *names: str, instance: str = "1") -> None:
        self.seen = dict.fromkeys(names, UP)
        self.instance = instance
        self.now = 0.0
        self.done: list[str] = []

    @property
    def picture(self) -> Picture:
        return Picture(self.instance, dict(self.seen))

    def change(self, name: str, **changes: object) -> None:
        self.seen[name] = replace(self.seen[name], **changes)  # type: ignore[arg-type]

    def look(self, roll: Roll) -> list[Order]:
        """One look; everything but the end of an action is obeyed."""
        orders = roll.look(self.picture, self.now)
        for order in orders:
            self.done.append(f"{order.do} {order.backend}" + (" warm" if order.warm else ""))
            if order.do == "drain":
                self.change(order.backend, draining=True)
            elif order.do == "undrain":
                self.change(order.backend, draining=False)
            elif order.do == "recheck":
                self.change(order.backend, up=False)
            roll.obeyed(order, self.now)
        return orders

    def until(self, roll: Roll, step: str, name: str) -> None:
        for _ in range(5):
            if roll.steps[name] == step:
                return
            self.look(roll)
        assert roll.steps[name] == step

    def restart(self, roll: Roll, name: str) -> None:
        """The whole of one's turn, as it should go."""
        self.until(roll, "draining", name)
        self.change(name, tunnels=0)
        self.until(roll, "acting", name)
        roll.acted(name, self.now)
        self.look(roll)
        assert self.look(roll) == [], "it is down until its check has found it up"
        self.change(name, up=True)
        self.until(roll, "done", name)


def rolling(pool: Pool, **settings: object) -> Roll:
    return Roll(list(pool.seen), Settings(**settings), 0.0)  # type: ignore[arg-type]


def test_one_after_the_other_and_each_in_the_same_order() -> None:
    pool = Pool("a", "b", "c")
    roll = rolling(pool)
    for name in "abc":
        pool.restart(roll, name)
    assert roll.outcome == "done"
    assert pool.done == [
        f"{do} {name}{warm}"
        for name in "abc"
        for do, warm in (("drain", ""), ("act", ""), ("recheck", ""), ("undrain", " warm"))
    ]
    assert [(move.backend, move.new) for move in roll.moves if move.new == "done"] == [
        (name, "done") for name in "abc"
    ]


def test_nothing_is_done_while_tunnels_are_left_and_the_deadline_is_not_over() -> None:
    pool = Pool("a", "b")
    roll = rolling(pool, deadline=30.0)
    pool.look(roll)
    pool.now = 30.0 + MARGIN - 0.1
    assert pool.look(roll) == []
    pool.now += 0.2
    assert pool.look(roll) == [Order("act", "a")]


def test_a_drain_that_is_over_is_enough_though_a_straggler_is_left() -> None:
    pool = Pool("a", "b")
    roll = rolling(pool)
    pool.look(roll)
    pool.change("a", drained=True)
    assert pool.look(roll) == [Order("act", "a")]


def test_as_many_as_may_be_down_and_no_more() -> None:
    pool = Pool("a", "b", "c", "d", "e")
    roll = rolling(pool, max_down=2)
    pool.look(roll)
    assert [name for name, step in roll.steps.items() if step in ACTIVE] == ["a", "b"]
    pool.restart(roll, "b")
    pool.look(roll)
    assert [name for name, step in roll.steps.items() if step in ACTIVE] == ["a", "c"]


def test_the_last_that_takes_tunnels_is_not_taken_away_unless_forced() -> None:
    pool = Pool("a", "b")
    pool.seen["b"] = DOWN
    roll = Roll(["a"], Settings(timeout=10.0), 0.0)
    assert pool.look(roll) == []
    pool.now = 10.0
    assert pool.look(roll) == []
    assert (roll.outcome, roll.steps) == ("failed", {"a": "waiting"})
    assert roll.problem == "not begun with a: no other backend than a takes tunnels"
    forced = Roll(["a"], Settings(force=True), 0.0)
    assert pool.look(forced) == [Order("drain", "a")]


def test_who_is_down_comes_first_since_that_costs_nobody_anything() -> None:
    pool = Pool("a", "b", "c")
    pool.seen["c"] = DOWN
    assert turns(pool.seen) == ["c", "a", "b"]
    assert turns(pool.seen, ["b", "c"]) == ["c", "b"]
    roll = rolling(pool)
    assert pool.look(roll) == [Order("drain", "c")]


def test_a_failed_action_stops_it_and_leaves_the_rest_untouched() -> None:
    pool = Pool("a", "b", "c")
    roll = rolling(pool, max_down=2)
    pool.until(roll, "draining", "b")
    pool.change("a", tunnels=0)
    pool.until(roll, "acting", "a")
    roll.acted("a", pool.now, "exit code 1")
    # Whoever was only being drained is taken back.
    assert pool.look(roll) == [Order("undrain", "b")]
    assert roll.steps == {"a": "failed", "b": "waiting", "c": "waiting"}
    assert (roll.outcome, roll.problem) == ("failed", "a: exit code 1")
    assert pool.seen["a"].draining
    assert not pool.seen["b"].draining


def test_who_does_not_come_up_in_time_stops_it() -> None:
    pool = Pool("a", "b")
    roll = rolling(pool, timeout=20.0)
    pool.until(roll, "draining", "a")
    pool.change("a", tunnels=0)
    pool.until(roll, "acting", "a")
    roll.acted("a", 5.0)
    pool.now = 5.0
    pool.look(roll)
    pool.change("a", reason="connection refused")
    pool.now = 24.9
    assert pool.look(roll) == []
    pool.now = 25.0
    pool.look(roll)
    assert roll.problem == "a: it did not come up within 20 s: connection refused"
    assert roll.steps["b"] == "waiting"


def test_one_that_goes_down_again_after_its_turn_stops_it() -> None:
    pool = Pool("a", "b", "c")
    roll = rolling(pool, timeout=10.0)
    pool.restart(roll, "a")
    pool.change("a", up=False, reason="no pong")
    pool.now = 1.0
    assert pool.look(roll) == []
    pool.now = 12.0
    pool.look(roll)
    assert roll.outcome == "failed"
    assert roll.problem == "not begun with b: a went down after the restart: no pong"


@pytest.mark.parametrize(
    ("step", "change", "problem"),
    [
        ("draining", {"draining": False}, "a: it was undrained by somebody"),
        ("checking", {"draining": False, "up": True}, "a: it was undrained by somebody"),
    ],
)
def test_somebody_else_undrains_it(step: str, change: Mapping[str, object], problem: str) -> None:
    pool = Pool("a", "b")
    roll = rolling(pool)
    pool.until(roll, "draining", "a")
    if step == "checking":
        pool.change("a", tunnels=0)
        pool.until(roll, "acting", "a")
        roll.acted("a", pool.now)
    pool.change("a", **change)
    pool.look(roll)
    assert (roll.problem, roll.steps["a"]) == (problem, "failed")


def test_who_was_drained_before_is_left_alone() -> None:
    pool = Pool("a", "b", "c")
    pool.change("b", draining=True)
    roll = rolling(pool)
    pool.restart(roll, "a")
    pool.restart(roll, "c")
    assert roll.steps == {"a": "done", "b": "skipped", "c": "done"}
    assert roll.outcome == "done"
    assert not any(each.endswith(" b") for each in pool.done)


def test_one_that_leaves_the_pool_fails_in_its_turn_and_is_skipped_before() -> None:
    pool = Pool("a", "b", "c")
    roll = rolling(pool)
    pool.look(roll)
    del pool.seen["b"]
    pool.look(roll)
    assert roll.steps["b"] == "skipped"
    del pool.seen["a"]
    pool.look(roll)
    assert roll.problem == "a: it has left the pool"


def test_an_interrupt_takes_back_who_is_drained_and_sees_a_command_through() -> None:
    pool = Pool("a", "b", "c")
    roll = rolling(pool, max_down=2)
    pool.until(roll, "draining", "b")
    pool.change("a", tunnels=0)
    pool.until(roll, "acting", "a")
    roll.interrupt()
    pool.look(roll)
    assert roll.steps == {"a": "acting", "b": "waiting", "c": "waiting"}
    assert roll.outcome == "running"
    roll.acted("a", pool.now)
    pool.look(roll)
    pool.change("a", up=True)
    pool.look(roll)
    assert roll.steps == {"a": "done", "b": "waiting", "c": "waiting"}
    assert roll.outcome == "interrupted"


def test_another_balancer_process_is_told_everything_again() -> None:
    pool = Pool("a", "b")
    roll = rolling(pool)
    pool.until(roll, "draining", "a")
    pool.instance = "2"
    pool.change("a", draining=False)
    assert pool.look(roll) == [Order("drain", "a")]
    pool.change("a", tunnels=0)
    pool.until(roll, "acting", "a")
    roll.acted("a", pool.now)
    pool.look(roll)
    # Once more, while it is checked: it must get no tunnels yet, and its check begins anew.
    pool.instance = "3"
    pool.change("a", draining=False, up=True)
    assert pool.look(roll) == [Order("drain", "a")]
    assert pool.look(roll) == [Order("recheck", "a")]
    pool.change("a", up=True)
    assert pool.look(roll) == [Order("undrain", "a", warm=True)]


@pytest.mark.parametrize("step", ["acting", "failed"])
def test_a_command_that_was_broken_off_is_run_again(step: str) -> None:
    pool = Pool("a", "b", "c")
    pool.change("b", draining=True, tunnels=0)
    roll = Roll(["a", "b", "c"], Settings(), 0.0, {"a": "done", "b": step, "c": "waiting"})  # type: ignore[dict-item]
    pool.look(roll)
    assert pool.look(roll) == [Order("act", "b")]
    assert roll.steps["a"] == "done"


def test_an_order_that_was_not_obeyed_is_given_again() -> None:
    pool = Pool("a", "b")
    roll = rolling(pool)
    assert roll.look(pool.picture, 0.0) == [Order("drain", "a")]
    assert roll.look(pool.picture, 1.0) == [Order("drain", "a")]


def test_an_order_that_is_refused_fails_it() -> None:
    pool = Pool("a", "b")
    roll = rolling(pool)
    (order,) = roll.look(pool.picture, 0.0)
    roll.refused(order, "no such thing", 0.0)
    assert roll.problem == "a: cannot drain it: no such thing"


def test_a_move_that_is_not_in_the_table_is_a_defect() -> None:
    pool = Pool("a", "b")
    roll = rolling(pool)
    with pytest.raises(IllegalMove, match="a: waiting → acting"):
        roll.obeyed(Order("act", "a"), 0.0)


def test_every_step_of_the_table_is_one_and_its_ends_are_ends() -> None:
    assert {new for following in LEGAL.values() for new in following} <= set(LEGAL)
    assert [step for step, following in LEGAL.items() if not following] == ["done", "failed", "skipped"]


EVENTS: list[Callable[[Pool, Roll, str], None]] = [
    lambda pool, roll, name: pool.change(name, tunnels=0),
    lambda pool, roll, name: pool.change(name, up=True),
    lambda pool, roll, name: pool.change(name, up=False),
    lambda pool, roll, name: pool.change(name, draining=False),
    lambda pool, roll, name: pool.seen.pop(name) and None,
    lambda pool, roll, name: setattr(pool, "instance", pool.instance + "'"),
    lambda pool, roll, name: roll.interrupt(),
    lambda pool, roll, name: roll.acted(name, pool.now) if roll.steps[name] == "acting" else None,
    lambda pool, roll, name: roll.acted(name, pool.now, "no") if roll.steps[name] == "acting" else None,
]


@given(
    st.lists(st.tuples(st.integers(0, len(EVENTS) - 1), st.integers(0, 3), st.floats(0, 40)), max_size=60),
    st.integers(1, 3),
)
def test_whatever_happens_no_more_are_away_than_may_be(
    events: list[tuple[int, int, float]], max_down: int
) -> None:
    pool = Pool("a", "b", "c", "d")
    roll = rolling(pool, max_down=max_down)
    for number, place, seconds in events:
        pool.now += seconds
        name = "abcd"[place]
        if name in pool.seen:
            EVENTS[number](pool, roll, name)
        pool.look(roll)
        away = [each for each, step in roll.steps.items() if step in ACTIVE]
        assert len(away) <= max_down
        # Nothing that it drained is forgotten: what is drained has its turn, or has failed in it.
        for each, seen in pool.seen.items():
            if seen.draining:
                assert roll.steps[each] in (*ACTIVE, "failed")
        if roll.outcome != "running":
            assert not away
