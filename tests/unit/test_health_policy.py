"""The health machine on explicit times: rise, fall, hold, slow start, passive marks, what changes when."""

import copy
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pybalancer.config.load import load_mapping
from pybalancer.policy.damping import LONGEST
from pybalancer.policy.health import RAMP_STEPS, HealthMachine, unknown
from pybalancer.policy.settings import PASSIVE_WINDOW, Check, HealthSettings, from_config

ACTIVE = HealthSettings(interval=1.0, rise=2, fall=3)
PASSIVE = HealthSettings(interval=2.0, rise=1, fall=3, passive=True)


def machine(settings: HealthSettings = ACTIVE, answers: str = "", now: float = 0.0) -> HealthMachine:
    """One that got these answers, ``+`` or ``-``, a second apart; the last at ``now``."""
    made = HealthMachine(settings, now - len(answers))
    for index, answer in enumerate(answers):
        made.observe(answer == "+", f"answer {index}", now - len(answers) + index + 1)
    return made


# Rise and fall.


def test_it_starts_up_and_says_that_nobody_asked() -> None:
    assert machine().health(0.0) == unknown(0.0)
    assert machine().health(1e9).up


@pytest.mark.parametrize(
    ("answers", "up"),
    [
        ("--", True),
        ("---", False),
        ("--+--", True),
        ("--+---", False),
        ("---+", False),
        ("---++", True),
        ("---+-+", False),
        ("---+-++", True),
        ("---++--", True),
        ("-" * 1000 + "++", True),
        ("+" * 1000 + "---", False),
    ],
)
def test_answers_in_a_row_decide(answers: str, up: bool) -> None:
    assert machine(answers=answers).health(0.0).up is up


def test_it_tells_how_far_it_is() -> None:
    assert machine(answers="-").health(0.0).reason == "answer 0 (1 of 3 failures)"
    assert machine(answers="---").health(0.0).reason == "answer 2"
    assert machine(answers="---+").health(0.0).reason == "answer 3 (1 of 2 successes)"
    assert machine(answers="---++").health(0.0).reason == "answer 4"


def test_since_is_when_it_went_up_or_down() -> None:
    assert machine(answers="+++").health(0.0).since == -3.0
    assert machine(answers="---+").health(5.0).since == -1.0
    assert machine(answers="---++").health(5.0).since == 0.0


# Hold.


def flapping(now: float = 0.0, settings: HealthSettings = ACTIVE) -> tuple[HealthMachine, float]:
    """One that fell three times within seconds, and when its hold ends."""
    down, up = "-" * settings.fall, "+" * settings.rise
    held = machine(settings, down + up + down + up + down, now)
    end = held.next_change(now)
    assert end is not None
    return held, end


def test_who_flaps_is_held_down_however_it_answers() -> None:
    held, end = flapping()
    assert end > 0.5
    for step in range(10):
        time = end * step / 10
        held.observe(True, "pong", time)
        health = held.health(time)
        assert not health.up
        assert health.held
        assert "flapping: held down for" in health.reason


def test_at_the_end_of_its_hold_it_is_up_if_it_answers() -> None:
    held, end = flapping()
    held.observe(True, "pong", end / 3)
    held.observe(True, "pong", end / 2)
    assert held.health(math.nextafter(end, 0.0)).held
    health = held.health(end)
    assert (health.up, health.held, health.since) == (True, False, end)
    # As of that moment, even where nobody looked then.
    late, _ = flapping()
    late.observe(True, "pong", end / 3)
    late.observe(True, "pong", end / 2)
    assert late.health(end + 100.0) == health


def test_at_the_end_of_its_hold_it_is_merely_down_if_it_does_not() -> None:
    held, end = flapping()
    held.observe(True, "pong", end / 3)
    assert not held.health(end).up
    assert not held.health(end).held
    held.observe(True, "pong", end + 1.0)
    assert held.health(end + 1.0).up


# Slow start.

WARM = replace(ACTIVE, slow_start=9.0)


def test_slow_start_takes_a_tenth_more_each_time() -> None:
    warming = machine(WARM, "---++")
    shares = [warming.health(float(second)).ramp for second in range(12)]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0])


def test_without_slow_start_it_gets_all_at_once() -> None:
    assert machine(answers="---++").health(0.0).ramp == 1.0
    assert machine(answers="---++").next_change(0.0) is None


