"""Keeps the kernel's part of mode "packet" as the configuration, health and drains say: ``PacketControl``.

Each change is a new **generation** of some services. First what rows name is made known, then rows are
swapped, each whole, and only then is forgotten what no row names any more: at every moment each packet finds
a machine. What must outlive the process (who owned what, whose number is which) is written down before.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio

from pybalancer import _core
from pybalancer.config import packet
from pybalancer.config.secret import state_directory
from pybalancer.config.values import join
from pybalancer.errors import PybalancerError, StartError
from pybalancer.packet import hops, state, vip
from pybalancer.packet.forwarder import Digests, Forwarder, Table, XdpForwarder
from pybalancer.packet.generations import MOST_NUMBERS, History, Numbers
from pybalancer.packet.marks import Way, Ways, mark
from pybalancer.packet.report import MachineStatus, PacketStatus, ServiceStatus, Speed
from pybalancer.packet.services import Key, Service, find_me, services

if TYPE_CHECKING:
    from pybalancer.config.model import Config, PacketConfig
    from pybalancer.packet.hops import Hop
    from pybalancer.policy.settings import Check

_log = logging.getLogger("pybalancer")

LOOK: Final = 1.0
"""Seconds between two looks at next hops, interfaces and counts."""
SETTLE: Final = 1.0
"""Seconds that the neighbours have at the start to say their hardware addresses."""
MOST_SERVICES: Final = 256


@dataclass(slots=True)
class _Running:
    """What is set in the kernel just now, as far as this process knows."""

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
    ways: Ways = field(default_factory=Ways)
    vips: set[str] = field(default_factory=set)


class PacketControl:
    """All of it; nothing, while no listener is of mode "packet".

    ``check`` before a configuration is used, ``apply`` for each that is, ``run`` beside. Everything that
    waits for the kernel is done in threads, one at a time.
    """

    def __init__(self) -> None:
        self._running: _Running | None = None
        self._lock = trio.Lock()
        self._speed = Speed()
        self._told: dict[str, str] = {}

    async def check(self, config: Config) -> None:
        """Raises StartError with all that this machine lacks for it."""
        if packet.listeners(config):
            await trio.to_thread.run_sync(_check, config)

    async def apply(
        self, config: Config, addresses: Mapping[Key, str], takes: Collection[Key], secret: bytes
    ) -> None:
        """From now on packets go as this says. Raises StartError; then they go as before."""
        if not packet.listeners(config):
            await self.close(keep=False)
            return
        async with self._lock:
            with trio.CancelScope(shield=True):
                try:
                    wanted = services(config, addresses, takes)
                    await trio.to_thread.run_sync(self._apply, config, wanted, secret)
                except (_core.PacketError, _core.PlanError, PybalancerError) as error:
                    raise StartError(f"packets go as before: {error}") from error
                except OSError as error:
                    raise StartError(f"packets go as before: {error.strerror or error}") from error

    async def run(self) -> NoReturn:
        """Follow next hops, interfaces and counts until cancelled."""
        while True:
            await trio.sleep(LOOK)
            if self._running is None:
                continue
            async with self._lock:
                if self._running is not None:
                    try:
                        await trio.to_thread.run_sync(self._look, self._running)
                    except (OSError, _core.PacketError) as error:
                        self._tell("", str(error))

    async def close(self, *, keep: bool) -> None:
        """Leave packets alone from now on; with ``keep`` the kernel goes on without this process."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                running, self._running = self._running, None
                if running is not None:
                    await trio.to_thread.run_sync(_close, running, keep)

    # What a change does, in a thread.

    def _apply(self, config: Config, wanted: list[Service], secret: bytes) -> None:
        section = config.packet
        size = next(config.pools[name].table_size for name in packet.pools(config))
        running, former = self._running, None
        fixed = (section.role, section.engine, section.forward, section.source, section.mtu, section.xdp)
        if running is not None:
            old = running.section
            same = fixed == (old.role, old.engine, old.forward, old.source, old.mtu, old.xdp)
            if not same or secret != running.secret or size != running.size:
                # Packets go by the old one until the new one is attached.
                former, running = running, None
        if running is None:
            running = _open(section, secret, size, former)
        try:
            self._change(running, section, wanted)
        except BaseException:
            if running is not self._running:
                with contextlib.suppress(_core.PacketError, OSError):
                    running.forwarder.close(keep=former is not None or running.forwarder.adopted)
            raise
        if former is not None:
            same_place = former.section.role == section.role and former.section.engine == section.engine
            former.forwarder.close(keep=same_place)
        self._running = running

    def _change(self, running: _Running, section: PacketConfig, wanted: list[Service]) -> None:
        forwarder = running.forwarder
        former = {service.name: running.state.histories.get(service.name, History()) for service in wanted}
        me = _me(running, section, wanted, former)
        if me is not None:
            former = {one.name: former[one.name].joined_by(me, one.newest) for one in wanted}
        histories = {one.name: former[one.name].with_(one.newest) for one in wanted}
        generations = {
            name: history.seen_by(me) if me is not None else history.generations
            for name, history in histories.items()
        }
        hosts = {member.host for sets in generations.values() for each in sets for member in each}
        hosts |= {me} if me is not None else set()
        # Of those that rows still name, too.
        numbers = running.state.numbers.among(_bounded(hosts, running.state.numbers))
        numbered = _number(forwarder, wanted)
        vips = {service.where[0] for service in wanted}
        _set_up_vips(running, section, vips)
        running.state = replace(running.state, histories=histories, numbers=numbers)
        self._save(running)
        running.section, running.me = section, me
        running.hops = _ways(running, hosts, wait=not running.hops)
        _set_hosts(running, hosts)
        if me is not None:
            forwarder.set_me(numbers[me])
        for service in wanted:
            number, table = numbered[service.name], Table.of(generations[service.name], numbers)
            if not table.generations:
                raise PybalancerError(
                    f"no backend of pool {service.pool} may take packets: all have weight 0"
                )
            if running.tables.get(number) != table:
                running.digests[number] = forwarder.set_service(number, service.where, table)
                running.tables[number] = table
        for number in set(forwarder.services()) - set(numbered.values()):
            forwarder.drop_service(number)
            running.tables.pop(number, None)
            running.digests.pop(number, None)
        running.services = {service.name: service for service in wanted}
        running.numbers = numbered
        forwarder.flush()
        running.links = _links(section.interfaces)
        running.modes = forwarder.attach(section.interfaces)
        _set_ways(running)
        kept = {numbers[host] for host in hosts}
        for number in set(forwarder.hosts()) - kept:
            forwarder.drop_host(number)
            running.set_hops.pop(number, None)
        running.state = replace(running.state, numbers=numbers.among(hosts))
        _drop_vips(running, vips if section.role == "backend" and section.manage_vip else set())
        self._tell_problems(running)

    def _save(self, running: _Running) -> None:
        try:
            state.save(running.state, running.directory)
        except OSError as error:
            self._tell("state", f"{running.directory / state.NAME} cannot be written: {error.strerror}")

    # What is looked at from time to time, in a thread.

    def _look(self, running: _Running) -> None:
        running.hops = _ways(running, set(running.hops), wait=False)
        _set_hosts(running, set(running.hops))
        running.forwarder.flush()
        _set_ways(running)
        links = _links(running.section.interfaces)
        if links != running.links and len(links) == len(running.section.interfaces):
            running.modes = running.forwarder.attach(running.section.interfaces)
            running.links = links
        counts = {
            f"service {name}": running.forwarder.service_counts(number)["packets"]
            for name, number in running.numbers.items()
        }
        counts |= {
            f"machine {number}": running.forwarder.host_counts(number)["packets"]
            for number in running.set_hops
        }
        self._speed.observe(time.monotonic(), counts)
        self._tell_problems(running)
        self._tell("", "")

    def _tell_problems(self, running: _Running) -> None:
        for host, hop in running.hops.items():
            if host != running.me:
                self._tell(host, hop.why)
        for host in self._told.keys() - running.hops.keys() - {"", "state"}:
            del self._told[host]

    def _tell(self, what: str, problem: str) -> None:
        """Each problem once, and its end."""
        if (before := self._told.get(what, "")) == problem:
            return
        self._told[what] = problem
        where = f"{what}: " if what not in ("", "state") else ""
        if problem:
            _log.warning("packets: %s%s", where, problem)
        elif before:
            _log.info("packets: %sit works again", where)

    # Questions.

    @property
    def on(self) -> bool:
        """Whether packets are forwarded."""
        return self._running is not None

    def way(self, pool: str, check: Check, address: str) -> tuple[Check, str]:
        """How and where a backend of a pool that only packets go to is asked: as packets get there."""
        running = self._running
        if running is None or running.section.role != "director":
            return check, address
        found = (one for one in running.services.values() if one.pool == pool and one.where[2] == "tcp")
        number = running.state.numbers.by_host.get(packet.split(address)[0])
        if (service := next(found, None)) is None or number is None:
            return check, address
        return replace(check, mark=mark(number)), join(service.where[0], service.where[1])

    def digest(self, pool: str) -> str | None:
        """Of the table by which a pool's packets go."""
        running = self._running
        if running is None:
            return None
        names = [service.name for service in running.services.values() if service.pool == pool]
        return running.digests[running.numbers[names[0]]].owners if names else None

    def explain(self, config: Config, pool: str, listener: str | None, source: str) -> dict[str, Any]:
        """What ``explain`` answers besides where packets go to a pool; nothing where only tunnels do."""
        if listener is None and pool not in packet.only_packets(config):
            return {}
        client, port = packet.split(source)
        found = self._row(pool, listener, client, port)
        if found is None:
            return {}
        row = found["row"]
        return {"backend": row[0]["backend"] if row else None, "choices": [], "packet": found}

    def _row(self, pool: str, listener: str | None, client: str, port: int) -> dict[str, Any] | None:
        """None if no service is meant."""
        running = self._running
        if running is None:
            return None
        for service in running.services.values():
            if service.pool != pool or listener not in (None, service.name):
                continue
            if (":" in client) != (":" in service.where[0]) and listener is None:
                continue
            found = running.forwarder.row(running.numbers[service.name], client, port)
            hosts = {number: host for host, number in running.state.numbers.by_host.items()}
            names = _names(running)
            slot, row = found if found is not None else (None, ())
            return {
                "listener": service.name,
                "slot": slot,
                "row": [
                    {"backend": (names.get(hosts.get(number, "")) or ["?"])[0], "address": hosts.get(number)}
                    for number in row
                    if number
                ],
            }
        return None

    def status(self) -> PacketStatus | None:
        """A picture of this moment; None while there is no listener of mode "packet"."""
        running = self._running
        if running is None:
            return None
        section, names = running.section, _names(running)
        owners = {member.host for one in running.services.values() for member in one.newest}
        return PacketStatus(
            role=section.role,
            engine=section.engine,
            forward=section.forward,
            interfaces=dict(running.modes),
            me=running.me,
            services=[self._service(running, service) for service in running.services.values()],
            machines=[
                self._machine(number, hop, names.get(hop.host, []), hop.host in owners, running)
                for number, hop in sorted(running.set_hops.items())
            ],
            reasons={reason: count for reason, count in running.forwarder.reasons().items() if count},
        )

    def _service(self, running: _Running, service: Service) -> ServiceStatus:
        number = running.numbers[service.name]
        digests = running.digests[number]
        return ServiceStatus(
            name=service.name,
            address=join(service.where[0], service.where[1]),
            protocol=service.where[2],
            pool=service.pool,
            digest=digests.owners,
            history_digest=digests.rows,
            generations=len(running.tables[number].generations),
            moved_slots=digests.moved,
            packets_per_second=self._speed.of(f"service {service.name}"),
            **_some(running.forwarder.service_counts(number), "packets", "bytes", "flows", "errors"),
        )

    def _machine(
        self, number: int, hop: Hop, names: list[str], takes_new: bool, running: _Running
    ) -> MachineStatus:
        return MachineStatus(
            address=hop.host,
            number=number,
            names=names,
            takes_new=takes_new,
            interface=hop.interface,
            mac=hop.mac.hex(":") if hop.mac is not None else None,
            problem="" if hop.host == running.me else hop.why,
            packets_per_second=self._speed.of(f"machine {number}"),
            **_some(running.forwarder.host_counts(number), "packets", "bytes", "flows", "second_hops"),
        )


