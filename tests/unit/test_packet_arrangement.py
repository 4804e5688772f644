"""What the kernel is to do follows from configuration, health and history."""

from __future__ import annotations

from dataclasses import replace

from pybalancer.config.packet_model import PacketConfig
from pybalancer.packet.arrangement import Arrangement
from pybalancer.packet.generations import REMOVED, SILENT, History, Member, generation
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


def test_who_is_not_in_the_file_or_silent_is_asked_late() -> None:
    hosts = {name: f"10.0.0.{ord(name)}" for name in "abcd"}
    before = of(*"abc")
    now = replace(service(*"ab", everybody="abd"), silent=frozenset({hosts["d"]}))
    after = Arrangement.of(SECTION, [now], hosts["a"], before.histories)
    assert after.known[KEY].late == ((hosts["c"], REMOVED),)
    assert after.after(before).known[KEY].late == ((hosts["c"], REMOVED),)
    met = Arrangement.of(SECTION, [now], hosts["a"], {KEY: History().with_(of(*"bd").histories[KEY].newest)})
    assert met.known[KEY].late == ((hosts["d"], SILENT),)


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
