"""What a packet costs: the programs as they are attached, on packets that are all forwarded or delivered."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from bench.packet import kernel
from pybalancer._core import PacketPath, PacketRows
from tests.wire.namespace import Namespace, namespace

SECRET = bytes(range(16))
HERE = bytes.fromhex("020000000001")
ROUTER = bytes.fromhex("0200000000fe")
BACKEND = bytes.fromhex("020000000101")
VIP, CLIENT = {4: "192.0.2.10", 6: "2001:db8::10"}, {4: "198.51.100.7", 6: "2001:db8:c::7"}
UNDERLAY, OUTSIDE = "10.1.0.6", "10.9.0.0/16"
CLIENT_PORT, STRANGER_PORT = 40000, 40001
L2, L3 = 443, 444
"""Services by how they are forwarded."""
PORTS = (L2, L3)
SYN, ACK = 0x02, 0x10
BACKENDS = 1000
WANTED = 50.0
ME = BACKENDS + 1


@dataclass(frozen=True)
class Case:
    """One program on one packet."""

    name: str
    role: str
    way: str
    """L2 or L3: how all backends are forwarded to."""
    packet: bytes
    verdict: str
    reason: str
    most: float | None
    """Nanoseconds above the baseline that are wanted."""

    @property
    def front(self) -> int:
        """Bytes in front that the program may change: up to the TTL and what hangs on it."""
        head = 34 if self.role == "agent" and self.way == "L3" else 14
        return head + (12 if self.packet[head] >> 4 == 4 else 8)


@dataclass
class Cost:
    case: Case
    baseline: list[int] = field(default_factory=list)
    program: list[int] = field(default_factory=list)
    """Nanoseconds a packet, a figure a round."""

    @property
    def more(self) -> list[int]:
        """By round, so that what slows a round slows both."""
        return [ours - bare for ours, bare in zip(self.program, self.baseline, strict=True)]


def segment(version: int, port: int, flags: int, client_port: int = CLIENT_PORT) -> bytes:
    """An IP packet with a TCP header and nothing more."""
    tcp = client_port.to_bytes(2, "big") + port.to_bytes(2, "big")
    tcp += bytes(8) + bytes([0x50, flags]) + bytes(6)
    ends = ip_address(CLIENT[version]).packed + ip_address(VIP[version]).packed
    if version == 4:
        return b"\x45\0\0\x28\0\1\x40\0\x40\6\0\0" + ends + tcp
    return b"\x60\0\0\0\0\x14\6\x40" + ends + tcp


def frame(inside: bytes, outer: bytes = b"") -> bytes:
    kind = b"\x08\0" if (outer or inside)[0] >> 4 == 4 else b"\x86\xdd"
    return HERE + ROUTER + kind + outer + inside


def outer(inside: bytes) -> bytes:
    """As a director puts it around; nobody checks its checksum."""
    head = b"\x45\0" + (20 + len(inside)).to_bytes(2, "big") + b"\x70\x60\x40\0\x40"
    kind = 4 if inside[0] >> 4 == 4 else 41
    return head + bytes([kind, 0, 0]) + ip_address("10.9.1.2").packed + ip_address(UNDERLAY).packed


def cases() -> list[Case]:
    made = []

    def case(name: str, packet: bytes, verdict: str, reason: str, most: float | None = None) -> None:
        role, way = name.split(",", maxsplit=1)[0].split()
        made.append(Case(name, role, way, packet, verdict, reason, most))

    for version in (4, 6):
        for way, port in (("L2", L2), ("L3", L3)):
            for flags, called in ((ACK, ""), (SYN, ", SYN")):
                packet = frame(segment(version, port, flags))
                case(f"director {way}, IPv{version}{called}", packet, "tx", "forwarded", WANTED)
        other = frame(segment(version, 8080, ACK))
        case(f"director L2, IPv{version}, not ours", other, "pass", "passed_not_ours")
    for version in (4, 6):
        for way in ("L2", "L3"):
            for called, flags, port, verdict, reason in (
                ("SYN", SYN, CLIENT_PORT, "pass", "delivered"),
                ("of a connection here", ACK, CLIENT_PORT, "pass", "delivered"),
                ("second hop", ACK, STRANGER_PORT, "tx", "second_hop"),
            ):
                inside = segment(version, L2, flags, port)
                packet = frame(inside, outer(inside) if way == "L3" else b"")
                case(f"agent {way}, IPv{version}, {called}", packet, verdict, reason)
    return made


def path_of(role: str) -> PacketPath:
    """1,000 backends for either way of forwarding, tables of 65537 slots."""
    path = PacketPath(role, secret=SECRET)  # type: ignore[arg-type]
    members = [(f"app-{id}", 1, id) for id in range(1, BACKENDS + 1)]
    newest = [("me", 1, ME)] if role == "agent" else members
    rows = PacketRows([newest, members], secret=SECRET)
    for number, (port, version) in enumerate((port, version) for port in PORTS for version in (4, 6)):
        path.set_service(number, VIP[version], port, "tcp", rows)
    path.set_backend(ME, address=UNDERLAY, mac=BACKEND, interface="here", encapsulate=True, source=OUTSIDE)
    if role == "agent":
        path.set_me(ME)
    path.attach("here", "generic")
    return path


def lead(path: PacketPath, *, encapsulate: bool) -> None:
    """The way to all backends."""
    for id in range(1, BACKENDS + 1):
        path.set_backend(
            id,
            address=f"10.1.{id // 250 + 1}.{id % 250 + 1}",
            mac=BACKEND,
            interface="here",
            encapsulate=encapsulate,
            source=OUTSIDE if encapsulate else None,
        )


@contextlib.contextmanager
def place() -> Iterator[Namespace]:
    """A namespace with an interface of the packets' MAC, where nothing else comes by, and connections."""
    with namespace() as made, contextlib.ExitStack() as stack:
        made.ip(
            "link add name here type veth peer name there",
            f"link set here address {HERE.hex(':')}",
        )
        made.own("lo", f"{VIP[4]}/32", f"{CLIENT[4]}/32", f"{VIP[6]}/128", f"{CLIENT[6]}/128")
        with made.inside():
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                listener = stack.enter_context(socket.socket(family))
                listener.bind((VIP[version], L2))
                listener.listen()
                client = stack.enter_context(socket.socket(family))
                client.bind((CLIENT[version], CLIENT_PORT))
                client.connect((VIP[version], L2))
                stack.enter_context(listener.accept()[0])
            yield made


