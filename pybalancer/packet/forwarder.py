"""What forwards packets, as the control task sees it: ``Forwarder``; with XDP it is ``XdpForwarder``."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from pybalancer import _core
from pybalancer.packet.generations import Known, Numbers

if TYPE_CHECKING:
    from pybalancer.config.packet_model import PacketConfig
    from pybalancer.packet.hops import Hop

Address = tuple[str, int, Literal["tcp", "udp"]]
"""Of a service: address, port, protocol."""


@dataclass(frozen=True, slots=True)
class Table:
    """Whom a service's packets go to. Two that are equal need not be made twice."""

    known: Known
    hosts: tuple[tuple[str, int], ...]
    """The numbers of the machines in them."""
    mtu: int
    """Bytes that fit on the way to them."""

    @staticmethod
    def of(known: Known, numbers: Numbers, mtu: int) -> Table:
        return Table(known, tuple(sorted((host, numbers[host]) for host in known.hosts)), mtu)

    def rows(self, secret: bytes, size: int) -> _core.PacketRows:
        """What the kernel gets. Raises ``_core.PlanError``."""
        return Numbers(dict(self.hosts)).rows(self.known, secret, size)


@dataclass(frozen=True, slots=True)
class Digests:
    """Fingerprints of a table: of who owns its slots, and of who did before, too."""

    owners: str
    rows: str
    moved: int = 0
    """Slots that have another owner than in the generation before."""


class Count(NamedTuple):
    """What went to a service, or to a machine."""

    packets: int = 0
    bytes: int = 0
    """Of frames; of what is in them where nftables counts."""
    flows: int = 0
    """Begun: SYN without ACK."""
    others: int = 0
    """Of a service: ICMP errors. Of a machine: second hops to it."""


@dataclass(frozen=True, slots=True)
class Counts:
    """All that was counted up to one moment; services and machines by number."""

    reasons: Mapping[str, int] = field(default_factory=dict)
    """Packets by what became of them."""
    services: Mapping[int, Count] = field(default_factory=dict)
    hosts: Mapping[int, Count] = field(default_factory=dict)


class Forwarder(Protocol):
    """Machines by number and services by number, and what was counted of them.

    Raises ``_core.PacketError`` where the kernel refuses. Not to be called by two threads at once.
    """

    @property
    def adopted(self) -> bool:
        """Whether packets were forwarded already when this began."""

    def configure(self, section: PacketConfig) -> None:
        """What is set from now on is set by this section. Its role and engine are those of before."""

    def hosts(self) -> Mapping[int, str]:
        """Addresses by number. Of the process before, too, as long as packets go by its numbers."""

    def services(self) -> Mapping[int, Address]: ...
    def set_host(self, number: int, hop: Hop) -> None: ...
    def drop_host(self, number: int) -> None: ...
    def set_me(self, number: int) -> None: ...
    def set_service(self, number: int, where: Address, table: Table) -> Digests: ...
    def drop_service(self, number: int) -> None: ...
    def attach(self, interfaces: Sequence[str]) -> Mapping[str, str]:
        """Take the packets of these interfaces and of no others; how each is attached."""

    def only(self, interfaces: Collection[str]) -> None:
        """Leave the packets of all others alone."""

    def flush(self) -> None:
        """All that was set takes effect, if it has not already."""

    def counts(self) -> Counts:
        """Of all that is there, by one question. A number that was dropped and comes again begins at 0."""

    def row(self, number: int, client: str, port: int) -> tuple[int, tuple[int, ...]] | None:
        """The slot of a client and the machines of its row; None where that cannot be known."""

    def close(self, *, keep: bool) -> None:
        """``keep``: the kernel goes on forwarding."""


PINS: Final = Path("/sys/fs/bpf")
"""Of the BPF file system."""


NFT_TABLE: Final = "pybalancer"
"""Of nftables, in family netdev."""


def pin_name(role: str) -> str:
    """Where the kernel's part of a role is kept: one for each network namespace, as interfaces are."""
    return f"pybalancer/{role}-{os.stat('/proc/thread-self/ns/net').st_ino}"


LATE: Final = 3600.0
"""Seconds that machines may reload later than a backend whose ``forward`` has become l2."""