def _check(config: Config) -> None:
    section = config.packet
    if section.engine == "nftables":
        from pybalancer.packet.nft import missing

        found = missing(section.interfaces)
    else:
        found = list(dict.fromkeys(why for name in section.interfaces for why in _core.packet_support(name)))
        if found and section.forward == "l2" and not all("interface" in why for why in found):
            found.append('where BPF is not to be had, [packet] engine = "nftables" does with less')
    if found:
        raise StartError("mode packet: " + "; ".join(found))


def _open(section: PacketConfig, secret: bytes, size: int, former: _Running | None) -> _Running:
    directory = former.directory if former is not None else state_directory()
    known = former.state if former is not None else state.load(directory)
    forwarder: Forwarder
    if section.engine == "nftables":
        from pybalancer.packet.nft import NftForwarder

        forwarder = NftForwarder(section, secret, size)
    else:
        forwarder = XdpForwarder(section, secret, size)
    running = _Running(forwarder, section, secret, size, directory, known)
    if former is None:
        # What a process before may have left, and no table of ours refers to.
        Ways.clean()
    else:
        running.ways, running.hops, running.vips = former.ways, former.hops, former.vips
    return running


def _me(
    running: _Running, section: PacketConfig, wanted: list[Service], histories: Mapping[str, History]
) -> str | None:
    if section.role != "backend":
        return None
    try:
        return find_me(section.backend, wanted, histories.values(), hops.local_addresses())
    except PybalancerError:
        if running.me is None:
            raise
        return running.me  # It has been removed, and what it has goes on.