def test_at_the_start_of_all_nothing_is_slow() -> None:
    assert machine(WARM, "++").health(0.0).ramp == 1.0


def test_after_a_hold_it_starts_slowly_too() -> None:
    held, end = flapping(settings=WARM)
    for step in range(1, 4):
        held.observe(True, "pong", end * step / 4)
    assert held.health(end).ramp == pytest.approx(0.1)
    assert held.health(end + 9.0).ramp == 1.0


def test_a_fall_ends_the_slow_start() -> None:
    warming = machine(WARM, "---++---")
    assert not warming.health(0.0).up
    warming.observe(True, "", 1.0)
    warming.observe(True, "", 200.0)
    assert warming.health(200.0).ramp == pytest.approx(0.1)


@given(st.floats(0.0, 1e7), st.floats(0.001, 1e5), st.lists(st.floats(0.0, 1.5), max_size=30))
def test_the_share_only_grows(start: float, slow_start: float, looks: list[float]) -> None:
    warming = machine(replace(ACTIVE, slow_start=slow_start), "---++", start)
    ramps = [warming.health(start + look * slow_start).ramp for look in [0.0, *sorted(looks), 2.0]]
    assert ramps == sorted(ramps)
    assert 0.0 < ramps[0] < 1.0
    assert ramps[-1] == 1.0


@given(st.floats(0.0, 1e12), st.floats(1e-6, 1e5))
def test_whoever_wakes_for_each_change_finds_it_and_is_done(start: float, slow_start: float) -> None:
    warming = machine(replace(ACTIVE, slow_start=slow_start), "---++", start)
    now, wakes = start, 0
    while (change := warming.next_change(now)) is not None:
        assert change > now
        before = warming.health(now).ramp
        now = change
        assert warming.health(now).ramp > before
        wakes += 1
    assert wakes <= RAMP_STEPS
    assert now == pytest.approx(start + slow_start)


# Settings that change.


def test_other_settings_keep_the_verdict_and_forget_the_count() -> None:
    down = machine(answers="---+")
    down.reconfigure(replace(ACTIVE, check=Check(path="/ready")), 1.0)
    assert not down.health(1.0).up
    down.observe(True, "", 2.0)
    assert not down.health(2.0).up
    down.observe(True, "", 3.0)
    assert down.health(3.0).up


def test_the_same_settings_change_nothing() -> None:
    failing = machine(answers="--")
    failing.reconfigure(replace(ACTIVE), 1.0)
    failing.observe(False, "", 2.0)
    assert not failing.health(2.0).up


def test_a_longer_slow_start_does_not_begin_it_again() -> None:
    warm = machine(WARM, "---++")
    assert warm.health(9.0).ramp == 1.0
    warm.reconfigure(replace(WARM, slow_start=3600.0), 60.0)
    assert warm.health(60.0).ramp == 1.0
    # Nor where nobody has looked since it ended.
    warm = machine(WARM, "---++")
    warm.reconfigure(replace(WARM, slow_start=3600.0), 60.0)
    assert warm.health(60.0).ramp == 1.0


def test_a_slow_start_goes_on_from_where_it_is() -> None:
    warming = machine(WARM, "---++")
    warming.reconfigure(replace(WARM, slow_start=90.0), 4.0)
    assert warming.health(4.0).ramp == pytest.approx(0.5)
    assert warming.next_change(4.0) == pytest.approx(14.0)
    warming.reconfigure(replace(WARM, slow_start=0.0), 14.0)
    assert warming.health(14.0).ramp == 1.0


# Failed connects.


def test_failed_connects_bring_it_down() -> None:
    failing = machine(PASSIVE)
    failing.passive_failure(1, 0.0)
    failing.passive_failure(1, 1.0)
    assert failing.health(1.0).up
    failing.passive_failure(1, 2.0)
    assert not failing.health(2.0).up
    assert failing.health(2.0).reason == "3 connects failed within 10s"


def test_many_at_once_do_too() -> None:
    failing = machine(PASSIVE)
    failing.passive_failure(50, 0.0)
    assert failing.health(0.0).reason == "50 connects failed within 10s"


def test_long_ago_does_not_count() -> None:
    failing = machine(PASSIVE)
    for number in range(100):
        failing.passive_failure(1, number * (PASSIVE_WINDOW / 2 + 0.1))
        assert failing.health(number * 10.0).up


