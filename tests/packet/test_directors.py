"""Backends that take packets out of the outer packets of directors and of each other, of nobody else's."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP

from tests.wire.namespace import Namespace, needs_namespaces
from tests.wire.net import until

from .conftest import Start
from .fleet import Fleet, Serve
from .topology import PORT, VIP, VIP6

pytestmark = needs_namespaces

EXACTLY = ("10.0.0.1", "10.0.0.2")
NETWORK = ("10.0.0.0/30", "fd00::/64")


def strangers(serving: Serve) -> int:
    reasons: dict[str, int] = serving.packet()["reasons"]
    return reasons.get("dropped_stranger", 0)


def wrap(space: Namespace, to: str) -> None:
    """Send a SYN for the service in an outer packet of this host's own."""
    packet = IP(src="10.9.0.2", dst=to, id=0x7060) / IP(src="198.51.100.7", dst=VIP) / TCP(dport=PORT)
    with space.inside(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as wire:
        wire.sendto(bytes(packet), (to, 0))


def test_outer_packets_of_strangers_are_dropped_and_those_of_backends_are_not(start: Start) -> None:
    site, fleet, talking = start("ipip", directors=2, backends=3, trusted=EXACTLY)
    talking.open(VIP, 60)
    talking.open(VIP6, 60)
    b1 = fleet.agents["b1"]
    assert strangers(b1) == 0
    wrap(site.client, b1.machine.address)
    until(lambda: strangers(b1) == 1, "a stranger's packet dropped")
    # b1 takes no new flows, so what it has comes by way of the others.
    fleet.plan.weights = {"b1": 0}
    fleet.apply(fleet.plan)
    assert talking.lost(talking.conversations) == []
    hops = [one["second_hops"] for serving in fleet.agents.values() for one in serving.packet()["machines"]]
    assert sum(hops) > 0
    assert [strangers(serving) for serving in fleet.agents.values()] == [1, 0, 0]


def test_directors_change_and_no_packet_of_theirs_is_dropped(start: Start) -> None:
    _, fleet, talking = start("ipip", directors=2, backends=2, present=2, trusted=EXACTLY)
    talking.open(VIP, 60)
    for trusted in (NETWORK, EXACTLY, (), EXACTLY, (*EXACTLY, *NETWORK), NETWORK):
        change(fleet, trusted)
    assert talking.lost(talking.conversations) == []
    assert [strangers(serving) for serving in fleet.agents.values()] == [0, 0]
    # One that is not named any more is a stranger; what it brought lives on when it is named again.
    change(fleet, EXACTLY[:1])
    for serving in fleet.agents.values():
        until(lambda serving=serving: strangers(serving), "the second director's packets dropped")
    change(fleet, EXACTLY)
    assert talking.lost(talking.conversations) == []


def change(fleet: Fleet, trusted: tuple[str, ...]) -> None:
    fleet.plan.trusted = trusted
    fleet.apply(fleet.plan, list(fleet.agents.values()))


def test_for_l2_a_stranger_s_outer_packets_are_dropped(start: Start) -> None:
    site, fleet, talking = start(directors=1, backends=2, present=2)
    b1 = fleet.agents["b1"]
    wrap(site.client, b1.machine.address)
    until(lambda: strangers(b1) == 1, "a stranger's packet dropped")
    talking.open(VIP, 20)
    assert talking.lost(talking.conversations) == []
    assert [strangers(serving) for serving in fleet.agents.values()] == [1, 0]


@pytest.mark.parametrize(("trusted", "six"), [((), False), (("fd00::1",), True)])
def test_forward_changes_machine_by_machine_and_no_packet_is_dropped(
    start: Start, trusted: tuple[str, ...], six: bool
) -> None:
    """Backends first. Their second hops go on meanwhile, to those that have reloaded and to others."""
    site, fleet, talking = start(directors=1, backends=3, six=six)
    site.client.ip(
        "route replace default via 10.9.0.1 mtu 1400", "-6 route replace default via fd00:9::1 mtu 1400"
    )
    talking.open(VIP, 40)
    talking.open(VIP6, 40)
    # b1 takes no new flows, so what it has comes by way of the others.
    fleet.plan.weights = {"b1": 0}
    fleet.apply(fleet.plan)
    agents = list(fleet.agents.values())
    for forward in ("ipip", "l2"):
        plan = replace(fleet.plan, forward=forward, trusted=trusted if forward == "ipip" else ())
        for serving in (*agents, *fleet.directors.values()):
            fleet.apply(plan, [serving])
            assert talking.lost(talking.conversations) == []
            assert [strangers(agent) for agent in agents] == [0, 0, 0]
    assert sum(one["second_hops"] for agent in agents for one in agent.packet()["machines"]) > 0


def test_a_backend_that_crashes_while_forward_changes_goes_on(start: Start) -> None:
    _, fleet, talking = start("ipip", directors=1, backends=2, present=2, trusted=EXACTLY)
    talking.open(VIP, 40)
    plan = replace(fleet.plan, forward="l2", trusted=())
    # The director, from another network, goes on with what it was told.
    fleet.apply(plan, list(fleet.agents.values()))
    fleet.crash(fleet.agents["b1"])
    b1 = fleet.start_again(fleet.agents["b1"])
    assert b1.packet()["forward"] == "l2"
    assert talking.lost(talking.conversations) == []
    assert strangers(b1) == 0
    # It does not begin anew, as it would without anything in the kernel.
    b1.stop()
    b1 = fleet.start_again(b1)
    until(lambda: strangers(b1), "the director's packets dropped")


@pytest.mark.parametrize(("trusted", "doubted"), [((), True), (EXACTLY, False)])
def test_a_backend_that_trusts_everybody_says_so(
    start: Start, trusted: tuple[str, ...], doubted: bool
) -> None:
    _, fleet, _ = start("ipip", directors=1, backends=1, present=1, trusted=trusted)
    agent, director = fleet.agents["b1"], fleet.directors["d1"]
    said = agent.ask("check", agent.file)
    assert said.returncode == 0
    assert ("takes packets out of the outer packets of anybody" in said.stderr + said.stdout) is doubted
    said = director.ask("check", director.file)
    assert "outer packets of anybody" not in said.stderr + said.stdout
