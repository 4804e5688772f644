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
