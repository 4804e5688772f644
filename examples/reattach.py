"""An application whose clients keep their WebSockets when its servers restart: `reattach = "replay"`.

python examples/reattach.py

Each client has a sum that grows with every number that it sends. A server that takes a client over from
another gets its handshake once more, with a field that names the tunnel; under that name it finds the sum.
"""

import secrets
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    open_websocket_url,
    serve_websocket,
)

import pybalancer

CLIENTS = 100
# Leave it out, and one is made and kept.
SECRET = secrets.token_hex(16)
# What the servers share: a database, usually.
SUMS: dict[str, int] = {}


def configuration(servers: dict[str, str]) -> dict[str, Any]:
    """What a file would say."""
    backends = [{"name": name, "address": address} for name, address in servers.items()]
    return {
        "balancer": {"workers": 1, "secret": SECRET},
        "listeners": [
            {
                "name": "public",
                "bind": "127.0.0.1:0",
                "mode": "websocket",
                "pool": "app",
                "reattach": "replay",
                # So long a client is kept without any server; then it gets Close 1012.
                "reattach_timeout": "30s",
            }
        ],
        # A server that is taken out of the configuration is left at once, not when its clients like to.
        "pools": {"app": {"backends": backends, "on_remove": "close"}},
    }


def tunnel_of(request: WebSocketRequest) -> str:
    """The name under which this client's state is kept, the same for every server that it comes to.

    Only the balancer can have sent the field, if servers can be reached through it alone: it takes it out of
    what clients send.
    """
    fields = {name.lower(): value.decode() for name, value in request.headers}
    resumed: str | None = fields.get(b"pybalancer-resumed")
    if resumed is None:
        return fields[b"x-request-id"]
    return resumed.partition(";")[0]


async def serve(name: str, request: WebSocketRequest) -> None:
    """A server: answers each number with the sum so far, and its name."""
    tunnel = tunnel_of(request)
    connection = await request.accept()
    with suppress(ConnectionClosed):
        while True:
            number = int(await connection.get_message())
            SUMS[tunnel] = SUMS.get(tunnel, 0) + number
            await connection.send_message(f"{SUMS[tunnel]} {name}")


async def add(connection: WebSocketConnection, number: int, total: int) -> str:
    """Send a number; the name of the server that has added it."""
    await connection.send_message(str(number))
    told, server = (await connection.get_message()).split()
    assert int(told) == total, f"the sum is {told} and not {total}"
    return str(server)


class Crowd:
    """Clients, and which server has answered each before the restart and after it."""

    def __init__(self) -> None:
        self.before: Counter[str] = Counter()
        self.after: Counter[str] = Counter()
        self.all_there, self.restarted = trio.Event(), trio.Event()

    async def talk(self, url: str) -> None:
        """One of them. It knows nothing of any of this, and fails if it is disconnected."""
        async with open_websocket_url(url) as connection:
            self.before[await add(connection, 1, 1)] += 1
            if self.before.total() == CLIENTS:
                self.all_there.set()
            await self.restarted.wait()
            self.after[await add(connection, 2, 3)] += 1
            await add(connection, 3, 6)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        servers = {}
        for name in ("app-1", "app-2"):
            server = await nursery.start(
                partial(serve_websocket, partial(serve, name), "127.0.0.1", 0, ssl_context=None)
            )
            servers[name] = f"127.0.0.1:{server.port}"

        async with pybalancer.Balancer(configuration(servers)) as lb:
            url = f"ws://{lb.bound['public']}/"
            crowd = Crowd()
            async with trio.open_nursery() as clients:
                for _ in range(CLIENTS):
                    clients.start_soon(crowd.talk, url)
                await crowd.all_there.wait()
                print(f"{CLIENTS} clients: {dict(sorted(crowd.before.items()))}")
                del servers["app-1"]
                await lb.reload(configuration(servers))
                # They may go on at once: what they say on the way waits for them.
                crowd.restarted.set()
            print(f"without app-1: {dict(crowd.after)}")
            print(f"{crowd.before['app-1']} went on at another server, and every sum is right")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
