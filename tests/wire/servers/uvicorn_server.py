"""An ASGI application on uvicorn. ``--protocol`` is its WebSocket part: websockets-sansio or wsproto."""

import asyncio
import socket
from typing import Any

import uvicorn

from tests.wire.servers.app import BACKLOG, LEAVING, PATIENCE, ended, listening, report, start

options = start()


async def app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            ended(event["code"], event.get("reason"))
            return
        text, data = event.get("text"), event.get("bytes")
        if scope["path"] == "/leave":
            await send({"type": "websocket.close", "code": LEAVING[0], "reason": LEAVING[1]})
            continue
        await send({"type": "websocket.send", "text": report(options.name, data if text is None else text)})
        if scope["path"] != "/digest":
            await send({"type": "websocket.send", "text": text, "bytes": data})


class Announcing(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets
        listening(sockets[0].getsockname()[1])


with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
    config = uvicorn.Config(
        app,
        ws=options.protocol,
        ws_max_size=options.largest or 1 << 30,
        ws_ping_interval=options.ping_interval or None,
        ws_ping_timeout=PATIENCE,  # so that the next ping waits for the pong to this one
        lifespan="off",
        log_level="error",
        backlog=BACKLOG,
    )
    asyncio.run(Announcing(config).serve([listener]))
