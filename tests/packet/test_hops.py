"""Interfaces that are removed and come back by the same name are other ones to the kernel."""

from __future__ import annotations

import shutil

import pytest

from pybalancer.packet import hops
from tests.wire.namespace import namespace, needs_namespaces
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
