"""What is drained, by which terms, and whether it can end in time: ``policy.draining``."""

from __future__ import annotations

import json

import pytest

from pybalancer.policy.draining import Draining, Terms, hurry, shortfall, terms_of

DEFAULT = Terms(30.0, 60.0, 1012, 0.0)


def test_what_is_drained_is_known_by_name() -> None:
    some = Draining().with_([("chat", "a"), ("chat", "b")], ["public"])
    assert some
    assert some.without([("chat", "a")]) == Draining(frozenset({("chat", "b")}), frozenset({"public"}))
    assert some.among([("chat", "b"), ("chat", "c")], []) == Draining(frozenset({("chat", "b")}))
    assert not some.without([("chat", "a"), ("chat", "b")], ["public"])


def test_it_survives_json() -> None:
    some = Draining().with_([("chat", "a")], ["public"])
    assert Draining.restore(json.loads(json.dumps(some.snapshot()))) == some


@pytest.mark.parametrize(
    "given",
    [{}, {"version": 2, "backends": [], "listeners": []}, {"version": 1, "backends": [1], "listeners": []}],
)
def test_what_is_no_snapshot_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="draining states"):
        Draining.restore(given)


@pytest.mark.parametrize(
    ("given", "terms"),
    [
        ({}, DEFAULT),
        ({"over": 10.0}, Terms(10.0, 60.0, 1012, 0.0)),
        # Of two times that do not fit, the one that nobody gave yields.
        ({"over": 100.0}, Terms(100.0, 130.0, 1012, 0.0)),
        ({"deadline": 20.0}, Terms(10.0, 20.0, 1012, 0.0)),
        ({"over": 0.0, "deadline": 0.0}, Terms(0.0, 0.0, 1012, 0.0)),
        ({"code": 4001, "rate": 5.0}, Terms(30.0, 60.0, 4001, 5.0)),
    ],
)
def test_terms(given: dict[str, float], terms: Terms) -> None:
    assert terms_of(DEFAULT, **given) == terms  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"over": 20.0, "deadline": 10.0}, "comes after"),
        ({"over": -1.0}, "comes after"),
        ({"code": 1006}, "may not be sent"),
        ({"code": 1005}, "may not be sent"),
        ({"code": 5000}, "may not be sent"),
        ({"rate": -1.0}, "rate"),
    ],
)
def test_terms_that_make_no_sense(given: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        terms_of(DEFAULT, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tunnels", "rate", "said"),
    [
        (10_000, 0.0, None),
        (300, 10.0, None),
        (301, 10.0, "301 at 10/s take 30 s, more than the 30 s asked for"),
        (10_000, 100.0, "4,000 of 10,000 will be cut: 100/s for 60 s"),
    ],
)
def test_what_does_not_fit_is_said_before(tunnels: int, rate: float, said: str | None) -> None:
    assert shortfall(tunnels, over=30.0, deadline=60.0, rate=rate) == said


@pytest.mark.parametrize(
    ("tunnels", "over", "rate", "said"),
    [
        (50_000, 7.5, 0.0, None),
        (15_000, 7.5, 2000.0, None),
        (
            50_000,
            7.5,
            2000.0,
            "50,000 tunnels in 7.5 s are 6,666.67/s, more than the 2,000/s that come back",
        ),
        (3, 0.0, 2.0, "3 tunnels in 0 s are 3/s, more than the 2/s that come back"),
    ],
)
def test_a_stop_that_is_too_fast_is_said(tunnels: int, over: float, rate: float, said: str | None) -> None:
    assert hurry(tunnels, over=over, rate=rate) == said
