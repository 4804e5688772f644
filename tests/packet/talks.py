"""WebSockets through a site: real servers on its backends, real clients that talk all the time.

All run in one thread with one loop; each socket is made in the namespace where it belongs. A client
sends random bytes, and its server answers with its own name, the SHA-256 of what it got, and the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import threading
import time
from collections.abc import Collection, Coroutine, Iterator
from typing import Any, Final

import websockets.asyncio.client
import websockets.asyncio.server

from tests.wire.namespace import Namespace
from tests.wire.net import PATIENCE

from .topology import PORT, Machine

LARGEST: Final = 3000
"""Bytes of a message."""
BREATH: Final = 0.3
"""Seconds between two messages of one client, on average."""
AT_ONCE: Final = 50
"""Handshakes under way."""


class Conversation:
    """One client. ``server`` is who answers; ``failure`` says how it was lost."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.dice = random.Random(number)
        self.server, self.failure = "", ""
        self.rounds = 0
        self.source = ""


class Talks:
    """Servers, and the conversations with them."""

    def __init__(self, client: Namespace) -> None:
        self.client = client
        self.conversations: list[Conversation] = []
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[websockets.asyncio.server.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(4 * PATIENCE)

    def serve(self, machine: Machine) -> None:
        """A WebSocket server on all addresses of a backend."""
        with machine.space.inside():
            listening = socket.socket(socket.AF_INET6)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(("::", PORT))
        listening.listen(1024)

        async def answer(connection: websockets.asyncio.server.ServerConnection) -> None:
            with contextlib.suppress(websockets.exceptions.ConnectionClosed):
                async for message in connection:
                    assert isinstance(message, bytes)
                    await connection.send(f"{machine.name} {hashlib.sha256(message).hexdigest()}")
                    await connection.send(message)

        async def start() -> None:
            self._servers.append(
                await websockets.asyncio.server.serve(
                    answer, sock=listening, compression=None, ping_interval=None, open_timeout=PATIENCE
                )
            )

        self._run(start())

    def open(self, address: str, count: int, patience: float = PATIENCE) -> list[Conversation]:
        """So many more conversations with whoever answers at an address, each with its first round done."""
        first = len(self.conversations)
        opened = [Conversation(number) for number in range(first, first + count)]
        gate = asyncio.Semaphore(AT_ONCE)

        async def begin(conversation: Conversation) -> None:
            async with gate:
                with self.client.inside():
                    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
                connection.setblocking(False)
                await self._loop.sock_connect(connection, (address, PORT))
                conversation.source = "{}:{}".format(*connection.getsockname()[:2])
                opening = websockets.asyncio.client.connect(
                    "ws://service/",
                    sock=connection,
                    proxy=None,
                    compression=None,
                    ping_interval=None,
                    open_timeout=patience,
                )
                # Without an `async with`, for it goes on.
                web = await opening.__aenter__()
                await self._round(conversation, web)
            task = self._loop.create_task(self._talk(conversation, web))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        async def all_of_them() -> None:
            async with asyncio.timeout(patience), asyncio.TaskGroup() as group:
                for conversation in opened:
                    group.create_task(begin(conversation))

        self._run(all_of_them())
        self.conversations += opened
        return opened

    async def _round(
        self, conversation: Conversation, web: websockets.asyncio.client.ClientConnection
    ) -> None:
        sent = conversation.dice.randbytes(conversation.dice.randrange(LARGEST))
        await web.send(sent)
        server, digest = str(await web.recv()).split()
        assert digest == hashlib.sha256(sent).hexdigest(), "the server got other bytes"
        assert await web.recv() == sent, "the client got other bytes"
        assert conversation.server in ("", server), f"{conversation.server} has become {server}"
        conversation.server = server
        conversation.rounds += 1

    async def _talk(
        self, conversation: Conversation, web: websockets.asyncio.client.ClientConnection
    ) -> None:
        try:
            while True:
                await self._round(conversation, web)
                await asyncio.sleep(conversation.dice.uniform(0, 2 * BREATH))
        except asyncio.CancelledError:
            web.transport.abort()
            raise
        except Exception as error:
            conversation.failure = repr(error)

    def lost(self, among: Collection[Conversation], patience: float = PATIENCE) -> list[Conversation]:
        """Those that have failed, or that say nothing more for so long: the others go on, two rounds each."""
        goals = {conversation: conversation.rounds + 2 for conversation in among}
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and goals:
            goals = {
                conversation: goal
                for conversation, goal in goals.items()
                if not conversation.failure and conversation.rounds < goal
            }
            time.sleep(0.02)
        return [conversation for conversation in among if conversation.failure or conversation in goals]

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers:
                server.server.close()
                for connection in server.connections:
                    # Its peer may be gone: nobody would answer a Close.
                    connection.transport.abort()
            current = asyncio.current_task()
            tasks = [task for task in asyncio.all_tasks() if task is not current]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def talks(client: Namespace) -> Iterator[Talks]:
    made = Talks(client)
    try:
        yield made
    finally:
        made.close()
