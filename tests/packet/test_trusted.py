"""Whose outer packets an agent takes: it may change, and there is no gap between before and after."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from pybalancer import _core
from pybalancer.config.packet_model import PacketConfig
from pybalancer.packet import forwarder
from pybalancer.packet.hops import Hop
from tests.wire.namespace import Namespace

SECRET = bytes(16)
VIP, ME = "192.0.2.10", "10.1.0.1"


@pytest.fixture
def inside(place: Namespace) -> Iterator[None]:
    with place.inside():
        yield


@pytest.fixture
def pin() -> Iterator[str]:
    name = f"pybalancer-test-{os.getpid()}/trusted"
    yield name
    agent(name).close(keep=False)
    Path("/sys/fs/bpf", name).parent.rmdir()


def agent(pin: str | None = None) -> _core.PacketPath:
    path = _core.PacketPath("agent", secret=SECRET, size=13, pin=pin)
    path.set_backend(1, address=ME, mac=bytes(6), interface="here", encapsulate=True, source=ME)
    rows = _core.PacketRows([[("me", 1, 1)]], secret=SECRET, size=13)
    path.set_service(0, VIP, 443, "tcp", rows)
    path.set_me(1)
    path.attach("here")
    return path


def taken(path: _core.PacketPath, source: str) -> bool:
    outer = IP(src=source, dst=ME, id=0x7060)
    inner = IP(src="198.51.100.7", dst=VIP) / TCP(dport=443, flags="S")
    packet = bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:fe") / outer / inner)
    return path.test_run(packet, interface="here")[0] == "pass"


def test_everybody_s_until_some_are_named(inside: None) -> None:
    path = agent()
    assert taken(path, "10.9.1.2")
    path.set_trusted(["10.9.0.0/16", "2001:db8::/32", "10.8.0.1"])
    sources = ["10.9.1.2", "10.9.255.255", "10.8.0.1", "10.8.0.0", "10.10.0.0", "1.2.3.4"]
    assert [taken(path, source) for source in sources] == [True] * 3 + [False] * 3
    path.set_trusted([])
    assert not taken(path, "10.9.1.2")
    path.set_trusted(None)
    assert taken(path, "10.9.1.2")
    path.set_trusted(["0.0.0.0/0"])
    assert taken(path, "10.9.1.2")
    path.close(keep=False)


def test_who_is_named_before_and_after_is_taken_all_the_time(inside: None, pin: str) -> None:
    path, packets = agent(pin), _core.PacketPath("agent", secret=SECRET, size=13, pin=pin)
    crowds = [[f"10.{net}.{n >> 8}.{n & 255}" for n in range(1000)] for net in (7, 8)]
    sets = [["10.9.1.2", *crowds[0]], ["10.9.0.0/16", *crowds[1]], None, ["10.9.1.0/24", *crowds[1]]]
    path.set_trusted(sets[0])
    enough = threading.Event()
    changes = []

    def change() -> None:
        while not enough.is_set():
            for networks in sets:
                path.set_trusted(networks)
            changes.append(len(sets))

    changing = threading.Thread(target=change)
    changing.start()
    try:
        while len(changes) < 20:
            assert taken(packets, "10.9.1.2")
    finally:
        enough.set()
        changing.join()
    packets.close(keep=True)
    path.close(keep=False)


def test_the_next_process_finds_who_was_named(inside: None, pin: str) -> None:
    path = agent(pin)
    path.set_trusted(["10.9.0.0/16"])
    path.close(keep=True)
    again = agent(pin)
    assert again.adopted
    assert (taken(again, "10.9.1.2"), taken(again, "10.8.1.2")) == (True, False)
    again.set_trusted(["10.8.0.0/16"])
    assert (taken(again, "10.9.1.2"), taken(again, "10.8.1.2")) == (False, True)
    again.close(keep=False)


def test_what_is_set_can_be_read(inside: None) -> None:
    path = agent()
    assert path.trusted() is None
    networks = {"10.9.0.0/16", "0.0.0.0/0", "10.8.0.1/32", "2001:db8::/32", "2001:db8::1/128"}
    path.set_trusted(sorted(networks))
    assert set(path.trusted() or ()) == networks
    path.set_trusted([])
    assert path.trusted() == []
    path.close(keep=False)


def test_who_was_trusted_before_l2_is_so_for_an_hour(inside: None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(forwarder.time, "monotonic", lambda: now)
    ipip = PacketConfig(role="backend", interfaces=("here",), forward="ipip", directors=("10.9.0.0/16",))
    l2 = PacketConfig(role="backend", interfaces=("here",), forward="l2")

    def set_hosts(made: forwarder.XdpForwarder) -> None:
        for number, host in ((1, ME), (2, "10.1.0.2")):
            made.set_host(number, Hop(host, "here", None, ME, bytes(6)))
        made.set_me(1)
        made.flush()

    def whom() -> set[str] | None:
        made.flush()
        trusted = made._path.trusted()
        return set(trusted) if trusted is not None else None

    made = forwarder.XdpForwarder(l2, SECRET, 13)
    try:
        set_hosts(made)
        assert whom() == {"10.1.0.2/32"}, "from the start nobody but the other backends"
        anybody = ipip.model_copy(update={"directors": ()})
        for named, before in ((ipip, {"10.9.0.0/16", "10.1.0.2/32"}), (anybody, None)):
            made.configure(named)
            assert whom() == before
            now += 2 * forwarder.LATE
            made.configure(l2)
            assert whom() == before
            # Whatever else is reloaded meanwhile.
            made.configure(l2)
            now += forwarder.LATE - 1
            assert whom() == before
            now += 2
            assert whom() == {"10.1.0.2/32"}
        made.configure(ipip)
        whom()
        rekeyed = forwarder.XdpForwarder(l2, bytes([1] * 16), 13, made)
        set_hosts(rekeyed)
        assert set(rekeyed._path.trusted() or ()) == {"10.9.0.0/16", "10.1.0.2/32"}
    finally:
        made.close(keep=False)


@pytest.mark.parametrize(("networks", "words"), [
    (["10.0.0.0/33"], "10.0.0.0/33 is no network"),
    (["lb-1"], '"lb-1" is not an IP address'),
    (["10.0.0.0/x"], '"10.0.0.0/x" is not a network'),
    ([f"10.{n >> 8}.{n & 255}.0/24" for n in range(2049)], "2049 networks; there may be 2048"),
])  # fmt: skip
def test_mistakes_change_nothing(inside: None, networks: list[str], words: str) -> None:
    path = agent()
    path.set_trusted(["10.9.0.0/16"])
    with pytest.raises(_core.PacketError) as refused:
        path.set_trusted(networks)
    assert words in str(refused.value)
    assert (taken(path, "10.9.1.2"), taken(path, "10.8.1.2")) == (True, False)
    path.close(keep=False)