def _bounded(hosts: set[str], before: Numbers) -> set[str]:
    """Those, and of the ones before as many as there are numbers for."""
    spare = sorted(set(before.by_host) - hosts)
    return hosts | set(spare[: max(0, MOST_NUMBERS - len(hosts))])


def _number(forwarder: Forwarder, wanted: list[Service]) -> dict[str, int]:
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


def _ways(running: _Running, hosts: set[str], *, wait: bool) -> dict[str, Hop]:
    """The next hops; with ``wait`` neighbours get a moment to answer."""
    direct = running.section.forward == "l2"
    found = hops.look(hosts, running.hops, direct=direct)
    deadline = time.monotonic() + SETTLE
    while wait and time.monotonic() < deadline:
        if all(hop.mac is not None or hop.interface is None for hop in found.values()):
            break
        time.sleep(0.02)
        found = hops.look(hosts, found, direct=direct)
    return found


def _set_hosts(running: _Running, hosts: set[str]) -> None:
    for host in sorted(hosts):
        number, hop = running.state.numbers[host], running.hops[host]
        if running.set_hops.get(number) != hop:
            running.forwarder.set_host(number, hop)
            running.set_hops[number] = hop


def _set_ways(running: _Running) -> None:
    """For checks: through IPIP they find their way by the mark alone."""
    section = running.section
    if section.role != "director" or section.forward != "l2":
        return
    wanted = set()
    for service in running.services.values():
        if service.where[2] == "tcp":
            for member in service.all:
                hop = running.hops.get(member.host)
                number = running.state.numbers.by_host.get(member.host)
                if hop is not None and number is not None:
                    wanted.add(Way.to(number, service.where[0], hop))
    running.ways.set(way for way in wanted if way is not None)


