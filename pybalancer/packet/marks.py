"""The way of health checks where packets go by hardware address (``forward = "l2"``).

A check asks the service's own address, at one backend of all that have it. Its socket has a mark, and the
mark chooses a routing table in which that address is behind that backend. Tables and rules have the mark's
number, so what a process before has left is known, and removed.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pybalancer.packet.hops import Hop, kernel_error

_log = logging.getLogger("pybalancer")

BASE: Final = 0x7062_0000
"""Of marks; the rest is the machine's number."""
MASK: Final = 0xFFFF_0000
PRIORITY: Final = 1000
"""Of rules: before the main table's."""
PERMANENT: Final = 0x80


def mark(number: int) -> int:
    """Of checks of a machine."""
    return BASE | number


@dataclass(frozen=True, slots=True)
class Way:
    """Checks of ``vip`` at a machine go this way."""

    number: int
    vip: str
    interface: str
    index: int
    """The interface's number: with an interface go its routes."""
    host: str
    mac: str

    @staticmethod
    def to(number: int, vip: str, hop: Hop) -> Way | None:
        """None while the hardware address is not known."""
        if hop.interface is None or hop.mac is None:
            return None
        return Way(number, vip, hop.interface, hop.index, hop.host, hop.mac.hex(":"))


def neighbour(number: int) -> str:
    """A link-local address that stands for a machine, for the sake of routes of IPv6.

    They need a gateway of IPv6, and the machine may have told us one of IPv4 only.
    """
    return f"fe80::7062:{number:x}"


class Ways:
    """Those that are set up. Raises OSError where the kernel refuses."""

    def __init__(self) -> None:
        self._ways: dict[int, set[Way]] = {}

    def set(self, wanted: Iterable[Way], *, anew: bool = False) -> None:
        """From now on these; ``anew``: whatever of them the kernel may have removed."""
        from pyroute2 import IPRoute

        ways: dict[int, set[Way]] = {}
        for way in wanted:
            ways.setdefault(way.number, set()).add(way)
        if ways == self._ways and not anew:
            return
        with IPRoute() as kernel:
            for number in self._ways.keys() | ways.keys():
                if self._ways.get(number) == ways.get(number) and not anew:
                    continue
                self._ways.pop(number, None)
                _remove(kernel, number)
                for way in ways.get(number, ()):
                    try:
                        _add(kernel, way)
                    except kernel_error() as error:
                        why = f"no way for checks of {way.vip} at {way.host}: {error}"
                        raise OSError(getattr(error, "code", 0), why) from None
                if number in ways:
                    self._ways[number] = ways[number]

    @staticmethod
    def clean() -> None:
        """Remove all that any process has set up."""
        from pyroute2 import IPRoute

        with IPRoute() as kernel:
            for family in (socket.AF_INET, socket.AF_INET6):
                for rule in kernel.get_rules(family=family):
                    found = rule.get_attr("FRA_FWMARK") or 0
                    if found & MASK == BASE and rule.get_attr("FRA_TABLE") == found:
                        _remove(kernel, found & ~MASK)


def _add(kernel: Any, way: Way) -> None:
    six = ":" in way.vip
    family, table = socket.AF_INET6 if six else socket.AF_INET, mark(way.number)
    index = socket.if_nametoindex(way.interface)
    target = {"dst": f"{way.vip}/{128 if six else 32}", "family": family, "table": table, "oif": index}
    if six:
        gateway = neighbour(way.number)
        kernel.neigh("replace", dst=gateway, lladdr=way.mac, ifindex=index, state=PERMANENT)
        kernel.route("replace", gateway=gateway, **target)
    elif ":" in way.host:
        kernel.route("replace", via={"family": socket.AF_INET6, "addr": way.host}, **target)
    else:
        kernel.route("replace", gateway=way.host, **target)
    _rule(kernel, "del", way.number, family)
    _rule(kernel, "add", way.number, family)


def _rule(kernel: Any, what: str, number: int, family: int) -> None:
    table = mark(number)
    try:
        kernel.rule(what, family=family, table=table, fwmark=table, fwmask=0xFFFF_FFFF, priority=PRIORITY)
    except kernel_error():
        if what == "add":
            raise


def _remove(kernel: Any, number: int) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        _rule(kernel, "del", number, family)
        try:
            kernel.flush_routes(family=family, table=mark(number))
        except kernel_error():
            pass  # There are none.
    for each in kernel.get_neighbours(family=socket.AF_INET6, dst=neighbour(number)):
        try:
            kernel.neigh("del", dst=neighbour(number), ifindex=each["ifindex"])
        except kernel_error():
            pass
