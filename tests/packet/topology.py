"""A site in network namespaces: client – router – directors and backends, as many as wanted.

``Site`` has one network for all behind the router, or one for the directors and one for the backends.
The router spreads the addresses of the service over the directors by address and port, as ECMP does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Final

from tests.wire.namespace import Namespace

from .cables import let_pass, plain

VIP, VIP6 = "203.0.113.10", "2001:db8:1::10"
PORT: Final = 8080


class Machine:
    """A host: its namespace, and its interface ``eth0`` on a network behind the router."""

    def __init__(self, name: str, net: Net, number: int) -> None:
        self.name, self.net, self.number = name, net, number
        self.space = Namespace()
        self.address, self.address6 = net.address(number), net.address6(number)
        self.port = f"p{net.number}-{number}"
        """At the switch."""

    def off(self) -> None:
        """Pull its cable."""
        self.net.switch.ip(f"link set {self.port} down")

    def on(self) -> None:
        self.net.switch.ip(f"link set {self.port} up")


class Net:
    """A switch."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.switch = Namespace()
        self.switch.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0", "link set br0 up")

    def address(self, host: int) -> str:
        return f"10.0.{self.number}.{host}"

    def address6(self, host: int) -> str:
        return f"fd00:0:0:{self.number}::{host:x}"

    def plug(self, space: Namespace, interface: str, port: str, host: int) -> list[int]:
        """A cable from a host to this switch, and the host's addresses."""
        space.join(self.switch, interface, port)
        plain(space, interface)
        plain(self.switch, port)
        self.switch.ip(f"link set {port} master br0")
        space.own(interface, f"{self.address(host)}/24", f"{self.address6(host)}/64")
        return let_pass(self.switch, port)


ROUTER: Final = 254


class Site:
    """All of it. ``apart``: directors and backends are on different networks, with the router between."""

    def __init__(self, directors: int = 3, backends: int = 4, *, apart: bool = False) -> None:
        self._links: list[int] = []
        self._spaces: list[Namespace] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._build(directors, backends, apart)
            undo.pop_all()

    def _build(self, directors: int, backends: int, apart: bool) -> None:
        self.client, self.router = self._space(), self._space()
        self.client.join(self.router, "eth0", "client")
        for space, interface in ((self.client, "eth0"), (self.router, "client")):
            plain(space, interface)
            for name in ("all", "default", interface):
                space.set(f"ipv4/conf/{name}/rp_filter", 0)
        self.client.own("eth0", "10.9.0.2/24", "fd00:9::2/64")
        self.router.own("client", "10.9.0.1/24", "fd00:9::1/64")
        self.client.ip("route add default via 10.9.0.1", "-6 route add default via fd00:9::1")
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.router.set(setting, 1)
        for setting in ("ipv4/fib_multipath_hash_policy", "ipv6/fib_multipath_hash_policy"):
            self.router.set(setting, 1)
        self.front = Net(0)
        self._spaces.append(self.front.switch)
        self._links += self.front.plug(self.router, "front", "router", ROUTER)
        self.back = self.front
        if apart:
            self.back = Net(1)
            self._spaces.append(self.back.switch)
            self._links += self.back.plug(self.router, "back", "router", ROUTER)
        for name in ("front", "back") if apart else ("front",):
            self.router.set(f"ipv4/conf/{name}/rp_filter", 0)
        self.directors = [self._machine(f"d{n}", self.front, n) for n in range(1, directors + 1)]
        self.backends = [self._machine(f"b{n}", self.back, 10 + n) for n in range(1, backends + 1)]
        self.route_to(self.directors)

    def _space(self) -> Namespace:
        self._spaces.append(Namespace())
        return self._spaces[-1]

    def _machine(self, name: str, net: Net, number: int) -> Machine:
        machine = Machine(name, net, number)
        self._spaces.append(machine.space)
        machine.space.set("ipv4/conf/all/rp_filter", 0)
        machine.space.set("ipv4/conf/default/rp_filter", 0)
        self._plug(machine)
        return machine

    def _plug(self, machine: Machine) -> None:
        net = machine.net
        self._links += net.plug(machine.space, "eth0", machine.port, machine.number)
        machine.space.set("ipv4/conf/eth0/rp_filter", 0)
        machine.space.ip(
            f"route add default via {net.address(ROUTER)}", f"-6 route add default via {net.address6(ROUTER)}"
        )

    def replug(self, machine: Machine) -> None:
        """The same card and cable, as another interface of its name."""
        mac = machine.space.mac("eth0")
        machine.space.ip("link del eth0")
        self._plug(machine)
        machine.space.ip(f"link set eth0 address {mac}")

    def route_to(self, directors: Iterable[Machine]) -> None:
        """From now on the router spreads over these: as if the others' routes had been withdrawn."""
        met = list(directors)
        hops = " ".join(f"nexthop via {machine.address} dev front" for machine in met)
        hops6 = " ".join(f"nexthop via {machine.address6} dev front" for machine in met)
        self.router.ip(f"route replace {VIP}/32 {hops}", f"-6 route replace {VIP6}/128 {hops6}")

    def close(self) -> None:
        for descriptor in self._links:
            os.close(descriptor)
        for space in self._spaces:
            space.close()
        self._links, self._spaces = [], []


@contextlib.contextmanager
def site(directors: int = 3, backends: int = 4, *, apart: bool = False) -> Iterator[Site]:
    made = Site(directors, backends, apart=apart)
    try:
        yield made
    finally:
        made.close()
