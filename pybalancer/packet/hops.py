"""Where packets for a machine go next: interface, hardware address, source address. ``look`` asks the kernel.

By netlink, in a thread: pyroute2 waits for answers. The kernel finds hardware addresses out (ARP, neighbour
discovery) when somebody sends, and packets that we forward are not seen to do so; so it is asked to.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

USE: Final = 1
"""NTF_USE: as if a packet were to be sent."""
INCOMPLETE: Final = 0x01
REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x40, 0x80
KNOWN: Final = REACHABLE | STALE | DELAY | PROBE | NOARP | PERMANENT
"""States of a neighbour that has a hardware address (NUD_VALID)."""
RTN_UNICAST, RTN_LOCAL = 1, 2


@dataclass(frozen=True, slots=True)
class Hop:
    """The way to ``host``. ``why`` says what is missing; "" if nothing is."""

    host: str
    interface: str | None = None
    via: str | None = None
    """The gateway, where there is one."""
    source: str | None = None
    """The address that packets of ours have on this way."""
    mac: bytes | None = None
    why: str = ""
    index: int = 0
    """The interface's number: one that was removed and comes back by the same name is another one."""


def look(
    hosts: Collection[str], before: Mapping[str, Hop], *, direct: bool, routes: bool = True
) -> dict[str, Hop]:
    """The ways to ``hosts`` now. Raises OSError if the kernel cannot be asked.

    ``direct``: they must be neighbours themselves. Without ``routes`` only those that had no route are
    looked up in the kernel's routes, which takes a question for each. One whose hardware address is lost
    keeps the one from ``before``, for a machine may be busy for a while; that it is gone is for its check
    to find.
    """
    if not hosts:
        return {}
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        found = {}
        for host in hosts:
            old = before.get(host)
            known_route = old is not None and old.interface is not None and not routes
            found[host] = old if old is not None and known_route else _route(kernel, host, direct=direct)
        neighbours = _neighbours(kernel)
        done = {}
        for host, hop in found.items():
            if hop.interface is None:
                done[host] = hop
                continue
            try:
                index = socket.if_nametoindex(hop.interface)
            except OSError:
                done[host] = Hop(host, why=f"interface {hop.interface} is not there any more")
                continue
            next_host = hop.via or host
            state, mac = neighbours.get((index, next_host), (0, None))
            if not state & (REACHABLE | DELAY | PROBE | NOARP | PERMANENT):
                _ask(kernel, index, next_host)
            known = before.get(host)
            if mac is None and known is not None and (known.interface, known.via) == (hop.interface, hop.via):
                mac = known.mac
            how = "neighbour discovery" if ":" in next_host else "ARP"
            why = "" if state & KNOWN else f"{next_host} does not answer on {hop.interface} ({how})"
            if mac is not None and state in (0, INCOMPLETE):
                # It is being asked: what was true before is, until that has ended.
                why = known.why if known is not None else ""
            done[host] = Hop(host, hop.interface, hop.via, hop.source, mac, why, index)
    return done


def local_addresses() -> set[str]:
    """Addresses of this machine, without those that every machine has. Raises OSError."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        found = {
            str(each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")) for each in kernel.get_addr()
        }
    return found - {"127.0.0.1", "::1"}


def _route(kernel: Any, host: str, *, direct: bool) -> Hop:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        route = next(iter(kernel.route("get", dst=host, family=family)))
    except (OSError, kernel_error()) as error:
        number = getattr(error, "errno", None) or getattr(error, "code", 0)
        why = "there is no route to it" if number in (errno.ENETUNREACH, errno.EHOSTUNREACH) else str(error)
        return Hop(host, why=why)
    if route["type"] == RTN_LOCAL:
        return Hop(host, why="it is an address of this machine")
    if route["type"] != RTN_UNICAST:
        return Hop(host, why="there is no route to it")
    # Routers that know each other by IPv6 only are gateways of IPv4, too (RFC 8950): then it is RTA_VIA.
    via = route.get_attr("RTA_GATEWAY") or (route.get_attr("RTA_VIA") or {}).get("addr")
    interface = socket.if_indextoname(route.get_attr("RTA_OIF"))
    if via is not None and direct:
        why = f'it is not on the same link: the way there goes by {via}; use forward = "ipip"'
        return Hop(host, why=why)
    return Hop(host, interface, via, route.get_attr("RTA_PREFSRC"))


def _neighbours(kernel: Any) -> dict[tuple[int, str], tuple[int, bytes | None]]:
    found = {}
    for each in kernel.get_neighbours():
        host, mac = each.get_attr("NDA_DST"), each.get_attr("NDA_LLADDR")
        known = mac is not None and each["state"] & KNOWN
        found[each["ifindex"], str(host)] = each["state"], mac_bytes(mac) if known else None
    return found


def _ask(kernel: Any, index: int, host: str) -> None:
    try:
        kernel.neigh("replace", dst=host, ifindex=index, state=0, flags=USE)
    except (OSError, kernel_error()):
        pass  # The interface has gone just now; the next look says so.


def kernel_error() -> type[Exception]:
    """What pyroute2 raises where the kernel refuses; it is no OSError."""
    from pyroute2.netlink.exceptions import NetlinkError

    error: type[Exception] = NetlinkError
    return error


def mac_bytes(text: str) -> bytes:
    """``02:00:00:00:00:01`` as six bytes."""
    return bytes.fromhex(text.replace(":", ""))
