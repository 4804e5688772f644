"""A site of directors and backends under change: connections live as long as their own two ends do.

Client – ECMP router – 3 directors – 4 backends, each a network namespace; real WebSocket servers and clients,
with data that flows all the time and is compared by SHA-256.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.wire.namespace import needs_namespaces
from tests.wire.net import until
from tests.wire.packets import ACK, raw_socket
from tests.wire.packets import packet as segment

from .conftest import Start
from .fleet import Fleet
from .talks import Talks
from .topology import PORT, VIP, VIP6, Machine

pytestmark = needs_namespaces

MANY = 500
CHECK = 'kind = "tcp"\ninterval = "200ms"\ntimeout = "1s"\nfall = 2\nrise = 1'


def open_both(talking: Talks, count: int) -> None:
    talking.open(VIP, count // 2)
    talking.open(VIP6, count // 2)


def shares(talking: Talks) -> dict[str, int]:
    servers = [conversation.server for conversation in talking.conversations]
    return {name: servers.count(name) for name in sorted(set(servers))}


@pytest.mark.parametrize("forward", ["l2", "ipip"])
def test_a_director_dies_and_no_connection_is_lost_then_a_backend_and_only_its_own_are(
    start: Start, forward: str
) -> None:
    _, fleet, talking = start(forward, health=CHECK)
    open_both(talking, MANY)
    assert all(count > MANY // 8 for count in shares(talking).values())
    assert set(shares(talking)) == {"b1", "b2", "b3", "b4"}
    before = {name: serving.packet() for name, serving in fleet.directors.items()}
    assert all(sum(one["packets"] for one in each["services"]) for each in before.values())

    fleet.kill("d2")
    assert talking.lost(talking.conversations) == []

    fleet.kill_backend("b3")
    others = [one for one in talking.conversations if one.server != "b3"]
    own = [one for one in talking.conversations if one.server == "b3"]
    for serving in fleet.directors.values():
        serving.line("chat/b3 is down")
    assert talking.lost(others) == []
    assert talking.lost(own, 8) == own
    # And new ones go to those that are left.
    assert {one.server for one in talking.open(VIP, 60)} == {"b1", "b2", "b4"}


def test_control_with_different_secrets_a_director_takes_connections_with_it(start: Start) -> None:
    """With twice as many backends as a row names: among fewer, second hops would find nearly all."""
    _, fleet, talking = start(secrets=[f"{number:032x}" for number in (1, 2, 3)], backends=12, present=12)
    open_both(talking, MANY)
    fleet.kill("d2")
    lost = talking.lost(talking.conversations, 6)
    assert 0 < len(lost) < MANY


@pytest.mark.parametrize(("forward", "seed"), [("l2", 1), ("ipip", 2)])
def test_backends_come_are_drained_and_go_and_no_connection_is_lost(
    start: Start, forward: str, seed: int
) -> None:
    dice = random.Random(seed)
    site, fleet, talking = start(forward, present=3)
    b1, b2, b3, b4 = site.backends
    open_both(talking, 240)
    assert set(shares(talking)) == {"b1", "b2", "b3"}

    def change(backends: list[object], *, weights: dict[str, int] | None = None, dies: str = "") -> None:
        """Reload in any order; half-way through a director may die."""
        fleet.plan.backends, fleet.plan.weights = list(backends), weights or {}  # type: ignore[arg-type]
        order = list(fleet.all)
        dice.shuffle(order)
        middle = len(order) // 2
        fleet.apply(fleet.plan, order[:middle])
        if dies:
            fleet.kill(dies)
        fleet.apply(fleet.plan, [serving for serving in order[middle:] if serving.machine.name != dies])

    # Added.
    fleet.plan.backends = [b1, b2, b3, b4]
    fleet.start_agent(b4, fleet.plan).ready()
    change([b1, b2, b3, b4])
    assert talking.lost(talking.conversations) == []
    open_both(talking, 120)
    assert "b4" in shares(talking)

    # Drained, while a director dies.
    change([b1, b2, b3, b4], weights={"b1": 0}, dies="d1")
    assert talking.lost(talking.conversations) == []
    assert "b1" not in {one.server for one in talking.open(VIP, 60) + talking.open(VIP6, 60)}

    # Removed from the file. What it has goes on.
    change([b1, b3, b4], weights={"b1": 0})
    assert talking.lost(talking.conversations) == []
    change([b1, b3, b4])
    assert talking.lost(talking.conversations) == []
    assert second_hops(fleet) > 0
    digests = {one["digest"] for serving in fleet.all for one in serving.packet()["services"]}
    assert len(digests) == 1


@pytest.mark.parametrize(("forward", "removed"), [("l2", False), ("ipip", True)])
def test_a_machine_that_is_gone_swallows_no_packets_of_others(
    start: Start, forward: str, removed: bool
) -> None:
    """Slots of the first three went to b4, and from it to b5: their packets used to go by b4."""
    joining = 3 if removed else 2
    site, fleet, talking = start(forward, directors=2, backends=3 + joining, present=3, health=CHECK)
    open_both(talking, 240)
    for machine in site.backends[3:]:
        fleet.plan.backends = [*fleet.plan.backends, machine]
        fleet.start_agent(machine, fleet.plan).ready()
        fleet.apply(fleet.plan)
    if removed:
        fleet.apply(replace(fleet.plan, weights={"b4": 0}))
        fleet.apply(replace(fleet.plan, backends=[one for one in fleet.plan.backends if one.name != "b4"]))
    fleet.kill_backend("b4")
    if not removed:
        for serving in fleet.directors.values():
            serving.line("chat/b4 is down")
    # They stand still for a moment, until the others have noticed.
    assert talking.lost(talking.conversations) == []
    assert {one.server for one in talking.open(VIP, 40)} == {one.name for one in site.backends} - {"b4"}


def second_hops(fleet: Fleet) -> int:
    return sum(
        one["second_hops"] for serving in fleet.agents.values() for one in serving.packet()["machines"]
    )


def test_a_backend_that_is_sick_for_a_moment_keeps_what_it_has(start: Start) -> None:
    _, fleet, talking = start(health=CHECK, directors=1, backends=3, present=3)
    open_both(talking, 120)
    director = fleet.directors["d1"]

    def takes(name: str) -> bool:
        machines = director.packet()["machines"]
        return any(one["takes_new"] for one in machines if name in one["names"])

    # Its check fails: what comes from directors to its address is dropped, and flows pass by.
    sick = fleet.agents["b1"].machine
    sick.space.ip("rule add from 203.0.113.10 to 10.0.0.0/24 blackhole")
    for serving in fleet.directors.values():
        serving.line("chat/b1 is down")
    until(lambda: not takes("b1"), "b1 without new flows")
    assert talking.lost(talking.conversations) == []
    new = talking.open(VIP, 40)
    assert "b1" not in {one.server for one in new}
    sick.space.ip("rule del from 203.0.113.10 to 10.0.0.0/24 blackhole")
    for serving in fleet.directors.values():
        serving.line("chat/b1 is up")
    until(lambda: takes("b1"), "b1 with new flows")
    assert talking.lost(talking.conversations) == []
    assert "b1" in {one.server for one in talking.open(VIP, 40)}


@pytest.mark.parametrize(("forward", "seed"), [("l2", 1), ("ipip", 2)])
def test_two_backends_join_in_one_reload_and_no_connection_is_lost(
    start: Start, forward: str, seed: int
) -> None:
    dice = random.Random(seed)
    # With three there is no such promise: tests/unit/test_packet_chains.py has what they cost.
    site, fleet, talking = start(forward, backends=5, present=3)
    open_both(talking, 240)
    fleet.plan.backends = list(site.backends)
    # Those that were there hear of the new ones before and after these begin; directors hear last.
    order = [*fleet.agents.values(), *site.backends[3:]]
    dice.shuffle(order)
    for one in [*order, *fleet.directors.values()]:
        if isinstance(one, Machine):
            fleet.start_agent(one, fleet.plan).ready()
        else:
            one.write(fleet.plan)
    assert talking.lost(talking.conversations) == []
    assert second_hops(fleet) > 0
    open_both(talking, 120)
    assert {"b4", "b5"} <= set(shares(talking))
    # What they suppose outlives them.
    for name in ("b4", "b5"):
        fleet.crash(fleet.agents[name])
        fleet.start_again(fleet.agents[name])
    assert talking.lost(talking.conversations) == []


def test_what_nobody_has_makes_few_second_hops(start: Start) -> None:
    site, fleet, _ = start(directors=1, present=4)
    many = 200

    def scan() -> list[int]:
        """Hops, of ACKs of connections that there never were."""
        before = counted(fleet)
        with site.client.inside():
            wire = raw_socket()
        with wire:
            for number in range(many):
                wire.sendto(segment(("10.9.0.2", 20000 + number), (VIP, PORT), ACK, 1, 1), (VIP, 0))
        until(lambda: counted(fleet)[1] - before[1] == many, "all answered by a reset")
        now = counted(fleet)
        return [now[0] - before[0], now[1] - before[1]]

    hops, answered = scan()
    assert answered == many
    # Nobody here was told of anything before it began, and so each supposes something.
    assert 0 < hops <= 8 * many


def counted(fleet: Fleet) -> tuple[int, int]:
    """Second hops, and what was left to the stack, which has no connection either."""
    reasons = [serving.packet()["reasons"] for serving in fleet.agents.values()]
    hops = sum(each.get("second_hop", 0) for each in reasons)
    return hops, sum(each.get("delivered_unclaimed", 0) + each.get("delivered_hops", 0) for each in reasons)