def test_a_good_probe_in_between_clears_them() -> None:
    failing = machine()
    failing.passive_failure(2, 0.0)
    failing.observe(True, "pong", 1.0)
    failing.passive_failure(2, 2.0)
    assert failing.health(2.0).up
    failing.passive_failure(1, 3.0)
    assert not failing.health(3.0).up


def test_a_server_at_its_limit_stays() -> None:
    """One that turns away a few of the many that it serves: without it, all would go to its siblings."""
    busy = machine(PASSIVE)
    for tenth in range(600):
        busy.passive_failure(5, tenth / 10, succeeded=500)
        assert busy.health(tenth / 10).up


def test_a_server_that_dies_under_load_goes_with_the_next_report() -> None:
    dying = machine(PASSIVE)
    dying.passive_failure(40, 0.0, succeeded=10_000)
    assert dying.health(0.0).up
    dying.passive_failure(40, 0.1)
    assert not dying.health(0.1).up


def test_a_server_that_mostly_fails_goes() -> None:
    failing = machine(PASSIVE)
    failing.passive_failure(5, 0.0, succeeded=2)
    assert not failing.health(0.0).up


def test_one_failure_is_enough_where_fall_is_one() -> None:
    failing = machine(replace(ACTIVE, fall=1))
    failing.passive_failure(1, 0.0, succeeded=1000)
    assert not failing.health(0.0).up


def test_connects_that_fail_later_do_not_bring_it_further_down() -> None:
    down = machine(answers="---")
    down.passive_failure(1000, 1.0)
    down.observe(True, "", 2.0)
    down.observe(True, "", 3.0)
    assert down.health(3.0).up


# When to ask.


@given(st.randoms(use_true_random=False), st.floats(0.01, 100.0), st.floats(0.0, 1.0))
def test_probes_are_an_interval_apart_give_or_take_the_jitter(
    rng: random.Random, interval: float, jitter: float
) -> None:
    asking = machine(replace(ACTIVE, interval=interval, jitter=jitter))
    first = asking.next_probe(50.0, rng)
    assert first is not None
    assert 50.0 <= first <= 50.0 + interval * jitter
    for _ in range(20):
        following = asking.next_probe(50.0, rng)
        assert following is not None
        # A hair for rounding.
        assert abs(following - 50.0 - interval) <= interval * jitter * (1 + 1e-9) + 1e-9


def test_a_thousand_backends_are_not_asked_in_the_same_instant() -> None:
    rng = random.Random(1)
    firsts = [machine().next_probe(0.0, rng) for _ in range(1000)]
    spread = ACTIVE.interval * ACTIVE.jitter
    for part in range(10):
        low, high = spread * part / 10, spread * (part + 1) / 10
        assert 50 <= sum(low <= first < high for first in firsts if first is not None) <= 150


def test_under_passive_checks_only_those_that_are_down_are_asked() -> None:
    rng = random.Random(1)
    silent = machine(PASSIVE)
    assert silent.next_probe(0.0, rng) is None
    silent.passive_failure(3, 0.0)
    due = silent.next_probe(0.0, rng)
    assert due is not None
    # Not at once: it just failed.
    assert due >= PASSIVE.interval * (1 - PASSIVE.jitter)
    silent.observe(True, "connected", due)
    assert silent.health(due).up
    assert silent.next_probe(due, rng) is None


def test_settings_come_from_the_configuration() -> None:
    pool: dict[str, Any] = {"backends": [{"name": "a", "address": "127.0.0.1:1"}], "slow_start": "30s"}
    values = {"listeners": [{"name": "l", "bind": ":0", "pool": "p"}], "pools": {"p": pool}}
    passive = from_config(load_mapping(values).pools["p"])
    assert (passive.passive, passive.rise, passive.fall, passive.slow_start) == (True, 1, 3, 30.0)
    pool["send_proxy"] = "v2"
    pool["health"] = {
        "kind": "http",
        "path": "/ready",
        "host": "app",
        "interval": "250ms",
        "timeout": "100ms",
        "rise": 4,
        "fall": 5,
        "jitter": 0.1,
        "expect": [200, "300-302"],
        "headers": {"X-Probe": "1"},
    }
    check = Check("http", 0.1, "/ready", "app", ((200, 200), (300, 302)), (("X-Probe", "1"),), "v2")
    settings = from_config(load_mapping(values).pools["p"])
    assert settings == HealthSettings(check, 0.25, 0.1, rise=4, fall=5, slow_start=30.0)
    assert [status for status in range(100, 600) if check.expects(status)] == [200, 300, 301, 302]


