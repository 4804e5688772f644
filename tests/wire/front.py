"""``pybalancer serve`` in front of real servers, as its clients and its operator see it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pybalancer._core import BackendSpec, Plan, PoolSpec
from pybalancer.admin.client import Client

from .backends import Backend
from .net import until
from .rfc6455 import RawWebSocket
from .serving import SECRET, Serving

ALL = "all"
"""Name of the listener and the pool that all servers share."""


def _pool(name: str, servers: Sequence[Backend]) -> list[str]:
    return [
        f'[[listeners]]\nname = "{name}"\nbind = "127.0.0.1:0"\npool = "{name}"',
        *(
            f'[[pools.{name}.backends]]\nname = "{server.name}"\naddress = "{server.address}"'
            for server in servers
        ),
    ]


def configuration(servers: Sequence[Backend], *, each: bool = False) -> str:
    """One listener for all servers; with ``each``, another one for each of them, by its name."""
    sections = ["[balancer]\nworkers = 2", '[log]\nformat = "json"', *_pool(ALL, servers)]
    for server in servers if each else ():
        sections += _pool(server.name, [server])
    return "\n".join(sections)


class Front:
    """A running balancer with such a configuration. ``address`` is that of the listener for all."""

    def __init__(self, serving: Serving, servers: Sequence[Backend]) -> None:
        self.serving = serving
        self.servers = {server.name: server for server in servers}
        self._admin = Client(serving.line(r"admin interface at (unix:[^\s\"]+)")[1])
        self.bound: dict[str, str] = {
            listener["name"]: listener["bound"] for listener in self.status()["listeners"]
        }
        self.address = self.bound[ALL]
        specs = [BackendSpec(name=server.name, address=server.address) for server in servers]
        self.plan = Plan(
            listeners=[], pools=[PoolSpec(name=ALL, backends=specs)], secret=bytes.fromhex(SECRET)
        )
        """Its plan, made again from nothing but secret and backends."""
        self._hosts = count(1)

    def status(self) -> dict[str, Any]:
        return self._admin.get("/status")

    def backends(self) -> dict[str, dict[str, Any]]:
        """Status of the servers in the pool of all, by name."""
        (pool,) = (pool for pool in self.status()["pools"] if pool["name"] == ALL)
        return {backend["name"]: backend for backend in pool["backends"]}

    def order(self, local: str) -> list[str]:
        """The servers, as the table ranks them for a client from there."""
        return [choice.backend for choice in self.plan.explain(ALL, local)]

    def raw(
        self, server: str | None = None, path: str = "/", *, listener: str = ALL, **options: Any
    ) -> RawWebSocket:
        """A client by hand; for ``server``, one that the table sends there.

        Each comes from an address that nobody had before: its record cannot be another's.
        """
        while True:
            number = next(self._hosts)
            source = f"127.1.{number >> 8}.{number & 0xFF}"
            connection = RawWebSocket(self.bound[listener], path, source=source, **options)
            if server is None or self.order(connection.local)[0] == server:
                return connection
            connection.abandon()

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of connections that have ended, by client."""
        lines = [json.loads(line) for line in list(self.serving.lines) if '"event":"connection"' in line]
        return {line["client"]: line for line in lines}

    def record(self, connection: RawWebSocket) -> dict[str, Any]:
        """That of this connection, once it has ended."""
        found: dict[str, Any] = until(lambda: self.records().get(connection.local), "the record")
        return found

    def forget_peak(self) -> int:
        """Measure the peak of the balancer's memory from now on; what it has now, in bytes."""
        Path(f"/proc/{self.serving.process.pid}/clear_refs").write_text("5")
        return self.peak()

    def peak(self) -> int:
        """The most memory that it has had since then, in bytes."""
        status = Path(f"/proc/{self.serving.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
