"""Keeps the kernel's part of mode "packet" as the configuration, health and drains say: ``PacketControl``.

A change that the kernel refuses is taken back whole, so that packets go by the old configuration or by the
new one. Where even that fails it is tried again until it works.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio

from pybalancer import _core
from pybalancer.config import packet
from pybalancer.config.secret import state_directory
from pybalancer.config.values import join
from pybalancer.errors import PybalancerError, StartError
from pybalancer.packet import answers, hops, leftovers
from pybalancer.packet.arrangement import Arrangement
from pybalancer.packet.counting import Counting
from pybalancer.packet.marks import mark
from pybalancer.packet.peers import SILENT, Peers
from pybalancer.packet.report import PacketStatus
from pybalancer.packet.running import (
    Running,
    arrange,
    close,
    follow_hops,
    follow_links,
    look_at_tags,
    look_at_vips,
    machine_problems,
    rekeyed,
    save_late,
    set_ways,
    start,
    who_am_i,
)
from pybalancer.packet.services import Key, Service, services

if TYPE_CHECKING:
    from pybalancer.config.model import Config
    from pybalancer.config.packet_model import PacketConfig
    from pybalancer.policy.settings import Check

_log = logging.getLogger("pybalancer")

LOOK: Final = 1.0
"""Seconds between two looks at next hops, interfaces and counts."""
BEFORE_ANSWERS: Final = 0.5
"""Seconds that who asks waits at most for a change that is under way."""
OWN: Final = frozenset({"", "state", "settling", "left"})
"""Problems that no machine or interface has."""


class PacketControl:
    """All of it; nothing, while no listener is of mode "packet".

    ``check`` before a configuration is used, ``apply`` for each that is, ``run`` beside. Everything that
    waits for the kernel is done in threads, one at a time.
    """

    def __init__(self) -> None:
        self._running: Running | None = None
        self._missed = False
        """Whether packets are to be forwarded and are not, but for what a process before has set up."""
        self._lock = trio.Lock()
        self._counting = Counting()
        self._peers = Peers()
        self.still = False
        """Another process is taking over: from what there is now, and by what is written down now."""
        self._told: dict[str, str] = {}

    async def check(self, config: Config) -> None:
        """Raises StartError with all that this machine lacks for it."""
        if packet.listeners(config):
            known = self._running.section.interfaces if self._running is not None else ()
            await trio.to_thread.run_sync(_check, config, known)

    async def apply(
        self, config: Config, addresses: Mapping[Key, str], takes: Collection[Key], secret: bytes
    ) -> None:
        """From now on packets go as this says. Raises StartError; then they go as before."""
        if not packet.listeners(config):
            if self._running is None and not self._missed:
                self._tell("left", await trio.to_thread.run_sync(leftovers.notice))
            await self.close(keep=False)
            return
        async with self._lock:
            with trio.CancelScope(shield=True):
                try:
                    wanted = services(config, addresses, takes)
                    await trio.to_thread.run_sync(self._apply, config, wanted, secret)
                except Exception as error:
                    # Whatever it is: whoever asks for a change has to know how packets go now.
                    raise StartError(f"{self._outcome()}: {_why(error)}") from error

    def _outcome(self) -> str:
        """What a change that failed has left."""
        if self._running is None:
            return "packets are not forwarded"
        return "packets go as before" if self._running.settled else "a part of packets goes another way"

    async def run(self) -> NoReturn:
        """Follow next hops, interfaces, counts and other machines until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_peers)
            await self._follow_kernel()

    async def _follow_peers(self) -> None:
        while True:
            running = self._running
            if running is None or running.me is None:
                await trio.sleep(LOOK)
                continue
            silent = await self._peers.ask(running.arrangement.peers, running.arrangement.silent)
            async with self._lock:
                changed = silent != running.arrangement.silent
                if changed and self._running is running and not self.still:
                    await trio.to_thread.run_sync(self._hear, running, silent)

    async def _follow_kernel(self) -> NoReturn:
        while True:
            await trio.sleep(LOOK)
            if self._running is None:
                continue
            async with self._lock:
                if self._running is not None:
                    await trio.to_thread.run_sync(self._look, self._running)

    @property
    def found(self) -> bool:
        """Whether packets were forwarded already when this process began."""
        return self._running is not None and self._running.found

    async def close(self, *, keep: bool) -> None:
        """Leave packets alone from now on; with ``keep`` the kernel goes on without this process."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                running, self._running = self._running, None
                if running is not None:
                    await trio.to_thread.run_sync(close, running, keep)
                elif self._missed and not keep:
                    await trio.to_thread.run_sync(_remove_leftovers)
                self._missed = False

    # What a change does, in a thread.

    def _apply(self, config: Config, wanted: list[Service], secret: bytes) -> None:
        section = config.packet
        size = next(config.pools[name].table_size for name in packet.pools(config))
        running = self._running
        if running is None:
            self._missed = True
            self._running = start(section, wanted, secret, size)
            self._missed = False
        elif _other_part(running.section, section):
            self._replace(running, section, wanted, secret, size)
        else:
            known = running.state.histories
            me = who_am_i(section, wanted, known.values(), running.me)
            aim = Arrangement.of(section, wanted, me, known, running.arrangement.silent)
            before = running.arrangement
            try:
                if (secret, size) != (running.secret, running.size):
                    self._running = rekeyed(running, aim, secret, size)
                else:
                    arrange(running, aim)
            except Exception:
                running.arrangement, running.settled = before.after(aim), False
                self._settle(running)
                raise
        if self._running is not None:
            self._tell_problems(self._running)
            with contextlib.suppress(OSError, _core.PacketError):
                self._counting.ask(self._running.forwarder)

    def _replace(
        self, running: Running, section: PacketConfig, wanted: list[Service], secret: bytes, size: int
    ) -> None:
        """By something else. Two programs cannot have one interface: packets are nobody's for a moment."""
        who_am_i(section, wanted, running.state.histories.values())
        self._running = None
        close(running, False)
        try:
            self._running = start(section, wanted, secret, size)
        except Exception:
            before = running.arrangement
            self._running = start(before.section, before.services, running.secret, running.size)
            raise

    def _hear(self, running: Running, silent: frozenset[str]) -> None:
        """Other machines are silent than before."""
        aim = running.arrangement.hearing(silent)
        try:
            arrange(running, aim)
        except Exception:
            # The second try tells what is wrong, if it still is; then each look tries it once more.
            running.arrangement, running.settled = aim, False
            self._settle(running)

    def _settle(self, running: Running) -> None:
        """Make it as it is to be, if it is not. Never raises: the next look tries again."""
        if running.settled or self.still:
            return
        try:
            arrange(running, running.arrangement)
        except Exception as error:
            self._tell("settling", f"a part goes as it should not, which is tried again: {error!r}")
        else:
            self._tell("settling", "")

    # What is looked at from time to time, in a thread.

    def _look(self, running: Running) -> None:
        """Never raises: connections must not end with it, and the next look tries again."""
        troubles = []
        steps = self._settle, follow_hops, follow_links, set_ways, look_at_vips, look_at_tags, save_late
        for step in (*steps, self._count):
            try:
                step(running)
            except Exception as error:
                troubles.append(_why(error))
        self._tell_problems(running)
        self._tell("", "; ".join(dict.fromkeys(troubles)))

    def _count(self, running: Running) -> None:
        self._counting.look(running.forwarder)

    def _tell_problems(self, running: Running) -> None:
        self._tell("state", running.unsaved)
        owners = {member.host for service in running.services.values() for member in service.all}
        # A former owner that was removed may well be switched off.
        problems = {host: hop.why for host, hop in running.hops.items() if host in owners - {running.me}}
        problems |= dict.fromkeys(running.arrangement.silent & owners, SILENT)
        problems |= running.ways.problems | machine_problems(running)
        for what, problem in problems.items():
            self._tell(what, problem)
        for what in self._told.keys() - problems.keys() - OWN:
            del self._told[what]

    def _tell(self, what: str, problem: str) -> None:
        """Each problem once, and its end."""
        if (before := self._told.get(what, "")) == problem:
            return
        self._told[what] = problem
        where = f"{what}: " if what not in OWN else ""
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
        for service in running.services.values():
            # A change that is under way in its thread may be taking it away.
            digests = running.digests.get(running.numbers.get(service.name, -1))
            if service.pool == pool and digests is not None:
                return digests.owners
        return None

    def explain(self, config: Config, pool: str, listener: str | None, source: str) -> dict[str, Any]:
        """What ``explain`` answers besides where packets go to a pool; nothing where only tunnels do.

        Raises ValueError for a client whose packets never get to the listener.
        """
        if listener is None and pool not in packet.only_packets(config):
            return {}
        client, port = packet.split(source)
        # Servers that listen at [::] have clients of IPv4 in their logs so.
        client = str(packet.mapped(client) or client)
        running = self._running
        found = answers.row(running, pool, listener, client, port) if running is not None else None
        if found is None:
            return {}
        row = found["row"]
        return {"backend": row[0]["backend"] if row else None, "choices": [], "packet": found}

    async def refresh(self) -> None:
        """Ask the kernel for counts, if nobody has just now: then ``status`` is of this moment.

        Nothing else asks it either until the caller waits for something, so ``explain`` need not wait. While
        a change takes long, what was counted before it has to do.
        """
        if self._running is None:
            return
        with trio.move_on_after(BEFORE_ANSWERS):
            async with self._lock:
                running = self._running
                if running is None or self._counting.is_recent():
                    return
                try:
                    await trio.to_thread.run_sync(self._counting.ask, running.forwarder)
                except (_core.PacketError, OSError) as error:
                    self._tell("", str(error))

    def status(self) -> PacketStatus | None:
        """With the counts of the last ``refresh`` or look; None while no listener is of mode "packet"."""
        return answers.status(self._running, self._counting) if self._running is not None else None


