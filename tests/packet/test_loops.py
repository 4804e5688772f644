"""Machines that by mistake are each other's backends: what they send back and forth comes to an end."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Literal

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from pybalancer import _core
from tests.wire.namespace import Namespace, namespace, needs_namespaces
from tests.wire.net import until

from .cables import plain

pytestmark = needs_namespaces

SECRET = bytes(16)
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
VIP, VIP6 = "192.0.2.10", "2001:db8::10"
ME, OTHER = 1, 2

Role = Literal["director", "agent"]


class Machine:
    """At one end of a cable; the machine at the other end is its backend."""

    def __init__(self, space: Namespace, role: Role, number: int) -> None:
        self.space, self.mac = space, MACS[number]
        with space.inside():
            self.path = _core.PacketPath(role, secret=SECRET, size=13)
            for id, mac in ((ME, MACS[number]), (OTHER, MACS[1 - number])):
                self.path.set_backend(
                    id,
                    address=f"10.1.0.{id}",
                    mac=bytes.fromhex(mac.replace(":", "")),
                    interface="eth0",
                    encapsulate=False,
                    source=None,
                )
            rows = _core.PacketRows([[("other", 1, OTHER)]], secret=SECRET, size=13)
            for service, vip in enumerate((VIP, VIP6)):
                self.path.set_service(service, vip, 443, "tcp", rows)
            self.path.set_me(ME)
            self.path.attach("eth0", "native")

    def receive(self, other: Machine, packet: Packet) -> None:
        """As if by the cable from the other one."""
        with other.space.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            wire.send(bytes(Ether(dst=self.mac, src="02:00:00:00:00:fe") / packet))

    def counted(self, reason: str) -> int:
        return self.path.counters()[reason]


@contextlib.contextmanager
def pair(*roles: Role) -> Iterator[list[Machine]]:
    with namespace() as one, namespace() as other, contextlib.ExitStack() as stack:
        one.join(other, "eth0", "eth0")
        made = []
        for number, (space, role) in enumerate(zip((one, other), roles, strict=True)):
            space.ip(f"link set eth0 address {MACS[number]}")
            plain(space, "eth0")
            made.append(Machine(space, role, number))
            stack.callback(made[-1].path.close, keep=False)
        yield made


ANSWER = bytes(IP(src=VIP, dst="198.51.100.7") / TCP(sport=443, dport=40000))[:28]
ANSWER6 = bytes(IPv6(src=VIP6, dst="2001:db8:c::7") / TCP(sport=443, dport=40000))[:48]

PACKETS = {
    "IPv4": (IP(src="198.51.100.7", dst=VIP, ttl=64) / TCP(dport=443, flags="A"), 63, "forwarded"),
    "IPv6": (IPv6(src="2001:db8:c::7", dst=VIP6, hlim=20) / TCP(dport=443, flags="A"), 19, "forwarded"),
    "ICMP": (
        IP(src="203.0.113.1", dst=VIP, ttl=255) / ICMP(type=3, code=4) / Raw(ANSWER),
        254,
        "forwarded_error",
    ),
    "ICMPv6": (
        IPv6(src="2001:db8:f::1", dst=VIP6, hlim=8) / ICMPv6PacketTooBig() / Raw(ANSWER6),
        7,
        "forwarded_error",
    ),
}


@pytest.mark.parametrize("kind", PACKETS)
def test_two_directors_lose_a_packet_in_the_end(kind: str) -> None:
    """And by then it was sent on as often as its TTL said."""
    packet, times, reason = PACKETS[kind]
    with pair("director", "director") as (one, other):
        one.receive(other, packet)
        until(lambda: one.counted("dropped_ttl") + other.counted("dropped_ttl"), "the end of the packet")
        assert one.counted(reason) + other.counted(reason) == times
        assert abs(one.counted(reason) - other.counted(reason)) <= 1


def test_what_a_backend_sends_on_is_not_for_a_director() -> None:
    with pair("director", "agent") as (director, agent):
        packet, _, _ = PACKETS["IPv4"]
        director.receive(agent, packet)
        until(lambda: director.counted("dropped_loop"), "the end of the packet")
        assert director.counted("forwarded") == 1
        assert agent.counted("second_hop") == 1