# Anything, in any order.


class Anything(RuleBasedStateMachine):
    """Answers, failed connects, reloads and time in any order, beside what must be true of all of them.

    ``lazy`` gets the same as ``watched`` and is never asked in between: looking must change nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        settings = replace(ACTIVE, slow_start=6.0)
        # Times as large as those of a machine that is up for years, where doubles are coarse.
        self.now = 1e8
        self.watched = HealthMachine(settings, self.now)
        self.lazy = HealthMachine(settings, self.now)
        self.answers = ""
        self.connects = 0
        self.seen = self.watched.health(self.now)

    def both(self, method: str, *arguments: Any) -> None:
        before = self.watched.health(self.now)
        for each in (self.watched, self.lazy):
            getattr(each, method)(*arguments)
        after = self.watched.health(self.now)
        settings = self.watched.settings
        if before.up and not after.up:
            probes = self.answers.replace("x", "").endswith("-" * settings.fall)
            assert probes or self.connects >= settings.fall
            assert after.since == self.now
        if after.up and not before.up:
            assert not before.held
            assert self.answers.endswith("+" * settings.rise)
            assert after.since == self.now
        if before.up != after.up:
            self.connects = 0

    @rule(answers=st.text("+-", min_size=1, max_size=5), gap=st.floats(0.0, 3.0))
    def answer(self, answers: str, gap: float) -> None:
        for answer in answers:
            self.answers += answer
            if answer == "+":
                self.connects = 0
            self.both("observe", answer == "+", "", self.now)
            self.wait(gap)

    @rule(count=st.integers(1, 5), succeeded=st.integers(0, 8))
    def fail(self, count: int, succeeded: int) -> None:
        self.connects += count
        self.answers += "x"
        self.both("passive_failure", count, self.now, succeeded)

    @rule(
        rise=st.integers(1, 4),
        fall=st.integers(1, 4),
        slow_start=st.sampled_from([0.0, 1e-3, 6.0, 7.0, 600.0]),
        passive=st.booleans(),
    )
    def reload(self, rise: int, fall: int, slow_start: float, passive: bool) -> None:
        settings = HealthSettings(rise=rise, fall=fall, slow_start=slow_start, passive=passive)
        if settings != self.watched.settings:
            self.answers, self.connects = "", 0
        before = self.watched.health(self.now)
        self.both("reconfigure", settings, self.now)
        after = self.watched.health(self.now)
        assert (after.up, after.held) == (before.up, before.held)
        assert after.ramp >= before.ramp

    @rule(seconds=st.floats(0.0, 100.0))
    def wait(self, seconds: float) -> None:
        before = self.watched.health(self.now)
        self.now += seconds
        after = self.watched.health(self.now)
        # Time alone brings nobody down, and nobody up but out of a hold.
        assert after.up >= before.up
        assert after.ramp >= before.ramp or before.up != after.up
        assert after.up == before.up or before.held

    @precondition(lambda self: self.watched.next_change(self.now) is not None)
    @rule()
    def wait_for_the_change(self) -> None:
        change = self.watched.next_change(self.now)
        assert change is not None
        self.wait(change - self.now)

    @invariant()
    def next_change_is_exact(self) -> None:
        twin = copy.deepcopy(self.watched)
        before, change = twin.health(self.now), twin.next_change(self.now)
        if change is None:
            assert twin.health(self.now + 1e6).same_plan(before)
            return
        assert change > self.now
        assert change <= self.now + max(LONGEST, twin.settings.slow_start) + 1e-6
        early = copy.deepcopy(twin)
        assert early.health(math.nextafter(change, 0.0)).same_plan(before)
        assert not twin.health(change).same_plan(before)

    @invariant()
    def what_it_says_makes_sense(self) -> None:
        health = self.watched.health(self.now)
        assert 0.1 <= health.ramp <= 1.0
        assert health.since <= self.now
        assert not (health.up and health.held)
        assert health.reason is not None

    @invariant()
    def looking_changes_nothing(self) -> None:
        assert copy.deepcopy(self.lazy).health(self.now) == self.watched.health(self.now)


TestAnything = Anything.TestCase