class XdpForwarder:
    """By the programs of the packet room. ``former`` is what forwards until this does."""

    def __init__(
        self, section: PacketConfig, secret: bytes, size: int, former: Forwarder | None = None
    ) -> None:
        self._section, self._secret, self._size = section, secret, size
        self._director = section.role == "director"
        role: Literal["director", "agent"] = "director" if self._director else "agent"
        self._path = _core.PacketPath(role, secret=secret, size=size, pin=pin_name(role))
        self._hops: dict[int, Hop] = {}
        self._me = 0
        trusted = self._path.trusted()
        self._trusted = set(trusted) if trusted is not None else None
        """Whose outer headers are taken off now; None: everybody's."""
        self._late: set[str] | None = set()
        """By whom packets may still be wrapped that go by l2 here, as they were before."""
        self._late_until = time.monotonic() + LATE
        if self._path.adopted:
            self._late = self._trusted
        elif isinstance(former, XdpForwarder):
            self._late = former._trusted

    @property
    def adopted(self) -> bool:
        return self._path.adopted

    def configure(self, section: PacketConfig) -> None:
        if (self._section.forward, section.forward) == ("ipip", "l2"):
            self._late, self._late_until = self._trusted, time.monotonic() + LATE
        self._section = section

    def hosts(self) -> Mapping[int, str]:
        return self._path.backends()

    def services(self) -> Mapping[int, Address]:
        return self._path.services()

    def set_host(self, number: int, hop: Hop) -> None:
        self._hops[number] = hop
        wraps = self._section.forward == "ipip"
        self._path.set_backend(
            number,
            address=hop.host,
            mac=hop.mac,
            interface=hop.interface if hop.mac is not None else None,
            encapsulate=wraps,
            source=self._source(hop) if wraps else None,
        )

    def _source(self, hop: Hop) -> str:
        given = self._section.source
        if given is not None and (":" in given) == (":" in hop.host):
            return given
        # Of a backend the one by which all the others know it, and take packets of.
        me = self._hops.get(self._me)
        if me is not None and (":" in me.host) == (":" in hop.host):
            return me.host
        # Of a machine that there is no way to yet nothing is sent: any address does.
        return hop.source or hop.host

    def drop_host(self, number: int) -> None:
        self._hops.pop(number, None)
        self._path.drop_backend(number)

    def set_me(self, number: int) -> None:
        self._path.set_me(number)
        if number != self._me:
            self._me = number
            for other, hop in self._hops.items():
                self.set_host(other, hop)

    def set_service(self, number: int, where: Address, table: Table) -> Digests:
        rows = table.rows(self._secret, self._size)
        self._path.set_service(number, *where, rows, mtu=table.mtu)
        return Digests(rows.owners_digest, rows.digest, rows.moved())

    def drop_service(self, number: int) -> None:
        self._path.drop_service(number)

    def only(self, interfaces: Collection[str]) -> None:
        self._path.forget_gone()
        for name in self._path.interfaces():
            if name not in interfaces:
                self._path.detach(name)

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, str]:
        # Of one that was not seen just now nothing is taken away: if it has gone, so has its program.
        self.only({*interfaces, *self._section.interfaces})
        modes = {}
        for name in interfaces:
            modes[name] = self._path.attach(name, self._section.xdp)
            if self._director and self._section.forward == "ipip":
                self._path.attach_probe(name)
        return modes

    def flush(self) -> None:
        if self._director:
            return
        trusted = self._whom()
        if trusted != self._trusted:
            self._path.set_trusted(None if trusted is None else sorted(trusted))
            self._trusted = trusted

    def _whom(self) -> set[str] | None:
        """Whose outer headers a backend takes off; None: everybody's."""
        others = {hop.host for number, hop in self._hops.items() if number != self._me}
        if self._section.forward == "ipip":
            source = self._section.source
            named = {*others, *self._section.directors, *((source,) if source is not None else ())}
            return named if self._section.directors else None
        # Nobody wraps for l2, but backends that change to ipip sooner than this one, and who changes later.
        late = self._late if time.monotonic() < self._late_until else set()
        return others | late if late is not None else None

    def counts(self) -> Counts:
        reasons, services, hosts = self._path.counts()
        return Counts(
            reasons,
            {number: Count(*found) for number, found in services.items()},
            {number: Count(*found) for number, found in hosts.items()},
        )

    def row(self, number: int, client: str, port: int) -> tuple[int, tuple[int, ...]] | None:
        return self._path.slot(number, client, port)

    def close(self, *, keep: bool) -> None:
        self._path.close(keep=keep)
