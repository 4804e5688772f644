"""The table as rules of nftables, where BPF is not allowed: ``NftForwarder``.

The same Maglev table, by another hash (the kernel's ``jhash``, with a seed made from the secret), and by
owners only: rules cannot ask whether a backend has a connection, so there is no second hop. All rules of a
change are one transaction. They stay when the process ends, until the next one replaces them.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pybalancer import _core
from pybalancer.packet import nft_counters
from pybalancer.packet.forwarder import Address, Digests, Table
from pybalancer.packet.services import nft_digest, nft_seed

if TYPE_CHECKING:
    from pybalancer.config.packet_model import PacketConfig
    from pybalancer.packet.hops import Hop

NAME: Final = "pybalancer"
TABLE: Final = f"netdev {NAME}"
PRIORITY: Final = -500
"""Before what other tables do with packets that come in."""
PATIENCE: Final = 30.0
"""Seconds for one transaction; a table of 655373 slots takes some."""
CAP_NET_ADMIN: Final = 12


def missing(interfaces: Collection[str]) -> list[str]:
    """What this machine lacks for it, each a sentence that says what to do."""
    found = []
    if shutil.which("nft") is None:
        found.append('engine = "nftables" needs the program nft: install the package nftables')
    if not effective_capabilities() >> CAP_NET_ADMIN & 1:
        found.append(
            "CAP_NET_ADMIN is missing: run as root, or give the service AmbientCapabilities=CAP_NET_ADMIN"
        )
    there = {name for name, _ in interfaces_here()}
    found += [
        f"interface {name!r} is not there; `ip link` lists those that there are"
        for name in interfaces
        if name not in there
    ]
    return found


def interfaces_here() -> list[tuple[str, str]]:
    """Names and hardware addresses."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        return [(link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_ADDRESS")) for link in kernel.get_links()]


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
        self._tables: dict[int, str] = {}
        """What of the rules takes long to write: the choice of a machine, by service."""
        self._interfaces: tuple[str, ...] = ()
        self._owners: dict[int, list[int]] = {}
        self._changed = self._first = True
        self.adopted = bool(nft_counters.read(NAME))

    def hosts(self) -> list[int]:
        return list(self._hosts)

    def services(self) -> Mapping[int, Address]:
        return dict(self._services)

    def set_host(self, number: int, hop: Hop) -> None:
        self._hosts[number], self._changed = hop, True

    def drop_host(self, number: int) -> None:
        # Its rules stay until the next change: nothing leads there.
        self._hosts.pop(number, None)

    def set_me(self, number: int) -> None:
        pass

    def set_service(self, number: int, where: Address, table: Table) -> Digests:
        rows = table.rows(self._secret, self._size)
        self._owners[number] = owners = [rows.row(slot)[0] for slot in range(self._size)]
        self._services[number] = where
        choice = ", ".join(f"{slot} : goto h{owner}" for slot, owner in enumerate(owners) if owner)
        ip = "ip6" if ":" in where[0] else "ip"
        self._tables[number] = (
            f"add rule {TABLE} s{number} jhash {ip} saddr . {where[2]} sport "
            f"mod {self._size} seed {self._seed:#x} vmap {{ {choice} }}"
        )
        self._changed = True
        digest = nft_digest(rows.owners_digest, self._secret)
        return Digests(digest, digest, rows.moved())

    def drop_service(self, number: int) -> None:
        for known in (self._services, self._owners, self._tables):
            known.pop(number, None)
        self._changed = True

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, str]:
        self._interfaces, self._changed = tuple(interfaces), True
        self.flush()
        how = "nftables" if self._section.role == "director" else "not needed"
        return dict.fromkeys(interfaces, how)

    def flush(self) -> None:
        if self._section.role != "director" or not self._interfaces:
            return
        if not self._changed:
            return
        # Of what is there already only counters stay; but what another process has left goes whole.
        before = f"add table {TABLE}\ndelete table {TABLE}\n" if self._first else ""
        nft("-f", "-", given=before + "\n".join(self._script()) + "\n")
        self._changed = self._first = False

    def _script(self) -> Iterator[str]:
        macs = dict(interfaces_here())
        devices = ", ".join(f'"{name}"' for name in self._interfaces)
        yield f"add table {TABLE}"
        names = [f"s{number}" for number in self._services] + [f"h{number}" for number in self._hosts]
        for name in names:
            for what in ("", "_flows"):
                yield f"add counter {TABLE} {name}{what}"
        for reason in ("fragment", "unresolved"):
            yield f"add counter {TABLE} {reason}"
        yield (
            f"add chain {TABLE} ingress "
            f"{{ type filter hook ingress devices = {{ {devices} }} priority {PRIORITY}; }}"
        )
        for name in names:
            yield f"add chain {TABLE} {name}"
            yield f"flush chain {TABLE} {name}"
        yield f"flush chain {TABLE} ingress"
        for number, hop in self._hosts.items():
            yield from self._to_host(number, hop, macs)
        for number, where in self._services.items():
            yield from self._service(number, where)

    @staticmethod
    def _to_host(number: int, hop: Hop, macs: Mapping[str, str]) -> Iterator[str]:
        chain = f"add rule {TABLE} h{number}"
        if hop.mac is None or hop.interface is None or hop.interface not in macs:
            yield f"{chain} counter name unresolved drop"
            return
        yield f"{chain} counter name h{number}"
        yield f"{chain} tcp flags & (syn | ack) == syn counter name h{number}_flows"
        yield (
            f"{chain} ether daddr set {hop.mac.hex(':')} ether saddr set {macs[hop.interface]} "
            f'fwd to "{hop.interface}"'
        )

    def _service(self, number: int, where: Address) -> Iterator[str]:
        vip, port, protocol = where
        version = ipaddress.ip_address(vip).version
        ip = "ip" if version == 4 else "ip6"
        ingress, chain = f"add rule {TABLE} ingress meta pkttype host", f"add rule {TABLE} s{number}"
        # Of a fragment the port may not be there, and a part of a packet helps nobody.
        fragment = "ip frag-off & 0x3fff != 0" if version == 4 else "exthdr frag exists"
        yield f"{ingress} {ip} daddr {vip} {fragment} counter name fragment drop"
        yield f"{ingress} {ip} daddr {vip} {protocol} dport {port} goto s{number}"
        yield f"{chain} counter name s{number}"
        yield f"{chain} tcp flags & (syn | ack) == syn counter name s{number}_flows"
        if any(self._owners[number]):
            yield self._tables[number]

    def reasons(self) -> Mapping[str, int]:
        counters = self._counters()
        return {name: counters.get(name, (0, 0))[0] for name in ("fragment", "unresolved")}

    def service_counts(self, number: int) -> Mapping[str, int]:
        return self._counts(f"s{number}")

    def host_counts(self, number: int) -> Mapping[str, int]:
        return self._counts(f"h{number}")

    def _counts(self, name: str) -> Mapping[str, int]:
        counters = self._counters()
        packets, size = counters.get(name, (0, 0))
        return {"packets": packets, "bytes": size, "flows": counters.get(f"{name}_flows", (0, 0))[0]}

    def _counters(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes by name."""
        return {} if self._first else nft_counters.read(NAME)

    def row(self, number: int, client: str, port: int) -> tuple[int, tuple[int, ...]] | None:
        data = ipaddress.ip_address(client).packed + port.to_bytes(2) + b"\0\0"
        slot = jhash(data, self._seed) * self._size >> 32
        return slot, (self._owners[number][slot],)

    def close(self, *, keep: bool) -> None:
        if not keep and self._section.role == "director":
            nft("delete", "table", *TABLE.split(), check=False)


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
        raise _core.PacketError(f"nft has not ended within {PATIENCE:g} s") from None
    if check and done.returncode:
        first = next(iter(done.stderr.splitlines()), f"exit code {done.returncode}")
        raise _core.PacketError(f"nft refuses the rules: {first[:300]}")
    return not done.returncode, done.stdout


def jhash(data: bytes, seed: int) -> int:
    """The kernel's ``jhash`` (Jenkins' lookup3) of 1 word or more, as little-endian machines have it."""
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
    a = b = c = (0xDEADBEEF + len(data) + seed) & MASK
    while len(words) > 3:
        a, b, c = _mix(a + words[0], b + words[1], c + words[2])
        words = words[3:]
    one, two, three = [*words, 0, 0][:3]
    return _last(a + one, b + two, c + three)


MASK: Final = 0xFFFF_FFFF


def _turned(word: int, bits: int) -> int:
    word &= MASK
    return (word << bits | word >> (32 - bits)) & MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = a - c & MASK ^ _turned(c, 4)
    c += b
    b = b - a & MASK ^ _turned(a, 6)
    a += c
    c = c - b & MASK ^ _turned(b, 8)
    b += a
    a = a - c & MASK ^ _turned(c, 16)
    c += b
    b = b - a & MASK ^ _turned(a, 19)
    a += c
    c = c - b & MASK ^ _turned(b, 4)
    b += a
    return a & MASK, b & MASK, c & MASK


def _last(a: int, b: int, c: int) -> int:
    c = (c ^ b & MASK) - _turned(b, 14) & MASK
    a = (a & MASK ^ c) - _turned(c, 11) & MASK
    b = (b & MASK ^ a) - _turned(a, 25) & MASK
    c = (c ^ b) - _turned(b, 16) & MASK
    a = (a ^ c) - _turned(c, 4) & MASK
    b = (b ^ a) - _turned(a, 14) & MASK
    return (c ^ b) - _turned(b, 24) & MASK
