"""What is set in the kernel for mode "packet" (``Running``), and how it is set: ``arrange``.

Each change is a new **generation** of some services. First what rows name is made known, then rows are
swapped, each whole, and only then is forgotten what no row names any more: at every moment each packet finds
a machine. What must outlive the process (who owned what, whose number is which) is written down before.

All of it waits for the kernel, so it is called in threads, by one at a time (``pybalancer.packet.control``).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pybalancer import _core
from pybalancer.config.secret import state_directory
from pybalancer.errors import PybalancerError
from pybalancer.packet import hops, leftovers, state, tags, vip
from pybalancer.packet.arrangement import Arrangement
from pybalancer.packet.forwarder import Digests, Forwarder, Table, XdpForwarder
from pybalancer.packet.generations import MOST_NUMBERS, History, Numbers
from pybalancer.packet.marks import Way, Ways
from pybalancer.packet.services import Service, find_me

if TYPE_CHECKING:
    from pybalancer.config.packet_model import PacketConfig
    from pybalancer.packet.hops import Hop

_log = logging.getLogger("pybalancer")

SETTLE: Final = 1.0
"""Seconds that new neighbours have to say their hardware addresses."""
TAGS: Final = 10.0
"""Seconds between two looks at what cards do with VLAN tags."""
MOST_SERVICES: Final = 256


@dataclass(slots=True)
class Running:
    """All that this process knows of it."""

    forwarder: Forwarder
    arrangement: Arrangement
    """What is to be."""
    secret: bytes
    size: int
    directory: Path
    state: state.State
    found: bool = False
    """Whether packets were forwarded already when this process began."""
    settled: bool = False
    """Whether it is so: the kernel may have refused a part."""
    unsaved: str = ""
    """Why the state could not be written."""
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
    tags: dict[str, str] = field(default_factory=dict)
    """What is to be done about VLAN tags, by interface."""
    tags_due: float = 0.0
    ways: Ways = field(default_factory=Ways)
    ways_due: float | None = None
    """When they are to be looked at; None while checks need none."""
    vips: set[str] = field(default_factory=set)
    """Addresses that are on ``lo``."""
    vips_due: float = 0.0
    astray: set[str] = field(default_factory=set)
    """Of a director: addresses of services that it has itself."""

    @property
    def section(self) -> PacketConfig:
        return self.arrangement.section

    @property
    def me(self) -> str | None:
        """Of a backend: the host that rows know it by."""
        return self.arrangement.me


def start(section: PacketConfig, wanted: Sequence[Service], secret: bytes, size: int) -> Running:
    """From nothing, or from what a process before has left. Raises, and then that is as it was."""
    directory = state_directory()
    known = state.load(directory)
    me = who_am_i(section, wanted, known.histories.values())
    known = leftovers.clear(section, secret, size, known, directory)
    # With another secret or size it is not taken over, but packets go by it until this one is set up.
    found = section.engine == "xdp" and leftovers.pinned(leftovers.kind_of(section))
    forwarder = _forwarder(section, secret, size)
    found |= forwarder.adopted
    if forwarder.adopted:
        if not known.histories:
            _log.warning(
                "packets: programs of a process before are here, and what it has written down is not (%s): "
                "connections may be lost whose backends have changed since they began",
                directory / state.NAME,
            )
        known = replace(known, numbers=known.numbers.as_in(forwarder.hosts()))
    running = Running(
        forwarder,
        Arrangement.of(section, wanted, me, known.histories, known.silent),
        secret,
        size,
        directory,
        known,
        found,
    )
    try:
        if section.role == "director":
            # What a process before may have left, and no table of ours refers to.
            Ways.clean()
        arrange(running, running.arrangement)
    except BaseException:
        with contextlib.suppress(_core.PacketError, OSError):
            close(running, running.found)
        raise
    return running


def rekeyed(former: Running, wanted: Arrangement, secret: bytes, size: int) -> Running:
    """The same with another secret or size, which takes other maps: packets go by the old ones meanwhile.

    Raises, and then ``former`` has to be arranged once more.
    """
    running = replace(
        former,
        forwarder=_forwarder(wanted.section, secret, size, former.forwarder),
        secret=secret,
        size=size,
        settled=False,
        services={},
        numbers={},
        tables={},
        digests={},
        set_hops={},
    )
    try:
        arrange(running, wanted)
    except BaseException:
        former.state = running.state
        with contextlib.suppress(_core.PacketError, OSError):
            running.forwarder.only(former.section.interfaces)
            running.forwarder.close(keep=True)
        raise
    former.forwarder.close(keep=True)
    return running


def _forwarder(section: PacketConfig, secret: bytes, size: int, former: Forwarder | None = None) -> Forwarder:
    if section.engine == "nftables":
        from pybalancer.packet.nft import NftForwarder

        return NftForwarder(section, secret, size)
    return XdpForwarder(section, secret, size, former)


def arrange(running: Running, wanted: Arrangement) -> None:
    """Make it so. What is so already costs little. Raises where the kernel refuses, with a part done."""
    forwarder, section = running.forwarder, wanted.section
    unsure = not running.settled
    links = links_of(section.interfaces)
    anew = unsure or section != running.arrangement.section or links != running.links
    running.settled = False
    hosts = wanted.hosts
    # Of those that rows still name, too.
    numbers = running.state.numbers.among(bounded(hosts, running.state.numbers))
    numbered = number_services(forwarder, wanted.services)
    running.state = replace(running.state, histories=wanted.histories, numbers=numbers, silent=wanted.silent)
    save(running)
    forwarder.configure(section)
    running.hops = look_at_hops(running, section, hosts, wait=True)
    set_hosts(running, hosts, anew=anew)
    if wanted.me is not None:
        forwarder.set_me(numbers[wanted.me])
    for service in wanted.services:
        number = numbered[service.name]
        table = Table.of(wanted.known[service.key], numbers, section.mtu)
        if not table.known.generations:
            raise PybalancerError(f"no backend of pool {service.pool} may take packets: all have weight 0")
        if unsure or running.tables.get(number) != table:
            running.digests[number] = forwarder.set_service(number, service.where, table)
            running.tables[number] = table
    for number in set(forwarder.services()) - set(numbered.values()):
        forwarder.drop_service(number)
        running.tables.pop(number, None)
        running.digests.pop(number, None)
    running.services = {service.name: service for service in wanted.services}
    running.numbers = numbered
    forwarder.flush()
    running.modes = forwarder.attach([name for name in section.interfaces if name in links])
    running.links = links
    # Not before there is a program: a stack with the address resets connections whose packets only come by.
    set_up_vips(running, section, wanted.vips)
    running.arrangement = wanted
    set_ways(running)
    kept = {numbers[host] for host in hosts}
    for number in set(forwarder.hosts()) - kept:
        forwarder.drop_host(number)
        running.set_hops.pop(number, None)
    running.state = replace(running.state, numbers=numbers.among(hosts))
    drop_vips(running, wanted.vips if section.role == "backend" and section.manage_vip else set())
    save(running)
    running.settled = True


def save(running: Running) -> None:
    try:
        state.save(running.state, running.directory)
        running.unsaved = ""
    except OSError as error:
        running.unsaved = f"{running.directory / state.NAME} cannot be written: {error.strerror}"


def who_am_i(
    section: PacketConfig,
    wanted: Collection[Service],
    histories: Collection[History],
    before: str | None = None,
) -> str | None:
    """The host that rows know this backend by; None on a director."""
    if section.role != "backend":
        return None
    try:
        return find_me(section.backend, wanted, histories, hops.local_addresses())
    except PybalancerError:
        if before is None:
            raise
        return before  # It has been removed, and what it has goes on.


def bounded(hosts: set[str], before: Numbers) -> set[str]:
    """Those, and of the ones before as many as there are numbers for."""
    spare = sorted(set(before.by_host) - hosts)
    return hosts | set(spare[: max(0, MOST_NUMBERS - len(hosts))])


def number_services(forwarder: Forwarder, wanted: Sequence[Service]) -> dict[str, int]:
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


def until_next(questions: int) -> float:
    """Seconds until the kernel may be asked so many questions again: each takes some 0.2 ms."""
    return 2.0 + 0.01 * questions


def look_at_hops(running: Running, section: PacketConfig, hosts: set[str], *, wait: bool) -> dict[str, Hop]:
    """The next hops; with ``wait`` neighbours that are new get a moment to answer.

    Packets for a machine whose hardware address is not known are dropped, so they are not to go there before.
    """
    direct = section.forward == "l2"
    now = time.monotonic()
    new = hosts - running.hops.keys() if wait else set()
    routes = now >= running.routes_due
    if routes:
        running.routes_due = now + until_next(len(hosts))
    found = hops.look(hosts, running.hops, direct=direct, routes=routes)
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline:
        if all(found[host].mac is not None or found[host].interface is None for host in new):
            break
        time.sleep(0.02)
        found = hops.look(hosts, found, direct=direct, routes=False)
    return found


def follow_hops(running: Running) -> None:
    hosts = set(running.hops)
    running.hops = look_at_hops(running, running.section, hosts, wait=False)
    set_hosts(running, hosts)
    running.forwarder.flush()


def follow_links(running: Running) -> None:
    links = links_of(running.section.interfaces)
    if links != running.links:
        # Frames go out from the interface's own hardware address.
        set_hosts(running, set(running.hops), anew=True)
        # One that comes back is another one to the kernel.
        running.modes = running.forwarder.attach([one for one in running.section.interfaces if one in links])
        running.links = links


def look_at_vips(running: Running) -> None:
    """Whoever configures this machine's network may know nothing of our addresses: remove a backend's, or
    give a director one."""
    now = time.monotonic()
    if now < running.vips_due:
        return
    running.vips_due = now + until_next(len(running.arrangement.vips))
    if running.section.role == "director":
        running.astray = running.arrangement.vips & hops.local_addresses()
        return
    before = running.state
    running.vips = set()
    set_up_vips(running, running.section, running.arrangement.vips)
    if running.state != before:
        save(running)


def save_late(running: Running) -> None:
    """What could not be saved: there may be room now."""
    if running.unsaved:
        save(running)


def look_at_tags(running: Running) -> None:
    now = time.monotonic()
    if running.section.engine == "xdp" and now >= running.tags_due:
        running.tags_due = now + TAGS
        running.tags = tags.hidden(running.section.interfaces)


def machine_problems(running: Running) -> dict[str, str]:
    """Of this machine's interfaces and addresses; "" where there is none."""
    interfaces = {
        name: running.tags.get(name, "") if name in running.links else "there is no such interface"
        for name in running.section.interfaces
    }
    why = "a director must not have this address: its checks ask the director itself"
    return {
        address: why if address in running.astray else "" for address in running.arrangement.vips
    } | interfaces


