"""Where packets go next, also by interfaces that go and come back by the same name, as other ones."""

from __future__ import annotations

import shutil

import pytest

from pybalancer.packet import hops
from tests.wire.namespace import Namespace, namespace, needs_namespaces
from tests.wire.net import until

from .conftest import Start
from .topology import VIP, VIP6

pytestmark = needs_namespaces


def test_a_way_by_an_interface_that_came_back_is_another_way() -> None:
    with namespace() as one, namespace() as other:

        def plug() -> None:
            one.join(other, "eth0", "eth0")
            one.ip("link set eth0 address 02:00:00:00:00:01")
            one.own("eth0", "10.0.0.1/24")
            one.ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent")

        plug()
        with one.inside():
            before = hops.look({"10.0.0.2"}, {}, direct=True)
            assert hops.look({"10.0.0.2"}, before, direct=True, routes=False) == before
            one.ip("link del eth0")
            plug()
            after = hops.look({"10.0.0.2"}, before, direct=True, routes=False)
        assert after["10.0.0.2"].mac == before["10.0.0.2"].mac
        assert after != before


def test_a_gateway_of_the_other_family_is_one(place: Namespace) -> None:
    """As in networks whose routers talk IPv6 among each other, and route IPv4 so."""
    gateway, far = "fd00::2", "10.2.0.5"
    place.own("here", "10.0.0.1/24", "fd00::1/64")
    place.ip(
        f"route add {far}/32 via inet6 {gateway} dev here",
        f"-6 neigh add {gateway} lladdr 02:00:00:00:01:02 dev here nud permanent",
    )
    with place.inside():
        known: dict[str, hops.Hop] = {}

        def look(*, direct: bool) -> hops.Hop:
            nonlocal known
            known = hops.look({far}, known, direct=direct)
            return known[far]

        hop = until(lambda: (hop := look(direct=False)).mac and hop, "the gateway")
        assert (hop.via, hop.mac, hop.source, hop.why) == (
            gateway,
            bytes.fromhex("020000000102"),
            "10.0.0.1",
            "",
        )
        assert "not on the same link" in look(direct=True).why


@pytest.mark.parametrize(("engine", "fall"), [("xdp", 1), ("nftables", 100)])
def test_a_director_whose_interface_comes_back_goes_on(start: Start, engine: str, fall: int) -> None:
    """Checks fail meanwhile. By rules of nftables connections go with a backend that is down."""
    if engine == "nftables" and shutil.which("nft") is None:
        pytest.skip("the program nft is not installed")
    made, fleet, talking = start(
        engine=engine, directors=1, backends=2, health=f'kind = "tcp"\ninterval = "200ms"\nfall = {fall}'
    )
    talking.open(VIP, 20)
    talking.open(VIP6, 20)
    director = fleet.directors["d1"]
    made.replug(director.machine)
    assert talking.lost(talking.conversations) == []
    until(lambda: all(one["takes_new"] for one in director.packet()["machines"]), "checks that pass")
    assert {one.server for one in talking.open(VIP, 30)} == {"b1", "b2"}