def _why(error: Exception) -> str:
    """What somebody is told who can do something about it."""
    expected = isinstance(error, _core.PacketError | _core.PlanError | PybalancerError | OSError)
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return text if expected and text else repr(error)


def _remove_leftovers() -> None:
    try:
        leftovers.remove(state_directory())
    except (PybalancerError, _core.PacketError, OSError, hops.kernel_error()) as error:
        _log.warning("packets: not all is cleaned up: %s", error)


def _other_part(before: PacketConfig, after: PacketConfig) -> bool:
    """Whether this machine does something else than before, or by other means."""
    return (before.role, before.engine) != (after.role, after.engine)


def _check(config: Config, known: Collection[str]) -> None:
    """Raises StartError.

    Of ``known`` interfaces, which are followed already, one may be gone for a while: that must not be in the
    way of a change that has nothing to do with it.
    """
    section = config.packet
    there = {name for _, name in socket.if_nameindex()}
    others = {name: real for name in section.interfaces if name not in there and (real := _real_name(name))}
    interfaces = [name for name in section.interfaces if name in there or name not in {*known, *others}]
    if section.engine == "nftables":
        from pybalancer.packet.nft import missing

        found = missing(interfaces)
    else:
        checks = section.role == "director" and section.forward == "ipip"
        found = list(
            dict.fromkeys(why for name in interfaces for why in _core.packet_support(name, checks=checks))
        )
        if found and section.forward == "l2" and not all("interface" in why for why in found):
            found.append('where BPF is not to be had, [packet] engine = "nftables" does with less')
    found += [f'interface "{name}" is called "{real}": write that' for name, real in others.items()]
    if found:
        raise StartError("mode packet: " + "; ".join(found))


def _real_name(interface: str) -> str | None:
    """Of an interface that is given by another (``altname`` of ``ip link``); None if there is none."""
    try:
        return socket.if_indextoname(socket.if_nametoindex(interface))
    except OSError:
        return None
