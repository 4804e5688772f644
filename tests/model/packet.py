"""What becomes of a packet, once more: short, slow, and sharing no line with rust/packet/balancer.bpf.c.

The rules are those of docs/architecture.md, "The way of a packet".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from tests.model import maglev

Address = IPv4Address | IPv6Address
ICMP, IPIP, TCP, UDP, IP6, FRAGMENT, ICMP6 = 1, 4, 6, 17, 41, 44, 58
EXTENSIONS = {0, 43, 51, 60}
TAGS = {0x8100, 0x88A8}
MOST_HOPS = 10


@dataclass(frozen=True)
class Way:
    """How packets get to a backend; without a MAC they do not."""

    address: str
    mac: bytes | None
    from_mac: bytes
    same_interface: bool = True
    source: str | None = None


@dataclass
class Host:
    """What a host knows. Rows are by service: address, port, protocol."""

    role: str
    secret: bytes
    size: int
    mac: bytes
    ways: dict[int, Way]
    rows: dict[tuple[str, int, int], list[tuple[int, ...]]]
    mtu: int = 1500
    me: int = 0
    trusted: tuple[str, ...] | None = None
    """Networks whose outer headers are taken off; everybody's without."""


@dataclass
class Flow:
    """What is known of a packet: its client, its service, where its IP header begins."""

    client: tuple[Address, int] = (IPv4Address(0), 0)
    service: tuple[Address, int, int] = (IPv4Address(0), 0, 0)
    at: int = 0
    length: int = 0
    v6: bool = False
    opening: bool = False
    error: bool = False
    hops: int = 0
    ttl: int = 0
    tos: int = 0
    around: tuple[Address, int] | None = None
    """Source and ECN mark of the outer header."""


@dataclass
class Odd(Exception):
    """Nothing that can be forwarded."""

    reason: str
    address: Address | None = None


@dataclass(frozen=True)
class Answer:
    verdict: str
    reason: str
    frame: bytes
    flow: Flow = field(default_factory=Flow)


def number(data: bytes, at: int, size: int = 2) -> int:
    return int.from_bytes(data[at : at + size], "big")


def rows(
    secret: bytes, generations: Sequence[Sequence[tuple[str, int, int]]], size: int
) -> list[tuple[int, ...]]:
    """Owner and former owners of each slot, six ids."""
    tables = []
    for members in generations:
        slots = maglev.table(secret, [(name, weight) for name, weight, _ in members], size)
        tables.append([members[index][2] for index in slots] or [0] * size)
    made = []
    for owner, *former in zip(*tables, strict=True):
        others = [one for one in dict.fromkeys(former) if one not in {owner, 0}]
        made.append((owner, *others, 0, 0, 0, 0, 0)[:6])
    return made


def transport(data: bytes, protocol: int, flow: Flow) -> Flow:
    """`data` is what follows the IP header, as long as that says."""
    here = flow.service[0]
    if len(data) < 8 or (protocol == TCP and len(data) < 20):
        raise Odd("dropped_malformed", here)
    if protocol in {ICMP, ICMP6}:
        errors = {ICMP: {3, 11, 12}, ICMP6: {1, 2, 3, 4}}[protocol]
        if data[0] not in errors:
            raise Odd("passed_not_ours")
        return embedded(data[8:], protocol == ICMP6, flow)
    flow.opening = protocol == TCP and data[13] & 0x12 == 0x02
    flow.client = (flow.client[0], number(data, 0))
    flow.service = (here, number(data, 2), protocol)
    return flow


