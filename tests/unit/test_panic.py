"""The panic threshold: what is used of a pool that is mostly, or wholly, down."""

from hypothesis import given
from hypothesis import strategies as st

from pybalancer.policy.health import BackendHealth, apply_panic

UP = BackendHealth(True, 1.0, "pong", 0.0)
WARMING = BackendHealth(True, 0.3, "pong", 5.0)
DOWN = BackendHealth(False, 1.0, "connection refused", 1.0)
HELD = BackendHealth(False, 1.0, "flapping", 2.0, held=True)

healths = st.sampled_from([UP, WARMING, DOWN, HELD])
pools = st.dictionaries(st.integers(), healths, max_size=20)


def test_above_the_threshold_nothing_is_done() -> None:
    states = {"a": UP, "b": DOWN}
    assert apply_panic(states, 0.5) == states


def test_below_it_all_are_up_and_each_says_why() -> None:
    effective = apply_panic({"a": UP, "b": WARMING, "c": DOWN, "d": HELD, "e": DOWN}, 0.41)
    assert all(state.up and state.ramp == 1.0 and not state.held for state in effective.values())
    assert effective["c"].reason == "panic: 2 of 5 up; connection refused"
    assert effective["c"].since == DOWN.since


def test_with_all_down_the_threshold_counts_too() -> None:
    assert apply_panic({"a": DOWN, "b": DOWN}, 0.01)["a"].up


def test_without_a_threshold_the_dead_stay_down() -> None:
    states = {"a": DOWN, "b": DOWN}
    assert apply_panic(states, 0.0) == states


def test_with_nobody_up_those_that_flap_are_used() -> None:
    effective = apply_panic({"a": DOWN, "b": HELD}, 0.0)
    assert effective["a"] == DOWN
    assert effective["b"].up
    assert effective["b"].reason == "used, as no other is up; flapping"


def test_with_somebody_up_those_that_flap_are_not_used() -> None:
    states = {"a": UP, "b": HELD}
    assert apply_panic(states, 0.0) == states


def test_a_pool_without_backends_is_no_reason_to_panic() -> None:
    assert apply_panic({}, 1.0) == {}


@given(pools, st.floats(0.0, 1.0))
def test_nobody_who_was_up_is_taken_out(states: dict[int, BackendHealth], threshold: float) -> None:
    effective = apply_panic(states, threshold)
    assert effective.keys() == states.keys()
    assert all(effective[key].up for key in states if states[key].up)


@given(pools, st.floats(0.0, 1.0))
def test_what_it_decides_it_does_not_decide_again(states: dict[int, BackendHealth], threshold: float) -> None:
    effective = apply_panic(states, threshold)
    assert apply_panic(effective, threshold) == effective
