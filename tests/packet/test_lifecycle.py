"""Processes end, die and are replaced; packets go on as they should, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pybalancer.packet.forwarder import pin_name
from tests.wire.namespace import Namespace, needs_namespaces
from tests.wire.net import PATIENCE, until
from tests.wire.serving import Serving

from .conftest import Start
from .fleet import PINS, Fleet, Serve
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


def test_a_backend_ends_and_begins_again_and_resets_nobody(start: Start) -> None:
    """Without its program its stack would answer packets of connections that others have."""
    site, fleet, talking = start(directors=1, backends=3, present=2)
    for _ in range(2):
        talk(talking)
    fleet.plan.backends = list(site.backends)
    fleet.start_agent(site.backends[2], fleet.plan).ready()
    fleet.apply(fleet.plan)
    talk(talking)
    for _ in range(2):
        assert fleet.agents["b3"].stop() == 0
        assert traces(fleet.agents["b3"]) == "0"
        fleet.start_again(fleet.agents["b3"])
    assert talking.lost(talking.conversations) == []


@pytest.mark.parametrize("wrong", ["its last step", "another table"])
def test_a_start_that_fails_leaves_what_goes_on_since_a_crash(start: Start, wrong: str) -> None:
    _, fleet, talking = start(directors=1, backends=2)
    talk(talking)
    director = fleet.directors["d1"]
    space = director.machine.space
    fleet.crash(director)
    if wrong == "its last step":
        plan = replace(fleet.plan, more='[balancer]\nadmin = "unix:/proc/admin.sock"')
    else:
        # Its driver refuses XDP as it is set.
        space.ip("link add wide type veth peer name wide-end", "link set wide-end mtu 9000")
        plan = replace(fleet.plan, interfaces=("eth0", "wide"), table_size=16381)
    failing = Serve(director.machine, fleet.folder, plan)
    assert failing.wait() == 3, failing.lines
    Serving.close(failing)
    assert attached(director)
    assert {one.server for one in talking.open(VIP, 40)} == {"b1", "b2"}
    director = fleet.start_again(director)
    assert {one.server for one in talking.open(VIP, 40)} == {"b1", "b2"}
    if wrong == "its last step":
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


LISTENER = '[[listeners]]\nname = "public"\nmode = "tcp"\nbind = "127.0.0.1:0"\npool = "web"'
POOL = '[pools.web]\n[[pools.web.backends]]\nname = "w1"\naddress = "127.0.0.1:9998"'


def pinned(serving: Serve, kind: str) -> bool:
    with serving.machine.space.inside():
        return (PINS / pin_name(kind)).exists()


def start_as(fleet: Fleet, serving: Serve, **change: object) -> Serve:
    """After a crash, as something else."""
    again = Serve(serving.machine, fleet.folder, replace(fleet.plan, **change))  # type: ignore[arg-type]
    for all_of_them in (fleet.directors, fleet.agents):
        if serving.machine.name in all_of_them:
            all_of_them[serving.machine.name] = again
    return again.ready()


def test_a_backend_that_has_crashed_becomes_a_director(start: Start) -> None:
    _, fleet, _ = start(directors=1, backends=2, health=CHECK)
    agent = fleet.agents["b1"]
    fleet.crash(agent)
    assert traces(agent) == f"{VIP} {VIP6} 1"
    assert pinned(agent, "agent")
    others = fleet.plan.backends[1:]
    again = start_as(fleet, agent, backends=others)
    again.line("programs that a backend has left at eth0 are removed")
    until(lambda: "fwmark" in traces(again), "the way of its checks")
    assert not pinned(again, "agent")
    assert pinned(again, "director")
    assert VIP not in shown(again.machine.space, "ip addr show lo")
    assert again.stop() == 0
    assert traces(again) == "0"


def test_a_director_that_has_crashed_changes_its_engine(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=2, health=CHECK)
    talk(talking)
    director = fleet.directors["d1"]
    fleet.crash(director)
    director = start_as(fleet, director, engine="nftables")
    director.line("programs that a director has left at eth0 are removed")
    assert not attached(director)
    assert {one.server for one in talking.open(VIP, 40)} == {"b1", "b2"}
    fleet.crash(director)
    director = start_as(fleet, director, engine="xdp")
    director.line("rules that a director with engine = nftables has left are removed")
    assert "pybalancer" not in shown(director.machine.space, "nft list tables")
    assert {one.server for one in talking.open(VIP, 40)} == {"b1", "b2"}


@pytest.mark.parametrize("role", ["director", "backend"])
def test_a_second_process_leaves_the_first_alone(start: Start, role: str, tmp_path: Path) -> None:
    site, fleet, talking = start(directors=1, backends=2)
    talk(talking)
    first = fleet.agents["b1"]
    plan = fleet.plan if role == "backend" else replace(fleet.plan, backends=site.backends[1:])
    second = Serve(first.machine, tmp_path / "second", plan, PYBALANCER_PACKET_ROLE=role)
    try:
        assert second.wait() != 0
        said = f"process {first.process.pid} forwards packets of eth0 already, as a backend: end it first"
        assert any(said in line for line in second.lines), second.lines
    finally:
        Serving.close(second)
    assert attached(first)
    assert talking.lost(talking.conversations) == []
    assert "b1" in {one.server for one in talking.open(VIP, 40)}


def test_what_is_left_is_noticed_where_packets_are_nobody_s_business(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=2)
    talk(talking)
    director = fleet.directors["d1"]
    fleet.crash(director)
    again = start_as(fleet, director, vips=(), interfaces=(), more=f"{LISTENER}\n{POOL}")
    line = again.line(r"programs of mode packet that a director has left .* `rm -r (\S+)` ends that")
    assert talking.lost(talking.conversations) == [], "they may be somebody's"
    subprocess.run(["rm", "-r", line[1]], check=True)
    assert not attached(again)


NOBODY = 65534


NOBODY = 65534
KEPT = "-all,+net_admin,+bpf,+perfmon"


class AsNobody(Serve):
    """By a user with few rights, as a service file has it: AmbientCapabilities=…"""

    BEFORE = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
              f"--inh-caps={KEPT}", f"--ambient-caps={KEPT}", f"--bounding-set={KEPT}")  # fmt: skip


@contextlib.contextmanager
def room_for_pins() -> Iterator[None]:
    """What the refusal says has to be done."""
    before, made = PINS.stat().st_mode, PINS / "pybalancer"
    made.mkdir(exist_ok=True)
    PINS.chmod(0o711)
    os.chown(made, NOBODY, NOBODY)
    try:
        yield
    finally:
        os.chown(made, 0, 0)
        PINS.chmod(before)


def test_a_user_needs_three_capabilities_and_a_directory(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=2, health=CHECK)
    talk(talking)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        stack.enter_context(room_for_pins())
        new = []
        for old in (fleet.directors["d1"], fleet.agents["b1"]):
            assert old.stop() == 0
            mine = folder / old.machine.name
            mine.mkdir()
            os.chown(mine, NOBODY, NOBODY)
            role = {"PYBALANCER_PACKET_ROLE": "backend"} if old.machine.name in fleet.agents else {}
            new.append(AsNobody(old.machine, folder, fleet.plan, **role))
            stack.callback(new[-1].close)
        assert all(attached(serving.ready()) for serving in new)
        assert {one.server for one in talking.open(VIP, 40)} == {"b1", "b2"}
        for serving in new:
            assert serving.stop() == 0
            assert not attached(serving)


def test_a_user_without_that_directory_is_told(start: Start) -> None:
    _, fleet, _ = start(directors=1, backends=2)
    old = fleet.directors["d1"]
    assert old.stop() == 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        serving = AsNobody(old.machine, Path(folder, "user"), fleet.plan)
        assert serving.wait() == 3
        assert any("install -d -m 0700 -o 65534 /sys/fs/bpf/pybalancer" in line for line in serving.lines)
        Serving.close(serving)
