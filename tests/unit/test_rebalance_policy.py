"""When live tunnels are evened out, and how many are to go: ``policy.rebalance``."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybalancer import _core
from pybalancer.policy.rebalance import LONGEST, PATIENCE, PAUSE, Load, Rebalance, skew, surpluses, target


def loads(*tunnels: int, weights: tuple[int, ...] = ()) -> dict[str, Load]:
    ones = weights or (1,) * len(tunnels)
    return {
        f"app-{place}": Load(count, weight)
        for place, (count, weight) in enumerate(zip(tunnels, ones, strict=True))
    }


EVEN, SKEWED = loads(1000, 1000, 1000), loads(1600, 1400, 0)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (EVEN, 1.0),
        (SKEWED, 1.6),
        (loads(300, 600, weights=(1, 2)), 1.0),
        (loads(600, 300, weights=(1, 2)), 2.0),
        (loads(0, 0), 0.0),
        ({}, 0.0),
    ],
)
def test_skew(given: dict[str, Load], found: float) -> None:
    assert skew(given) == pytest.approx(found)


def test_the_surplus_is_what_is_above_the_wanted_skew() -> None:
    assert surpluses(SKEWED, 1.05, _core.surplus) == {"app-0": 550, "app-1": 350}
    assert surpluses(EVEN, 1.0, _core.surplus) == {}


@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 100)), max_size=20), st.floats(1.0, 10.0))
def test_who_sheds_keeps_at_least_its_fair_share(pairs: list[tuple[int, int]], to_skew: float) -> None:
    given = {str(place): Load(*pair) for place, pair in enumerate(pairs)}
    weights = sum(load.weight for load in given.values())
    tunnels = sum(load.tunnels for load in given.values())
    for name, count in surpluses(given, to_skew, _core.surplus).items():
        assert 0 < count <= given[name].tunnels
        if weights:
            assert given[name].tunnels - count >= int(tunnels * given[name].weight / weights)


def test_a_skew_must_last_before_anything_is_done() -> None:
    machine = Rebalance(1.2)
    assert not machine.look(SKEWED, 0.0, busy=False)
    assert not machine.look(SKEWED, PATIENCE - 0.1, busy=False)
    assert machine.look(SKEWED, PATIENCE, busy=False)
    assert machine.state == "resting"


def test_a_skew_that_goes_by_itself_is_forgotten() -> None:
    machine = Rebalance(1.2)
    machine.look(SKEWED, 0.0, busy=False)
    machine.look(EVEN, 5.0, busy=False)
    assert not machine.look(SKEWED, PATIENCE + 1, busy=False)
    assert machine.look(SKEWED, 2 * PATIENCE + 1, busy=False)


def test_while_something_else_moves_tunnels_nothing_is_done() -> None:
    machine = Rebalance(1.2)
    for second in range(100):
        assert not machine.look(SKEWED, float(second), busy=second % 5 == 0)


def test_few_tunnels_differ_by_chance() -> None:
    machine = Rebalance(1.2)
    for second in range(100):
        assert not machine.look(loads(14, 9, 7), float(second), busy=False)


def test_after_a_shed_its_clients_have_time_to_come_back() -> None:
    machine = Rebalance(1.2)
    machine.look(SKEWED, 0.0, busy=False)
    assert machine.look(SKEWED, 10.0, busy=False)
    assert not machine.look(SKEWED, 20.0, busy=True)
    assert not machine.look(SKEWED, 20.0 + PAUSE - 0.1, busy=False)
    assert not machine.look(EVEN, 20.0 + PAUSE, busy=False)
    assert (machine.state, machine.patience) == ("even", PATIENCE)


def test_sheds_that_gain_nothing_come_ever_more_rarely() -> None:
    machine = Rebalance(1.2)
    sheds = [second for second in range(20_000) if machine.look(SKEWED, float(second), busy=False)]
    gaps = [later - earlier for earlier, later in pairwise(sheds)]
    assert gaps == sorted(gaps)
    assert gaps[0] < 100
    assert LONGEST <= gaps[-1] <= LONGEST + PAUSE + 5
    # And as soon as it has been even once, all is as in the beginning.
    machine.look(EVEN, 20_100.0, busy=False)
    machine.look(EVEN, 20_200.0, busy=False)
    assert machine.patience == PATIENCE


def test_it_is_shed_to_halfway_so_that_the_next_tunnel_does_not_begin_it_again() -> None:
    assert target(1.2) == pytest.approx(1.1)
