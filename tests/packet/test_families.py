"""IPv4 and IPv6 in every mix of service and backends; checks that go the way of packets there."""

from __future__ import annotations

import pytest

from tests.wire.namespace import needs_namespaces
from tests.wire.net import until

from .conftest import Start
from .topology import VIP, VIP6

pytestmark = needs_namespaces

CHECK = 'kind = "websocket"\ninterval = "200ms"\ntimeout = "3s"\nfall = 2\nrise = 1'
FOUR_FIRST, SIX_FIRST = (VIP, f"[{VIP6}]"), (f"[{VIP6}]", VIP)


@pytest.mark.parametrize(
    ("forward", "six", "vips"),
    [
        ("l2", False, SIX_FIRST),
        ("l2", True, FOUR_FIRST),
        ("ipip", True, FOUR_FIRST),
        ("ipip", False, SIX_FIRST),
    ],
)
def test_service_and_backends_of_any_family(
    start: Start, forward: str, six: bool, vips: tuple[str, str]
) -> None:
    _, fleet, talking = start(forward, directors=1, backends=2, health=CHECK, six=six, vips=vips)
    director = fleet.directors["d1"]
    until(lambda: director.are("up"), "the checks")
    assert {one.server for one in talking.open(VIP, 30)} == {"b1", "b2"}
    assert {one.server for one in talking.open(VIP6, 30)} == {"b1", "b2"}
    # The server itself is up, but nobody there takes its packets as the service's.
    agent = fleet.agents["b2"]
    # Its process would put the addresses back.
    fleet.crash(agent)
    agent.machine.space.ip(f"addr del {VIP}/32 dev lo", f"-6 addr del {VIP6}/128 dev lo")
    until(lambda: director.backends()["b2"]["state"] == "down", "the check of b2")
    assert director.backends()["b1"]["state"] == "up"
    until(lambda: not director.packet()["machines"][1]["takes_new"], "b2 without new flows")
    assert {one.server for one in talking.open(VIP, 20)} == {"b1"}
