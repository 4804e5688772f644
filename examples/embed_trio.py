"""A balancer inside a trio program: two WebSocket servers, and one address in front of them.

python examples/embed_trio.py
"""

import secrets
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, open_websocket_url, serve_websocket

import pybalancer

CLIENTS = 100
# Leave the secret out, and one is made and kept: then a restart changes no client's server.
SECRET = secrets.token_hex(16)


def configuration(servers: dict[str, str]) -> dict[str, Any]:
    """What a file would say; `Balancer("pybalancer.toml")` reads one."""
    return {
        "balancer": {"workers": 1, "secret": SECRET},
        "listeners": [{"name": "public", "bind": "127.0.0.1:0", "pool": "chat"}],
        "pools": {
            "chat": {
                "backends": [{"name": name, "address": address} for name, address in servers.items()],
                "health": {"kind": "websocket", "interval": "1s"},
            }
        },
    }


async def serve(name: str, request: WebSocketRequest) -> None:
    """A server: says its name, then sends back what it gets."""
    connection = await request.accept()
    with suppress(ConnectionClosed):
        await connection.send_message(name)
        while True:
            await connection.send_message(await connection.get_message())


async def talk(url: str, served: Counter[str]) -> None:
    """A client: notes who serves it, and checks one echo."""
    async with open_websocket_url(url) as connection:
        name = str(await connection.get_message())
        await connection.send_message(f"hello, {name}")
        assert await connection.get_message() == f"hello, {name}"
        served[name] += 1


async def crowd(url: str) -> Counter[str]:
    """Many clients at once; how many each server got."""
    served: Counter[str] = Counter()
    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(talk, url, served)
    return served


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
            print(f"{CLIENTS} clients of {url}: {dict(sorted((await crowd(url)).items()))}")

            order = [choice["backend"] for choice in lb.explain("203.0.113.7:40000")["choices"]]
            print(f"a client at 203.0.113.7:40000 would get {', and without it '.join(order)}")

            del servers["app-1"]
            result = await lb.reload(configuration(servers))
            print(f"reloaded: {'; '.join(result.changes)}")
            print(f"{CLIENTS} clients of {url}: {dict(await crowd(url))}")

            for backend in lb.status().pools[0].backends:
                print(f"{backend.name} is {backend.state}, and has served {backend.opened} connections")

        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
