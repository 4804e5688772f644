"""The demo's books: what is lost, doubled, a peak; and that a broken promise is told."""

from __future__ import annotations

from typing import Any

import pytest

from pybalancer.demo.ledger import Ledger, Messages, peak, skew
from pybalancer.demo.ripple import Act


def test_a_message_is_lost_unheard_or_doubled_as_both_ends_saw_it() -> None:
    ledger = Ledger(2, 0.0)
    first = ledger.chapter
    ledger.opens(0, 0.0)
    for number in range(4):
        assert ledger.sends(0) == number
    ledger.answered(0, 0, "app-1")
    ledger.answered(0, 1, "app-1")
    ledger.answered(0, 1, "app-2")
    second = ledger.begin("later", 1.0)
    ledger.sends(1)
    ledger.answered(1, 0, "app-1")
    # Number 2 arrived and its answer was lost, 3 did not arrive; client 1's arrived twice.
    reached = {(0, 0): 1, (0, 1): 1, (0, 2): 1, (1, 0): 2}
    assert ledger.messages(first, reached) == Messages(sent=4, lost=2, unheard=1, doubled=1)
    assert ledger.messages(second, reached) == Messages(sent=1, lost=0, unheard=0, doubled=1)


def test_only_who_lost_a_connection_comes_back() -> None:
    ledger = Ledger(2, 0.0)
    for client in range(2):
        ledger.tries(client, 0.0)
        ledger.opens(client, 0.5)
    assert ledger.chapter.tried == []
    roll = ledger.begin("roll", 1.0)
    ledger.loses(1, 1012, 2.0)
    ledger.tries(1, 2.5)
    ledger.refuses("503")
    ledger.tries(1, 3.0)
    ledger.opens(1, 3.25)
    assert roll.codes == {1012: 1}
    assert roll.cut == {1: 1}
    assert roll.tried == [2.5, 3.0]
    assert roll.returned == [3.25]
    assert roll.away == [1.25]
    assert ledger.connected == {0, 1}


def test_who_has_not_heard_a_backend_yet_is_of_none() -> None:
    ledger = Ledger(3, 0.0)
    for client in range(3):
        ledger.opens(client, 0.0)
        ledger.sends(client)
    ledger.answered(0, 0, "app-2")
    ledger.answered(1, 0, "app-2")
    assert ledger.spread(["app-1", "app-2"]) == {"app-1": 0, "app-2": 2}
    assert ledger.waiting == 1
    ledger.loses(0, 1006, 1.0)
    assert ledger.spread(["app-1", "app-2"]) == {"app-1": 0, "app-2": 1}


@pytest.mark.parametrize(
    ("times", "most"),
    [([], 0), ([5.0], 1), ([0.0, 1.0, 2.0], 1), ([0.0, 0.9, 1.8, 1.85], 3), ([3.0, 0.5, 0.6, 1.4], 3)],
)
def test_a_peak_is_that_of_the_fullest_second(times: list[float], most: int) -> None:
    assert peak(times) == most


def test_skew_counts_the_empty_ones() -> None:
    assert skew({"a": 3, "b": 0, "c": 0}) == 3.0
    assert skew({"a": 5, "b": 5}) == 1.0
    assert skew({"a": 0}) == 0.0


def act(**other: Any) -> Act:
    given: dict[str, Any] = {
        "way": "roll",
        "clients": 100,
        "cap": 20.0,
        "seconds": 9.0,
        "cut": 100,
        "missing": 0,
        "codes": {1012: 100},
        "tried": 25,
        "returned": 20,
        "messages": Messages(sent=1000, lost=3, unheard=1, doubled=0),
        "spread": {"app-1": 50, "app-2": 50},
    }
    return Act(**given | other)


def test_a_roll_may_lose_messages_but_promises_the_rest() -> None:
    assert act().broken == []
    assert act(way="restart", codes={1006: 100}, returned=100, spread={"a": 100, "b": 0}).broken == []
    whole = {"way": "reattach", "cut": 0, "codes": {}, "returned": 0, "messages": Messages(sent=1000)}
    assert act(**whole).broken == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"codes": {1006: 1, 1012: 99}}, "clients saw 1006 × 1 instead of 1012"),
        ({"returned": 21}, "21 came back within a second"),
        ({"missing": 2}, "2 clients did not come back"),
        ({"spread": {"app-1": 60, "app-2": 40}}, "1.20 of the mean"),
        ({"messages": Messages(sent=10, doubled=1)}, "1 messages were doubled"),
        ({"way": "reattach", "cut": 1, "messages": Messages(sent=10)}, "1 clients saw a disconnect"),
        ({"way": "reattach", "cut": 0, "messages": Messages(sent=10, lost=1)}, "1 messages were lost"),
    ],
)
def test_a_broken_promise_is_told(change: dict[str, Any], told: str) -> None:
    (one,) = act(**change).broken
    assert told in one