def embedded(inner: bytes, v6: bool, flow: Flow) -> Flow:
    """The packet in an ICMP error is an answer of the service: source and destination change places."""
    here = flow.service[0]
    source: Address
    client: Address
    if v6:
        if len(inner) < 48:
            raise Odd("dropped_malformed", here)
        protocol, head = inner[6], 40
        source, client = IPv6Address(inner[8:24]), IPv6Address(inner[24:40])
        if protocol == FRAGMENT:
            raise Odd("dropped_fragment", here)
    else:
        head = (inner[0] & 15) * 4 if inner else 0
        if len(inner) < 28 or inner[0] >> 4 != 4 or head < 20 or len(inner) < head + 8:
            raise Odd("dropped_malformed", here)
        if number(inner, 6) & 0x1FFF:
            raise Odd("dropped_fragment", here)
        protocol = inner[9]
        source, client = IPv4Address(inner[12:16]), IPv4Address(inner[16:20])
    if source != here or protocol not in {TCP, UDP}:
        raise Odd("passed_not_ours")
    flow.service = (here, number(inner, head), protocol)
    flow.client = (client, number(inner, head + 2))
    flow.error = True
    return flow


def read_ip(frame: bytes, at: int, v6: bool, flow: Flow) -> Flow:
    ip = frame[at:]
    if len(ip) < (40 if v6 else 20) or ip[0] >> 4 != (6 if v6 else 4):
        raise Odd("passed_not_ours")
    here: Address
    client: Address
    if v6:
        head, length, protocol = 40, number(ip, 4) + 40, ip[6]
        client, here = IPv6Address(ip[8:24]), IPv6Address(ip[24:40])
        fragment = protocol == FRAGMENT
        known = {TCP, UDP, ICMP6, FRAGMENT} | EXTENSIONS
    else:
        head, length, protocol = (ip[0] & 15) * 4, number(ip, 2), ip[9]
        client, here = IPv4Address(ip[12:16]), IPv4Address(ip[16:20])
        fragment = bool(number(ip, 6) & 0x3FFF)
        known = {TCP, UDP, ICMP}
    if head < 20 or protocol not in known:
        raise Odd("passed_not_ours")
    tos, ttl = (number(ip, 0) >> 4 & 0xFF, ip[7]) if v6 else (ip[1], ip[8])
    flow = replace(
        flow, client=(client, 0), service=(here, 0, 0), at=at, length=length, v6=v6, tos=tos, ttl=ttl
    )
    if fragment:
        raise Odd("dropped_fragment", here)
    if v6 and protocol in EXTENSIONS:
        raise Odd("dropped_extension", here)
    if length < head or length > len(ip):
        raise Odd("dropped_malformed", here)
    return transport(ip[head:length], protocol, flow)


def read(host: Host, frame: bytes) -> Flow:
    if len(frame) < 14 or frame[:6] != host.mac:
        raise Odd("passed_not_ours")
    flow = Flow()
    if frame[6:8] == b"\x02\x70" and frame[8] >> 4 == 6:
        flow.hops = frame[8] & 15
    at = 12
    while number(frame, at) in TAGS and at < 20:
        at += 4
    if len(frame) < at + 2 or number(frame, at) not in {0x0800, 0x86DD}:
        raise Odd("passed_not_ours")
    v6, at = number(frame, at) == 0x86DD, at + 2
    if host.role == "agent":
        mine = ip_address(host.ways[host.me].address) if host.me in host.ways else None
        ip = frame[at:]
        if not v6 and len(ip) >= 20 and ip[0] == 0x45 and ip[9] in {IPIP, IP6}:
            if IPv4Address(ip[16:20]) != mine or number(ip, 6) & 0x3FFF:
                raise Odd("passed_not_ours")
            mark = number(ip, 4)
            flow.hops = mark & 15 if mark >> 4 == 0x706 else 0
            flow.around = IPv4Address(ip[12:16]), ip[1] & 3
            at, v6 = at + 20, ip[9] == IP6
        elif v6 and len(ip) >= 40 and ip[6] in {IPIP, IP6}:
            source = IPv6Address(ip[8:24])
            if IPv6Address(ip[24:40]) != mine or source.ipv4_mapped:
                raise Odd("passed_not_ours")
            flow.hops = number(ip, 0, 4) & 15
            flow.around = source, ip[1] >> 4 & 3
            at, v6 = at + 40, ip[6] == IP6
    return read_ip(frame, at, v6, flow)


