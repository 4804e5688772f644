"""Clients that connect straight to their node: four nodes, a directory that names them, and a page.

python examples/direct/serve.py          then open what it prints, with ?room=7 in several tabs
"""

import json
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import pybalancer

NODES = ("app-1", "app-2", "app-3", "app-4")
PAGE = Path(__file__).with_name("index.html").read_text()
RESTART_SECONDS = 3.0


class Node:
    """One server: the page, a check, and a WebSocket that sends back what it gets, to all of the room."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clients: dict[WebSocket, str] = {}
        self.restart = trio.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.app = Starlette(
            routes=[
                Route("/", self.page),
                Route("/health", self.health),
                WebSocketRoute("/chat", self.chat),
            ]
        )

    async def page(self, request: Request) -> Response:
        return HTMLResponse(PAGE)

    async def health(self, request: Request) -> Response:
        return Response()

    async def chat(self, client: WebSocket) -> None:
        room = client.query_params.get("room", "")
        await client.accept()
        self.clients[client] = room
        try:
            async for text in client.iter_text():
                if text == "restart":
                    self.restart.set()
                    continue
                said = json.dumps({"node": self.name, "text": text})
                for other in [one for one, where in self.clients.items() if where == room]:
                    await other.send_text(said)
        finally:
            del self.clients[client]

    async def run(self) -> None:
        config = Config()
        config.bind = [f"fd://{self.listener.detach()}"]
        config.errorlog = None
        await serve(self.app, config)  # type: ignore[arg-type]


def configuration(nodes: dict[str, Node], port: int) -> dict[str, Any]:
    """What a file would say: /connect tells where to go, everything else is relayed."""
    return {
        "balancer": {"workers": 1, "admin": "none"},
        "log": {"connections": False},
        "listeners": [
            {
                "name": "public",
                "bind": f"127.0.0.1:{port}",
                "mode": "websocket",
                "pool": "chat",
                "routes": [{"path": "/connect", "action": "directory", "target": "/chat", "pool": "chat"}],
            }
        ],
        "pools": {
            "chat": {
                "key": "query:room",
                "direct": {"fallback": f"ws://127.0.0.1:{port}"} if port else {},
                "health": {"kind": "http", "path": "/health", "interval": "500ms"},
                "backends": [
                    {"name": name, "address": node.address, "public_url": f"ws://{node.address}"}
                    for name, node in nodes.items()
                ],
            }
        },
    }


async def restarts(lb: pybalancer.Balancer, node: Node) -> None:
    """A restart as it should be: named to nobody first, then all that are there are told to go."""
    while True:
        await node.restart.wait()
        print(f"{node.name} restarts, {len(node.clients)} clients have to go")
        await lb.drain(node.name, wait=False)
        for client in list(node.clients):
            # 1012: come back soon; each waits its own part of this window.
            await client.close(1012, "restart; window_ms=1000")
        await trio.sleep(RESTART_SECONDS)
        node.restart = trio.Event()
        await lb.undrain(node.name)
        print(f"{node.name} is back")


async def main(port: int) -> None:
    nodes = {name: Node(name) for name in NODES}
    async with trio.open_nursery() as nursery:
        for node in nodes.values():
            nursery.start_soon(node.run)
        async with pybalancer.Balancer(configuration(nodes, port), admin=False) as lb:
            for node in nodes.values():
                nursery.start_soon(partial(restarts, lb, node))
            print(f"http://{lb.bound['public']}/?room=7", flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 8080)
