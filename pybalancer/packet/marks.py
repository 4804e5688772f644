"""The way of health checks where packets go by hardware address (``forward = "l2"``).

A check asks the service's own address, at one backend of all that have it. Its socket has a mark, and the
mark chooses a routing table in which that address is behind that backend. Tables and rules have the mark's
number, so what a process before has left is known, and removed.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pybalancer.packet.hops import Hop, kernel_error

BASE: Final = 0x7062_0000
"""Of marks; the rest is the machine's number."""
MASK: Final = 0xFFFF_0000
PRIORITY: Final = 1000
"""Of rules: before the main table's."""
GUARD: Final[Mapping[str, Any]] = {
    "fwmark": BASE,
    "fwmask": MASK,
    "priority": PRIORITY + 1,
    "action": "unreachable",
}
"""The rule behind those of all machines."""
UNREACHABLE: Final = 7
"""FR_ACT_UNREACHABLE."""
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
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
    """Those that are set up, and ``problems``: what the kernel says of those that it refuses, by machine."""

    def __init__(self) -> None:
        self._ways: dict[int, set[Way]] = {}
        self._unsure: set[int] = set()
        """Numbers of which the kernel may have a part only."""
        self.problems: dict[str, str] = {}

    def set(self, wanted: Iterable[Way], *, look: bool = False) -> None:
        """These and no others. Raises OSError if the kernel cannot be asked.

        ``look``: do not suppose that what was set is still there. Who flushes rules does not ask us, and
        routes go when their interface is down for a moment.

        Nothing here reads all routes or neighbours: with a thousand machines that would be done a thousand
        times, and tables of routers are long.
        """
        from pyroute2 import IPRoute

        ways: dict[int, set[Way]] = {}
        for way in wanted:
            ways.setdefault(way.number, set()).add(way)
        if ways == self._ways and not self._unsure and not look:
            return
        with IPRoute() as kernel:
            if look:
                self._unsure |= {
                    number
                    for number, those in self._ways.items()
                    if not all(_goes(kernel, way) for way in those)
                }
            self.problems = {}
            for number in self._ways.keys() | ways.keys():
                if self._ways.get(number) == ways.get(number) and number not in self._unsure:
                    continue
                self._unsure.add(number)
                for way in self._ways.get(number, ()):
                    _remove(kernel, way)
                # Before it is done: what was begun has to be removed one day, too.
                self._ways[number] = ways.get(number, set())
                try:
                    for way in self._ways[number]:
                        _add(kernel, way)
                except (kernel_error(), OSError) as error:
                    self.problems[way.host] = f"no way for checks of {way.vip}: {error}"
                else:
                    self._unsure.discard(number)
                if number not in ways:
                    del self._ways[number]

    @staticmethod
    def guard() -> None:
        """A check that has no way fails, and does not ask whoever the packets of others would get to.

        Raises OSError.
        """
        from pyroute2 import IPRoute

        with IPRoute() as kernel:
            for family in FAMILIES:
                try:
                    kernel.rule("add", family=family, **GUARD)
                except kernel_error() as error:
                    # A kernel without IPv6 (``ipv6.disable=1``) needs no rule for it.
                    if getattr(error, "code", 0) not in (errno.EEXIST, errno.EAFNOSUPPORT):
                        raise OSError(getattr(error, "code", 0), f"no rule for checks: {error}") from None

    @staticmethod
    def clean() -> None:
        """Remove all that any process has set up."""
        from pyroute2 import IPRoute

        with IPRoute() as kernel:
            for family in FAMILIES:
                numbers = set()
                for rule in kernel.get_rules(family=family):
                    found = rule.get_attr("FRA_FWMARK") or 0
                    if found == BASE and rule["action"] == UNREACHABLE:
                        kernel.rule("del", family=family, **GUARD)
                    elif found & MASK == BASE and rule.get_attr("FRA_TABLE") == found:
                        numbers.add(found & ~MASK)
                for number in numbers:
                    _rule(kernel, "del", number, family)
                if numbers:
                    _clean_routes(kernel, family, {mark(number) for number in numbers})


def _clean_routes(kernel: Any, family: int, tables: Collection[int]) -> None:
    """Those in tables of ours, and the neighbours that they lead to; all by one look."""
    for route in list(kernel.get_routes(family=family)):
        table, vip = route.get_attr("RTA_TABLE"), route.get_attr("RTA_DST")
        if table not in tables or vip is None:
            continue
        target = {"dst": f"{vip}/{route['dst_len']}", "family": family, "table": table}
        _quietly(kernel.route, "del", **target)
        if family == socket.AF_INET6:
            gateway, index = neighbour(table & ~MASK), route.get_attr("RTA_OIF")
            _quietly(kernel.neigh, "del", dst=gateway, ifindex=index)


def _quietly(what: Callable[..., object], *arguments: Any, **named: Any) -> None:
    """Remove something that may be gone already."""
    with contextlib.suppress(kernel_error()):
        what(*arguments, **named)


def _goes(kernel: Any, way: Way) -> bool:
    """Whether a check would go this way."""
    six = ":" in way.vip
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
        route = next(iter(kernel.route("get", dst=way.vip, family=family, mark=mark(way.number))))
        if not six:
            via = route.get_attr("RTA_VIA") or {"addr": route.get_attr("RTA_GATEWAY")}
            return bool(route.get_attr("RTA_OIF") == way.index and via["addr"] == way.host)
        gateway = neighbour(way.number)
        (there,) = kernel.neigh("get", dst=gateway, ifindex=way.index)
    except (kernel_error(), OSError):
        return False
    return bool(
        (route.get_attr("RTA_GATEWAY"), route.get_attr("RTA_OIF")) == (gateway, way.index)
        and there.get_attr("NDA_LLADDR") == way.mac
    )


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


def _remove(kernel: Any, way: Way) -> None:
    six = ":" in way.vip
    family = socket.AF_INET6 if six else socket.AF_INET
    _rule(kernel, "del", way.number, family)
    target = {"dst": f"{way.vip}/{128 if six else 32}", "family": family, "table": mark(way.number)}
    _quietly(kernel.route, "del", **target)
    if six:
        _quietly(kernel.neigh, "del", dst=neighbour(way.number), ifindex=way.index)