def checksum(head: bytes) -> int:
    total = sum(number(head, at) for at in range(0, len(head), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def amended(head: bytes, at: int, value: int) -> bytes:
    """An IPv4 header with another word in it, and its checksum as RFC 1624 has it (equation 3)."""
    total = (~number(head, 10) & 0xFFFF) + (~number(head, at) & 0xFFFF) + value
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:at] + value.to_bytes(2, "big") + head[at + 2 :]
    return head[:10] + (~total & 0xFFFF).to_bytes(2, "big") + head[12:]


def one_hop_on(frame: bytes, flow: Flow) -> bytes:
    """TTL or hop limit one less."""
    head = frame[flow.at : flow.at + 20]
    ttl = number(head, 8) - 0x100
    head = head[:7] + bytes([head[7] - 1]) + head[8:] if flow.v6 else amended(head, 8, ttl)
    return frame[: flow.at] + head + frame[flow.at + 20 :]


ECN = {
    0b00: {0b00: 0b00, 0b10: 0b00, 0b01: 0b00, 0b11: None},
    0b10: {0b00: 0b10, 0b10: 0b10, 0b01: 0b01, 0b11: 0b11},
    0b01: {0b00: 0b01, 0b10: 0b01, 0b01: 0b01, 0b11: 0b11},
    0b11: {0b00: 0b11, 0b10: 0b11, 0b01: 0b11, 0b11: 0b11},
}
"""RFC 6040, figure 4: inner mark, outer mark, what comes out; None is dropped."""


def come_out(host: Host, frame: bytes, flow: Flow) -> tuple[bytes, Flow]:
    """What an outer header leaves behind when it is taken off."""
    assert flow.around is not None
    source, outside = flow.around
    if host.trusted is not None and not any(source in ip_network(one) for one in host.trusted):
        raise Odd("dropped_stranger")
    if flow.ttl == 0:
        raise Odd("dropped_ttl")
    mark = ECN[flow.tos & 3][outside]
    if mark is None:
        raise Odd("dropped_congestion")
    if mark == flow.tos & 3:
        return frame, flow
    tos = flow.tos & 0xFC | mark
    head = frame[flow.at : flow.at + 20]
    if flow.v6:
        head = (number(head, 0) & 0xF00F | tos << 4).to_bytes(2, "big") + head[2:]
    else:
        head = amended(head, 0, head[0] << 8 | tos)
    return frame[: flow.at] + head + frame[flow.at + 20 :], replace(flow, tos=tos)


def outer(way: Way, flow: Flow, hashed: int, hops: int) -> bytes:
    """The outer header, its source as far as that may vary taken from the hash."""
    assert way.source is not None
    network = ip_network(way.source, strict=False)
    address = ip_address(way.address)
    mask = int(network.hostmask) & 0xFFFFFFFF
    # The hash's low half as it lies in memory.
    varied = int.from_bytes((hashed & 0xFFFFFFFF).to_bytes(4, "little"), "big") & mask
    base = int(ip_address(way.source.split("/")[0])) & ~mask
    inside = IP6 if flow.v6 else IPIP
    if address.version == 6:
        label = flow.tos << 20 | (hashed & 0xFFFF) << 4 | hops
        head = (0x60000000 | label).to_bytes(4, "big") + flow.length.to_bytes(2, "big") + bytes([inside, 64])
        return head + (base | varied).to_bytes(16, "big") + address.packed
    head = (
        bytes([0x45, flow.tos]) + (flow.length + 20).to_bytes(2, "big") + (0x7060 | hops).to_bytes(2, "big")
    )
    head += bytes([0x40, 0, 64, inside])
    ends = (base | varied).to_bytes(4, "big") + address.packed
    return head + checksum(head + b"\0\0" + ends).to_bytes(2, "big") + ends


def forward(host: Host, frame: bytes, flow: Flow, backend: int, hashed: int, hops: int) -> tuple[str, bytes]:
    if host.role == "director" and flow.hops:
        raise Odd("dropped_loop")
    way = host.ways.get(backend)
    if way is None:
        raise Odd("dropped_no_backend")
    if way.mac is None:
        raise Odd("dropped_unresolved")
    if flow.ttl <= 1:
        raise Odd("dropped_ttl")
    verdict = "tx" if way.same_interface else "redirect"
    if way.source is not None:
        head = outer(way, flow, hashed, hops)
        if flow.length + len(head) > host.mtu:
            raise Odd("dropped_too_big")
        kind = b"\x86\xdd" if len(head) == 40 else b"\x08\x00"
        return verdict, way.mac + way.from_mac + kind + head + one_hop_on(frame, flow)[flow.at :]
    mark = bytes([2, 0x70, 0x60 | hops]) if hops else way.from_mac[:3]
    frame = one_hop_on(frame, flow)
    if flow.around:
        frame = strip(frame, flow)
    return verdict, way.mac + mark + way.from_mac[3:] + frame[12:]


def strip(frame: bytes, flow: Flow) -> bytes:
    return frame[:12] + (b"\x86\xdd" if flow.v6 else b"\x08\x00") + frame[flow.at :]


def after(row: tuple[int, ...], me: int, hops: int) -> int:
    """Who is asked next; 0 if nobody is, since there is nobody else, or all have been asked.

    The one behind in the row, and round; after each two hops at the owner, each four at another one of the
    row, the one further on. Who is not in its row goes on behind the owner, and after six hops further on. A
    packet without hops comes from a director that takes this host for the owner: if the row names another,
    that one is asked first.
    """
    mine, period = (row.index(me), 4) if me in row else (0, 6)
    others = [backend for backend in (*row[mine + 1 :], *row[: mine + 1]) if backend not in {0, me}]
    if not others or hops >= min(4 * len(others) - 1, MOST_HOPS):
        return 0
    if hops == 0 and row[0] in others:
        return row[0]
    return others[hops // (2 if row[0] == me else period) % len(others)]


def decide(host: Host, frame: bytes, known: Callable[[Flow], bool] = lambda _: False) -> Answer:
    """`known` says whether this host has the flow's socket."""
    addresses = {ip_address(address) for address, _, _ in host.rows}
    try:
        flow = read(host, frame)
    except Odd as odd:
        # What cannot be read is ours if it is for an address of a service. An agent leaves it to the stack.
        if odd.address in addresses and host.role == "director":
            return Answer("drop", odd.reason, frame)
        return Answer("pass", "passed_not_ours", frame)
    here, port, protocol = flow.service
    found = host.rows.get((str(here), port, protocol))
    if found is None:
        return Answer("pass", "passed_not_ours", frame)
    hashed = maglev.flow_hash(host.secret, maglev.flow_key(str(flow.client[0]), flow.client[1]))
    row = found[maglev.slot(hashed, host.size)]
    hops = 0
    if host.role == "director":
        reason = "forwarded_error" if flow.error else "forwarded"
        target = row[0] or (0 if flow.opening else row[1])
    else:
        came = frame
        if flow.around:
            try:
                frame, flow = come_out(host, frame, flow)
            except Odd as odd:
                return Answer("drop", odd.reason, came, flow)
        stay = strip(frame, flow) if flow.around else frame
        target, hops, reason = after(row, host.me, flow.hops), flow.hops + 1, "second_hop"
        why = None
        if protocol == UDP:
            why = "delivered_udp"
        elif flow.opening or known(flow):
            why = "delivered"
        elif not target:
            why = "delivered_hops" if set(row) - {0, host.me} else "delivered_unclaimed"
        if why:
            return Answer("pass", why, stay, flow)
    try:
        verdict, made = forward(host, frame, flow, target, hashed, hops)
    except Odd as odd:
        return Answer("drop", odd.reason, frame, flow)
    return Answer(verdict, reason, made, flow)
