"""Processes end, die and are replaced; packets go on as they should, and nothing is left behind."""

from __future__ import annotations

import subprocess

from tests.wire.namespace import Namespace, needs_namespaces
from tests.wire.net import PATIENCE, until

from .conftest import Start
from .fleet import Serve
from .talks import Talks
from .topology import VIP, VIP6

pytestmark = needs_namespaces

CHECK = 'kind = "tcp"\ninterval = "200ms"'


def shown(space: Namespace, command: str) -> str:
    with space.inside():
        return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout


def attached(serving: Serve) -> bool:
    return "xdp" in shown(serving.machine.space, "ip link show eth0")


def traces(serving: Serve) -> str:
    """What a process sets up on its machine besides programs."""
    space = serving.machine.space
    rules = [
        line
        for family in ("-4", "-6")
        for line in shown(space, f"ip {family} rule").splitlines()
        if "fwmark" in line
    ]
    addresses = [vip for vip in (VIP, VIP6) if vip in shown(space, "ip addr show lo")]
    return " ".join([*rules, *addresses, space.setting("ipv4/conf/all/arp_ignore")])


def talk(talking: Talks) -> None:
    talking.open(VIP, 40)
    talking.open(VIP6, 40)


def test_a_clean_exit_leaves_nothing_behind(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=2, health=CHECK)
    director, agent = fleet.directors["d1"], fleet.agents["b1"]
    talk(talking)
    assert attached(director)
    assert attached(agent)
    assert "fwmark 0x70620001" in traces(director)
    assert traces(agent) == f"{VIP} {VIP6} 1"
    for serving in (director, agent):
        assert serving.stop() == 0
        assert not attached(serving)
        assert traces(serving) == "0"


def test_after_a_crash_packets_go_on_and_the_next_process_takes_over(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=3)
    director, agent = fleet.directors["d1"], fleet.agents["b1"]
    talk(talking)
    numbers = {one["address"]: one["number"] for one in director.packet()["machines"]}
    fleet.crash(director)
    fleet.crash(agent)
    assert attached(director)
    assert talking.lost(talking.conversations) == []
    before = len({one.server for one in talking.open(VIP, 40)})
    assert before == 3
    director, agent = fleet.start_again(director), fleet.start_again(agent)
    assert talking.lost(talking.conversations) == []
    assert {one["address"]: one["number"] for one in director.packet()["machines"]} == numbers
    # It is really the new one that decides.
    fleet.plan.weights = {"b2": 0}
    fleet.apply(fleet.plan)
    assert "b2" not in {one.server for one in talking.open(VIP, 40)}
    assert talking.lost(talking.conversations) == []
    assert director.stop() == 0
    assert not attached(director)


def test_an_upgrade_of_director_and_backend_interrupts_nothing(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=2, health=CHECK)
    director, agent = fleet.directors["d1"], fleet.agents["b1"]
    talk(talking)
    pids = {}
    for serving in (director, agent):
        done = serving.ask("upgrade")
        assert done.returncode == 0, done.stderr
        pids[serving] = serving.client.get("/status")["pid"]
        assert pids[serving] != serving.process.pid
        # Its log is the new process's, so it does not end.
        assert serving.process.wait(PATIENCE) == 0
        assert attached(serving)
    assert talking.lost(talking.conversations) == []
    assert {one.server for one in talking.open(VIP, 40)} == {"b1", "b2"}
    for serving in (director, agent):
        subprocess.run(["kill", str(pids[serving])], check=True)
        until(lambda serving=serving: not attached(serving), "the end of the new process")
        until(lambda serving=serving: traces(serving) == "0", "its traces gone")


def test_a_process_that_remembers_nothing_takes_the_numbers_of_the_kernel(start: Start) -> None:
    """By the names of machines b1 would be number 1, which is b2 in the rows that packets go by."""
    site, fleet, talking = start(directors=1, backends=3, present=2)
    director = fleet.directors["d1"]
    b1, b2, b3 = site.backends
    talk(talking)
    fleet.plan.backends = [b2, b3]
    fleet.start_agent(b3, fleet.plan).ready()
    fleet.apply(fleet.plan)
    talk(talking)
    before = {one["address"]: one["number"] for one in director.packet()["machines"]}
    assert (before[b1.address], before[b2.address], before[b3.address]) == (1, 2, 3)
    fleet.crash(director)
    (director.folder / "state" / "packet.json").unlink()
    director = fleet.start_again(director)
    director.line("what it has written down is not")
    # That b1 had connections is forgotten here, and b2 and b3 send on what they have none of.
    after = {one["address"]: one["number"] for one in director.packet()["machines"]}
    assert after == {b2.address: 2, b3.address: 3}
    assert talking.lost(talking.conversations) == []
    fleet.plan.backends = [b1, b2, b3]
    fleet.apply(fleet.plan)
    assert {one.server for one in talking.open(VIP, 40)} == {"b1", "b2", "b3"}
    assert talking.lost(talking.conversations) == []
