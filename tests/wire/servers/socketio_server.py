"""PyPI's python-socketio as an ASGI application on uvicorn. Its sessions are in this process's memory.

To the event ``say`` it answers with its name, its transport, the number of times that this client has
said something, and what it said; an event ``heard`` goes to the client with the same. ``leave`` ends the
session.
"""

from typing import Any

import socketio

from tests.wire.servers.app import ended, start
from tests.wire.servers.asgi import run

options = start()
server = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*", allow_upgrades=True)


@server.event
async def connect(sid: str, environ: dict[str, Any]) -> None:
    await server.save_session(sid, {"said": 0})


@server.event
async def say(sid: str, what: Any) -> list[Any]:
    async with server.session(sid) as session:
        session["said"] += 1
        answer = [options.name, server.transport(sid), session["said"], what]
    await server.emit("heard", answer, to=sid)
    return answer


@server.event
async def leave(sid: str) -> None:
    await server.disconnect(sid)


@server.event
async def disconnect(sid: str, reason: str) -> None:
    ended(None, reason)


run(socketio.ASGIApp(server))
