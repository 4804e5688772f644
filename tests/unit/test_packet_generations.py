"""Who is remembered as an owner of flows, and what machines are called in rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybalancer.errors import PybalancerError
from pybalancer.packet.generations import (
    MOST_GENERATIONS,
    MOST_NUMBERS,
    Generation,
    History,
    Known,
    Member,
    Numbers,
    generation,
)


def of(*names: str, weight: int = 1) -> Generation:
    return generation([Member(name, weight, f"10.0.0.{ord(name)}") for name in names])


def many() -> list[str]:
    """One more set than are remembered."""
    return [f"{one}{other}" for one in "klmn" for other in "abcd"] + ["xy"]


def test_the_newest_is_first_and_the_oldest_is_forgotten() -> None:
    history = History()
    for names in many():
        history = history.with_(of(*names))
    assert history.generations == tuple(of(*names) for names in reversed(many()[1:]))
    assert history.newest == of(*"xy")
    assert history.seen_by(None).hosts == {member.host for member in of(*"klmnabcdxy")}


def test_a_set_that_comes_back_is_remembered_once() -> None:
    history = History().with_(of(*"abc")).with_(of(*"ab")).with_(of(*"abc"))
    assert history.generations == (of(*"abc"), of(*"ab"))
    # One that flaps pushes nobody out.
    for _ in range(10):
        history = history.with_(of(*"ac")).with_(of(*"abc"))
    assert history.generations == (of(*"abc"), of(*"ac"), of(*"ab"))


def test_another_weight_is_another_generation() -> None:
    history = History().with_(of(*"ab")).with_(of(*"ab", weight=2))
    assert len(history.generations) == 2


def test_weight_0_takes_nothing_new() -> None:
    assert generation([Member("a", 1, "10.0.0.1"), Member("b", 0, "10.0.0.2")]) == (
        Member("a", 1, "10.0.0.1"),
    )


def test_when_nobody_is_left_all_stays_as_it_was() -> None:
    history = History().with_(of(*"ab"))
    assert history.with_(()) == history
    assert History().with_(()) == History()


def test_a_backend_knows_where_its_flows_went_without_being_told() -> None:
    history = History().with_(of(*"abc"))
    me = of("a")[0].host
    assert history.seen_by(me) == Known((of(*"abc"), of(*"bc")), (), me)
    assert history.seen_by("10.9.9.9").generations == (of(*"abc"),)
    told = History().with_(of(*"bc")).with_(of(*"abc"))
    assert told.seen_by(me).generations == told.generations
    full = History()
    for names in [*many(), "abc"]:
        full = full.with_(of(*names))
    assert full.seen_by(me).generations == (*full.generations[: MOST_GENERATIONS - 1], of(*"bc"))
    assert History().with_(of("a")).seen_by(me).generations == (of("a"),)


def test_a_director_supposes_nothing() -> None:
    began = History().joined_by(of("a")[0].host, of(*"abc")).with_(of(*"abc"))
    assert began.seen_by(None) == Known((of(*"abc"),))


def test_who_is_silent_is_asked_late() -> None:
    history = History().with_(of(*"abc")).with_(of(*"acd"))
    me, b, c = (of(name)[0].host for name in "abc")
    assert history.seen_by(me).late == ()
    assert history.seen_by(me, {c, b, "10.9.9.9"}).late == (b, c)
    # A director sends to owners only.
    assert history.seen_by(None, {c}).late == ()
    numbers = Numbers({member.host: 10 + index for index, member in enumerate(of(*"abcd"))})
    d = of("d")[0].host
    for me, row in ((c, (12, 10, 11, 13)), (d, (12, 10, 11, 13)), (of("a")[0].host, (12, 11, 10, 13))):
        known = Known((of("c"), of("b"), of("a"), of("d")), (), me, (b,) if me != c else (b, d))
        assert numbers.rows(known, bytes(16), 13).row(0)[:4] == row


def test_a_backend_without_history_has_just_joined() -> None:
    me = of("a")[0].host
    idle = Member("d", 0, "10.0.0.4")
    began = History().joined_by(me, [idle, *of(*"cab")]).with_(of(*"abc"))
    assert began.joined == (*of(*"abc"), idle)
    assert began.seen_by(me) == Known((of(*"abc"), of(*"bc")), began.joined, me)
    assert idle.host in began.seen_by(me).hosts
    assert began.joined_by(me, of(*"ab")) == began
    assert History().joined_by(me, of("a")) == History()
    # What it then hears of comes before what it only supposes.
    then = began.with_(of(*"ab")).seen_by(me)
    assert then.generations == (of(*"ab"), of(*"abc"), of(*"bc"), of("b"))
    # And that stays, however much it hears.
    for names in many():
        began = began.with_(of(*names))
    assert began.seen_by(me).generations[-1] == of(*"bc")
    assert len(began.seen_by(me).generations) == MOST_GENERATIONS
    assert began.seen_by(me).joined == (*of(*"abc"), idle)


@given(st.lists(st.sets(st.sampled_from("abcdef")), max_size=12))
def test_a_history_survives_its_file(sets: list[set[str]]) -> None:
    history = History()
    if sets:
        history = history.joined_by(of("a")[0].host, of(*sets[0]))
    for names in sets:
        history = history.with_(of(*names))
    assert History.from_json(history.to_json(), history.joined_to_json()) == history
    assert len(history.generations) <= MOST_GENERATIONS
    assert len(set(history.generations)) == len(history.generations)


@pytest.mark.parametrize("nonsense", [1, [1], [[1]], [[["a", "b"]]], [[["a", "b", "c"]]], None])
def test_what_is_no_history_is_refused(nonsense: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        History.from_json(nonsense)
    with pytest.raises(ValueError, match=r".+"):
        History.from_json([], [nonsense])


def test_a_machine_keeps_its_number() -> None:
    numbers = Numbers({}).among(["10.0.0.2", "10.0.0.1"])
    assert numbers.by_host == {"10.0.0.1": 1, "10.0.0.2": 2}
    more = numbers.among(["10.0.0.2", "10.0.0.3", "10.0.0.1"])
    assert more.by_host == {"10.0.0.1": 1, "10.0.0.2": 2, "10.0.0.3": 3}
    # 1 was somebody's a moment ago, and a row that is being read may still say so.
    assert more.among(["10.0.0.2", "10.0.0.4"]).by_host == {"10.0.0.2": 2, "10.0.0.4": 4}


def test_numbers_are_used_again_when_they_run_out() -> None:
    full = Numbers({}).among([str(number) for number in range(MOST_NUMBERS)])
    assert set(full.by_host.values()) == set(range(1, MOST_NUMBERS + 1))
    fewer = full.among([host for host in full.by_host if host != "7"])
    assert fewer.among([*fewer.by_host, "new"])["new"] == full["7"]
    with pytest.raises(PybalancerError, match="1024 machines"):
        full.among([*full.by_host, "one more"])


@given(st.lists(st.sets(st.integers(0, 40).map(str)), max_size=8))
def test_no_two_machines_have_one_number(changes: list[set[str]]) -> None:
    numbers = Numbers({})
    for hosts in changes:
        before, numbers = numbers, numbers.among(hosts)
        assert set(numbers.by_host) == hosts
        assert len(set(numbers.by_host.values())) == len(hosts)
        assert all(numbers[host] == before[host] for host in hosts & set(before.by_host))


def test_rows_are_made_of_names_weights_and_numbers() -> None:
    numbers = Numbers({member.host: 10 + index for index, member in enumerate(of(*"abcd"))})

    def made(known: Known) -> set[tuple[int, ...]]:
        rows = numbers.rows(known, bytes(16), 251)
        return {rows.row(slot) for slot in range(rows.size)}

    assert made(Known((of("a"), of("b")))) == {(10, 11, 0, 0, 0, 0)}
    # With a, who has come to b and c: each of its slots was one of theirs; and of d's, who takes none now.
    me, joined = of("a")[0].host, (*of(*"abc"), Member("d", 0, of("d")[0].host))
    supposed = made(Known((of("a"),), joined, me))
    assert {row for row in supposed if row[3]} == {(10, 11, 12, 13, 0, 0), (10, 12, 11, 13, 0, 0)}


def test_numbers_of_rows_that_packets_go_by_win() -> None:
    rows = {1: "10.0.0.2", 2: "10.0.0.1", 9: "10.0.0.9"}
    assert Numbers({}).as_in(rows).by_host == {"10.0.0.2": 1, "10.0.0.1": 2, "10.0.0.9": 9}
    known = Numbers({"10.0.0.1": 1, "10.0.0.3": 2, "10.0.0.4": 4})
    assert known.as_in(rows).by_host == {"10.0.0.2": 1, "10.0.0.1": 2, "10.0.0.4": 4, "10.0.0.9": 9}
    # Who comes new takes no number that a row has.
    hosts = {f"10.0.0.{n}" for n in range(1, 6)}
    numbers = known.as_in(rows).among(hosts)
    assert {numbers[host] for host in ("10.0.0.3", "10.0.0.5")}.isdisjoint({1, 2, 4, 9})
    assert numbers["10.0.0.2"] == 1
    # A machine that has two is known by one.
    assert Numbers({}).as_in({3: "10.0.0.1", 5: "10.0.0.1"}).by_host == {"10.0.0.1": 3}
