"""What goes wrong on a machine, and what others do to it, costs no connection and mends itself."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from tests.wire.namespace import Namespace, needs_namespaces
from tests.wire.net import until

from .conftest import Start
from .talks import Talks
from .test_lifecycle import CHECK, attached, shown, traces
from .test_reloads import WIDE, taken
from .topology import VIP, VIP6, Machine

pytestmark = needs_namespaces


def talk(talking: Talks) -> None:
    talking.open(VIP, 40)
    talking.open(VIP6, 40)


def test_a_listener_that_gets_another_name_keeps_its_history(start: Start) -> None:
    _, fleet, talking = start(directors=2, backends=3)
    talk(talking)
    fleet.apply(replace(fleet.plan, weights={"b1": 0}))
    fleet.apply(replace(fleet.plan, listener="public"))
    assert {one["name"] for one in fleet.directors["d1"].packet()["services"]} == {"public", "public6"}
    assert talking.lost(talking.conversations) == []
    assert taken(talking) == {"b2", "b3"}


@pytest.mark.parametrize("vips", [(VIP, f"[{VIP6}]"), (f"[{VIP6}]", VIP)], ids=["IPv4", "IPv6"])
def test_ways_of_checks_are_made_anew(start: Start, vips: tuple[str, str]) -> None:
    _, fleet, _ = start(directors=1, backends=2, health=CHECK, vips=vips)
    director = fleet.directors["d1"]
    space = director.machine.space
    family = "-6" if ":" in vips[0] else "-4"

    def ways() -> tuple[list[str], list[str]]:
        rules = [line for line in shown(space, f"ip {family} rule").splitlines() if "fwmark" in line]
        routes = [
            " ".join(line.split())
            for number in (1, 2)
            for line in shown(space, f"ip {family} route show table {0x70620000 + number}").splitlines()
        ]
        return rules, routes

    until(lambda: director.are("up"), "the checks")
    before = ways()
    assert len(before[0]) == 3, "one for each backend, and one for those that have none"
    assert len(before[1]) == 2
    space.ip(f"{family} rule flush", f"{family} rule add pref 32766 lookup main")
    assert ways()[0] == []
    until(lambda: ways() == before, "the rules")
    space.ip("link set eth0 down", "link set eth0 up")
    assert ways()[1] == []
    if family == "-6":
        space.own("eth0", f"{director.machine.address6}/64")
    until(lambda: ways() == before, "the routes")
    until(lambda: director.are("up"), "the checks")


def test_a_check_without_a_way_asks_nobody_else(start: Start) -> None:
    """It would go to the router, and from there to a director again, and to whom the table names."""
    site, fleet, talking = start(directors=1, backends=3, present=2, health=CHECK)
    director, b3 = fleet.directors["d1"], site.backends[2]
    b3.off()
    fleet.apply(replace(fleet.plan, backends=site.backends), [director])
    found = until(
        lambda: (found := director.backends())["b3"]["state"] == "down" and found, "the check of b3"
    )
    assert "network is unreachable" in found["b3"]["reason"]
    assert found["b1"]["state"] == found["b2"]["state"] == "up"
    assert taken(talking) == {"b1", "b2"}


def test_addresses_that_somebody_removes_come_back(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=2)
    machine = fleet.agents["b1"].machine
    machine.space.ip(f"addr del {VIP}/32 dev lo", f"addr del {VIP6}/128 dev lo")
    machine.space.set("ipv4/conf/all/arp_ignore", 0)
    until(lambda: has_vips(machine), "the addresses")
    assert machine.space.setting("ipv4/conf/all/arp_ignore") == "1"
    assert taken(talking) == {"b1", "b2"}
    assert fleet.agents["b1"].stop() == 0
    assert not has_vips(machine)


def test_a_director_with_an_address_of_a_service_is_told(start: Start) -> None:
    """Its checks ask itself: without a word all backends seem to be down, or, if something answers, up."""
    _, fleet, talking = start(directors=1, backends=2, health=CHECK)
    director = fleet.directors["d1"]
    until(lambda: director.are("up"), "the checks")
    assert director.packet()["problems"] == {}
    director.machine.space.ip(f"addr add {VIP}/32 dev lo")
    director.line(
        f"packets: {VIP}: a director must not have this address: its checks ask the director itself"
    )
    assert director.packet()["problems"].keys() == {VIP}
    until(lambda: director.are("down"), "its checks")
    until(lambda: all(one["takes_new"] for one in director.packet()["machines"]), "that all get packets")
    assert taken(talking) == {"b1", "b2"}
    director.machine.space.ip(f"addr del {VIP}/32 dev lo")
    director.line(f"packets: {VIP}: it works again")
    until(lambda: director.are("up"), "the checks")
    assert director.packet()["problems"] == {}


def has_vips(machine: Machine) -> bool:
    return all(vip in shown(machine.space, "ip addr show lo") for vip in (VIP, VIP6))


def test_what_could_not_be_remembered_is_saved_as_soon_as_there_is_room(start: Start) -> None:
    _, fleet, _ = start(directors=1, backends=2)
    director = fleet.directors["d1"]
    state = director.folder / "state"
    aside = state.rename(director.folder / "aside")
    state.write_text("in the way")
    fleet.apply(replace(fleet.plan, weights={"b1": 0}), [director])
    director.line(r"packets: .*packet\.json cannot be written: ")
    state.unlink()
    until((state / "packet.json").exists, "the file")
    director.line("packets: it works again")
    assert (state / "packet.json").read_text() != (aside / "packet.json").read_text()


def test_an_upgrade_that_cannot_have_the_packets_serves_all_the_same(start: Start) -> None:
    """It has taken over the clients of before, and the kernel goes on as it was told then."""
    _, fleet, talking = start(directors=1, backends=3, present=2)
    talk(talking)
    director = fleet.directors["d1"]
    space: Namespace = director.machine.space
    space.ip(*WIDE)
    director.file.write_text(replace(fleet.plan, interfaces=("eth0", "wide")).text())
    done = director.ask("upgrade")
    assert done.returncode == 0, done.stderr
    director.line("packets go as the process before has left it, which is tried again: .*attach to wide")
    pid = director.client.get("/status")["pid"]
    try:
        assert director.process.wait(30) == 0
        assert attached(director)
        assert talking.lost(talking.conversations) == []
        assert taken(talking) == {"b1", "b2"}
        space.ip("link set wide-end mtu 1500")
        until(lambda: (director.packet() or {"interfaces": {}})["interfaces"].keys() == {"eth0", "wide"})
        assert talking.lost(talking.conversations) == []
        assert taken(talking) == {"b1", "b2"}
    finally:
        subprocess.run(["kill", str(pid)], check=True)
        until(lambda: not attached(director), "the end of the new process")


@pytest.mark.parametrize("role", ["director", "backend"])
def test_an_upgrade_that_never_had_the_packets_ends_them_when_it_ends(start: Start, role: str) -> None:
    """Nobody would be there to change where they go."""
    _, fleet, _ = start(directors=1, backends=2, health=CHECK)
    serving = fleet.directors["d1"] if role == "director" else fleet.agents["b1"]
    serving.machine.space.ip(*WIDE)
    serving.file.write_text(replace(fleet.plan, interfaces=("eth0", "wide")).text())
    done = serving.ask("upgrade")
    assert done.returncode == 0, done.stderr
    serving.line("packets go as the process before has left it, which is tried again: .*attach to wide")
    pid = serving.client.get("/status")["pid"]
    assert serving.process.wait(30) == 0
    assert attached(serving)
    subprocess.run(["kill", str(pid)], check=True)
    until(lambda: not attached(serving), "the end of packets")
    until(lambda: traces(serving) == "0", "its traces gone")


def test_backends_that_are_all_down_when_a_director_begins_get_packets(start: Start) -> None:
    """Nobody says who was up before, and a check may be wrong."""
    site, fleet, talking = start(directors=1, backends=2, health=CHECK.replace("tcp", "http"))
    director = fleet.directors["d1"]
    until(lambda: director.are("down"), "the checks")
    until(lambda: all(one["takes_new"] for one in director.packet()["machines"]), "that all get packets")
    assert taken(talking) == {"b1", "b2"}
    done = director.ask("upgrade")
    assert done.returncode == 0, done.stderr
    pid = director.client.get("/status")["pid"]
    try:
        assert director.process.wait(30) == 0
        assert taken(talking) == {"b1", "b2"}
        fleet.plan.backends = site.backends[1:]
        fleet.apply(fleet.plan)
        assert taken(talking) == {"b2"}
    finally:
        subprocess.run(["kill", str(pid)], check=True)
        until(lambda: not attached(director), "the end of the new process")
