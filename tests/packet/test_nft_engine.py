"""The engine of nftables alone, on a machine with two interfaces: what is in the kernel after each change."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from pybalancer import _core
from pybalancer.config.packet_model import PacketConfig
from pybalancer.packet import nft_counters
from pybalancer.packet.forwarder import NFT_TABLE, Address, Table
from pybalancer.packet.generations import Known, Member, Numbers, generation
from pybalancer.packet.hops import Hop
from pybalancer.packet.nft import NftForwarder, nft
from tests.wire.namespace import Namespace, namespace, needs_namespaces
from tests.wire.net import PATIENCE, until
from tests.wire.packets import ACK, SYN, packet

pytestmark = [
    needs_namespaces,
    pytest.mark.skipif(shutil.which("nft") is None, reason="the program nft is not installed"),
]

SECTION = PacketConfig(role="director", engine="nftables", interfaces=("eth0", "eth1"))
VIP: Address = ("203.0.113.10", 80, "tcp")
ETH_P_IP = 0x0800
ROUTER = bytes.fromhex("02000000aa01")
WITNESS = """
add table netdev witness
add counter netdev witness seen
add chain netdev witness eth1 { type filter hook ingress device "eth1" priority 0; }
add rule netdev witness eth1 ip daddr 203.0.113.10 counter name seen drop
"""
"""Sees what packet mode has left alone."""


class Place:
    """A machine, with ``eth0`` and ``eth1``, at whose other ends the test sends frames."""

    def __init__(self, machine: Namespace, net: Namespace) -> None:
        self.machine, self.net = machine, net
        self._sent = 0
        for name in ("eth0", "eth1"):
            self.plug(name)

    def plug(self, name: str) -> None:
        """Always the same card."""
        self.machine.join(self.net, name, f"to-{name}")
        self.machine.ip(f"link set {name} address 02:00:00:00:00:{name[-1]:0>2}")

    @contextlib.contextmanager
    def sent_by(self, interface: str) -> Iterator[Callable[[], bytes]]:
        """Asks for the next frame that the machine sends there: its two hardware addresses."""
        with self.net.inside():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        with wire:
            wire.settimeout(PATIENCE)
            wire.bind((f"to-{interface}", ETH_P_IP))
            yield lambda: wire.recv(2048)[:12]

    def send(self, interface: str, *, come_from: bytes = ROUTER, flags: int = ACK, times: int = 1) -> None:
        """Packets of as many clients for the service."""
        mac = bytes.fromhex(self.machine.mac(interface).replace(":", ""))
        with self.net.inside():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with wire:
            wire.bind((f"to-{interface}", 0))
            for _ in range(times):
                self._sent += 1
                wire.send(
                    mac
                    + come_from
                    + b"\x08\x00"
                    + packet(("198.51.100.7", 1024 + self._sent), VIP[:2], flags)
                )


@pytest.fixture
def place() -> Iterator[Place]:
    """With this thread on the machine."""
    with namespace() as machine, namespace() as net:
        made = Place(machine, net)
        with machine.inside():
            yield made


@pytest.fixture
def forwarder() -> NftForwarder:
    return NftForwarder(SECTION, bytes(16), 251)


def mac_of(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0xBB, number))


def to(forwarder: NftForwarder, *numbers: int, service: int = 0, where: Address = VIP) -> None:
    """A service, and the machines that it goes to, by ``eth0``."""
    hosts = {f"10.0.0.{number}": number for number in numbers}
    for host, number in hosts.items():
        forwarder.set_host(number, Hop(host, "eth0", mac=mac_of(number)))
    members = generation([Member(f"b{number}", 1, host) for host, number in hosts.items()])
    forwarder.set_service(service, where, Table.of(Known((members,)), Numbers(hosts), 1500))


def forwarded(forwarder: NftForwarder) -> dict[int, int]:
    return {number: counted.packets for number, counted in forwarder.counts().hosts.items()}


def names() -> set[str]:
    """Of all that is in our table."""
    told = json.loads(
        subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=True).stdout
    )
    return {
        thing["name"]
        for each in told["nftables"]
        for what, thing in each.items()
        if what in {"chain", "counter", "set"}
        and thing["table"] == NFT_TABLE
        and not thing["name"].startswith("made_by")
    }


def left_alone() -> int:
    return nft_counters.read("witness")["seen"][0]


def test_counts_are_of_all_at_once(place: Place, forwarder: NftForwarder) -> None:
    to(forwarder, 1, 2, 3)
    to(forwarder, 1, service=1, where=("203.0.113.11", 80, "tcp"))
    assert forwarder.attach(["eth0", "eth1"]) == {"eth0": "nftables", "eth1": "nftables"}
    place.send("eth0", times=60)
    place.send("eth1", flags=SYN, times=40)
    until(lambda: forwarder.counts().services[0].packets == 100, "packets of the service")
    counts = forwarder.counts()
    assert sum(one.packets for one in counts.hosts.values()) == 100
    assert sum(one.flows for one in counts.hosts.values()) == counts.services[0].flows == 40
    assert counts.services[0].bytes == 100 * 40
    assert all(one.packets > 10 for one in counts.hosts.values())
    assert counts.services[1].packets == 0
    assert counts.reasons == {"fragment": 0, "loop": 0, "unresolved": 0}


def test_what_backends_send_is_not_sent_on(place: Place, forwarder: NftForwarder) -> None:
    """Directors that are each other's backends would pass packets back and forth for ever."""
    to(forwarder, 1, 2)
    to(forwarder, 3, service=1, where=("203.0.113.11", 80, "tcp"))
    forwarder.attach(["eth0", "eth1"])
    place.send("eth0", come_from=mac_of(1), times=5)
    # A backend of another service is a client like others.
    place.send("eth0", come_from=mac_of(3), times=7)
    until(lambda: sum(forwarded(forwarder).values()) == 7, "a client's packets")
    assert forwarder.counts().reasons["loop"] == 5
    # It goes on elsewhere, by another card.
    forwarder.set_host(1, Hop("10.0.0.1", "eth0", mac=mac_of(9)))
    forwarder.flush()
    place.send("eth0", come_from=mac_of(9), times=3)
    place.send("eth0", come_from=mac_of(1), times=2)
    until(lambda: sum(forwarded(forwarder).values()) == 9, "what another has the address of now")
    assert forwarder.counts().reasons["loop"] == 8


