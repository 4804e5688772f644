"""An ASGI application on uvicorn. ``--protocol`` is its WebSocket part: websockets-sansio or wsproto."""

from typing import Any

from tests.wire.servers.app import LEAVING, PATIENCE, ended, report, start
from tests.wire.servers.asgi import run

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


run(
    app,
    ws=options.protocol,
    ws_max_size=options.largest or 1 << 30,
    ws_ping_interval=options.ping_interval or None,
    ws_ping_timeout=PATIENCE,  # so that the next ping waits for the pong to this one
)
