"""What is set in the kernel for mode "packet" (``Running``), and the steps by which it is set.

All of it waits for the kernel, so it is called in threads, by one at a time (``pybalancer.packet.control``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pybalancer.config.secret import state_directory
from pybalancer.errors import PybalancerError
from pybalancer.packet import hops, state, vip
from pybalancer.packet.forwarder import Digests, Forwarder, Table, XdpForwarder
from pybalancer.packet.generations import MOST_NUMBERS, History, Numbers
from pybalancer.packet.marks import Way, Ways
from pybalancer.packet.services import Service, find_me

if TYPE_CHECKING:
    from pybalancer.config.packet_model import PacketConfig
    from pybalancer.packet.hops import Hop

_log = logging.getLogger("pybalancer")

SETTLE: Final = 1.0
"""Seconds that the neighbours have at the start to say their hardware addresses."""
ROUTES: Final = 10.0
"""Seconds between two looks at all routes: a thousand questions."""
MOST_SERVICES: Final = 256


@dataclass(slots=True)
class Running:
    """All that this process knows of it."""

    forwarder: Forwarder
    section: PacketConfig
    secret: bytes
    size: int
    directory: Path
    state: state.State
    me: str | None = None
    services: dict[str, Service] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    """Of services, by name."""
    tables: dict[int, Table] = field(default_factory=dict)
    digests: dict[int, Digests] = field(default_factory=dict)
    hops: dict[str, Hop] = field(default_factory=dict)
    set_hops: dict[int, Hop] = field(default_factory=dict)
    modes: Mapping[str, str] = field(default_factory=dict)
    links: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Interfaces as they were when they were attached: index and hardware address."""
    routes_due: float = 0.0
    """When routes are to be looked up again."""
    ways: Ways = field(default_factory=Ways)
    vips: set[str] = field(default_factory=set)


def open_(section: PacketConfig, secret: bytes, size: int, former: Running | None) -> Running:
    directory = former.directory if former is not None else state_directory()
    known = former.state if former is not None else state.load(directory)
    forwarder: Forwarder
    if section.engine == "nftables":
        from pybalancer.packet.nft import NftForwarder

        forwarder = NftForwarder(section, secret, size)
    else:
        forwarder = XdpForwarder(section, secret, size)
    if forwarder.adopted:
        if not known.histories:
            _log.warning(
                "packets: programs of a process before are here, and what it has written down is not (%s): "
                "connections may be lost whose backends have changed since they began",
                directory / state.NAME,
            )
        known = replace(known, numbers=known.numbers.as_in(forwarder.hosts()))
    running = Running(forwarder, section, secret, size, directory, known)
    if former is None and section.role == "director":
        # What a process before may have left, and no table of ours refers to.
        Ways.clean()
    elif former is not None:
        running.ways, running.hops, running.vips = former.ways, former.hops, former.vips
    return running


def me_of(
    running: Running, section: PacketConfig, wanted: list[Service], histories: Mapping[str, History]
) -> str | None:
    if section.role != "backend":
        return None
    try:
        return find_me(section.backend, wanted, histories.values(), hops.local_addresses())
    except PybalancerError:
        if running.me is None:
            raise
        return running.me  # It has been removed, and what it has goes on.


def bounded(hosts: set[str], before: Numbers) -> set[str]:
    """Those, and of the ones before as many as there are numbers for."""
    spare = sorted(set(before.by_host) - hosts)
    return hosts | set(spare[: max(0, MOST_NUMBERS - len(hosts))])


def number_services(forwarder: Forwarder, wanted: list[Service]) -> dict[str, int]:
    """The numbers of services. One with the same address, port and protocol keeps its own."""
    there = {where: number for number, where in forwarder.services().items()}
    taken, numbered = set(there.values()), {}
    for service in wanted:
        number = there.get(service.where)
        if number is None:
            number = next((one for one in range(MOST_SERVICES) if one not in taken), None)
        if number is None:
            raise PybalancerError(f"there may be {MOST_SERVICES} listeners of mode packet")
        taken.add(number)
        numbered[service.name] = number
    return numbered


def look_at_hops(running: Running, hosts: set[str], *, wait: bool) -> dict[str, Hop]:
    """The next hops; with ``wait`` neighbours get a moment to answer."""
    direct = running.section.forward == "l2"
    now = time.monotonic()
    routes = wait or now >= running.routes_due
    if routes:
        running.routes_due = now + ROUTES
    found = hops.look(hosts, running.hops, direct=direct, routes=routes)
    deadline = time.monotonic() + SETTLE
    while wait and time.monotonic() < deadline:
        if all(hop.mac is not None or hop.interface is None for hop in found.values()):
            break
        time.sleep(0.02)
        found = hops.look(hosts, found, direct=direct, routes=False)
    return found


def set_hosts(running: Running, hosts: set[str]) -> None:
    for host in sorted(hosts):
        number, hop = running.state.numbers[host], running.hops[host]
        if running.set_hops.get(number) != hop:
            running.forwarder.set_host(number, hop)
            running.set_hops[number] = hop


def set_ways(running: Running) -> None:
    """For checks: through IPIP they find their way by the mark alone."""
    section = running.section
    if section.role != "director" or section.forward != "l2":
        return
    wanted = set()
    for service in running.services.values():
        if service.checked:
            for member in service.all:
                hop = running.hops.get(member.host)
                number = running.state.numbers.by_host.get(member.host)
                if hop is not None and number is not None:
                    wanted.add(Way.to(number, service.where[0], hop))
    running.ways.set(way for way in wanted if way is not None)


def links_of(interfaces: Collection[str]) -> dict[str, tuple[int, str]]:
    """Those of the interfaces that are there."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        found = {link.get_attr("IFLA_IFNAME"): link for link in kernel.get_links()}
    return {
        name: (found[name]["index"], str(found[name].get_attr("IFLA_ADDRESS")))
        for name in interfaces
        if name in found
    }


def set_up_vips(running: Running, section: PacketConfig, vips: set[str]) -> None:
    if section.role != "backend" or not section.manage_vip:
        return
    before = vip.quiet()
    added = vip.add(sorted(vips - running.vips))
    running.vips |= vips
    running.state = replace(
        running.state,
        added=tuple(dict.fromkeys((*running.state.added, *added))),
        settings={**before, **running.state.settings},
    )


def drop_vips(running: Running, wanted: set[str]) -> None:
    if gone := [address for address in running.state.added if address not in wanted]:
        vip.remove(gone)
        running.vips -= set(gone)
        running.state = replace(
            running.state, added=tuple(one for one in running.state.added if one in wanted)
        )


def close(running: Running, keep: bool) -> None:
    running.forwarder.close(keep=keep)
    if keep:
        return
    try:
        if running.section.role == "director":
            Ways.clean()
        vip.remove(running.state.added)
        if running.state.settings:
            vip.restore(running.state.settings)
        running.state = replace(running.state, added=(), settings={})
        state.save(running.state, running.directory)
    except OSError as error:
        _log.warning("packets: not all is cleaned up: %s", error)
