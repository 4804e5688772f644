"""Packets of tests/vectors/packet.json: the kernel's programs, Rust and the model say the same of each.

The kernel is asked by BPF_PROG_TEST_RUN, which runs the very programs that are attached otherwise, in a
namespace whose interfaces have the MACs that the packets are for. What lies behind a verdict is compared
too: the packet as it leaves, and which counter has moved.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pybalancer._core import PacketPath, PacketRows
from tests.model import maglev, make_packet_vectors
from tests.model.packet import decide
from tests.model.packet_world import host
from tests.wire.namespace import Namespace, namespace, needs_namespaces

FILE = json.loads((Path(__file__).parents[1] / "vectors/packet.json").read_text())
WORLD: dict[str, Any] = FILE["world"]
PACKETS: list[dict[str, Any]] = FILE["packets"]
SECRET, SIZE = bytes.fromhex(WORLD["secret"]), WORLD["size"]
ROLES = sorted({(packet["role"], packet["me"]) for packet in PACKETS}, reverse=True)

SHORTEST = 14
"""Of what the kernel runs programs on: an Ethernet header. Shorter ones are the model's alone."""

KINDS = {
    "v4": lambda packet: packet["packet"][24:28] == "0800",
    "v6": lambda packet: packet["packet"][24:28] == "86dd",
    "VLAN": lambda packet: packet["packet"][24:28] == "8100",
    "QinQ": lambda packet: packet["packet"][24:28] == "88a8",
    "options": lambda packet: "options" in packet["name"],
    "UDP": lambda packet: packet["flow"] is not None and packet["flow"][4] == 17,
    "first fragment": lambda packet: "first fragment" in packet["name"],
    "last fragment": lambda packet: "last fragment" in packet["name"],
    "too big about 8 bytes": lambda packet: "too big about" in packet["name"],
    "another MAC": lambda packet: "another MAC" in packet["name"],
    "another address": lambda packet: "another address" in packet["name"],
    "another port": lambda packet: "another port" in packet["name"],
    "another protocol": lambda packet: packet["name"] in {"GRE", "SCTP"},
    **{
        reason: lambda packet, reason=reason: packet["reason"] == reason
        for reason in PacketPath.REASONS
        if reason != "dropped_room"
    },
}
"""What there must be a packet of, and how one is told."""

KEYS = {"tcp": 6, "udp": 17}


def rows_of(service: dict[str, Any]) -> PacketRows:
    generations = [[(name, weight, id) for name, weight, id in one] for one in service["generations"]]
    return PacketRows(generations, secret=SECRET, size=SIZE)


def services() -> dict[tuple[str, int, int], tuple[int, PacketRows]]:
    """Number and rows by address, port, protocol."""
    return {
        (service["address"], service["port"], KEYS[service["protocol"]]): (number, rows_of(service))
        for number, service in enumerate(WORLD["services"])
    }


@pytest.fixture(scope="module")
def place() -> Iterator[Namespace]:
    """Two interfaces with the MACs of the file; down, so that no packet of anybody else's is counted."""
    with namespace() as made:
        for name, mac in WORLD["macs"].items():
            spelled = ":".join(mac[at : at + 2] for at in range(0, 12, 2))
            made.ip(
                f"link add name {name} type veth peer name {name}-end",
                f"link set {name} address {spelled}",
            )
        yield made


def path_of(role: str, me: int) -> PacketPath:
    """The world of the file, in this thread's namespace."""
    path = PacketPath(role, secret=SECRET, size=SIZE)  # type: ignore[arg-type]
    for way in WORLD["backends"]:
        path.set_backend(
            way["id"],
            address=way["address"],
            mac=bytes.fromhex(way["mac"]) if way["mac"] else None,
            interface=way["interface"],
            encapsulate=way["source"] is not None,
            source=way["source"],
        )
    for service, (number, rows) in zip(WORLD["services"], services().values(), strict=True):
        path.set_service(
            number, service["address"], service["port"], service["protocol"], rows, mtu=WORLD["mtu"]
        )
    if me:
        path.set_me(me)
        path.set_trusted(WORLD["trusted"])
    # Generic: a veth's native mode has minds of its own about its peer, and no packet comes by here.
    path.attach("here", "generic")
    return path


def moved(path: PacketPath, before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in path.counters().items() if count != before[name]}


def test_there_are_packets_of_every_kind() -> None:
    found = {kind: sum(is_one(packet) for packet in PACKETS) for kind, is_one in KINDS.items()}
    assert [kind for kind, count in found.items() if not count] == []
    assert len(PACKETS) >= 60
    names = Counter((packet["role"], packet["me"], packet["name"]) for packet in PACKETS)
    assert [name for name, count in names.items() if count > 1] == []


def test_packets_are_cut_at_every_length() -> None:
    cut: dict[str, list[int]] = {}
    for packet in PACKETS:
        what, cut_to, length = packet["name"].rpartition(" cut to ")
        if cut_to and packet["role"] == "director":
            cut.setdefault(what, []).append(int(length))
            assert len(packet["packet"]) == 2 * int(length)
    # From nothing on to one byte less than the whole, which is longer than its headers.
    assert {what: lengths for what, lengths in cut.items() if lengths != list(range(len(lengths)))} == {}
    assert sorted(map(len, cut.values()))[0] > 14 + 20 + 8
    assert len(cut) >= 6


