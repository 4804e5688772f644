"""The handle on programs and maps: swaps, what outlives a process, what is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from pybalancer import _core
from tests.wire.namespace import Namespace

SECRET, OTHER = bytes(range(16)), bytes(16)
SIZE = 65537
VIP = "192.0.2.10"
ADDRESS: dict[str, Any] = {"interface": "here", "encapsulate": False, "source": None}


def rows(*ids: int, secret: bytes = SECRET, size: int = SIZE) -> _core.PacketRows:
    return _core.PacketRows([[(f"app-{id}", 1, id) for id in ids]], secret=secret, size=size)


def frame(sport: int, dport: int = 443) -> bytes:
    return bytes(
        Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:fe")
        / IP(src="198.51.100.7", dst=VIP)
        / TCP(sport=sport, dport=dport, flags="A")
    )


def way(path: _core.PacketPath, *ids: int, interface: str = "here") -> None:
    for id in ids:
        path.set_backend(
            id,
            address=f"10.1.{id >> 8}.{id & 255}",
            mac=bytes([2, 0, 0, 1, id >> 8, id & 255]),
            **{**ADDRESS, "interface": interface},
        )


def taken_by(path: _core.PacketPath, packet: bytes) -> int:
    verdict, after, _ = path.test_run(packet, interface="here")
    assert verdict == "tx"
    return int.from_bytes(after[4:6], "big")


@pytest.fixture
def inside(place: Namespace) -> Iterator[Namespace]:
    with place.inside():
        yield place


@pytest.fixture
def pin() -> Iterator[str]:
    name = f"pybalancer-test-{os.getpid()}/path"
    yield name
    _core.PacketPath("director", secret=SECRET, pin=name).close(keep=False)
    Path("/sys/fs/bpf", name).parent.rmdir()


def attached(interface: str = "here") -> bool:
    shown = subprocess.run(["ip", "link", "show", interface], capture_output=True, text=True, check=True)
    return "xdp" in shown.stdout


def test_a_table_is_swapped_whole(inside: Namespace, pin: str) -> None:
    """Each swap gives all slots to the next backend. Once one slot is the new one's, so are all others.

    Packets run by a handle of their own: one handle does one thing at a time.
    """
    path = _core.PacketPath("director", secret=SECRET, pin=pin)
    versions = range(1, 1001)
    way(path, *versions)
    path.set_service(0, VIP, 443, "tcp", rows(1))
    path.attach("here")
    slots = {path.slot(0, "198.51.100.7", port)[0]: port for port in range(1024, 3072)}
    low, high = frame(slots[min(slots)]), frame(slots[max(slots)])
    assert min(slots) < SIZE // 100
    assert max(slots) > SIZE - SIZE // 100
    packets = _core.PacketPath("director", secret=SECRET, pin=pin)
    enough, over = threading.Event(), threading.Event()

    def swap() -> None:
        try:
            for version in versions[1:]:
                path.set_service(0, VIP, 443, "tcp", rows(version))
                if enough.is_set():
                    break
        finally:
            over.set()

    swapping = threading.Thread(target=swap)
    swapping.start()
    seen: set[int] = set()
    last = 0
    while True:
        ended = over.is_set()
        for packet in (low, high, high, low):
            now = taken_by(packets, packet)
            assert now >= last, "an old row after a new one"
            last = now
            seen.add(now)
        if len(seen) > 100:
            enough.set()
        if ended:
            break
    swapping.join()
    assert enough.is_set(), "hardly a swap was seen happening"
    packets.close(keep=True)
    path.close(keep=False)


def test_a_way_changes_whole(inside: Namespace, pin: str) -> None:
    path = _core.PacketPath("director", secret=SECRET, size=251, pin=pin)
    path.set_service(0, VIP, 443, "tcp", rows(1, size=251))
    macs = [bytes([2, number, number, number, number, number]) for number in range(1, 40)]

    def set_to(mac: bytes) -> None:
        path.set_backend(1, address="10.1.0.1", mac=mac, **ADDRESS)

    set_to(macs[0])
    path.attach("here")
    packets = _core.PacketPath("director", secret=SECRET, size=251, pin=pin)
    assert packets.adopted
    enough, over = threading.Event(), threading.Event()

    def change() -> None:
        try:
            for mac in macs * 50:
                set_to(mac)
                if enough.is_set():
                    break
        finally:
            over.set()

    changing = threading.Thread(target=change)
    changing.start()
    seen = set()
    while not over.is_set():
        _, after, _ = packets.test_run(frame(1), interface="here")
        seen.add(after[:6])
        if len(seen) > 20:
            enough.set()
    changing.join()
    assert seen <= set(macs)
    assert enough.is_set(), "hardly a change was seen happening"
    packets.close(keep=True)
    path.close(keep=False)


CRASH = """
import os, sys
from pybalancer import _core
from tests.packet.test_path import *
path = _core.PacketPath("director", secret=SECRET, pin=sys.argv[1])
way(path, 7)
path.set_service(3, VIP, 443, "tcp", rows(7))
print(path.attach("here"), path.adopted, flush=True)
os._exit(1)
"""


def crash(pin: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, pin], capture_output=True, text=True, check=False, cwd=os.getcwd()
    )
    assert done.stdout == "native False\n", done.stderr


def test_a_crashed_process_is_taken_over(inside: Namespace, pin: str) -> None:
    crash(pin)
    assert attached(), "packets go on without a process"
    path = _core.PacketPath("director", secret=SECRET, pin=pin)
    assert path.adopted
    assert path.services() == {3: (VIP, 443, "tcp")}
    assert path.backends() == {7: "10.1.0.7"}
    assert path.interfaces() == {"here": "native"}
    # What it left decides until it is told anew, and then the new one decides from the same maps.
    assert taken_by(path, frame(1)) == 7
    way(path, 8)
    path.set_service(3, VIP, 443, "tcp", rows(8))
    assert taken_by(path, frame(1)) == 8
    assert path.attach("here") == "native"
    path.close(keep=True)
    assert attached(), "kept over an upgrade"
    again = _core.PacketPath("director", secret=SECRET, pin=pin)
    assert again.adopted
    assert taken_by(again, frame(1)) == 8
    again.close(keep=False)
    assert not attached(), "a clean exit leaves nothing"
    fresh = _core.PacketPath("director", secret=SECRET, pin=pin)
    assert not fresh.adopted
    assert fresh.services() == {}
    fresh.close(keep=False)


@pytest.mark.parametrize("change", [{"secret": OTHER}, {"size": 16381}], ids=["secret", "size"])
def test_maps_of_another_kind_are_replaced(inside: Namespace, pin: str, change: dict[str, Any]) -> None:
    crash(pin)
    given: dict[str, Any] = {"secret": SECRET, "size": SIZE, **change}
    path = _core.PacketPath("director", pin=pin, **given)
    assert not path.adopted
    assert (path.services(), path.backends()) == ({}, {})
    assert path.interfaces() == {"here": "native"}
    assert attached(), "the old program runs until the new one takes its place"
    way(path, 9)
    path.set_service(0, VIP, 443, "tcp", rows(9, **given))
    assert path.attach("here") == "native"
    assert taken_by(path, frame(1)) == 9
    path.close(keep=False)
    assert not attached()


def test_without_pins_nothing_outlives_the_process(inside: Namespace) -> None:
    path = _core.PacketPath("director", secret=SECRET)
    path.attach("here")
    assert attached()
    del path
    assert not attached()


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_modes_are_taken_as_asked(inside: Namespace, mode: Any) -> None:
    path = _core.PacketPath("director", secret=SECRET, size=251)
    assert path.attach("here", mode) == mode
    assert path.attach("here") == mode
    assert path.interfaces() == {"here": mode}
    path.detach("here")
    assert path.interfaces() == {}
    assert path.attach("here", "native") == "native"
    assert path.attach("here", "generic") == "generic", "another mode takes the place of the one before"
    assert path.interfaces() == {"here": "generic"}
    path.close(keep=False)


def test_an_interface_that_has_a_program_says_so(inside: Namespace) -> None:
    one, two = (_core.PacketPath("director", secret=SECRET, size=251) for _ in range(2))
    one.attach("here")
    with pytest.raises(_core.PacketError, match="another program is attached there"):
        two.attach("here")
    one.close(keep=False)
    assert two.attach("here") == "native"
    two.close(keep=False)


def test_services_come_and_go(inside: Namespace) -> None:
    path = _core.PacketPath("director", secret=SECRET, size=251)
    way(path, 1)
    path.attach("here")
    mine = rows(1, size=251)

    def verdict(dport: int) -> str:
        return path.test_run(frame(1, dport), interface="here")[0]

    assert verdict(443) == "pass"
    path.set_service(0, VIP, 443, "tcp", mine)
    path.set_service(1, VIP, 444, "tcp", mine)
    assert (verdict(443), verdict(444)) == ("tx", "tx")
    path.set_service(0, VIP, 445, "tcp", mine)
    assert (verdict(443), verdict(444), verdict(445)) == ("pass", "tx", "tx")
    cut = frame(1)[:40]
    assert path.test_run(cut, interface="here")[0] == "drop"
    path.drop_service(0)
    path.drop_service(0)
    assert (verdict(445), verdict(444)) == ("pass", "tx")
    assert path.test_run(cut, interface="here")[0] == "drop"
    path.drop_service(1)
    assert verdict(444) == "pass"
    assert path.test_run(cut, interface="here")[0] == "pass", "the address is nobody's any more"
    path.close(keep=False)


MISTAKES: list[tuple[str, Any]] = [
    ("a role is director or agent", lambda path: _core.PacketPath("judge", secret=SECRET)),  # type: ignore[arg-type]
    ("a mode is auto, native or generic", lambda path: path.attach("here", "fast")),
    ('there is no interface "nowhere"', lambda path: path.attach("nowhere")),
    ("nothing is attached to there", lambda path: path.detach("there")),
    ("from 1 to 1023, not 0", lambda path: way(path, 0)),
    ("from 1 to 1023, not 1024", lambda path: way(path, 1024)),
    ("from 1 to 1023, not 2000", lambda path: path.set_me(2000)),
    ('"app-1" is not an IP address', lambda path: path.set_backend(1, address="app-1", mac=None, **ADDRESS)),
    ("a MAC has 6 bytes, not 5", lambda path: path.set_backend(
        1, address="10.0.0.1", mac=bytes(5), **ADDRESS)),
    ("an outer header needs a source", lambda path: path.set_backend(
        1, address="10.0.0.1", mac=None, interface=None, encapsulate=True, source=None)),
    ("cannot have the source", lambda path: path.set_backend(
        1, address="10.0.0.1", mac=None, interface=None, encapsulate=True, source="2001:db8::/64")),
    ("cannot have the source", lambda path: path.set_backend(
        1, address="10.0.0.1", mac=None, interface=None, encapsulate=True, source="10.0.0.0/33")),
    ("numbers below 256, not 256", lambda path: path.set_service(256, VIP, 1, "tcp", rows(1, size=251))),
    ("numbers below 256, not 256", lambda path: path.slot(256, VIP, 1)),
    ("a port from 1 to 65535", lambda path: path.set_service(0, VIP, 0, "tcp", rows(1, size=251))),
    ("a protocol is tcp or udp", lambda path: path.set_service(0, VIP, 1, "sctp", rows(1, size=251))),
    ("the table has 251 slots", lambda path: path.set_service(0, VIP, 1, "tcp", rows(1, size=16381))),
    ("has no table yet", lambda path: path.slot(9, "10.0.0.1", 1)),
    ('there is no program "mine"', lambda path: path.test_run(bytes(60), program="mine")),
    ("cannot be a directory for pins", lambda path: _core.PacketPath("agent", secret=SECRET, pin="../etc")),
    ("cannot be a directory for pins", lambda path: _core.PacketPath("agent", secret=SECRET, pin="")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "mistake"), MISTAKES, ids=[f"{n}-{m[0]}" for n, m in enumerate(MISTAKES)])
def test_mistakes_are_refused_in_words(inside: Namespace, words: str, mistake: Any) -> None:
    path = _core.PacketPath("director", secret=SECRET, size=251)
    with pytest.raises(_core.PacketError) as refused:
        mistake(path)
    assert words in str(refused.value)
    path.close(keep=False)


def test_two_services_cannot_be_one(inside: Namespace) -> None:
    path = _core.PacketPath("director", secret=SECRET, size=251)
    path.set_service(0, VIP, 443, "tcp", rows(1, size=251))
    path.set_service(1, VIP, 443, "udp", rows(1, size=251))
    with pytest.raises(_core.PacketError, match="is service 0 already"):
        path.set_service(2, VIP, 443, "tcp", rows(1, size=251))
    path.close(keep=False)


def test_a_closed_path_says_so(inside: Namespace) -> None:
    path = _core.PacketPath("director", secret=SECRET, size=251)
    path.close(keep=False)
    path.close(keep=True)
    with pytest.raises(_core.PacketError, match="closed"):
        path.counters()


WITHOUT = """
import ctypes, os
libc = ctypes.CDLL(None)
from pybalancer import _core
os.setgid(65534)
os.setuid(65534)
for sentence in _core.packet_support("lo"):
    print(sentence)
