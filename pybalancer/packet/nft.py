"""The table as rules of nftables, where BPF is not allowed: ``NftForwarder``.

The same Maglev table, by another hash (the kernel's ``jhash``, with a seed made from the secret), and by
owners only: rules cannot ask whether a backend has a connection, so there is no second hop. All rules of a
change are one transaction. They stay when the process ends, until the next one replaces them.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import shutil
import subprocess
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pybalancer import _core
from pybalancer.packet import nft_counters
from pybalancer.packet.forwarder import NFT_TABLE, Address, Count, Counts, Digests, Table
from pybalancer.packet.nft_hash import jhash
from pybalancer.packet.nft_rules import TABLE, Rules
from pybalancer.packet.services import nft_digest, nft_seed

if TYPE_CHECKING:
    from pybalancer.config.packet_model import PacketConfig
    from pybalancer.packet.hops import Hop

_log = logging.getLogger("pybalancer")

PATIENCE: Final = 30.0
"""Seconds for one transaction; a table of 655373 slots takes some."""
CAP_NET_ADMIN: Final = 12
REASONS: Final = ("fragment", "loop", "unresolved")
"""Counters of packets that go nowhere."""


def missing(interfaces: Collection[str]) -> list[str]:
    """What this machine lacks for it, each a sentence that says what to do."""
    found = []
    if shutil.which("nft") is None:
        found.append('engine = "nftables" needs the program nft: install the package nftables')
    if not effective_capabilities() >> CAP_NET_ADMIN & 1:
        found.append(
            "CAP_NET_ADMIN is missing: run as root, or give the service AmbientCapabilities=CAP_NET_ADMIN"
        )
    there = links()
    found += [
        f"interface {name!r} is not there; `ip link` lists those that there are"
        for name in interfaces
        if name not in there
    ]
    return found


def links() -> dict[str, tuple[int, str]]:
    """Number and hardware address of each interface."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        return {
            link.get_attr("IFLA_IFNAME"): (link["index"], str(link.get_attr("IFLA_ADDRESS")))
            for link in kernel.get_links()
        }


