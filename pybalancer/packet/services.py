"""From a configuration to what mode "packet" has to do: ``services``, ``find_me``. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pybalancer import _core
from pybalancer.config import packet
from pybalancer.config.values import join
from pybalancer.errors import PybalancerError
from pybalancer.packet.forwarder import Address
from pybalancer.packet.generations import Generation, History, Member, generation

if TYPE_CHECKING:
    from pybalancer.config.model import Config

Key = tuple[str, str]
"""Pool and backend."""


@dataclass(frozen=True, slots=True)
class Service:
    """A listener of mode "packet", its backends that take new flows (``newest``), and all."""

    name: str
    pool: str
    where: Address
    newest: Generation
    all: tuple[Member, ...]
    checked: bool
    """Checks go to its address at each backend: of TCP, and where no tunnel leads to the pool."""

    @property
    def key(self) -> str:
        """What its history is kept by: connections are to an address, whatever the listener is called."""
        address, port, protocol = self.where
        return f"{join(address, port)} {protocol}"


def services(config: Config, addresses: Mapping[Key, str], takes: Collection[Key]) -> list[Service]:
    """What the configuration asks for. ``takes``: backends that are to get new flows."""
    found, alone = [], packet.only_packets(config)
    for listener in packet.listeners(config):
        pool = listener.pool or ""
        vip, port = packet.split(listener.bind)
        members = [
            (
                backend.name,
                Member(backend.name, backend.weight, packet.split(addresses[pool, backend.name])[0]),
            )
            for backend in config.pools[pool].backends
        ]
        newest = generation([member for name, member in members if (pool, name) in takes])
        where = vip, port, listener.protocol
        found.append(
            Service(
                name=listener.name,
                pool=pool,
                where=where,
                newest=newest,
                all=tuple(member for _, member in members),
                checked=listener.protocol == "tcp" and pool in alone,
            )
        )
    return found


def digest_of(config: Config, pool: str, secret: bytes) -> str:
    """The fingerprint that a director has of a pool where all backends are up. Raises ``_core.PlanError``."""
    section = config.pools[pool]
    takers = [(each.name, each.weight, 1) for each in section.backends if each.weight]
    digest = _core.PacketRows([takers], secret=secret, size=section.table_size).owners_digest
    return nft_digest(digest, secret) if config.packet.engine == "nftables" else digest


def nft_seed(secret: bytes) -> int:
    """32 bits for the hash of nftables, which tell nothing of the secret."""
    return int.from_bytes(hashlib.sha256(b"pybalancer nftables " + secret).digest()[:4])


def nft_digest(owners: str, secret: bytes) -> str:
    """The same table by another hash makes other decisions."""
    return hashlib.sha256(f"nftables {nft_seed(secret)} {owners}".encode()).hexdigest()[:32]


def find_me(
    given: str | None, found: Collection[Service], histories: Collection[History], local: Collection[str]
) -> str:
    """The host that this machine is, by the name that it is given or by its addresses.

    One that has been removed is still in the histories, and has connections to serve. Raises
    PybalancerError if it is none, or several.
    """
    now = {member for service in found for member in service.all}
    before = {
        member for history in histories for each in (*history.generations, history.joined) for member in each
    }
    for members in (now, before):
        if given is None:
            hosts = {member.host for member in members if member.host in local}
        else:
            hosts = {member.host for member in members if member.name == given}
        if len(hosts) == 1:
            return hosts.pop()
        if hosts:
            what = ", ".join(sorted(hosts))
            why = (
                f"backend {given!r} has"
                if given is not None
                else "this machine has the addresses of backends:"
            )
            raise PybalancerError(f"{why} {what}: rows name machines by one address; see [packet] backend")
    if given is not None:
        raise PybalancerError(f"no backend is named {given!r}, which [packet] backend says this machine is")
    shown = ", ".join(sorted(address for address in local if not address.startswith("fe80:"))) or "none"
    raise PybalancerError(
        f"no backend of a pool of mode packet has an address of this machine ({shown}): "
        "set [packet] backend, or role"
    )
