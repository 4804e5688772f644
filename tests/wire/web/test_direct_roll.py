"""Direct clients while nodes go: 500 WebSockets that the balancer does not see.

Every client asks the directory, connects to the node that it names, and asks again when that closes.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack, suppress
from typing import Any

import trio
from trio_websocket import (
    ConnectionClosed,
    HandshakeError,
    WebSocketConnection,
    WebSocketRequest,
    WebSocketServer,
    open_websocket_url,
)

from pybalancer import Balancer
from pybalancer.demo.backend import reserve

from ..balancing import SECRET, until
from ..net import text_of

CLIENTS = 500
AT_ONCE = 32
INTERVAL = "100ms"


class Node:
    """A WebSocket server that can be restarted on its address. It tells its clients to go (Close 1012), as
    applications do at their end, or dies without a word."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.name = name
        self.holder = stack.enter_context(reserve())
        self.port = self.holder.getsockname()[1]
        self.address = text_of(self.holder.getsockname())
        self.clients: set[WebSocketConnection] = set()
        self.scope: trio.CancelScope | None = None

    async def _handle(self, request: WebSocketRequest) -> None:
        connection = await request.accept()
        if request.path == "/check":
            async with connection:
                await self._until_closed(connection)
            return
        self.clients.add(connection)
        try:
            await self._until_closed(connection)
        finally:
            self.clients.discard(connection)

    async def _until_closed(self, connection: WebSocketConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                await connection.get_message()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as self.scope:
            listening = reserve(self.port)
            listening.listen(1024)
            streams = [trio.SocketListener(trio.socket.from_stdlib_socket(listening))]
            async with trio.open_nursery() as nursery:
                await nursery.start(WebSocketServer(self._handle, streams).run)
                task_status.started()
        self.scope = None

    async def leave(self) -> None:
        """Listen no more, tell all to go, and end."""
        for connection in list(self.clients):
            await connection.aclose(1012, "restart")
        self.die()

    def die(self) -> None:
        assert self.scope is not None
        self.scope.cancel()


class Clients:
    """All of them. ``away``: nodes that take nobody now; ``wrong``: answers that named such a one."""

    def __init__(self, balancer: Balancer, nodes: dict[str, Node]) -> None:
        self.balancer = balancer
        self.urls = {f"ws://{node.address}": node for node in nodes.values()}
        self.away: set[str] = set()
        self.wrong: list[tuple[str, set[str]]] = []
        self.asked = self.refused = self.put_off = 0
        self.at = [""] * CLIENTS
        self.gate = trio.CapacityLimiter(AT_ONCE)

    def standing(self) -> int:
        return sum(map(bool, self.at))

    async def live(self, number: int) -> None:
        while True:
            async with self.gate:
                url = await self._ask(number)
            if url is None:
                continue
            try:
                async with open_websocket_url(url) as connection:
                    self.at[number] = self.urls[url.rpartition("/chat")[0]].name
                    with suppress(ConnectionClosed):
                        await connection.get_message()
            except (HandshakeError, OSError):
                self.refused += 1
            self.at[number] = ""

    async def _ask(self, number: int) -> str | None:
        host, _, port = self.balancer.bound["told"].rpartition(":")
        before = set(self.away)
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            request = f"GET /connect?user={number} HTTP/1.1\r\nHost: www\r\nConnection: close\r\n\r\n"
            await stream.send_all(request.encode())
            raw = b""
            async for part in stream:
                raw += part
        head, _, body = raw.partition(b"\r\n\r\n")
        self.asked += 1
        if b" 503 " in head.splitlines()[0]:
            self.put_off += 1
            return None
        content = json.loads(body)
        # Away before it was asked for, and after it was answered: then at the answer, too.
        away = before & self.away
        urls = [content["url"], *content["alternatives"]]
        named = {self.urls[url.rpartition("/chat")[0]].name for url in urls}
        if named & away:
            self.wrong.append((content["backend"], away))
        return str(content["url"])


def configuration(nodes: dict[str, Node]) -> dict[str, Any]:
    backends = [
        {"name": name, "address": node.address, "public_url": f"ws://{node.address}"}
        for name, node in nodes.items()
    ]
    check = {
        "kind": "websocket",
        "path": "/check",
        "interval": INTERVAL,
        "rise": 1,
        "fall": 1,
        "timeout": "20s",
    }
    route = {"path": "/connect", "pool": "chat", "target": "/chat"}
    return {
        "balancer": {"workers": 2, "secret": SECRET},
        "listeners": [{"name": "told", "bind": "127.0.0.1:0", "mode": "directory", "routes": [route]}],
        "pools": {"chat": {"backends": backends, "health": check, "key": "query:user"}},
    }


def runs(balancer: Balancer) -> dict[str, str]:
    """State of each node in the plan that the workers run."""
    choices = balancer.explain("192.0.2.1:1", "chat")["choices"]
    return {choice["backend"]: choice["state"] for choice in choices}


async def test_a_roll_of_four_nodes_sends_nobody_to_one_that_is_away() -> None:
    with ExitStack() as stack:
        nodes = {name: Node(name, stack) for name in ("app-1", "app-2", "app-3", "app-4")}
        async with Balancer(configuration(nodes)) as balancer, trio.open_nursery() as nursery:
            for node in nodes.values():
                await nursery.start(node.serve)
            clients = Clients(balancer, nodes)
            for number in range(CLIENTS):
                nursery.start_soon(clients.live, number)
            await until(lambda: clients.standing() == CLIENTS, "all clients")
            before = list(clients.at)
            assert clients.asked == CLIENTS

            async def restart(name: str) -> None:
                """The balancer has drained it. Until it listens again, nobody is sent there."""
                clients.away.add(name)
                assert runs(balancer)[name] == "draining"
                await nodes[name].leave()
                await until(lambda: nodes[name].scope is None)
                await until(lambda: clients.standing() == CLIENTS, "all clients elsewhere")
                assert name not in clients.at
                clients.away.discard(name)
                await nursery.start(nodes[name].serve)

            result = await balancer.roll("chat", restart, slow_start=0)
            assert [step.step for step in result.steps] == ["done"] * 4
            assert clients.wrong == []
            assert (clients.refused, clients.put_off) == (0, 0)
            assert clients.standing() == CLIENTS
            # Whoever had to ask again is where the table wants it, given who was there.
            assert clients.asked > CLIENTS
            counts = Counter(clients.at)
            assert counts["app-4"] == 0, "it was the last to go, and everybody had left it"
            assert Counter(before)["app-4"] > 60
            nursery.cancel_scope.cancel()


async def test_a_node_that_dies_is_named_until_its_check_fails_and_not_after() -> None:
    with ExitStack() as stack:
        nodes = {name: Node(name, stack) for name in ("app-1", "app-2", "app-3", "app-4")}
        async with Balancer(configuration(nodes)) as balancer, trio.open_nursery() as nursery:
            for node in nodes.values():
                await nursery.start(node.serve)
            clients = Clients(balancer, nodes)
            for number in range(CLIENTS):
                nursery.start_soon(clients.live, number)
            await until(lambda: clients.standing() == CLIENTS, "all clients")
            nodes["app-2"].die()
            # One probe, of which there is one an interval, and the plan that says so.
            await until(lambda: runs(balancer)["app-2"] == "down")
            clients.away.add("app-2")
            await until(lambda: clients.standing() == CLIENTS, "all clients elsewhere")
            assert "app-2" not in clients.at
            assert clients.wrong == []
            assert clients.put_off == 0
            nursery.cancel_scope.cancel()
