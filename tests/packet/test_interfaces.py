"""Interfaces that go and come, under the programs of a process that stays."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pybalancer._core import PacketPath
from pybalancer.config.packet_model import PacketConfig
from pybalancer.packet.forwarder import XdpForwarder
from tests.wire.namespace import Namespace, namespace, needs_namespaces
from tests.wire.net import until

from .conftest import Start
from .topology import ROUTER, VIP, VIP6, Machine

SECRET, SIZE = bytes(16), 13
MOST_INTERFACES, TRIES = 64, 4
"""Places for interfaces in the settings, and those that one of them may have."""

pytestmark = needs_namespaces


@pytest.fixture
def inside() -> Iterator[Namespace]:
    with namespace() as made, made.inside():
        yield made


@pytest.fixture
def pin() -> Iterator[str]:
    name = f"pybalancer-test-{os.getpid()}/interfaces"
    yield name
    director(name).close(keep=False)
    Path("/sys/fs/bpf", name).parent.rmdir()


def director(pin: str) -> PacketPath:
    return PacketPath("director", secret=SECRET, size=SIZE, pin=pin)


def make(inside: Namespace, name: str, number: int | str = "") -> int:
    """An interface, of this number if one is given; its number."""
    index = f"index {number}" if number else ""
    inside.ip(f"link add name {name} {index} type veth peer name {name}-end")
    return socket.if_nametoindex(name)


def links() -> int:
    """How many links this process has open."""
    return sum(
        "bpf_link" in os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()
    )


def pins(pin: str) -> list[str]:
    """Pinned links."""
    return sorted(each.name for each in Path("/sys/fs/bpf", pin).iterdir() if each.name[-1].isdigit())


@pytest.mark.parametrize(("step", "times"), [("", MOST_INTERFACES + 6), (MOST_INTERFACES, TRIES + 2)])
def test_one_that_comes_back_takes_no_more_than_one_place(
    inside: Namespace, pin: str, step: int | str, times: int
) -> None:
    """Each time another number, and in the end more of them than there are places."""
    path, before = director(pin), links()
    for time in range(times):
        number = make(inside, "eth0", step and 10 + int(step) * time)
        path.attach("eth0", "generic")
        path.attach_probe("eth0")
        assert links() - before == 2
        assert pins(pin) == [f"egress_{number}", f"generic_{number}"]
        inside.ip("link del eth0")
    assert path.interfaces() == {}
    path.forget_gone()
    assert (links() - before, pins(pin)) == (0, [])
    path.close(keep=False)


def test_one_that_cannot_be_attached_keeps_no_place(inside: Namespace, pin: str) -> None:
    path = director(pin)
    for time in range(TRIES + 2):
        # Its other end may send frames that are too long for native XDP.
        make(inside, "wide", 10 + MOST_INTERFACES * time)
        inside.ip("link set wide-end mtu 9000")
        with pytest.raises(Exception, match="an MTU above"):
            path.attach("wide", "native")
        inside.ip("link set wide-end mtu 1500", "link set wide name narrow", "link del narrow")
    path.close(keep=False)


def test_what_a_process_before_had_is_forgotten_too(inside: Namespace, pin: str) -> None:
    for time in range(TRIES + 2):
        path = director(pin)
        number = make(inside, "eth0", 10 + MOST_INTERFACES * time)
        path.attach("eth0", "generic")
        assert pins(pin) == [f"generic_{number}"]
        path.close(keep=True)
        inside.ip("link del eth0")


def test_one_that_is_down_stays(inside: Namespace, pin: str) -> None:
    path = director(pin)
    for name in ("eth0", "eth1"):
        make(inside, name)
        inside.ip(f"link set {name} up")
    path.attach("eth0", "generic")
    inside.ip("link set eth0 down")
    path.attach("eth1", "generic")
    assert set(path.interfaces()) == {"eth0", "eth1"}
    path.close(keep=False)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_one_that_is_elsewhere_now_has_no_program_there(inside: Namespace, pin: str, mode: str) -> None:
    path, before = director(pin), links()
    make(inside, "eth0")
    path.attach("eth0", mode)  # type: ignore[arg-type]
    with namespace() as other:
        inside.ip(f"link set eth0 netns /proc/{os.getpid()}/fd/{other.descriptor}")
        assert path.interfaces() == {}
        path.forget_gone()
        with other.inside():
            assert "xdp" not in os.popen("ip link show eth0").read()
    assert (links() - before, pins(pin)) == (0, [])
    path.close(keep=False)


def test_one_that_cannot_be_asked_for_is_there(inside: Namespace, pin: str) -> None:
    """A balancer of many connections may have no descriptor left for the question."""
    path = director(pin)
    number = make(inside, "eth0")
    path.attach("eth0", "generic")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        path.forget_gone()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pins(pin) == [f"generic_{number}"]
    assert set(path.interfaces()) == {"eth0"}
    path.close(keep=False)


def test_one_that_was_not_seen_for_a_moment_keeps_its_program(inside: Namespace) -> None:
    make(inside, "eth0")
    section = PacketConfig(interfaces=("eth0",), xdp="generic")
    forwarder = XdpForwarder(section, SECRET, SIZE)

    def runs() -> bool:
        return "xdp" in os.popen("ip link show eth0").read()

    try:
        assert forwarder.attach(["eth0"]) == {"eth0": "generic"}
        assert forwarder.attach([]) == {}
        assert runs()
        forwarder.configure(PacketConfig(interfaces=("eth1",), xdp="generic"))
        forwarder.attach([])
        assert not runs()
    finally:
        forwarder.close(keep=False)


NEW = "02:00:00:00:77:01"


def heard(machine: Machine, count: int) -> set[str]:
    """Hardware addresses that the next frames for the service come from."""
    with machine.space.inside():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    found: list[str] = []
    with wire:
        wire.settimeout(30)
        while len(found) < count:
            frame = wire.recv(2048)
            if frame[30:34] == socket.inet_aton(VIP):
                found.append(frame[6:12].hex(":"))
    return set(found)


@pytest.mark.parametrize("role", ["director", "backend"])
def test_another_hardware_address_is_taken_up(start: Start, role: str) -> None:
    _, fleet, talking = start(directors=1, backends=2)
    talking.open(VIP, 20)
    talking.open(VIP6, 20)
    serving = fleet.directors["d1"] if role == "director" else fleet.agents["b2"]
    for version, setting in (("ipv4", "arp_notify"), ("ipv6", "ndisc_notify")):
        # Others would find it out by themselves only after half a minute.
        serving.machine.space.set(f"{version}/conf/eth0/{setting}", 1)
    serving.machine.space.ip(f"link set eth0 address {NEW}")
    assert talking.lost(talking.conversations) == []
    if role == "backend":
        # Then b2 sends on what b1 has, and says so in its address.
        fleet.apply(replace(fleet.plan, weights={"b1": 0}))
    new = NEW if role == "director" else NEW.replace("02:00:00", "02:70:61")
    assert heard(fleet.agents["b1"].machine, 20) == {new}
    assert talking.lost(talking.conversations) == []


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
@pytest.mark.parametrize("role", ["director", "backend"])
def test_packets_go_on_by_an_interface_on_top_of_another(start: Start, role: str, kind: str) -> None:
    made, fleet, talking = start(directors=1, backends=2, xdp="auto")
    talking.open(VIP, 20)
    talking.open(VIP6, 20)
    serving = fleet.directors["d1"] if role == "director" else fleet.agents["b1"]
    machine, net = serving.machine, made.front
    if kind == "bridge":
        machine.space.ip("link add top0 type bridge forward_delay 0 mcast_snooping 0")
        machine.space.ip(f"link set top0 address {machine.space.mac('eth0')}", "link set eth0 master top0")
    else:
        machine.space.ip("link add link eth0 name top0 type macvlan mode bridge")
    # What is below answers for nobody.
    machine.space.set("ipv4/conf/all/arp_ignore", 1)
    machine.space.set("ipv4/conf/top0/rp_filter", 0)
    machine.space.ip("addr flush dev eth0", "link set top0 up")
    machine.space.own("top0", f"{machine.address}/24", f"{machine.address6}/64")
    machine.space.ip(
        f"route add default via {net.address(ROUTER)}", f"-6 route replace default via {net.address6(ROUTER)}"
    )
    # They would find another hardware address out by themselves only after half a minute.
    made.router.ip("neigh flush dev front")
    fleet.directors["d1"].machine.space.ip("neigh flush all")
    fleet.apply(replace(fleet.plan, interfaces=("top0",)), [serving])
    assert serving.packet()["interfaces"] == {"top0": "generic"}
    assert talking.lost(talking.conversations) == []
    assert {one.server for one in talking.open(VIP, 30)} == {"b1", "b2"}
    what = "forwarded" if role == "director" else "delivered"
    before = serving.packet()["reasons"][what]
    until(lambda: serving.packet()["reasons"][what] > before, "packets by the new interface")
    assert talking.lost(talking.conversations) == []
