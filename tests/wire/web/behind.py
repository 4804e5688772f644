"""Real servers behind one ``pybalancer serve`` in mode "websocket", a listener and a pool for each group."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websocket

from pybalancer.admin.client import Client as Admin

from ..backends import Backend
from ..net import PATIENCE, connect
from ..serving import Serving, environment_in

LARGEST = 1 << 26


class Behind:
    """The running balancer. ``bound`` are its addresses by listener."""

    def __init__(
        self,
        directory: Path,
        pools: Mapping[str, Sequence[Backend]],
        options: Mapping[str, str],
        routes: Mapping[str, str],
        balancer: str,
    ) -> None:
        sections = [f"[balancer]\nworkers = 2\n{balancer}", '[log]\nformat = "json"']
        for name, servers in pools.items():
            sections += [
                f'[[listeners]]\nname = "{name}"\nbind = "127.0.0.1:0"\nmode = "websocket"\npool = "{name}"',
                *([f'[[listeners.routes]]\npool = "{name}"\n{routes[name]}'] if name in routes else []),
                f"[pools.{name}]\n{options.get(name, '')}",
                *(
                    f'[[pools.{name}.backends]]\nname = "{server.name}"\naddress = "{server.address}"'
                    for server in servers
                ),
            ]
        file = directory / "pybalancer.toml"
        file.write_text("\n".join(sections))
        self.serving = Serving(environment_in(directory), file)
        admin = Admin(self.serving.line(r"admin interface at (unix:[^\s\"]+)")[1])
        self.bound: dict[str, str] = {one["name"]: one["bound"] for one in admin.get("/status")["listeners"]}

    def connect(self, listener: str, source: str | None = None) -> socket.socket:
        return connect(self.bound[listener], source)

    def websocket(
        self,
        listener: str,
        path: str = "/",
        *,
        host: str | None = None,
        source: str | None = None,
        **options: Any,
    ) -> ClientConnection:
        """PyPI's websockets; ``host`` is the name, with or without a port, that it takes the balancer for."""
        return websocket(
            f"ws://{host or self.bound[listener]}{path}",
            sock=self.connect(listener, source),
            proxy=None,
            max_size=LARGEST,
            open_timeout=PATIENCE,
            close_timeout=PATIENCE,
            ping_interval=None,
            **options,
        )

    def ask(
        self,
        listener: str,
        path: str,
        body: bytes | None = None,
        *,
        host: str | None = None,
        source: str | None = None,
        fields: Mapping[str, str] = {},
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """One request by the standard library's client, on a connection of its own; POST if it has a body."""
        connection = http.client.HTTPConnection(host or self.bound[listener], timeout=PATIENCE)
        connection.sock = self.connect(listener, source)
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, body, dict(fields))
            response = connection.getresponse()
            return response, response.read()

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of connections that have ended, by client."""
        lines = [json.loads(line) for line in list(self.serving.lines) if '"event":"connection"' in line]
        return {line["client"]: line for line in lines}


@contextlib.contextmanager
def behind(
    directory: Path,
    pools: Mapping[str, Sequence[Backend]],
    options: Mapping[str, str] | None = None,
    *,
    routes: Mapping[str, str] | None = None,
    balancer: str = "",
) -> Iterator[Behind]:
    """``options`` are lines of TOML for the pools that need any, ``routes`` likewise for a first route, and
    ``balancer`` for the process."""
    running = Behind(directory, pools, options or {}, routes or {}, balancer)
    try:
        yield running
    finally:
        running.serving.close()