def effective_capabilities() -> int:
    """The kernel's set of them for this thread."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


class NftForwarder:
    """By rules. As ``Forwarder``; what is set takes effect with ``flush``."""

    def __init__(self, section: PacketConfig, secret: bytes, size: int) -> None:
        self._section, self._secret, self._size = section, secret, size
        self._seed = nft_seed(secret)
        self._hosts: dict[int, Hop] = {}
        self._services: dict[int, Address] = {}
        self._owners: dict[int, list[int]] = {}
        self._choices: dict[int, str] = {}
        """The rule that chooses a machine, by service: it is long."""
        self._interfaces: tuple[str, ...] = ()
        self._there: Rules | None = None
        """What the kernel took last; None before the first transaction, or where that is not known."""
        self._mark = f"made_by_{secrets.token_hex(4)}"
        """A counter by which our table is told from that of a process before, or after, this one."""
        self._changed, self._refused = True, False
        self.adopted = bool(nft_counters.read(NFT_TABLE))

    def configure(self, section: PacketConfig) -> None:
        self._section = section

    def hosts(self) -> Mapping[int, str]:
        return {number: hop.host for number, hop in self._hosts.items()}

    def services(self) -> Mapping[int, Address]:
        return dict(self._services)

    def set_host(self, number: int, hop: Hop) -> None:
        self._hosts[number], self._changed = hop, True

    def drop_host(self, number: int) -> None:
        self._hosts.pop(number, None)
        self._changed = True

    def set_me(self, number: int) -> None:
        pass

    def set_service(self, number: int, where: Address, table: Table) -> Digests:
        rows = table.rows(self._secret, self._size)
        self._owners[number] = owners = [rows.row(slot)[0] for slot in range(self._size)]
        self._services[number] = where
        choice = ", ".join(f"{slot} : goto h{owner}" for slot, owner in enumerate(owners) if owner)
        ip = "ip6" if ":" in where[0] else "ip"
        self._choices[number] = (
            f"jhash {ip} saddr . {where[2]} sport mod {self._size} seed {self._seed:#x} vmap {{ {choice} }}"
            if choice
            else ""
        )
        self._changed = True
        digest = nft_digest(rows.owners_digest, self._secret)
        return Digests(digest, digest, rows.moved())

    def drop_service(self, number: int) -> None:
        for known in (self._services, self._owners, self._choices):
            known.pop(number, None)
        self._changed = True

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, str]:
        self._interfaces, self._changed = tuple(interfaces), True
        self.flush()
        how = "nftables" if self._section.role == "director" else "not needed"
        return dict.fromkeys(interfaces, how)

    def only(self, interfaces: Collection[str]) -> None:
        pass  # The next flush does it.

    def flush(self) -> None:
        if self._section.role != "director" or not self._interfaces or not self._changed:
            return
        rules = self._rules()
        there = self._there if self._mark in nft_counters.read(NFT_TABLE) else None
        if rules != there:
            # What is refused changes nothing. If somebody had a hand in our table, the next try mends that.
            lines = "\n".join(rules.since(None if self._refused else there))
            self._refused = True
            try:
                nft("-f", "-", given=lines + "\n")
            except _Late:
                self._there = None
                raise
            self._there, self._refused = rules, False
        self._changed = False

    def _rules(self) -> Rules:
        found = links()
        ingress: list[str] = []
        chains, sets = {}, {}
        counters: dict[str, Hashable] = dict.fromkeys((*REASONS, self._mark), "")
        for number, hop in self._hosts.items():
            chains[f"h{number}"] = tuple(_to_host(number, hop, found))
            counters |= dict.fromkeys((f"h{number}", f"h{number}_flows"), hop.host)
        for number, where in self._services.items():
            ingress += _to_service(number, where)
            chains[f"s{number}"] = tuple(_service(number, self._choices[number]))
            counters |= dict.fromkeys((f"s{number}", f"s{number}_flows"), where)
            hops = [self._hosts.get(owner) for owner in set(self._owners[number])]
            sets[f"b{number}"] = frozenset(hop.mac.hex(":") for hop in hops if hop and hop.mac)
        # What is not there cannot be named; it is in the next transaction after it has come back.
        devices = frozenset((name, found[name][0]) for name in self._interfaces if name in found)
        return Rules(devices, tuple(dict.fromkeys(ingress)), chains, sets, counters)

    def counts(self) -> Counts:
        found = nft_counters.read(NFT_TABLE) if self._there is not None else {}
        if self._there is not None and not found:
            _log.warning("packets: somebody has removed the table %s; it is made anew", TABLE)
            self._there, self._changed = None, True

        def of(name: str) -> Count:
            return Count(*found.get(name, (0, 0)), found.get(f"{name}_flows", (0, 0))[0])

        return Counts(
            {name: of(name).packets for name in REASONS},
            {number: of(f"s{number}") for number in self._services},
            {number: of(f"h{number}") for number in self._hosts},
        )

    def row(self, number: int, client: str, port: int) -> tuple[int, tuple[int, ...]] | None:
        data = ipaddress.ip_address(client).packed + port.to_bytes(2) + b"\0\0"
        slot = jhash(data, self._seed) * self._size >> 32
        return slot, (self._owners[number][slot],)

    def close(self, *, keep: bool) -> None:
        if not keep and self._section.role == "director":
            nft("delete", "table", *TABLE.split(), check=False)


def _to_host(number: int, hop: Hop, found: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    """Rules of the chain for what goes to a machine."""
    if hop.mac is None or hop.interface is None or hop.interface not in found:
        yield "counter name unresolved drop"
        return
    yield f"counter name h{number}"
    yield f"tcp flags & (syn | ack) == syn counter name h{number}_flows"
    index, mac = found[hop.interface]
    # The kernel knows the interface by its number; by the comment the rule is another one when that is.
    way = f'fwd to "{hop.interface}" comment "interface {index}"'
    yield f"ether daddr set {hop.mac.hex(':')} ether saddr set {mac} {way}"


def _to_service(number: int, where: Address) -> Iterator[str]:
    """Rules for what comes in: is it for a service?"""
    vip, port, protocol = where
    four = ":" not in vip
    to = f"meta pkttype host {'ip' if four else 'ip6'} daddr {vip}"
    # Of a fragment the port may not be there, and a part of a packet helps nobody.
    yield f"{to} {'ip frag-off & 0x3fff != 0' if four else 'exthdr frag exists'} counter name fragment drop"
    yield f"{to} {protocol} dport {port} goto s{number}"


def _service(number: int, choice: str) -> Iterator[str]:
    """Rules of a service's chain."""
    # What a backend sends on comes from a director that is a backend too, and may come from there for ever:
    # rules cannot lower the TTL.
    yield f"ether saddr @b{number} counter name loop drop"
    yield f"counter name s{number}"
    yield f"tcp flags & (syn | ack) == syn counter name s{number}_flows"
    if choice:
        yield choice


class _Late(_core.PacketError):
    """Whether it was done is not known."""


def nft(*arguments: str, given: str = "", check: bool = True) -> tuple[bool, str]:
    """Run it; whether it did, and what it said. Raises ``_core.PacketError`` if it must and did not."""
    try:
        done = subprocess.run(  # noqa: S603
            ["nft", *arguments],  # noqa: S607 - wherever the system has it
            input=given,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        why = 'engine = "nftables" needs the program nft: install the package nftables'
        raise _core.PacketError(why) from None
    except subprocess.TimeoutExpired:
        raise _Late(f"nft has not ended within {PATIENCE:g} s") from None
    if check and done.returncode:
        first = next(iter(done.stderr.splitlines()), f"exit code {done.returncode}")
        raise _core.PacketError(f"nft refuses the rules: {first[:300]}")
    return not done.returncode, done.stdout