try:
    _core.PacketPath("director", secret=bytes(16), size=251)
except _core.PacketError as error:
    print(error)
"""


def test_missing_capabilities_are_named() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    net, bpf, perfmon, refused = done.stdout.splitlines()
    assert net.startswith("CAP_NET_ADMIN is missing: run as root, or")
    assert bpf.startswith("CAP_BPF is missing: run as root, or")
    assert perfmon.startswith("CAP_PERFMON is missing: run as root, or")
    assert refused.endswith(
        "the process needs CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON; run it as root or give the service "
        "AmbientCapabilities=CAP_NET_ADMIN CAP_BPF CAP_PERFMON"
    )


def test_a_missing_interface_is_named(inside: Namespace) -> None:
    assert _core.packet_support("here") == []
    (sentence,) = _core.packet_support("nowhere")
    assert sentence.startswith('interface "nowhere" cannot be used: No such device; `ip link` lists')


def test_another_mode_takes_the_place_of_a_pinned_one(inside: Namespace, pin: str) -> None:
    path = _core.PacketPath("director", secret=SECRET, pin=pin)
    for mode in ("generic", "native", "generic"):
        assert path.attach("here", mode) == mode  # type: ignore[arg-type]
        assert [each.name for each in pins(pin) if "_" in each.name and each.name[-1].isdigit()] == [
            f"{mode}_{socket.if_nametoindex('here')}"
        ]
    path.close(keep=True)
    again = _core.PacketPath("director", secret=SECRET, pin=pin)
    assert again.interfaces() == {"here": "generic"}
    assert again.attach("here", "native") == "native", "also of one that a process before has left"
    again.close(keep=False)
    assert not attached()


def test_a_mode_that_is_refused_leaves_the_one_before(inside: Namespace, pin: str) -> None:
    # Its driver takes no frames as long as its other end may send in native mode.
    inside.ip("link add wide type veth peer name wide-end", "link set wide-end mtu 9000")
    path = _core.PacketPath("director", secret=SECRET, pin=pin)
    path.attach("wide", "generic")
    with pytest.raises(_core.PacketError, match="an MTU above"):
        path.attach("wide", "native")
    assert path.interfaces() == {"wide": "generic"}
    assert attached("wide")
    path.close(keep=True)
    again = _core.PacketPath("director", secret=SECRET, pin=pin)
    assert (again.adopted, again.interfaces()) == (True, {"wide": "generic"})
    again.close(keep=False)


def test_who_attaches_last_decides_and_is_found(inside: Namespace, pin: str) -> None:
    """Two paths with other tables, one after the other and back, as where a change is taken back."""
    one = _core.PacketPath("director", secret=SECRET, pin=pin)
    way(one, 1)
    one.attach("here")
    two = _core.PacketPath("director", secret=OTHER, pin=pin)
    assert not two.adopted

    def found() -> list[int]:
        third = _core.PacketPath("director", secret=SECRET, pin=pin)
        numbers = list(third.backends()) if third.adopted else []
        third.close(keep=True)
        return numbers

    assert found() == [1], "until it attaches, the maps of the one before are the ones to find"
    two.attach("here")
    assert found() == []
    one.attach("here")
    assert found() == [1]
    two.close(keep=True)
    one.close(keep=False)
    assert not attached()


def test_an_interface_that_has_gone_and_another_with_its_number(inside: Namespace, pin: str) -> None:
    path = _core.PacketPath("director", secret=SECRET, pin=pin)
    path.attach("there")
    number = socket.if_nametoindex("there")
    inside.ip("link del there", f"link add there index {number} type veth peer name elsewhere")
    assert path.attach("there") in ("native", "generic")
    assert path.interfaces().keys() == {"there"}
    path.close(keep=False)


def pins(pin: str) -> list[Path]:
    return sorted(Path("/sys/fs/bpf", pin).iterdir())
