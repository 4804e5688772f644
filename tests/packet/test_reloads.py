"""The way of packets is changed while they come; and what the kernel refuses is taken back whole."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

import pytest

from pybalancer.admin.client import Refused
from tests.wire.namespace import needs_namespaces
from tests.wire.net import until

from .conftest import Start
from .fleet import Fleet, Serve
from .talks import Talks
from .test_lifecycle import attached, shown
from .topology import VIP, VIP6

pytestmark = needs_namespaces

LISTENER = '[[listeners]]\nname = "public"\nmode = "tcp"\nbind = "127.0.0.1:9999"\npool = "web"'
POOL = '[pools.web]\n[[pools.web.backends]]\nname = "w1"\naddress = "127.0.0.1:9998"'
WIDE = ("link add wide type veth peer name wide-end", "link set wide-end mtu 9000")
"""An interface whose driver refuses native XDP: frames of its other end are too long."""


def talk(talking: Talks, count: int = 40) -> None:
    talking.open(VIP, count)
    talking.open(VIP6, count)


def listens(serving: Serve, port: int = 9999) -> bool:
    with serving.machine.space.inside(), contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def taken(talking: Talks) -> set[str]:
    return {one.server for one in talking.open(VIP, 40)}


def test_backends_are_reached_another_way_from_one_packet_to_the_next(start: Start) -> None:
    site, fleet, talking = start(directors=2, backends=3, health='kind = "tcp"\ninterval = "200ms"')
    # What has an outer header does not fit otherwise.
    site.client.ip(
        "route replace default via 10.9.0.1 mtu 1400", "-6 route replace default via fd00:9::1 mtu 1400"
    )
    talk(talking)
    for forward in ("ipip", "l2"):
        fleet.apply(replace(fleet.plan, forward=forward))
        assert {serving.packet()["forward"] for serving in fleet.all} == {forward}
        assert talking.lost(talking.conversations) == []
        assert taken(talking) == {"b1", "b2", "b3"}


def test_a_backend_gets_packets_only_when_its_hardware_address_is_known(start: Start) -> None:
    """Else what is for it, a part of all that goes on, stands still for a second."""
    site, fleet, talking = start(directors=1, backends=3, present=2)
    talk(talking)
    plan = replace(fleet.plan, backends=site.backends)
    fleet.start_agent(site.backends[2], plan).ready()
    fleet.apply(plan, list(fleet.agents.values()))
    director = fleet.directors["d1"]
    before = [machine["names"] for machine in director.packet()["machines"]]
    assert before == [["b1"], ["b2"]]
    assert site.backends[2].address not in shown(director.machine.space, "ip neigh")
    director.write(plan)
    assert taken(talking) == {"b1", "b2", "b3"}
    assert talking.lost(talking.conversations) == []
    assert "dropped_unresolved" not in director.packet()["reasons"]


def test_xdp_changes_its_mode(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=2)
    talk(talking)
    for mode in ("generic", "native", "generic"):
        fleet.apply(replace(fleet.plan, xdp=mode))
        assert {serving.packet()["interfaces"]["eth0"] for serving in fleet.all} == {mode}
        assert talking.lost(talking.conversations) == []
    director = fleet.directors["d1"]
    fleet.crash(director)
    assert talking.lost(talking.conversations) == []
    director = fleet.start_again(director)
    assert director.packet()["interfaces"] == {"eth0": "generic"}
    assert talking.lost(talking.conversations) == []


@pytest.mark.parametrize("size", [65537, 16381], ids=["in place", "by other maps"])
def test_what_is_refused_is_taken_back_whole(start: Start, size: int) -> None:
    _, fleet, talking = start(directors=1, backends=3)
    talk(talking)
    director = fleet.directors["d1"]
    director.machine.space.ip(*WIDE)
    before = director.packet()
    bad = replace(
        fleet.plan,
        interfaces=("eth0", "wide"),
        forward="ipip",
        table_size=size,
        weights={"b1": 0},
        more=f"{LISTENER}\n{POOL}\n",
    )
    with pytest.raises(Refused, match="packets go as before: cannot attach to wide in native mode"):
        director.write(bad)
    after = director.packet()
    assert after["forward"] == "l2"
    assert after["interfaces"] == {"eth0": "native"}
    assert [one["digest"] for one in after["services"]] == [one["digest"] for one in before["services"]]
    assert not listens(director), "a listener of a configuration that is not in force"
    assert talking.lost(talking.conversations) == []
    assert taken(talking) == {"b1", "b2", "b3"}
    # A process that takes over finds what decides.
    fleet.crash(director)
    assert talking.lost(talking.conversations) == []
    director = fleet.start_again(director)
    assert talking.lost(talking.conversations) == []
    # And what is not refused is done.
    director.machine.space.ip("link set wide-end mtu 1500")
    director.write(replace(bad, table_size=65537, forward="l2"))
    assert director.packet()["interfaces"] == {"eth0": "native", "wide": "native"}
    assert listens(director)
    assert taken(talking) == {"b2", "b3"}
    assert talking.lost(talking.conversations) == []
    director.write(fleet.plan)
    assert director.packet()["interfaces"] == {"eth0": "native"}


@pytest.mark.parametrize("engine", ["xdp", "nftables"])
def test_an_interface_that_is_gone_is_not_in_the_way_of_a_reload(start: Start, engine: str) -> None:
    """Just then somebody may have to take a backend out."""
    _, fleet, talking = start(directors=1, backends=2, engine=engine)
    director = fleet.directors["d1"]
    space = director.machine.space
    space.ip("link add other type veth peer name other-end")
    plan = replace(fleet.plan, interfaces=("eth0", "other"))
    director.write(plan)
    space.ip("link del other")
    director.line("packets: other: there is no such interface")
    director.write(replace(plan, weights={"b1": 0}))
    assert taken(talking) == {"b2"}
    with pytest.raises(Refused, match="never"):
        director.write(replace(plan, interfaces=("eth0", "other", "never")))
    space.ip("link add other type veth peer name other-end", "link set other up")
    director.line("packets: other: it works again")
    until(lambda: director.packet()["interfaces"].keys() == {"eth0", "other"}, "the interface")


def test_a_role_that_this_machine_cannot_have_is_refused(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=2)
    talk(talking, 20)
    director = fleet.directors["d1"]
    with pytest.raises(Refused, match=r"packets go as before: no backend .* has an address of this"):
        director.write(replace(fleet.plan, role="backend"))
    assert director.packet()["role"] == "director"
    assert talking.lost(talking.conversations) == []


def test_an_engine_that_fails_gives_way_to_the_one_before(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=2, engine="nftables")
    director = fleet.directors["d1"]
    director.machine.space.ip(*WIDE)
    with pytest.raises(Refused, match="packets go as before: cannot attach to wide"):
        director.write(replace(fleet.plan, engine="xdp", interfaces=("eth0", "wide")))
    assert director.packet()["interfaces"] == {"eth0": "nftables"}
    assert not attached(director)
    # What they had may be lost: the other engine hashes in another way.
    assert taken(talking) == {"b1", "b2"}


def test_an_engine_takes_the_place_of_the_other(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=2)
    director = fleet.directors["d1"]
    for engine, how in (("nftables", "nftables"), ("xdp", "native")):
        director.write(replace(fleet.plan, engine=engine))
        assert director.packet()["interfaces"] == {"eth0": how}
        assert taken(talking) == {"b1", "b2"}
        assert rules(fleet) == (engine == "nftables")


def rules(fleet: Fleet) -> bool:
    return "pybalancer" in shown(fleet.directors["d1"].machine.space, "nft list tables")
