"""Flap damping on explicit times: what it costs to fall, how soon it is forgotten, what is bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybalancer.policy.damping import FREE, HALF_LIFE, LONGEST, FlapDamping
from pybalancer.policy.health import BackendHealth, HealthMachine
from pybalancer.policy.settings import HealthSettings

gaps = st.lists(st.floats(0.0, 10.0) | st.floats(0.0, 1e6), min_size=1, max_size=100)


def test_a_fall_a_minute_is_never_held() -> None:
    damping = FlapDamping()
    assert [damping.fell(HALF_LIFE * minute) for minute in range(100)] == [0.0] * 100


def test_falls_in_a_row_are_held_longer_each_time() -> None:
    damping = FlapDamping()
    holds = [damping.fell(float(second)) for second in range(8)]
    assert holds[:2] == [0.0, 0.0]
    assert holds[2:] == sorted(set(holds[2:]))
    assert holds[2] > 1.0


def test_the_penalty_halves() -> None:
    damping = FlapDamping()
    damping.fell(100.0)
    assert damping.penalty(100.0) == 1.0
    assert damping.penalty(100.0 + HALF_LIFE) == pytest.approx(0.5)
    assert damping.penalty(100.0 + 10 * HALF_LIFE) == pytest.approx(0.5**10)


@given(gaps)
def test_no_hold_is_longer_than_the_longest(waits: list[float]) -> None:
    damping, now = FlapDamping(), 0.0
    for wait in waits:
        now += wait
        assert 0.0 <= damping.fell(now) <= LONGEST


@given(gaps, st.floats(0.0, 1e4))
def test_whoever_falls_later_is_not_held_longer(waits: list[float], patience: float) -> None:
    soon, late, now = FlapDamping(), FlapDamping(), 0.0
    for wait in waits:
        now += wait
        soon.fell(now)
        late.fell(now)
    assert late.fell(now + patience) <= soon.fell(now)


def test_a_thousand_falls_at_once_are_forgiven_in_the_end() -> None:
    damping = FlapDamping()
    holds = [damping.fell(0.0) for _ in range(1000)]
    assert holds[-1] == LONGEST
    assert damping.penalty(0.0) == 1000.0
    # Ten half-lives for the thousand, and it is as good as new.
    assert damping.penalty(11 * HALF_LIFE) < FREE - 1.0
    assert damping.fell(11 * HALF_LIFE) == 0.0


def plans(machine: HealthMachine, period: float, seconds: float, every: float) -> list[float]:
    """When the plan had to change, with a backend that answers in the first half of each period."""
    times: list[float] = []
    before: BackendHealth | None = None
    for number in range(int(seconds / every)):
        now = number * every
        machine.observe(now % period < period / 2, "", now)
        health = machine.health(now)
        if before is not None and not health.same_plan(before):
            times.append(now)
        before = health
    return times


def busiest(times: list[float], span: float) -> int:
    """Most that fell into any ``span`` seconds."""
    return max((sum(start <= time < start + span for time in times) for start in times), default=0)


def test_104_a_backend_that_flaps_each_second_costs_few_plans() -> None:
    settings = HealthSettings(interval=0.1, rise=1, fall=1)
    times = plans(HealthMachine(settings, 0.0), period=1.0, seconds=3600, every=0.1)
    # Undamped, it would be 120 in each minute.
    assert busiest(times, 60.0) <= 24
    for minute in range(1, 60):
        assert sum(60 * minute <= time < 60 * (minute + 1) for time in times) <= 12


@given(st.floats(0.04, 60.0), st.integers(1, 3), st.integers(1, 3))
def test_104_whatever_the_rate_of_flapping_plans_are_bounded(period: float, rise: int, fall: int) -> None:
    settings = HealthSettings(interval=0.1, rise=rise, fall=fall)
    times = plans(HealthMachine(settings, 0.0), period, seconds=240, every=0.1)
    assert busiest(times, 60.0) <= 24


@given(st.floats(0.2, 20.0), st.floats(0.0, 600.0))
def test_104_a_backend_that_stops_flapping_is_soon_up(period: float, seconds: float) -> None:
    machine = HealthMachine(HealthSettings(interval=0.1, rise=2, fall=1), 0.0)
    plans(machine, period, seconds, every=0.1)
    now = seconds
    while not machine.health(now).up:
        now += 0.1
        machine.observe(True, "", now)
        assert now <= seconds + LONGEST + 1.0
    assert not machine.health(now).held