def _links(interfaces: Collection[str]) -> dict[str, tuple[int, str]]:
    """Those of the interfaces that are there."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        found = {link.get_attr("IFLA_IFNAME"): link for link in kernel.get_links()}
    return {
        name: (found[name]["index"], str(found[name].get_attr("IFLA_ADDRESS")))
        for name in interfaces
        if name in found
    }


def _set_up_vips(running: _Running, section: PacketConfig, vips: set[str]) -> None:
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


def _drop_vips(running: _Running, wanted: set[str]) -> None:
    if gone := [address for address in running.state.added if address not in wanted]:
        vip.remove(gone)
        running.vips -= set(gone)
        running.state = replace(
            running.state, added=tuple(one for one in running.state.added if one in wanted)
        )


def _close(running: _Running, keep: bool) -> None:
    running.forwarder.close(keep=keep)
    if keep:
        return
    try:
        Ways.clean()
        vip.remove(running.state.added)
        if running.state.settings:
            vip.restore(running.state.settings)
        running.state = replace(running.state, added=(), settings={})
        state.save(running.state, running.directory)
    except OSError as error:
        _log.warning("packets: not all is cleaned up: %s", error)


def _names(running: _Running) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for service in running.services.values():
        for member in service.all:
            names = found.setdefault(member.host, [])
            if member.name not in names:
                names.append(member.name)
    for history in running.state.histories.values():
        for each in history.generations:
            for member in each:
                found.setdefault(member.host, [member.name])
    return found


def _some(counts: Mapping[str, int], *names: str) -> dict[str, int]:
    return {name: counts.get(name, 0) for name in names}
