"""What the kernel is to do follows from configuration, health and history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from pybalancer.config.packet_model import PacketConfig
from pybalancer.packet.arrangement import Arrangement
from pybalancer.packet.generations import MOST_NUMBERS, History, Member, Numbers, generation
from pybalancer.packet.services import Service

SECTION = PacketConfig(interfaces=("eth0",))


def service(*names: str, everybody: str = "abcd") -> Service:
    members = {name: Member(name, 1, f"10.0.0.{ord(name)}") for name in everybody}
    newest = generation([members[name] for name in names])
    return Service("vip", "chat", ("203.0.113.10", 443, "tcp"), newest, tuple(members.values()), True)


KEY = service().key


def of(*names: str, me: str | None = None, known: History | None = None) -> Arrangement:
    return Arrangement.of(SECTION, [service(*names)], me, {KEY: known} if known is not None else {})


def sets(arrangement: Arrangement) -> list[str]:
    return ["".join(member.name for member in each) for each in arrangement.known[KEY].generations]


def test_the_newest_set_comes_first_and_the_machines_of_all_are_known() -> None:
    first = of(*"abc")
    second = of(*"abd", known=first.histories[KEY])
    assert sets(second) == ["abd", "abc"]
    assert second.hosts == {f"10.0.0.{ord(name)}" for name in "abcd"}
    assert second.vips == {"203.0.113.10"}


def test_a_backend_is_among_the_machines_even_if_nothing_leads_to_it() -> None:
    me = f"10.0.0.{ord('d')}"
    assert me not in of(*"abc").hosts
    assert me in of(*"abc", me=me).hosts


def test_who_is_called_otherwise_is_who_it_was() -> None:
    before = of(*"abc")
    renamed = [replace(service(*"abd"), name="public")]
    assert sets(Arrangement.of(SECTION, renamed, None, before.histories)) == ["abd", "abc"]


def test_who_is_silent_is_asked_late_and_has_nothing_new() -> None:
    hosts = {name: f"10.0.0.{ord(name)}" for name in "abcd"}
    before = of(*"abc", me=hosts["a"])
    after = before.hearing(frozenset({hosts["c"]}))
    assert sets(after)[:2] == ["ab", "abc"], "which is what directors will do"
    assert after.known[KEY].late == (hosts["c"],)
    assert after.after(before).known[KEY].late == (hosts["c"],)
    # Directors may go on sending there, and who is new then has to be known.
    now = [service(*"bcd")]
    assert sets(Arrangement.of(SECTION, now, hosts["a"], after.histories, after.silent))[:2] == ["bd", "bcd"]
    again = after.hearing(frozenset())
    assert sets(again)[:2] == ["abc", "ab"]
    assert again.known[KEY].late == ()
    # A director has its own checks.
    assert of(*"abc").hearing(frozenset({hosts["c"]})) == of(*"abc")


def test_a_backend_asks_all_whom_its_packets_may_go_to() -> None:
    hosts = {name: f"10.0.0.{ord(name)}" for name in "abcd"}
    assert of(*"abc").peers == set(), "a director"
    before = of(*"ab", me=hosts["a"])
    now = [replace(service(*"bc", everybody="bc"), where=("203.0.113.10", 443, "tcp"))]
    removed = Arrangement.of(SECTION, now, hosts["a"], before.histories)
    assert removed.peers >= {(hosts["b"], 443), (hosts["c"], 443)}
    left = Arrangement.of(SECTION, now, hosts["c"], before.histories)
    assert left.peers >= {(hosts["a"], 443), (hosts["b"], 443)}, "who has left too"
    assert (hosts["c"], 443) not in left.peers
    # One that has left one service is asked where it still is.
    two = [replace(service(*"a", everybody="a"), name="http", where=("203.0.113.10", 80, "tcp")), *now]
    both = Arrangement.of(SECTION, two, hosts["a"], before.histories).peers
    assert {port for host, port in both if host == hosts["b"]} == {443}
    udp = [replace(one, where=("203.0.113.10", 443, "udp")) for one in now]
    assert Arrangement.of(SECTION, udp, hosts["b"], {}).peers == set()


def test_what_was_tried_is_remembered_behind_what_it_goes_back_to() -> None:
    before = of(*"abc")
    tried = of(*"ad", known=before.histories[KEY])
    again = before.after(tried)
    assert sets(again) == ["abc", "ad"], "some flows may have begun by it"
    assert (again.section, again.services, again.me) == (before.section, before.services, before.me)
    # Of a service that was not there before nothing is left.
    other = Arrangement.of(SECTION, [], None, {})
    assert other.after(tried) == other
    assert before.after(other) == before


def deployed(number: int, count: int = 100) -> Service:
    """A fleet whose machines are new ones each time."""
    members = tuple(Member(f"app-{n:04}", 1, f"10.{number}.{n // 250}.{n % 250 + 1}") for n in range(count))
    return replace(service("a"), newest=generation(members), all=members)


@pytest.mark.parametrize("me", [None, "10.0.0.1"])
def test_machines_of_long_ago_make_room_for_new_ones(me: str | None) -> None:
    """There are 1023 numbers, and 16 sets of 100 machines each."""
    known: Mapping[str, History] = {}
    numbers = Numbers({})
    for number in range(20):
        arrangement = Arrangement.of(SECTION, [deployed(number)], me, known)
        known, numbers = arrangement.histories, numbers.among(arrangement.hosts)
        assert arrangement.known[KEY].generations[0] == deployed(number).newest
    assert MOST_NUMBERS - 100 < len(arrangement.hosts) <= MOST_NUMBERS
    # What is refused for some other reason has to be taken back, too.
    tried = Arrangement.of(SECTION, [deployed(20, 600)], me, known)
    again = arrangement.after(tried)
    assert again.known[KEY].generations[:2] == (deployed(19).newest, deployed(20, 600).newest)
    numbers.among(again.hosts)
    full = Arrangement.of(SECTION, [deployed(21, 1000)], me, again.histories)
    assert full.known[KEY].generations[0] == deployed(21, 1000).newest
    numbers.among(full.hosts)


def test_more_than_there_are_numbers_is_for_others_to_refuse() -> None:
    assert len(Arrangement.of(SECTION, [deployed(0, 1100)], None, {}).hosts) == 1100