def check(path: PacketPath, case: Case) -> None:
    """It does what the case says, or there is nothing to measure."""
    before = path.counters()
    verdict, _, _ = path.test_run(case.packet, interface="here")
    moved = {name for name, count in path.counters().items() if count != before[name]}
    if (verdict, moved) != (case.verdict, {case.reason}):
        raise RuntimeError(f"{case.name}: {verdict}, {moved}")


def measure(rounds: int, repeat: int) -> list[Cost]:
    """Interleaved: each round has every case once, and its baseline beside it."""
    costs = [Cost(case) for case in cases()]
    with place():
        passing = kernel.load(kernel.PASSING)
        try:
            for role, way in (("director", "L2"), ("director", "L3"), ("agent", "L2"), ("agent", "L3")):
                path = path_of(role)
                try:
                    lead(path, encapsulate=way == "L3")
                    chosen = [cost for cost in costs if (cost.case.role, cost.case.way) == (role, way)]
                    for cost in chosen:
                        check(path, cost.case)
                    measure_all(chosen, passing, rounds, repeat)
                finally:
                    path.close(keep=False)
        finally:
            os.close(passing)
    return costs


def measure_all(costs: list[Cost], passing: int, rounds: int, repeat: int) -> None:
    program = kernel.attached("here")
    try:
        with contextlib.ExitStack() as stack:
            pairs = []
            for cost in costs:
                case = cost.case
                both = [
                    stack.enter_context(kernel.rewinder(case.packet, case.front, target))
                    for target in (passing, program)
                ]
                pairs.append((cost, *both))
            for number in range(rounds):
                for cost, bare, ours in pairs:
                    cost.baseline.append(kernel.run(bare, cost.case.packet, "here", repeat).duration)
                    ran = kernel.run(ours, cost.case.packet, "here", repeat)
                    if ran.verdict != cost.case.verdict:
                        raise RuntimeError(f"{cost.case.name}: {ran.verdict} after {repeat} runs")
                    cost.program.append(ran.duration)
                print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    finally:
        os.close(program)