def test_the_file_is_what_its_maker_makes() -> None:
    assert make_packet_vectors.FILE.read_text() == make_packet_vectors.render(), (
        "run `python -m tests.model.make_packet_vectors`, and look at what it has changed"
    )


@pytest.mark.parametrize(("role", "me"), ROLES)
def test_the_model(role: str, me: int) -> None:
    at = host({**WORLD, "me": me}, role)
    wrong = []
    for packet in PACKETS:
        if (packet["role"], packet["me"]) != (role, me):
            continue
        data = bytes.fromhex(packet["packet"])
        said = decide(at, data)
        after = bytes.fromhex(packet["after"]) if packet["after"] else data
        if (said.verdict, said.reason, said.frame) != (packet["verdict"], packet["reason"], after):
            wrong.append((packet["name"], said.verdict, said.reason))
    assert wrong == []


def test_rows_of_rust() -> None:
    """Hash, slot and row: who is named in them is who the packets have gone to."""
    at = host(WORLD, "director")
    ours = services()
    for key, (_, rows) in ours.items():
        assert [rows.row(slot) for slot in range(SIZE)] == at.rows[key]
    asked = 0
    for packet in PACKETS:
        if packet["role"] == "director" and packet["verdict"] in {"tx", "redirect"}:
            client, port, address, service_port, protocol = packet["flow"]
            _, rows = ours[address, service_port, protocol]
            row = rows.row(maglev.slot(maglev.flow_hash(SECRET, maglev.flow_key(client, port)), SIZE))
            mac = packet["after"][:12]
            to = {way["mac"]: way["id"] for way in WORLD["backends"]}[mac]
            assert to == (row[0] or row[1]), packet["name"]
            asked += 1
    assert asked > 60


@needs_namespaces
@pytest.mark.parametrize(("role", "me"), ROLES)
def test_the_kernel(place: Namespace, role: str, me: int) -> None:
    wrong, ran = [], 0
    with place.inside():
        path = path_of(role, me)
        try:
            for packet in PACKETS:
                data = bytes.fromhex(packet["packet"])
                if (packet["role"], packet["me"]) != (role, me) or len(data) < SHORTEST:
                    continue
                before = path.counters()
                verdict, after, _ = path.test_run(data, interface="here")
                expected = bytes.fromhex(packet["after"]) if packet["after"] else data
                said = (verdict, moved(path, before), after.hex())
                if said != (packet["verdict"], {packet["reason"]: 1}, expected.hex()):
                    wrong.append((packet["name"], *said))
                ran += 1
        finally:
            path.close(keep=False)
    assert wrong == []
    assert ran >= 60


@needs_namespaces
def test_slots_and_rows_in_the_kernel(place: Namespace) -> None:
    """Of every client that the packets are from."""
    at = host(WORLD, "director")
    ours = services()
    flows = {tuple(packet["flow"]) for packet in PACKETS if packet["flow"]}
    with place.inside():
        path = path_of("director", 0)
        try:
            for client, port, *key in sorted(flows):
                if tuple(key) not in ours:
                    continue
                hashed = maglev.flow_hash(SECRET, maglev.flow_key(client, port))
                slot = maglev.slot(hashed, SIZE)
                number, _ = ours[tuple(key)]
                assert path.slot(number, client, port) == (slot, at.rows[tuple(key)][slot]), (client, port)
        finally:
            path.close(keep=False)
    assert len(flows) > 30


@needs_namespaces
def test_what_is_counted(place: Namespace) -> None:
    """Services and backends count what was theirs, in bytes of the frame as it came."""
    with place.inside():
        path = path_of("director", 0)
        try:
            for packet in PACKETS:
                data = bytes.fromhex(packet["packet"])
                if packet["role"] == "director" and len(data) >= SHORTEST:
                    path.test_run(data, interface="here")
            ours = services()
            _, of_services, of_backends = path.counts()
            for key, (number, _) in ours.items():
                theirs = [
                    packet
                    for packet in PACKETS
                    if packet["role"] == "director" and packet["flow"] and tuple(packet["flow"][2:]) == key
                ]
                packets, size, _, errors = of_services[number]
                assert packets == len(theirs), key
                assert size == sum(len(packet["packet"]) // 2 for packet in theirs), key
                assert errors == sum(
                    " about " in packet["name"] or packet["name"].startswith("ICMP") for packet in theirs
                ), key
            for way in WORLD["backends"]:
                sent = [
                    packet
                    for packet in PACKETS
                    if packet["role"] == "director"
                    and packet["verdict"] in {"tx", "redirect"}
                    and packet["after"][:12] == way["mac"]
                ]
                packets, size, _, second_hops = of_backends[way["id"]]
                assert packets == len(sent), way
                assert size == sum(len(packet["packet"]) // 2 for packet in sent), way
                assert second_hops == 0
        finally:
            path.close(keep=False)
