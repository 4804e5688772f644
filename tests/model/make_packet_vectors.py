"""Make tests/vectors/packet.json from the model: python -m tests.model.make_packet_vectors

Packets are built with scapy, and so is none of the code that reads them. One that came from a director is
given to an agent without its socket: what it does with sockets is shown in tests/packet.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror, IPOption_NOP, IPOption_RR, TCPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.model.packet import decide
from tests.model.packet_world import host

FILE = Path(__file__).parents[1] / "vectors" / "packet.json"

HERE, THERE = "02:00:00:00:00:01", "02:00:00:00:00:02"
ROUTER, OTHER = "02:00:00:00:00:fe", "02:00:00:00:00:99"
VIP, VIP6 = "192.0.2.10", "2001:db8::10"
CLIENT, CLIENT6 = "198.51.100.7", "2001:db8:c::7"

V4_OUTSIDE, V6_OUTSIDE = "10.9.0.0/16", "2001:db8:9::/64"

BACKENDS = [
    {"id": 1, "address": "10.1.0.1", "mac": "020000000101", "interface": "here", "source": None},
    {"id": 2, "address": "10.1.0.2", "mac": "020000000102", "interface": "there", "source": None},
    {"id": 3, "address": "10.1.0.3", "mac": "020000000103", "interface": "here", "source": V4_OUTSIDE},
    {"id": 4, "address": "2001:db8:1::4", "mac": "020000000104", "interface": "there", "source": V6_OUTSIDE},
    {"id": 5, "address": "10.1.0.5", "mac": None, "interface": "here", "source": None},
    {"id": 6, "address": "10.1.0.6", "mac": "020000000106", "interface": "here", "source": "10.9.0.1"},
]  # fmt: skip
"""Same interface, another one, IPv4 outside, IPv6 outside, not resolved, an outer source that stays."""


def one(*ids: int) -> list[tuple[str, int, int]]:
    return [(f"app-{id}", 1, id) for id in ids]


# Ports say what a service is for: 800N goes to backend N, 900N knows former owners.
SERVICES: list[tuple[str, int, str, list[list[tuple[str, int, int]]]]] = [
    (address, port, protocol, generations)
    for address in (VIP, VIP6)
    for port, protocol, generations in (
        (443, "tcp", [one(1, 2, 3, 4)]),
        (53, "udp", [one(1, 2, 3, 4)]),
        *((8000 + id, "tcp", [one(id)]) for id in (1, 2, 3, 4, 5)),
        (8006, "tcp", [[]]),
        (8007, "tcp", [[], one(1)]),
        (8008, "tcp", [one(900)]),
        (9001, "tcp", [one(6), one(1)]),
        (9002, "tcp", [one(6), one(2), one(1)]),
        (9003, "tcp", [one(3), one(6), one(4)]),
        (9004, "tcp", [one(1), one(3)]),
        (9005, "tcp", [one(2, 3, 4, 6), one(1, 2, 3, 4, 6), one(1, 2, 3), one(4, 6)]),
    )
]

WORLD: dict[str, Any] = {
    "secret": bytes(range(16)).hex(),
    "size": 251,
    "mtu": 1500,
    "me": 6,
    "trusted": [V4_OUTSIDE, V6_OUTSIDE, "10.1.0.3", "10.1.4.128/25", "10.1.0.2/31"],
    "macs": {"here": HERE.replace(":", ""), "there": THERE.replace(":", "")},
    "backends": BACKENDS,
    "services": [
        {"address": address, "port": port, "protocol": protocol, "generations": generations}
        for address, port, protocol, generations in SERVICES
    ],
}


def frame(*layers: Packet, to: str = HERE, source: str = ROUTER, tags: tuple[Packet, ...] = ()) -> Packet:
    packet: Packet = Ether(dst=to, src=source)
    for layer in (*tags, *layers):
        packet = packet / layer
    return packet


def v4(**fields: Any) -> Packet:
    return IP(**{"src": CLIENT, "dst": VIP, **fields})


def v6(**fields: Any) -> Packet:
    return IPv6(**{"src": CLIENT6, "dst": VIP6, **fields})


def tcp(dport: int = 443, sport: int = 40000, flags: str = "A", **fields: Any) -> Packet:
    return TCP(sport=sport, dport=dport, flags=flags, seq=1, ack=1, **fields)


def answer(ip: Packet, sport: int = 443, dport: int = 40000) -> Packet:
    """What a service has sent, as ICMP errors quote it: 8 bytes behind the IP header."""
    return Raw(bytes(ip / TCP(sport=sport, dport=dport, seq=7))[: len(ip) + 8])


def back(**fields: Any) -> Packet:
    return IP(**{"src": VIP, "dst": CLIENT, "len": 1500, "proto": 6, "chksum": 0x1234, **fields})


def back6(**fields: Any) -> Packet:
    return IPv6(**{"src": VIP6, "dst": CLIENT6, "plen": 1460, "nh": 6, **fields})


def ordinary() -> Iterator[tuple[str, Packet]]:
    for flags in ("S", "A", "PA", "SA", "R", "FA"):
        yield f"v4 {flags}", frame(v4(), tcp(flags=flags))
    yield "v4 with data", frame(v4(), tcp(), Raw(b"x" * 600))
    yield "v4 with padding", frame(v4(), tcp(), Raw(b"xy")) / Raw(b"\0" * 4)
    for port in range(40001, 40009):
        yield f"v4 from port {port}", frame(v4(), tcp(sport=port))
        yield f"v6 from port {port}", frame(v6(), tcp(sport=port))
    yield "v4 from 0.0.0.0", frame(v4(src="0.0.0.0"), tcp(sport=0))
    yield "v4 from 255.255.255.255", frame(v4(src="255.255.255.255"), tcp(sport=65535))
    for flags in ("S", "A"):
        yield f"v6 {flags}", frame(v6(), tcp(flags=flags))
    yield "v6 with data", frame(v6(), tcp(), Raw(b"x" * 600))
    yield "v6 with a flow label", frame(v6(fl=0xFFFFF, tc=0xFF), tcp())
    yield "v6 from a mapped address", frame(v6(src="::ffff:198.51.100.7"), tcp())
    yield "v6 from a compatible address", frame(v6(src="::198.51.100.7"), tcp())
    yield "v4 UDP", frame(v4(), UDP(sport=40000, dport=53), Raw(b"question"))
    yield "v6 UDP", frame(v6(), UDP(sport=40000, dport=53), Raw(b"question"))
    yield "v4 UDP without data", frame(v4(), UDP(sport=40000, dport=53))
    for ttl in (0, 1, 2, 255):
        yield f"v4 TTL {ttl}", frame(v4(ttl=ttl), tcp())
        yield f"v6 hop limit {ttl}", frame(v6(hlim=ttl), tcp())
    yield "v4 with TOS", frame(v4(tos=0xFF), tcp())
    yield "v4 that may be fragmented, whole", frame(v4(flags=0), tcp())
    yield "v4 that must not be fragmented", frame(v4(flags="DF"), tcp())
    yield "v4 with a wrong IP checksum", frame(v4(chksum=0xDEAD), tcp())
    yield "v4 with the evil bit", frame(v4(flags="evil"), tcp())
    yield "v4 SYN with ECN", frame(v4(), tcp(flags="SEC"))
    yield "v4 Christmas tree", frame(v4(), tcp(flags="FSRPAU"))
    yield "v4 null scan", frame(v4(), tcp(flags=""))
    yield "v4 with TCP options", frame(v4(), tcp(options=[("MSS", 1460), ("Timestamp", (1, 2))]))


def hops() -> Iterator[tuple[str, Packet]]:
    """TTL, and what tells that a packet has been here before."""
    for ttl in (0, 1, 2):
        for port in (8001, 8002, 8003, 8004):
            yield f"v4 TTL {ttl} to {port}", frame(v4(ttl=ttl), tcp(port))
            yield f"v6 hop limit {ttl} to {port}", frame(v6(hlim=ttl), tcp(port))
        yield f"v4 TTL {ttl} to a backend without a way", frame(v4(ttl=ttl), tcp(8005))
        yield f"v4 TTL {ttl}, too big", frame(v4(ttl=ttl), tcp(8003), Raw(b"x" * 1460))
        yield f"v4 TTL {ttl}, not ours", frame(v4(ttl=ttl, dst="192.0.2.99"), tcp())
        yield f"v4 TTL {ttl}, UDP", frame(v4(ttl=ttl), UDP(sport=40000, dport=53))
        yield f"ICMP with TTL {ttl}", frame(v4(ttl=ttl), ICMP(type=3, code=4), answer(back()))
        yield f"ICMP about TTL {ttl}", frame(v4(), ICMP(type=11), answer(back(ttl=ttl)))
        yield f"ICMPv6 with hop limit {ttl}", frame(v6(hlim=ttl), ICMPv6PacketTooBig(), answer(back6()))
        yield f"v4 TTL {ttl}, tagged", frame(v4(ttl=ttl), tcp(8001), tags=(Dot1Q(vlan=7),))
    for sum in (0x0000, 0x00FF, 0x0100, 0xFE00, 0xFEFE, 0xFEFF, 0xFF00, 0xFFFE, 0xFFFF):
        yield f"v4 checksum {sum:04x}", frame(v4(chksum=sum), tcp())
    for source in ("02:70:61:aa:bb:cc", "02:70:6a:aa:bb:cc", "02:70:6f:00:00:00"):
        yield f"v4 that a backend sent on, {source}", frame(v4(), tcp(), source=source)
        yield f"v6 that a backend sent on, {source}", frame(v6(), tcp(8004), source=source)
        yield f"not ours, from {source}", frame(v4(), tcp(444), source=source)
    yield "v4 that a backend sent on, SYN", frame(v4(), tcp(8006, flags="S"), source="02:70:61:aa:bb:cc")
    for source in ("02:70:60:aa:bb:cc", "02:70:71:aa:bb:cc", "02:71:61:aa:bb:cc", "06:70:61:aa:bb:cc"):
        yield f"v4 from {source}, which is no mark", frame(v4(), tcp(), source=source)


def services_classes() -> Iterator[tuple[str, Packet]]:
    """TOS and traffic class go into the outer header."""
    for tos in (0x00, 0x01, 0x02, 0x03, 0xB8, 0xBB, 0x5A, 0xFF):
        for port in (8001, 8003, 8004):
            yield f"v4 TOS {tos:02x} to {port}", frame(v4(tos=tos), tcp(port))
            yield f"v6 class {tos:02x} to {port}", frame(v6(tc=tos, fl=0x12345), tcp(port))


def tagged() -> Iterator[tuple[str, Packet]]:
    for name, tags in (
        ("VLAN", (Dot1Q(vlan=7),)),
        ("priority tag", (Dot1Q(vlan=0, prio=5),)),
        ("802.1ad", (Dot1AD(vlan=7),)),
        ("QinQ", (Dot1AD(vlan=7), Dot1Q(vlan=8))),
        ("two VLAN tags", (Dot1Q(vlan=7), Dot1Q(vlan=8))),
        ("three tags", (Dot1AD(vlan=7), Dot1Q(vlan=8), Dot1Q(vlan=9))),
    ):
        for dport in (8001, 8003, 8004):
            yield f"{name}, v4 to {dport}", frame(v4(), tcp(dport), tags=tags)
        yield f"{name}, v6", frame(v6(), tcp(8001), tags=tags)
    yield "VLAN cut", Raw(bytes(frame(v4(), tcp(), tags=(Dot1Q(vlan=7),)))[:17])


def backends() -> Iterator[tuple[str, Packet]]:
    for port in (8001, 8002, 8003, 8004, 8005, 8006, 8007, 8008):
        for flags in ("S", "A"):
            yield f"v4 {flags} to {port}", frame(v4(), tcp(port, flags=flags))
        yield f"v6 A to {port}", frame(v6(), tcp(port))
    for total in (1460, 1461, 1480, 1481, 1500):
        for port in (8001, 8003, 8004):
            yield f"v4 of {total} bytes to {port}", frame(v4(), tcp(port), Raw(b"x" * (total - 40)))
            yield f"v6 of {total} bytes to {port}", frame(v6(), tcp(port), Raw(b"x" * (total - 60)))


def options() -> Iterator[tuple[str, Packet]]:
    for name, given in (
        ("one word of options", [IPOption_NOP()] * 4),
        ("record route", [IPOption_RR(length=23, pointer=4, routers=["0.0.0.0"] * 5)]),
        ("ten words of options", [IPOption_NOP()] * 40),
    ):
        yield f"v4 {name}", frame(v4(options=given), tcp())
        yield f"v4 {name}, outside", frame(v4(options=given), tcp(8003))
        yield f"v4 {name}, SYN", frame(v4(options=given), tcp(flags="S"))
        yield f"v4 {name}, UDP", frame(v4(options=given), UDP(sport=40000, dport=53))
    yield "v4 head of 4 words", frame(v4(ihl=4), tcp())
    yield "v4 head of 15 words that are not there", frame(v4(ihl=15), tcp())
    for name, header in (
        ("hop-by-hop", IPv6ExtHdrHopByHop()),
        ("destination options", IPv6ExtHdrDestOpt()),
        ("routing", IPv6ExtHdrRouting(addresses=["2001:db8::99"])),
    ):
        yield f"v6 {name}", frame(v6(), header, tcp())
        yield f"v6 {name}, not ours", frame(v6(dst="2001:db8::99"), header, tcp())
    yield "v6 authentication header", frame(v6(nh=51), Raw(b"\x06\x04" + bytes(22)), tcp())
    yield "v6 no next header", frame(v6(nh=59))


def fragments() -> Iterator[tuple[str, Packet]]:
    data = Raw(b"x" * 64)
    for name, fields in (
        ("first", {"flags": "MF"}),
        ("middle", {"flags": "MF", "frag": 8}),
        ("last", {"frag": 8}),
    ):
        yield f"v4 {name} fragment", frame(v4(**fields), tcp(), data)
        yield f"v4 {name} fragment of UDP", frame(v4(**fields), UDP(sport=40000, dport=53), data)
        yield f"v4 {name} fragment, not ours", frame(v4(dst="192.0.2.99", **fields), tcp(), data)
        yield f"v4 {name} fragment of ICMP", frame(v4(**fields), ICMP(type=8), data)
    yield "v4 fragment of GRE", frame(v4(proto=47, flags="MF"), data)
    for name, header in (
        ("first", IPv6ExtHdrFragment(m=1)),
        ("last", IPv6ExtHdrFragment(offset=8)),
        ("atomic", IPv6ExtHdrFragment()),
    ):
        yield f"v6 {name} fragment", frame(v6(), header, tcp(), data)
        yield f"v6 {name} fragment, not ours", frame(v6(dst="2001:db8::99"), header, tcp(), data)


def lengths() -> Iterator[tuple[str, Packet]]:
    """Cut at every length."""
    for name, packet in (
        ("v4 TCP", frame(v4(), tcp(), Raw(b"data"))),
        ("v4 UDP", frame(v4(), UDP(sport=40000, dport=53), Raw(b"data"))),
        ("v6 TCP", frame(v6(), tcp(), Raw(b"data"))),
        (
            "QinQ v4 options",
            frame(v4(options=[IPOption_NOP()] * 8), tcp(), tags=(Dot1AD(vlan=1), Dot1Q(vlan=2))),
        ),
        ("v4 ICMP error", frame(v4(), ICMP(type=3, code=4), answer(back()))),
        ("v6 ICMP error", frame(v6(), ICMPv6PacketTooBig(mtu=1400), answer(back6()))),
    ):
        whole = bytes(packet)
        for length in range(len(whole)):
            yield f"{name} cut to {length}", Raw(whole[:length])
    for length in (0, 19, 20, 27, 39, 40, 43, 44, 65535):
        yield f"v4 that says {length} bytes", frame(v4(len=length), tcp(), Raw(b"data"))
    for length in (0, 7, 8, 19, 20, 23, 24, 25, 65535):
        yield f"v6 that says {length} bytes", frame(v6(plen=length), tcp(), Raw(b"data"))
    yield "v4 UDP that says 8 bytes, padded", frame(v4(len=28), UDP(sport=40000, dport=53), Raw(b"data"))
    yield "v4 UDP that says 7 bytes behind the IP header", frame(v4(len=27), UDP(sport=40000, dport=53))


def errors() -> Iterator[tuple[str, Packet]]:
    for type, code in ((3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0)):
        yield f"ICMP {type}/{code}", frame(v4(src="203.0.113.1"), ICMP(type=type, code=code), answer(back()))
    for type in (0, 4, 5, 8, 13):
        # A timestamp would say when this ran.
        layer = ICMP(type=type, **({"ts_ori": 0, "ts_rx": 0, "ts_tx": 0} if type == 13 else {}))
        yield f"ICMP {type}, no error of a flow", frame(v4(src="203.0.113.1"), layer, answer(back()))
    yield "ICMP echo request", frame(v4(), ICMP(type=8, id=1, seq=1), Raw(b"ping" * 10))
    big = ICMP(type=3, code=4, nexthopmtu=1400)
    for port in (8001, 8002, 8003, 8004, 8005, 8006):
        yield f"ICMP too big about {port}", frame(v4(src="203.0.113.1"), big, answer(back(), port))
    yield (
        "ICMP about a whole packet",
        frame(v4(), big, IPerror(src=VIP, dst=CLIENT), TCPerror(sport=443, dport=40000), Raw(b"x" * 100)),
    )
    yield "ICMP about UDP", frame(v4(), big, Raw(bytes(back(proto=17) / UDP(sport=53, dport=40000))))
    yield "ICMP about ICMP", frame(v4(), big, Raw(bytes(back(proto=1) / ICMPerror(type=8))))
    yield "ICMP about options", frame(v4(), big, answer(back(options=[IPOption_NOP()] * 8)))
    yield (
        "ICMP in options about options",
        frame(v4(options=[IPOption_NOP()] * 12), big, answer(back(options=[IPOption_NOP()] * 40))),
    )
    yield "ICMP about 7 bytes", frame(v4(), big, Raw(bytes(answer(back()))[:-1]))
    yield "ICMP about a first fragment", frame(v4(), big, answer(back(flags="MF")))
    yield "ICMP about a later fragment", frame(v4(), big, answer(back(frag=100)))
    yield "ICMP about somebody else's packet", frame(v4(), big, answer(back(src="192.0.2.99")))
    yield "ICMP about a service that is none", frame(v4(), big, answer(back(), 444))
    yield "ICMP about version 5", frame(v4(), big, answer(back(version=5)))
    yield "ICMP about a head of 4 words", frame(v4(), big, answer(back(ihl=4)))
    yield "ICMP to somebody else", frame(v4(dst="192.0.2.99"), big, answer(back(src="192.0.2.99")))
    for layer in (ICMPv6DestUnreach(code=1), ICMPv6PacketTooBig(mtu=1280), ICMPv6TimeExceeded()):
        yield f"ICMPv6 {layer.name}", frame(v6(src="2001:db8:f::1"), layer, answer(back6()))
    for port in (8001, 8002, 8003, 8004):
        packet = frame(v6(src="2001:db8:f::1"), ICMPv6PacketTooBig(mtu=1280), answer(back6(), port))
        yield f"ICMPv6 too big about {port}", packet
    yield "ICMPv6 echo request", frame(v6(), ICMPv6EchoRequest(data=b"ping" * 10))
    yield "ICMPv6 about 7 bytes", frame(v6(), ICMPv6PacketTooBig(), Raw(bytes(answer(back6()))[:-1]))
    yield "ICMPv6 about a fragment", frame(v6(), ICMPv6PacketTooBig(), answer(back6(nh=44)))
    yield "ICMPv6 about ICMPv6", frame(v6(), ICMPv6PacketTooBig(), answer(back6(nh=58)))
    yield "ICMPv6 about somebody else's packet", frame(v6(), ICMPv6PacketTooBig(), answer(back6(src=CLIENT6)))


def strangers() -> Iterator[tuple[str, Packet]]:
    for name, to in (
        ("another MAC", OTHER),
        ("broadcast", "ff:ff:ff:ff:ff:ff"),
        ("multicast", "01:00:5e:00:00:01"),
    ):
        yield f"to {name}", frame(v4(), tcp(), to=to)
    yield "MAC that differs in the last byte", frame(v4(), tcp(), to="02:00:00:00:00:00")
    yield "MAC that differs in the first byte", frame(v4(), tcp(), to="06:00:00:00:00:01")
    yield "to another address", frame(v4(dst="192.0.2.11"), tcp())
    yield "to another v6 address", frame(v6(dst="2001:db8::11"), tcp())
    yield "to the mapped address in v6", frame(v6(dst="::ffff:192.0.2.10"), tcp(8001))
    yield "to another port", frame(v4(), tcp(444))
    yield "to a service's port by UDP", frame(v4(), UDP(sport=40000, dport=443))
    yield "to the UDP port by TCP", frame(v4(), tcp(53))
    yield "to port 0", frame(v4(), tcp(0))
    yield "GRE", frame(v4(proto=47), Raw(b"\0\0\x08\0"))
    yield "SCTP", frame(v4(proto=132), Raw(bytes(20)))
    yield "IP in IP to a director", frame(v4(), v4(), tcp())
    yield "ARP", frame(ARP(pdst=VIP))
    yield "ARP to us", Ether(dst=HERE, src=ROUTER) / ARP(op=2, pdst=VIP)
    yield "LLDP", Ether(dst=HERE, src=ROUTER, type=0x88CC) / Raw(bytes(40))
    yield "802.3 length", Ether(dst=HERE, src=ROUTER, type=46) / Raw(bytes(46))
    yield "version 6 in an IPv4 frame", Ether(dst=HERE, src=ROUTER, type=0x0800) / v6() / tcp()
    yield (
        "version 4 in an IPv6 frame",
        Ether(dst=HERE, src=ROUTER, type=0x86DD) / v4() / tcp() / Raw(bytes(40)),
    )


def to_agents() -> Iterator[tuple[str, Packet]]:
    """Backend 6, which has no sockets."""
    director = {"src": "10.9.1.2", "dst": "10.1.0.6", "flags": "DF"}
    for name, inner, given in (("v4", v4, IP), ("v6", v6, IPv6)):
        proto = 4 if given is IP else 41
        for port in (9001, 9002, 9003, 9004, 9005):
            yield f"{name} to {port}", frame(inner(), tcp(port))
            yield (
                f"{name} to {port}, outside",
                frame(IP(**director, id=0x7060, proto=proto), inner(), tcp(port)),
            )
        wrapped = IP(**director, id=0x7060, proto=proto)
        yield f"{name} SYN, outside", frame(wrapped, inner(), tcp(9001, flags="S"))
        yield f"{name} UDP, outside", frame(wrapped, inner(), UDP(sport=1, dport=53), Raw(b"x"))
        yield f"{name} to another owner, outside", frame(wrapped, inner(), tcp(8003))
        yield f"{name} that nobody has", frame(inner(), tcp(8006))
        yield f"{name} that nobody has, outside", frame(wrapped, inner(), tcp(8006))
        yield f"{name} outside, tagged", frame(wrapped, inner(), tcp(9001), tags=(Dot1Q(vlan=7),))
        yield (
            f"{name} too big for the second hop",
            frame(wrapped, inner(), tcp(9003), Raw(b"x" * (1500 - 20 - len(bytes(inner())) - 20))),
        )
        for hops in (1, 3, 4, 8, 9, 10, 15):
            marked = IP(**director, id=0x7060 | hops, proto=proto)
            yield f"{name} after {hops} hops, outside", frame(marked, inner(), tcp(9003))
            source = f"02:70:6{hops:x}:aa:bb:cc"
            yield f"{name} after {hops} hops", frame(inner(), tcp(9001), source=source)
        for hops in range(1, 11):
            for sport in (50001, 50002, 50003):
                source = f"02:70:6{hops:x}:aa:bb:cc"
                yield (
                    f"{name} from {sport} after {hops} hops",
                    frame(inner(), tcp(9005, sport), source=source),
                )
        yield (
            f"{name} with another identification",
            frame(IP(**director, id=0x1234, proto=proto), inner(), tcp(9003)),
        )
    yield "SYN", frame(v4(), tcp(9001, flags="S"))
    yield "UDP", frame(v4(), UDP(sport=1, dport=53))
    yield "fragment", frame(v4(flags="MF"), tcp(9001))
    yield "ICMP error", frame(v4(), ICMP(type=3, code=4), answer(back(), 9001))
    yield (
        "ICMP error, outside",
        frame(IP(**director, id=0x7060, proto=4), v4(), ICMP(type=3, code=4), answer(back(), 9001)),
    )
    yield "outside, to another address", frame(IP(src="10.9.1.2", dst="10.1.0.7", proto=4), v4(), tcp(9001))
    yield "outside, not a service", frame(IP(**director, proto=4), v4(), tcp(22))
    yield "outside, another inner address", frame(IP(**director, proto=4), v4(dst="10.1.0.6"), tcp(22))
    yield (
        "outside, a fragment",
        frame(IP(src="10.9.1.2", dst="10.1.0.6", flags="MF", proto=4), v4(), tcp(9001)),
    )
    yield "outside, twice", frame(IP(**director, proto=4), IP(**director, proto=4), v4(), tcp(9001))
    yield "outside, options", frame(IP(**director, proto=4, options=[IPOption_NOP()] * 4), v4(), tcp(9001))
    yield (
        "outside in v6, for a v4 backend",
        frame(IPv6(src="2001:db8:9::1", dst="2001:db8:1::4", nh=4), v4(), tcp(9001)),
    )
    yield "mark that is none", frame(v4(), tcp(9001), source="02:70:73:aa:bb:cc")
    whole = bytes(frame(IP(**director, id=0x7060, proto=4), v4(), tcp(9001)))
    for length in range(14, len(whole)):
        yield f"outside, cut to {length}", Raw(whole[:length])


def wrapped(given: dict[str, Any], inner: Packet) -> Packet:
    """In an outer header of a director, to backend 6."""
    proto = 4 if isinstance(inner, IP) else 41
    return IP(**{"src": "10.9.1.2", "dst": "10.1.0.6", "flags": "DF", "id": 0x7060, "proto": proto, **given})


MARKS = {0: "Not-ECT", 1: "ECT(1)", 2: "ECT(0)", 3: "CE"}


def marks_and_hops_at_agents() -> Iterator[tuple[str, Packet]]:
    """What is taken off leaves its mark of congestion (RFC 6040), and whoever sends on is a hop."""
    for name, made in (("v4", lambda tos: v4(tos=tos)), ("v6", lambda tos: v6(tc=tos, fl=0xABCDE))):
        for inside, called in MARKS.items():
            for outside, around in MARKS.items():
                inner = made(0xB8 | inside)
                about = f"{name} {called} in {around}"
                outer = wrapped({"tos": 0x28 | outside}, inner)
                yield f"{about}, SYN", frame(outer, inner, tcp(9001, flags="S"))
                yield f"{about}, second hop", frame(outer, inner, tcp(9001))
                yield f"{about}, second hop outside", frame(outer, inner, tcp(9003))
        inner = made(2)
        outer = wrapped({"tos": 3}, inner)
        yield f"{name} in CE, UDP", frame(outer, inner, UDP(sport=1, dport=53))
        yield f"{name} in CE, nobody else", frame(outer, inner, tcp(8006))
        yield f"{name} in CE, not a service", frame(outer, inner, tcp(22))
        yield f"{name} in CE, not a service and Not-ECT", frame(outer, made(0), tcp(22))
    yield (
        "v4 with options in CE",
        frame(wrapped({"tos": 3}, v4()), v4(tos=1, options=[IPOption_NOP()] * 8), tcp(9001)),
    )
    for sum in (0x0000, 0xFDFF, 0xFEFF, 0xFFFE, 0xFFFF):
        for tos in (1, 2):
            inner = v4(tos=tos, chksum=sum)
            yield f"v4 ECT {tos}, checksum {sum:04x}", frame(wrapped({"tos": 3}, inner), inner, tcp(9001))
    for ttl in (0, 1, 2, 255):
        for name, inner in (("v4", v4(ttl=ttl)), ("v6", v6(hlim=ttl))):
            outer = wrapped({}, inner)
            for port in (9001, 9003, 8006):
                yield f"{name} TTL {ttl} to {port}", frame(inner, tcp(port))
                yield f"{name} TTL {ttl} to {port}, outside", frame(outer, inner, tcp(port))
            yield f"{name} TTL {ttl}, SYN", frame(inner, tcp(9001, flags="S"))
            yield f"{name} TTL {ttl}, SYN, outside", frame(outer, inner, tcp(9001, flags="S"))
        yield f"v4 in TTL {ttl}", frame(wrapped({"ttl": ttl}, v4()), v4(), tcp(9001))


def from_strangers() -> Iterator[tuple[str, Packet]]:
    """Outer headers are taken off of some only."""
    for source in ("10.9.0.0", "10.9.255.255", "10.1.0.3", "10.1.0.2", "10.1.4.128", "10.1.4.255"):
        yield f"outside from {source}", frame(wrapped({"src": source}, v4()), v4(), tcp(9001))
    for source in (
        "10.8.255.255",
        "10.10.0.0",
        "10.1.0.1",
        "10.1.0.4",
        "10.1.4.127",
        "10.1.5.128",
        "0.0.0.0",
    ):
        for flags in ("S", "A"):
            outer = wrapped({"src": source}, v4())
            yield f"outside from {source}, {flags}, not taken", frame(outer, v4(), tcp(9001, flags=flags))
        yield f"v6 outside from {source}, not taken", frame(wrapped({"src": source}, v6()), v6(), tcp(9001))
        outer = wrapped({"src": source, "tos": 3}, v4())
        yield f"outside from {source}, not a service", frame(outer, v4(), tcp(22))
    stranger = wrapped({"src": "10.8.0.1", "tos": 3}, v4())
    yield "outside from a stranger, marked", frame(stranger, v4(ttl=0), tcp(9001))
    yield "outside from a stranger, UDP", frame(stranger, v4(), UDP(sport=1, dport=53))


def to_agents_of_v6() -> Iterator[tuple[str, Packet]]:
    """Backend 4, whose address is IPv6, and which has no sockets either."""
    for name, inner in (("v4", v4()), ("v6", v6())):
        for hops in (0, 1, 3):
            outer = IPv6(
                src="2001:db8:9::1", dst="2001:db8:1::4", nh=4 if name == "v4" else 41, fl=0xABCD0 | hops
            )
            for port in (8001, 8004, 9004, 9005):
                yield f"{name} to {port} after {hops} hops", frame(outer, inner, tcp(port))
        yield f"{name} SYN", frame(outer, inner, tcp(9005, flags="S"))
    whole = bytes(frame(IPv6(src="2001:db8:9::1", dst="2001:db8:1::4", nh=41, fl=0), v6(), tcp(9004)))
    for length in range(14, len(whole)):
        yield f"cut to {length}", Raw(whole[:length])
    for inside, called in MARKS.items():
        for outside, around in MARKS.items():
            outer = IPv6(src="2001:db8:9::1", dst="2001:db8:1::4", nh=4, tc=0x28 | outside, fl=1)
            packet = frame(outer, v4(tos=inside), tcp(9004))
            yield f"v4 {called} in {around}", packet
            outer = IPv6(src="2001:db8:9::1", dst="2001:db8:1::4", nh=41, tc=outside, fl=0)
            yield f"v6 {called} in {around}", frame(outer, v6(tc=inside, fl=0xFFFFF), tcp(9005))
    for source in ("2001:db8:9:1::1", "2001:db8:8::1", "::", "::10.9.1.2", "::ffff:10.9.1.2"):
        outer = IPv6(src=source, dst="2001:db8:1::4", nh=41, fl=0)
        yield f"from {source}", frame(outer, v6(), tcp(9005))
    other = IPv6(src="2001:db8:9::1", dst="2001:db8:1::5", nh=41)
    yield "to another address", frame(other, v6(), tcp(9004))
    yield "in v4, for a v6 backend", frame(IP(src="10.9.1.2", dst="10.1.0.4", proto=41), v6(), tcp(9004))


GROUPS = (
    (
        "director",
        0,
        (
            ordinary,
            hops,
            services_classes,
            tagged,
            backends,
            options,
            fragments,
            lengths,
            errors,
            strangers,
        ),
    ),
    ("agent", 6, (to_agents, marks_and_hops_at_agents, from_strangers)),
    ("agent", 4, (to_agents_of_v6,)),
)


def render() -> str:
    """One packet a line: readable in a diff."""
    lines = []
    for role, me, makers in GROUPS:
        at = host({**WORLD, "me": me}, role)
        for maker in makers:
            for name, packet in maker():
                data = bytes(packet)
                found = decide(at, data)
                client, port = found.flow.client
                service = found.flow.service
                lines.append(json.dumps({
                    "name": name, "role": role, "me": me, "packet": data.hex(),
                    "verdict": found.verdict, "reason": found.reason,
                    "after": None if found.frame == data else found.frame.hex(),
                    "flow": None if found.reason == "passed_not_ours" or not service[1]
                    else [str(client), port, str(service[0]), service[1], service[2]],
                }))  # fmt: skip
    about = "What becomes of packets: at a director, and at agents of hosts without sockets"
    world = json.dumps(WORLD)
    body = ",\n".join(lines)
    return f'{{"about": {json.dumps(about)},\n"world": {world},\n"packets": [\n{body}\n]}}\n'


if __name__ == "__main__":
    FILE.write_text(render())
    sys.stdout.write(f"{FILE}\n")
