"""Interfaces and services by their places in the settings, and by the maps when a place is another's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pybalancer._core import PacketPath, PacketRows
from tests.wire.namespace import Namespace, namespace, needs_namespaces

SECRET, SIZE, PLACES = bytes(16), 13, 1024
MAC = {"near": "02:00:00:00:00:01", "far": "02:00:00:00:00:02"}
BACKENDS = {1: bytes.fromhex("020000000101"), 2: bytes.fromhex("020000000102")}
VIP = bytes([192, 0, 2, 10])
MOST = 128

pytestmark = needs_namespaces


@pytest.fixture
def place() -> Iterator[Namespace]:
    """Two interfaces whose numbers leave the same rest: one place for both."""
    with namespace() as made:
        for number, (name, mac) in enumerate(MAC.items()):
            made.ip(
                f"link add name {name} index {10 + 64 * number} type veth peer name {name}-end",
                f"link set {name} address {mac}",
            )
        yield made


@pytest.fixture
def path(place: Namespace) -> Iterator[PacketPath]:
    with place.inside():
        made = PacketPath("director", secret=SECRET, size=SIZE)
        try:
            for id, mac in BACKENDS.items():
                made.set_backend(
                    id, address=f"10.0.0.{id}", mac=mac, interface="near", encapsulate=False, source=None
                )
            made.attach("near", "generic")
            made.attach("far", "generic")
            yield made
        finally:
            made.close(keep=False)


def packet(port: int, interface: str = "near") -> bytes:
    tcp = b"\x9c\x40" + port.to_bytes(2, "big") + bytes(8) + b"\x50\x10" + bytes(6)
    ip = b"\x45\0\0\x28\0\1\x40\0\x40\6\0\0" + bytes([198, 51, 100, 7]) + VIP + tcp
    return bytes.fromhex(MAC[interface].replace(":", "")) + bytes(6) + b"\x08\0" + ip


def rows(id: int) -> PacketRows:
    return PacketRows([[(f"app-{id}", 1, id)]], secret=SECRET, size=SIZE)


def backend(path: PacketPath, port: int) -> int | None:
    """Who gets a packet for a port; None if it is not ours."""
    verdict, after, _ = path.test_run(packet(port), interface="near")
    if verdict == "pass":
        return None
    return {mac: id for id, mac in BACKENDS.items()}[after[:6]]


def home(port: int) -> int:
    """Where the service of a port has its place: as rust/packet has it."""
    mixed = int.from_bytes(VIP, "little") ^ 0xFFFF0000
    mixed ^= int.from_bytes(port.to_bytes(2, "big") + bytes([6]), "little")
    return (mixed * 0x9E3779B1 & 0xFFFFFFFF) >> 22


def crowded() -> list[int]:
    """Ports of many services, of which some want the same places."""
    ports = list(range(1000, 1000 + 37 * MOST, 37))
    assert len({home(port) for port in ports}) < MOST - 3
    return ports


def test_services_that_want_the_same_place_are_all_found(path: PacketPath) -> None:
    ports = crowded()
    for number, port in enumerate(ports):
        path.set_service(number, "192.0.2.10", port, "tcp", rows(number % 2 + 1))
    assert [backend(path, port) for port in ports] == [number % 2 + 1 for number in range(MOST)]
    # Those that came first go, so that others want what they have left.
    for number in range(0, MOST, 2):
        path.drop_service(number)
    assert [backend(path, port) for port in ports] == [(number % 2 and 2) or None for number in range(MOST)]
    for number in range(0, MOST, 2):
        path.set_service(number, "192.0.2.10", ports[number], "tcp", rows(2))
    assert {backend(path, port) for port in ports} == {2}


def test_a_place_that_was_another_s_is_taken(path: PacketPath) -> None:
    ports = crowded()
    one = ports[0]
    other = next(port for port in range(one + 1, 60000) if home(port) == home(one))
    path.set_service(0, "192.0.2.10", one, "tcp", rows(1))
    path.set_service(1, "192.0.2.10", other, "tcp", rows(2))
    assert (backend(path, one), backend(path, other)) == (1, 2)
    path.drop_service(0)
    assert (backend(path, one), backend(path, other)) == (None, 2)
    path.set_service(2, "192.0.2.10", other + 1, "tcp", rows(1))
    # The first one's place is free: it may be the other's from its next change on.
    path.set_service(1, "192.0.2.10", other, "tcp", rows(2), mtu=1400)
    assert (backend(path, one), backend(path, other), backend(path, other + 1)) == (None, 2, 1)


def test_a_service_that_moves_is_found_at_its_new_port_only(path: PacketPath) -> None:
    path.set_service(0, "192.0.2.10", 443, "tcp", rows(1))
    assert backend(path, 443) == 1
    path.set_service(0, "192.0.2.10", 444, "tcp", rows(2))
    assert (backend(path, 443), backend(path, 444)) == (None, 2)


def test_a_new_mtu_counts_from_the_next_packet_on(path: PacketPath) -> None:
    for id, mac in BACKENDS.items():
        path.set_backend(
            id, address=f"10.0.0.{id}", mac=mac, interface="near", encapsulate=True, source="10.9.0.1"
        )
    for mtu, verdict in ((1500, "tx"), (59, "drop"), (60, "tx")):
        path.set_service(0, "192.0.2.10", 443, "tcp", rows(1), mtu=mtu)
        assert path.test_run(packet(443), interface="near")[0] == verdict


def test_interfaces_that_want_the_same_place_are_both_ours(path: PacketPath) -> None:
    path.set_service(0, "192.0.2.10", 443, "tcp", rows(1))

    def ours(interface: str, to: str) -> bool:
        return path.test_run(packet(443, to), interface=interface)[0] != "pass"

    assert (ours("near", "near"), ours("far", "far")) == (True, True)
    assert (ours("near", "far"), ours("far", "near")) == (False, False)
    path.detach("near")
    assert (ours("near", "near"), ours("far", "far")) == (False, True)
    path.attach("far", "generic")
    path.attach("near", "generic")
    assert (ours("near", "near"), ours("far", "far")) == (True, True)
    path.detach("far")
    assert (ours("near", "near"), ours("far", "far")) == (True, False)


def test_a_new_mac_is_learned(place: Namespace, path: PacketPath) -> None:
    path.set_service(0, "192.0.2.10", 443, "tcp", rows(1))
    place.ip("link set near address 02:00:00:00:00:03")
    path.attach("near", "generic")
    new = bytes.fromhex("020000000003") + packet(443)[6:]
    assert path.test_run(new, interface="near")[0] != "pass"
    assert path.test_run(packet(443), interface="near")[0] == "pass"