def set_hosts(running: Running, hosts: set[str], *, anew: bool = False) -> None:
    for host in sorted(hosts):
        number, hop = running.state.numbers[host], running.hops[host]
        if anew or running.set_hops.get(number) != hop:
            running.forwarder.set_host(number, hop)
            running.set_hops[number] = hop


def set_ways(running: Running) -> None:
    """For checks: through IPIP they find their way by the mark alone."""
    section = running.section
    if section.role != "director":
        return
    if section.forward != "l2":
        if running.ways_due is not None:
            Ways.clean()
            running.ways, running.ways_due = Ways(), None
        return
    now, wanted = time.monotonic(), set()
    look = running.ways_due is None or now >= running.ways_due
    if look:
        Ways.guard()
        running.ways_due = now + until_next(len(running.hops) * len(running.services))
    for service in running.services.values():
        if service.checked:
            for member in service.all:
                hop = running.hops.get(member.host)
                number = running.state.numbers.by_host.get(member.host)
                if hop is not None and number is not None:
                    wanted.add(Way.to(number, service.where[0], hop))
    running.ways.set((way for way in wanted if way is not None), look=look)


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
        vip.restore(running.state.settings)
        running.state = replace(running.state, settings={})
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
    """Never raises without ``keep``: what cannot be removed does not keep the rest from it."""
    if keep:
        running.forwarder.close(keep=True)
        return

    def packets() -> None:
        running.forwarder.close(keep=False)

    def ways() -> None:
        if running.section.role == "director":
            running.ways.set(())
            Ways.clean()

    def addresses() -> None:
        vip.remove(running.state.added)
        vip.restore(running.state.settings)
        running.state = replace(running.state, added=(), settings={})
        state.save(running.state, running.directory)

    # Addresses first: without its program a stack that has them resets connections that others have.
    for step in (addresses, packets, ways):
        try:
            step()
        except (_core.PacketError, OSError, hops.kernel_error()) as error:
            _log.warning("packets: not all is cleaned up: %s", error)
