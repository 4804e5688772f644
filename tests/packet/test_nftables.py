"""The same table as rules of nftables."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from tests.wire.namespace import needs_namespaces
from tests.wire.net import until

from .conftest import Start
from .topology import VIP, VIP6

pytestmark = [
    needs_namespaces,
    pytest.mark.skipif(shutil.which("nft") is None, reason="the program nft is not installed"),
]


def test_rules_forward_as_explained_and_go_on_while_a_director_dies(start: Start) -> None:
    _, fleet, talking = start(engine="nftables", directors=2, backends=3)
    assert all(serving.packet()["interfaces"] == {"eth0": "nftables"} for serving in fleet.directors.values())
    opened = talking.open(VIP, 60) + talking.open(VIP6, 60)
    assert {one.server for one in opened} == {"b1", "b2", "b3"}
    director = fleet.directors["d1"]
    for conversation in random.Random(1).sample(opened, 12):
        listener = "vip6" if conversation.source.count(":") > 1 else "vip"
        said = director.client.get("/explain", source=conversation.source, listener=listener)
        assert said["backend"] == conversation.server
    fleet.kill("d2")
    assert talking.lost(talking.conversations) == []
    # One that is removed gets nothing new, and loses what its slots have: there is no second hop.
    fleet.plan.weights = {"b1": 0}
    fleet.apply(fleet.plan, [director])
    assert {one.server for one in talking.open(VIP, 40)} == {"b2", "b3"}
    counted = director.packet()
    assert sum(one["flows"] for one in counted["machines"]) >= 40
    assert sum(one["packets"] for one in counted["services"]) > 120
    assert director.stop() == 0
    with director.machine.space.inside():
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    assert "pybalancer" not in tables.stdout


def test_checks_go_to_the_service_at_each_backend(start: Start) -> None:
    _, fleet, _ = start(
        engine="nftables", directors=1, backends=2, health='kind = "websocket"\ninterval = "200ms"\nfall = 1'
    )
    director = fleet.directors["d1"]
    fleet.agents["b2"].machine.off()
    director.line("chat/b2 is down")
    until(lambda: not director.packet()["machines"][1]["takes_new"], "b2 without new flows")


def test_after_a_crash_rules_go_on_and_the_next_process_takes_over(start: Start) -> None:
    _, fleet, talking = start(engine="nftables", directors=1, backends=3)
    director = fleet.directors["d1"]
    talking.open(VIP, 30)
    numbers = {one["address"]: one["number"] for one in director.packet()["machines"]}
    fleet.crash(director)
    assert talking.lost(talking.conversations) == []
    assert {one.server for one in talking.open(VIP, 30)} == {"b1", "b2", "b3"}
    director = fleet.start_again(director)
    assert talking.lost(talking.conversations) == []
    assert {one["address"]: one["number"] for one in director.packet()["machines"]} == numbers
    talking.open(VIP6, 30)

    def flows() -> list[int]:
        return [one["flows"] for one in director.packet()["services"]]

    # While a look takes long, what was counted before it has to do.
    until(lambda: flows() == [0, 30], "the flows")
    counted = director.packet()
    assert sum(one["flows"] for one in counted["machines"]) == 30
    assert director.stop() == 0
    with director.machine.space.inside():
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    assert "pybalancer" not in tables.stdout
