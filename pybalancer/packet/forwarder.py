"""What forwards packets, as the control task sees it: ``Forwarder``; with XDP it is ``XdpForwarder``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

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

    @staticmethod
    def of(known: Known, numbers: Numbers) -> Table:
        return Table(known, tuple(sorted((host, numbers[host]) for host in known.hosts)))

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


class Forwarder(Protocol):
    """Machines by number and services by number, and what was counted of them.

    Raises ``_core.PacketError`` where the kernel refuses. Not to be called by two threads at once.
    """

    @property
    def adopted(self) -> bool:
        """Whether packets were forwarded already when this began."""

    def hosts(self) -> list[int]: ...
    def services(self) -> Mapping[int, Address]: ...
    def set_host(self, number: int, hop: Hop) -> None: ...
    def drop_host(self, number: int) -> None: ...
    def set_me(self, number: int) -> None: ...
    def set_service(self, number: int, where: Address, table: Table) -> Digests: ...
    def drop_service(self, number: int) -> None: ...
    def attach(self, interfaces: Sequence[str]) -> Mapping[str, str]:
        """Take the packets of these interfaces and of no others; how each is attached."""

    def flush(self) -> None:
        """All that was set takes effect, if it has not already."""

    def reasons(self) -> Mapping[str, int]: ...
    def service_counts(self, number: int) -> Mapping[str, int]: ...
    def host_counts(self, number: int) -> Mapping[str, int]: ...
    def row(self, number: int, client: str, port: int) -> tuple[int, tuple[int, ...]] | None:
        """The slot of a client and the machines of its row; None where that cannot be known."""

    def close(self, *, keep: bool) -> None:
        """``keep``: the kernel goes on forwarding."""


def pin_name(role: str) -> str:
    """Where the kernel's part of a role is kept: one for each network namespace, as interfaces are."""
    return f"pybalancer/{role}-{os.stat('/proc/thread-self/ns/net').st_ino}"


class XdpForwarder:
    """By the programs of the packet room."""

    def __init__(self, section: PacketConfig, secret: bytes, size: int) -> None:
        self._section, self._secret, self._size = section, secret, size
        self._director = section.role == "director"
        role: Literal["director", "agent"] = "director" if self._director else "agent"
        self._path = _core.PacketPath(role, secret=secret, size=size, pin=pin_name(role))

    @property
    def adopted(self) -> bool:
        return self._path.adopted

    def hosts(self) -> list[int]:
        return self._path.backends()

    def services(self) -> Mapping[int, Address]:
        return self._path.services()

    def set_host(self, number: int, hop: Hop) -> None:
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
        # Of a machine that there is no way to yet nothing is sent: any address does.
        return hop.source or hop.host

    def drop_host(self, number: int) -> None:
        self._path.drop_backend(number)

    def set_me(self, number: int) -> None:
        self._path.set_me(number)

    def set_service(self, number: int, where: Address, table: Table) -> Digests:
        rows = table.rows(self._secret, self._size)
        self._path.set_service(number, *where, rows, mtu=self._section.mtu)
        return Digests(rows.owners_digest, rows.digest, rows.moved())

    def drop_service(self, number: int) -> None:
        self._path.drop_service(number)

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, str]:
        for name in self._path.interfaces():
            if name not in interfaces:
                self._path.detach(name)
        modes = {}
        for name in interfaces:
            modes[name] = self._path.attach(name, self._section.xdp)
            if self._director and self._section.forward == "ipip":
                self._path.attach_probe(name)
        return modes

    def flush(self) -> None:
        pass

    def reasons(self) -> Mapping[str, int]:
        return self._path.counters()

    def service_counts(self, number: int) -> Mapping[str, int]:
        return self._path.service_counters(number)

    def host_counts(self, number: int) -> Mapping[str, int]:
        return self._path.backend_counters(number)

    def row(self, number: int, client: str, port: int) -> tuple[int, tuple[int, ...]] | None:
        return self._path.slot(number, client, port)

    def close(self, *, keep: bool) -> None:
        self._path.close(keep=keep)