def test_directors_that_are_each_others_backends_send_nothing_round(place: Place) -> None:
    with namespace() as other:
        place.machine.join(other, "eth2", "eth2")
        macs = {each: bytes.fromhex(each.mac("eth2").replace(":", "")) for each in (place.machine, other)}
        forwarders = {}
        for here, there in ((place.machine, other), (other, place.machine)):
            with here.inside():
                forwarders[here] = forwarder = NftForwarder(SECTION, bytes(16), 251)
                to(forwarder, 1)
                forwarder.set_host(1, Hop("10.0.0.1", "eth2", mac=macs[there]))
                forwarder.attach(["eth0", "eth1", "eth2"] if here is place.machine else ["eth2"])
        place.send("eth0", times=20)
        with other.inside():
            until(lambda: forwarders[other].counts().reasons["loop"] == 20, "packets that went one way")
        assert forwarded(forwarders[place.machine]) == {1: 20}


def test_an_interface_that_is_taken_out_is_left_alone(place: Place, forwarder: NftForwarder) -> None:
    nft("-f", "-", given=WITNESS)
    to(forwarder, 1)
    forwarder.attach(["eth0", "eth1"])
    place.send("eth1", times=4)
    until(lambda: forwarded(forwarder) == {1: 4}, "packets by both interfaces")
    forwarder.attach(["eth0"])
    place.send("eth1", times=6)
    until(lambda: left_alone() == 6, "packets for others")
    place.send("eth0")
    until(lambda: forwarded(forwarder) == {1: 5}, "counts that go on")
    forwarder.attach(["eth0", "eth1"])
    place.send("eth1", times=2)
    until(lambda: forwarded(forwarder) == {1: 7}, "packets by both interfaces again")
    assert left_alone() == 6


def test_an_interface_goes_and_comes_back(place: Place, forwarder: NftForwarder) -> None:
    to(forwarder, 1)
    forwarder.attach(["eth0", "eth1"])
    place.machine.ip("link del eth1")
    # Before anybody has noticed, a change; then it is noticed.
    forwarder.set_host(1, Hop("10.0.0.1", "eth0", mac=mac_of(2)))
    forwarder.flush()
    forwarder.attach(["eth0"])
    place.send("eth0")
    until(lambda: forwarded(forwarder) == {1: 1}, "packets by the other one")
    place.plug("eth1")
    forwarder.attach(["eth0", "eth1"])
    place.send("eth1", times=3)
    until(lambda: forwarded(forwarder) == {1: 4}, "packets by the one that is back")
    # All at once, and back before anybody has noticed.
    for name in ("eth0", "eth1"):
        place.machine.ip(f"link del {name}")
        place.plug(name)
    forwarder.attach(["eth0", "eth1"])
    for name in ("eth0", "eth1"):
        with place.sent_by("eth0") as frame:
            place.send(name)
            assert frame() == mac_of(2) + bytes.fromhex("020000000000")
    assert forwarded(forwarder) == {1: 6}


