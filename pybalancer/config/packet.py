"""What no single value can see of mode "packet": listeners, their pools, and how this machine takes part."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pybalancer.config import values

if TYPE_CHECKING:
    from pybalancer.config.model import Config, ListenerConfig, PoolConfig
    from pybalancer.config.positions import Path
    from pybalancer.config.rules import Finding

MOST_HOSTS: Final = 1023
"""Machines that rows can name."""

LINK: Final = ipaddress.ip_network("fe80::/10")
"""Routers send nothing there."""

KEYS: Final = frozenset({"name", "bind", "mode", "protocol", "pool"})
"""Of a listener: nobody is accepted there, so nothing else means anything."""

POOL_KEYS: Final = frozenset({"policy", "key", "table_size", "panic", "slow_start", "health", "backends"})
"""Keys of a pool that mean something to packets, or do no harm: the others are about connections of ours."""


def listeners(config: Config) -> list[ListenerConfig]:
    """Those of mode "packet"."""
    return [listener for listener in config.listeners if listener.mode == "packet"]


def pools(config: Config) -> set[str]:
    """Pools whose backends get packets."""
    return {listener.pool for listener in listeners(config) if listener.pool in config.pools}


def only_packets(config: Config) -> set[str]:
    """Pools that no tunnel leads to, only packets."""
    led = {
        pool
        for listener in config.listeners
        if listener.mode != "packet"
        for pool in (listener.pool, *(route.pool for route in listener.routes))
    }
    return pools(config) - led


def split(address: str) -> tuple[str, int]:
    """Host and port of an address that the configuration has read; the host without brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def listener_mistakes(here: Path, listener: ListenerConfig, config: Config) -> Iterator[Finding]:
    """Of one listener of mode "packet"."""
    for key in sorted(listener.model_fields_set - KEYS):
        yield (*here, key), 'means nothing in mode "packet"', None
    if listener.pool is None:
        yield (*here, "pool"), "is missing", None
    if listener.bind.startswith("unix:"):
        yield (*here, "bind"), "packets have an address and a port", 'write "203.0.113.10:443"'
        return
    host, port = split(listener.bind)
    if (four := mapped(host)) is not None:
        yield (*here, "bind"), f"packets for {four} are of IPv4", f'write "{four}:{port}"'
    elif _of_no_machine(host) or ipaddress.ip_address(host) in LINK:
        why = "packets are forwarded for one address that routers send here"
        yield (*here, "bind"), f"{host} is none: {why}", 'write "203.0.113.10:443"'
    if port == 0:
        yield (*here, "bind"), "packets are forwarded for one port: 0 is none", None
    pool = config.pools.get(listener.pool or "")
    if pool is None or port == 0:
        return
    for index, backend in enumerate(pool.backends):
        place: Path = ("pools", listener.pool or "", "backends", index, "address")
        if backend.address.startswith("unix:"):
            why = f"packets of listener {listener.name!r} cannot go to a Unix socket"
            yield place, why, 'write "10.0.0.11:PORT"'
            continue
        where, theirs = split(backend.address)
        if theirs != port:
            why = f"packets keep their port: those of listener {listener.name!r} are for port {port}"
            yield place, why, f'write "{values.join(where, port)}"'
        yield from _machine_mistakes(place, where, theirs, listener)
        if where == host:
            why = f"is the address of listener {listener.name!r}"
            yield place, why, "give the address that this machine alone has"


def _machine_mistakes(place: Path, host: str, port: int, listener: ListenerConfig) -> Iterator[Finding]:
    """Of a backend's address, or its name: what that stands for is not known yet."""
    if (four := mapped(host)) is not None:
        yield place, f"packets to {four} are of IPv4", f'write "{four}:{port}"'
    elif _of_no_machine(host):
        why = f"packets of listener {listener.name!r} cannot go to {host}"
        yield place, why, "give the address by which other machines know it"


def mapped(host: str) -> ipaddress.IPv4Address | None:
    """The IPv4 address that one of IPv6 stands for (RFC 4291 section 2.5.5.2): no packet has that one."""
    try:
        return getattr(ipaddress.ip_address(host), "ipv4_mapped", None)
    except ValueError:
        return None


