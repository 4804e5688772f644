"""Marked packets of health checks, in an outer header as those of clients get it."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from pybalancer import _core
from tests.model.packet import Flow, Way, outer
from tests.wire.namespace import Namespace

HERE, MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000101")
WAYS = {
    1: Way("10.1.0.3", MAC, HERE, source="10.9.0.1"),
    2: Way("2001:db8:1::4", MAC, HERE, source="2001:db8:9::1"),
}


@pytest.mark.parametrize("id", WAYS)
@pytest.mark.parametrize("tos", [0x00, 0x02, 0xB9, 0xFF])
@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
def test_a_check_is_wrapped_as_packets_are(place: Namespace, id: int, tos: int, v6: bool) -> None:
    """TOS outside as inside; the TTL stays, for this machine has made the packet and passes on none."""
    inner: Packet = IPv6(dst="2001:db8::10", tc=tos, fl=0xABCDE) if v6 else IP(dst="192.0.2.10", tos=tos)
    packet = bytes(Ether(dst="02:00:00:00:00:fe", src="02:00:00:00:00:01") / inner / TCP(dport=443))
    with place.inside():
        path = _core.PacketPath("director", secret=bytes(16), size=13)
        try:
            for number, way in WAYS.items():
                path.set_backend(
                    number,
                    address=way.address,
                    mac=MAC,
                    interface="here",
                    encapsulate=True,
                    source=way.source,
                )
            verdict, after, _ = path.test_run(
                packet, program="probe", interface="here", mark=0x7062_0000 | id
            )
            unmarked = path.test_run(packet, program="probe", interface="here", mark=id)
        finally:
            path.close(keep=False)
    flow = Flow((IPv4Address(0), 0), length=len(packet) - 14, v6=v6, tos=tos)
    head = outer(WAYS[id], flow, id, 0)
    kind = b"\x86\xdd" if len(head) == 40 else b"\x08\x00"
    assert (verdict, after) == ("next", MAC + HERE + kind + head + packet[14:])
    assert unmarked[:2] == ("next", packet)
