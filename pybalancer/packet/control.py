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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio

from pybalancer import _core
from pybalancer.config import packet
from pybalancer.config.values import join
from pybalancer.errors import PybalancerError, StartError
from pybalancer.packet import answers, state
from pybalancer.packet.forwarder import Table
from pybalancer.packet.generations import History
from pybalancer.packet.marks import mark
from pybalancer.packet.report import PacketStatus, Speed
from pybalancer.packet.running import (
    Running,
    bounded,
    close,
    drop_vips,
    links_of,
    look_at_hops,
    me_of,
    number_services,
    open_,
    set_hosts,
    set_up_vips,
    set_ways,
)
from pybalancer.packet.services import Key, Service, services

if TYPE_CHECKING:
    from pybalancer.config.model import Config
    from pybalancer.config.packet_model import PacketConfig
    from pybalancer.policy.settings import Check

_log = logging.getLogger("pybalancer")

LOOK: Final = 1.0
"""Seconds between two looks at next hops, interfaces and counts."""


class PacketControl:
    """All of it; nothing, while no listener is of mode "packet".

    ``check`` before a configuration is used, ``apply`` for each that is, ``run`` beside. Everything that
    waits for the kernel is done in threads, one at a time.
    """

    def __init__(self) -> None:
        self._running: Running | None = None
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
                except (_core.PacketError, _core.PlanError, PybalancerError, OSError) as error:
                    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                    what = "packets go as before" if self._running is not None else "mode packet"
                    raise StartError(f"{what}: {why}") from error

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
                    await trio.to_thread.run_sync(close, running, keep)

    # What a change does, in a thread.

    def _apply(self, config: Config, wanted: list[Service], secret: bytes) -> None:
        section = config.packet
        size = next(config.pools[name].table_size for name in packet.pools(config))
        running, former = self._running, None
        if running is not None and _other_part(running.section, section):
            # Two programs cannot have one interface: packets are nobody's for a moment.
            self._running = None
            close(running, False)
            running = None
        if running is not None:
            old = running.section
            fixed = (section.forward, section.source, section.mtu, section.xdp, secret, size)
            if fixed != (old.forward, old.source, old.mtu, old.xdp, running.secret, running.size):
                # Packets go by the old one until the new one is attached.
                former, running = running, None
        if running is None:
            running = open_(section, secret, size, former)
        try:
            self._change(running, section, wanted)
        except BaseException:
            if running is not self._running:
                with contextlib.suppress(_core.PacketError, OSError):
                    close(running, former is not None or running.forwarder.adopted)
            raise
        if former is not None:
            former.forwarder.close(keep=True)
        self._running = running

    def _change(self, running: Running, section: PacketConfig, wanted: list[Service]) -> None:
        forwarder = running.forwarder
        former = {service.name: running.state.histories.get(service.name, History()) for service in wanted}
        me = me_of(running, section, wanted, former)
        if me is not None:
            former = {one.name: former[one.name].joined_by(me, one.all) for one in wanted}
        histories = {one.name: former[one.name].with_(one.newest) for one in wanted}
        known = {name: history.seen_by(me) for name, history in histories.items()}
        hosts = set[str]().union(*(each.hosts for each in known.values()))
        hosts |= {me} if me is not None else set()
        # Of those that rows still name, too.
        numbers = running.state.numbers.among(bounded(hosts, running.state.numbers))
        numbered = number_services(forwarder, wanted)
        vips = {service.where[0] for service in wanted}
        set_up_vips(running, section, vips)
        running.state = replace(running.state, histories=histories, numbers=numbers)
        self._save(running)
        running.section, running.me = section, me
        running.hops = look_at_hops(running, hosts, wait=not running.hops)
        set_hosts(running, hosts)
        if me is not None:
            forwarder.set_me(numbers[me])
        for service in wanted:
            number, table = numbered[service.name], Table.of(known[service.name], numbers)
            if not table.known.generations:
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
        running.links = links_of(section.interfaces)
        running.modes = forwarder.attach(section.interfaces)
        set_ways(running)
        kept = {numbers[host] for host in hosts}
        for number in set(forwarder.hosts()) - kept:
            forwarder.drop_host(number)
            running.set_hops.pop(number, None)
        running.state = replace(running.state, numbers=numbers.among(hosts))
        drop_vips(running, vips if section.role == "backend" and section.manage_vip else set())
        self._save(running)
        self._tell_problems(running)

    def _save(self, running: Running) -> None:
        try:
            state.save(running.state, running.directory)
        except OSError as error:
            self._tell("state", f"{running.directory / state.NAME} cannot be written: {error.strerror}")

    # What is looked at from time to time, in a thread.

    def _look(self, running: Running) -> None:
        running.hops = look_at_hops(running, set(running.hops), wait=False)
        set_hosts(running, set(running.hops))
        running.forwarder.flush()
        set_ways(running)
        links = links_of(running.section.interfaces)
        if links != running.links:
            running.links = links
            # One that comes back is another one to the kernel.
            running.modes = running.forwarder.attach(
                [one for one in running.section.interfaces if one in links]
            )
        answers.observe(running, self._speed, time.monotonic())
        self._tell_problems(running)
        self._tell("", "")

    def _tell_problems(self, running: Running) -> None:
        owners = {member.host for service in running.services.values() for member in service.all}
        # A former owner that was removed may well be switched off.
        problems = {host: hop.why for host, hop in running.hops.items() if host in owners - {running.me}}
        problems |= {
            name: "" if name in running.links else "there is no such interface"
            for name in running.section.interfaces
        }
        for what, problem in problems.items():
            self._tell(what, problem)
        for what in self._told.keys() - problems.keys() - {"", "state"}:
            del self._told[what]

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
        found = (one for one in running.services.values() if one.pool == pool and one.checked)
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
        running = self._running
        found = answers.row(running, pool, listener, client, port) if running is not None else None
        if found is None:
            return {}
        row = found["row"]
        return {"backend": row[0]["backend"] if row else None, "choices": [], "packet": found}

    def status(self) -> PacketStatus | None:
        """A picture of this moment; None while there is no listener of mode "packet"."""
        return answers.status(self._running, self._speed) if self._running is not None else None


def _other_part(before: PacketConfig, after: PacketConfig) -> bool:
    """Whether this machine does something else than before, or by other means."""
    return (before.role, before.engine) != (after.role, after.engine)


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
