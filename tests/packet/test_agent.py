"""What an agent knows of sockets: it is run on packets of connections that this host has, or has not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from pybalancer import _core
from tests.wire.namespace import Namespace, namespace
from tests.wire.packets import ACK, SYN, SlowClient
from tests.wire.packets import packet as segment

SECRET = bytes(range(16))
HERE, ROUTER = "02:00:00:00:00:01", "02:00:00:00:00:fe"
VIP, VIP6 = "192.0.2.10", "2001:db8::10"
ME, FORMER = 1, 2


@contextmanager
def agent(place: Namespace, ports: dict[str, int]) -> Iterator[_core.PacketPath]:
    """In the namespace: of services at these addresses, which another backend had before."""
    with place.inside():
        path = _core.PacketPath("agent", secret=SECRET, size=251)
        try:
            for id, last in ((ME, 1), (FORMER, 2)):
                path.set_backend(
                    id,
                    address=f"10.1.0.{last}",
                    mac=bytes([2, 0, 0, 0, 1, last]),
                    interface="here",
                    encapsulate=False,
                    source=None,
                )
            rows = _core.PacketRows([[("me", 1, ME)], [("former", 1, FORMER)]], secret=SECRET, size=251)
            for number, (address, port) in enumerate(ports.items()):
                path.set_service(number, address, port, "tcp", rows)
            path.set_me(ME)
            path.attach("here")
            yield path
        finally:
            path.close(keep=False)


def said(path: _core.PacketPath, packet: Packet) -> str:
    before = path.counters()
    path.test_run(bytes(packet), interface="here")
    (reason,) = [reason for reason, count in path.counters().items() if count != before[reason]]
    return reason


def frame(ip: Packet) -> Packet:
    return Ether(dst=HERE, src=ROUTER) / ip


@pytest.mark.parametrize(("address", "client", "dual"), [
    (VIP, "198.51.100.7", False), (VIP6, "2001:db8:c::7", False), (VIP, "198.51.100.7", True),
], ids=["v4", "v6", "v4 at a dual-stack listener"])  # fmt: skip
def test_connections_that_this_host_has_stay(place: Namespace, address: str, client: str, dual: bool) -> None:
    v6 = ":" in address
    place.own("lo", f"{address}/{128 if v6 else 32}", f"{client}/{128 if v6 else 32}")
    layer = IPv6 if v6 else IP
    family = socket.AF_INET6 if v6 or dual else socket.AF_INET
    with ExitStack() as stack:
        with place.inside():
            bound = ("::" if dual else address, 0)
            made = socket.create_server(bound, family=family, dualstack_ipv6=dual)
            listener = stack.enter_context(made)
            port = listener.getsockname()[1]
            one = stack.enter_context(socket.create_connection((address, port), source_address=(client, 0)))
            taken = stack.enter_context(listener.accept()[0])
        path = stack.enter_context(agent(place, {address: port}))
        mine, other = one.getsockname()[1], one.getsockname()[1] ^ 1

        def packet(sport: int, flags: str = "A") -> Packet:
            return frame(
                layer(src=client, dst=address) / TCP(sport=sport, dport=port, flags=flags, seq=5, ack=6)
            )

        assert said(path, packet(mine)) == "delivered"
        assert said(path, packet(mine, "R")) == "delivered"
        assert said(path, packet(other)) == "second_hop"
        assert said(path, packet(other, "FA")) == "second_hop"
        assert said(path, packet(other, "SA")) == "second_hop"
        assert said(path, packet(other, "S")) == "delivered"

        def error(dport: int) -> Packet:
            quoted = layer(src=address, dst=client) / TCP(sport=port, dport=dport)
            outside = layer(src=client, dst=address)
            big = ICMPv6PacketTooBig(mtu=1280) if v6 else ICMP(type=3, code=4, nexthopmtu=1400)
            return frame(outside / big / Raw(bytes(quoted)))

        assert said(path, error(mine)) == "delivered"
        assert said(path, error(other)) == "second_hop"

        # A connection that has ended here is not for the one before: what is left of it is in TIME_WAIT.
        taken.close()
        assert one.recv(1) == b""
        one.close()
        assert said(path, packet(mine)) == "delivered"
        # Nobody listens any more: nothing of this service is here.
        listener.close()
        assert said(path, packet(other)) == "second_hop"
    assert mine != other


def test_cookies_that_this_host_gave_out_stay(place: Namespace) -> None:
    """Under a flood a listener keeps no state: the ACK of its cookie is all that there is."""
    with namespace() as crowd, ExitStack() as stack:
        place.join(crowd, "wire", "out")
        crowd.own("out", "10.5.0.9/24")
        place.own("wire", "10.5.0.1/24")
        place.own("lo", f"{VIP}/32")
        # The client's address is not the crowd's own, lest its kernel answer in its place.
        place.ip("route add 198.51.100.0/24 dev wire")
        place.ip(f"neigh add 198.51.100.7 lladdr {crowd.mac('out')} dev wire")
        crowd.ip(f"route add {VIP}/32 via 10.5.0.1")
        place.set("ipv4/tcp_syncookies", 2)
        with place.inside():
            listener = stack.enter_context(socket.create_server((VIP, 0)))
            port = listener.getsockname()[1]
        path = stack.enter_context(agent(place, {VIP: port}))
        with crowd.inside():
            client = stack.enter_context(SlowClient("out", ("198.51.100.7", 40000), (VIP, port)))
            client.send(SYN)
            answer = next(client.segments())
        assert answer.flags == SYN | ACK

        def packet(ack: int) -> bytes:
            inner = segment(("198.51.100.7", 40000), (VIP, port), ACK, 1001, ack)
            return bytes(Ether(dst=HERE, src=ROUTER, type=0x0800)) + inner

        assert said(path, Raw(packet(answer.seq + 1))) == "delivered"
        assert said(path, Raw(packet(answer.seq + 1 + 0x10000))) == "second_hop"