def test_nothing_is_left_of_what_is_gone(place: Place, forwarder: NftForwarder) -> None:
    to(forwarder, 1, 2)
    to(forwarder, 1, 2, 3, service=1, where=("203.0.113.11", 80, "tcp"))
    forwarder.attach(["eth0"])
    place.send("eth0", times=50)
    until(lambda: sum(forwarded(forwarder).values()) == 50, "packets")
    before = forwarded(forwarder)
    forwarder.drop_service(1)
    forwarder.drop_host(3)
    forwarder.flush()
    left = {f"{name}{what}" for name in ("h1", "h2", "s0") for what in ("", "_flows")}
    assert names() == left | {"ingress", "b0", "fragment", "loop", "unresolved"}
    assert forwarded(forwarder) == {1: before[1], 2: before[2]}
    to(forwarder, 1)
    forwarder.flush()
    forwarder.drop_host(2)
    forwarder.flush()
    assert "h2" not in names()
    # The number comes again, with a flush between, or without one and for another machine.
    to(forwarder, 1, 2)
    forwarder.flush()
    assert forwarded(forwarder) == {1: before[1], 2: 0}
    forwarder.drop_host(1)
    forwarder.set_host(1, Hop("10.0.0.9", "eth0", mac=mac_of(1)))
    forwarder.flush()
    assert forwarded(forwarder) == {1: 0, 2: 0}


def test_a_table_that_somebody_has_removed_is_made_anew(
    place: Place, forwarder: NftForwarder, caplog: pytest.LogCaptureFixture
) -> None:
    to(forwarder, 1)
    forwarder.attach(["eth0"])
    nft("flush", "ruleset")
    assert forwarder.counts().services[0].packets == 0
    assert "somebody has removed" in caplog.text
    forwarder.flush()
    place.send("eth0", times=2)
    until(lambda: forwarded(forwarder) == {1: 2}, "packets")


def test_a_change_that_is_refused_leaves_the_rules_and_is_made_later(
    place: Place, forwarder: NftForwarder
) -> None:
    to(forwarder, 1)
    forwarder.attach(["eth0"])
    before = names()
    # Somebody is in the way: a chain that is ours cannot be removed while another goes there.
    to(forwarder, 2)
    nft("add", "chain", "netdev", NFT_TABLE, "theirs")
    nft("add", "rule", "netdev", NFT_TABLE, "theirs", "goto", "h1")
    forwarder.drop_host(1)
    with pytest.raises(_core.PacketError, match="nft refuses the rules"):
        forwarder.flush()
    assert names() == before | {"theirs"}
    forwarder.flush()
    assert "h2" in names()
    assert not {"h1", "theirs"} & names()
    place.send("eth0", times=2)
    until(lambda: forwarded(forwarder) == {2: 2}, "packets")


def test_a_change_that_is_taken_back_keeps_the_counts(place: Place, forwarder: NftForwarder) -> None:
    to(forwarder, 1)
    forwarder.attach(["eth0"])
    place.send("eth0", times=3)
    until(lambda: forwarded(forwarder) == {1: 3}, "packets")
    # A machine that has no number, which a configuration cannot have.
    forwarder.set_service(
        0, VIP, Table.of(Known((generation([Member("b2", 1, "10.0.0.2")]),)), Numbers({"10.0.0.2": 2}), 1500)
    )
    with pytest.raises(_core.PacketError, match="nft refuses the rules"):
        forwarder.flush()
    to(forwarder, 1)
    forwarder.flush()
    place.send("eth0", times=2)
    until(lambda: forwarded(forwarder) == {1: 5}, "more packets")


def test_rules_of_another_are_not_taken_for_ours(place: Place, forwarder: NftForwarder) -> None:
    """As when a change of the secret fails after its rules were there."""
    to(forwarder, 1)
    forwarder.attach(["eth0"])
    other = NftForwarder(SECTION, bytes(15) + b"1", 251)
    to(other, 2)
    other.attach(["eth0"])
    assert "h1" not in names()
    to(forwarder, 1)
    forwarder.flush()
    assert "h2" not in names()
    place.send("eth0", times=2)
    until(lambda: forwarded(forwarder) == {1: 2}, "packets")


def test_rules_of_a_process_before_are_replaced_whole(place: Place, forwarder: NftForwarder) -> None:
    to(forwarder, 1)
    forwarder.attach(["eth0", "eth1"])
    forwarder.close(keep=True)
    again = NftForwarder(SECTION, bytes(16), 251)
    assert again.adopted
    to(again, 2)
    again.attach(["eth0"])
    assert "h1" not in names()
    place.send("eth0", times=3)
    until(lambda: forwarded(again) == {2: 3}, "packets")
    again.close(keep=False)
    assert names() == set()
