"""An ASGI application on uvicorn, on a port that it tells."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn

from tests.wire.servers.app import BACKLOG, listening


class Announcing(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets
        listening(sockets[0].getsockname()[1])


def run(app: Any, **options: Any) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        config = uvicorn.Config(app, lifespan="off", log_level="error", backlog=BACKLOG, **options)
        asyncio.run(Announcing(config).serve([listener]))
