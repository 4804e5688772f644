"""A balancer inside an asyncio program: it runs in a thread of its own, beside the event loop.

pip install websockets
python examples/embed_asyncio.py
"""

import asyncio
import secrets
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket

import pybalancer

CLIENTS = 100


def configuration(servers: dict[str, str]) -> dict[str, Any]:
    """What a file would say; `run_in_thread("pybalancer.toml")` reads one."""
    return {
        # Leave the secret out, and one is made and kept: then a restart changes no client's server.
        "balancer": {"workers": 1, "secret": secrets.token_hex(16)},
        "listeners": [{"name": "public", "bind": "127.0.0.1:0", "pool": "chat"}],
        "pools": {
            "chat": {"backends": [{"name": name, "address": address} for name, address in servers.items()]}
        },
    }


async def serve(name: str, connection: ServerConnection) -> None:
    """A server: says its name, then sends back what it gets."""
    await connection.send(name)
    async for message in connection:
        await connection.send(message)


async def talk(url: str, served: Counter[str], everybody: asyncio.Barrier) -> None:
    """A client: notes who serves it, checks one echo, and stays until all are there."""
    async with connect(url) as connection:
        name = str(await connection.recv())
        await connection.send(f"hello, {name}")
        assert await connection.recv() == f"hello, {name}"
        served[name] += 1
        await everybody.wait()  # All are connected.
        await everybody.wait()  # They have been counted.


async def main() -> None:
    async with AsyncExitStack() as stack:
        servers = {}
        for name in ("app-1", "app-2"):
            server = await stack.enter_async_context(serve_websocket(partial(serve, name), "127.0.0.1", 0))
            host, port = server.sockets[0].getsockname()
            servers[name] = f"{host}:{port}"

        with pybalancer.run_in_thread(configuration(servers)) as lb:
            url = f"ws://{lb.bound['public']}/"
            served: Counter[str] = Counter()
            everybody = asyncio.Barrier(CLIENTS + 1)
            async with asyncio.TaskGroup() as clients:
                for _ in range(CLIENTS):
                    clients.create_task(talk(url, served, everybody))
                await everybody.wait()
                live = {backend.name: backend.active for backend in lb.status().pools[0].backends}
                print(f"live tunnels: {live}")
                await everybody.wait()
            print(f"{CLIENTS} clients of {url}: {dict(sorted(served.items()))}")

            # Waiting for tunnels to end would hold up the event loop; leaving the block does not wait.
            await asyncio.to_thread(lb.close, 5.0)
            print("closed")


if __name__ == "__main__":
    asyncio.run(main())