def _of_no_machine(host: str) -> bool:
    """Whether it is an address by which no machine is known to others."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_unspecified or address.is_loopback or address.is_multicast or "%" in host


def mistakes(config: Config) -> Iterator[Finding]:
    """Of all of them together."""
    here: Path = ("packet",)
    section, met = config.packet, listeners(config)
    if met and not section.interfaces:
        yield (*here, "interfaces"), "is missing: where do packets arrive?", 'add interfaces = ["eth0"]'
    for index, name in enumerate(section.interfaces):
        if name in section.interfaces[:index]:
            yield (*here, "interfaces", index), f"{name} is named twice", None
    if section.engine == "nftables" and section.forward == "ipip":
        why = 'nftables cannot put packets into others: it forwards by "l2" only'
        yield (*here, "forward"), why, 'set engine = "xdp", or forward = "l2"'
    if section.source is not None and section.forward == "l2":
        why = 'means nothing with forward = "l2": there is no outer packet'
        yield (*here, "source"), why, 'set forward = "ipip"'
    if section.source is not None and ipaddress.ip_network(section.source).num_addresses > 1 << 32:
        yield (*here, "source"), "at most 32 bits of it can vary", "write a smaller network"
    if section.directors and section.forward == "l2":
        why = 'means nothing with forward = "l2": nobody sends outer packets'
        yield (*here, "directors"), why, 'set forward = "ipip"'
    if "directors" in section.model_fields_set and not section.directors:
        why = "names nobody, so no packet of a director would be taken"
        yield (*here, "directors"), why, 'name them, as "10.0.0.1" or "10.0.1.0/28", or leave it out'
    if section.backend is not None:
        if section.role != "backend":
            yield (*here, "backend"), 'means nothing with role = "director"', 'set role = "backend"'
        names = {backend.name for pool in pools(config) for backend in config.pools[pool].backends}
        if met and section.backend not in names:
            yield (*here, "backend"), f"no pool of mode packet has a backend {section.backend!r}", None
    sizes: dict[int, str] = {}
    hosts: set[str] = set()
    for name in sorted(pools(config)):
        pool = config.pools[name]
        sizes.setdefault(pool.table_size, name)
        hosts |= {backend.address.rpartition(":")[0] for backend in pool.backends}
        for key, wanted in (("policy", "maglev"), ("key", "source")):
            if getattr(pool, key) != wanted:
                why = f'packets go by the hash of source address and port: {key} must be "{wanted}"'
                yield ("pools", name, key), why, None
    if len(sizes) > 1:
        (size, first), (_, other) = list(sizes.items())[:2]
        why = f"pools of mode packet have tables of one size, and that of {first!r} is {size}"
        yield ("pools", other, "table_size"), why, None
    if len(hosts) > MOST_HOSTS:
        yield (), f"{len(hosts)} machines get packets; there may be {MOST_HOSTS}", None


def doubts(config: Config) -> Iterator[Finding]:
    """What works and is probably not meant."""
    here: Path = ("packet",)
    section, met = config.packet, listeners(config)
    if not met and section.interfaces:
        yield here, 'no listener is of mode "packet"', None
    if section.engine == "nftables" and "xdp" in section.model_fields_set:
        yield (*here, "xdp"), 'means nothing with engine = "nftables"', None
    if met and section.role == "backend" and section.forward == "ipip" and not section.directors:
        why = "without it this machine takes packets out of the outer packets of anybody"
        yield (*here, "directors"), why, 'name those that send them: directors = ["10.0.0.1", "10.0.1.0/28"]'
    if met and config.balancer.secret is None and config.balancer.secret_file is None:
        why = "without it each machine makes its own, and no two of them send a packet to the same backend"
        yield ("balancer", "secret_file"), why, "the same on all: openssl rand -hex 16"
    for name in sorted(only_packets(config)):
        pool = config.pools[name]
        yield from _unused(("pools", name), pool)
        if pool.health is not None and not any(
            listener.protocol == "tcp" for listener in met if listener.pool == name
        ):
            why = "checks ask over TCP, and only packets of UDP come here"
            yield ("pools", name, "health"), why, "they reach the address of the listener at that backend"


def _unused(here: Path, pool: PoolConfig) -> Iterator[Finding]:
    for key in sorted(pool.model_fields_set - POOL_KEYS):
        yield (*here, key), 'means nothing where only packets come, in mode "packet"', None
