"""PyPI's Starlette on uvicorn, as behind any proxy: with its proxy headers believed.

``GET /``             an empty page, to run scripts in
``GET /whoami``       what the application knows of its client, as JSON
``GET /count/N``      N lines, each sent before the next is made: a response in chunks
``GET /events``       server-sent events: one, and another one for each ``POST /event``, up to three
``POST /upload``      a multipart form with a file; its name, size and SHA-256 as JSON
``/ws``               a WebSocket: the same as ``/whoami`` first, then an echo; "leave" ends it with 4001
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.wire.servers.app import ended, start
from tests.wire.servers.asgi import run

options = start()
wanted = asyncio.Semaphore(0)


def known(connection: HTTPConnection) -> dict[str, object]:
    return {
        "server": options.name,
        "client": connection.client.host if connection.client else None,
        "scheme": connection.url.scheme,
        "url": str(connection.url),
        "fields": connection.headers.items(),
    }


async def page(_: Request) -> HTMLResponse:
    return HTMLResponse("<!doctype html><title>a page</title>")


async def whoami(request: Request) -> JSONResponse:
    return JSONResponse(known(request))


async def count(request: Request) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        for number in range(request.path_params["upto"]):
            yield f"line {number}\n"

    return StreamingResponse(lines(), media_type="text/plain")


async def events(_: Request) -> StreamingResponse:
    async def one_by_one() -> AsyncIterator[str]:
        for number in range(3):
            if number:
                await wanted.acquire()
            yield f"data: {number}\n\n"

    return StreamingResponse(one_by_one(), media_type="text/event-stream")


async def event(_: Request) -> Response:
    wanted.release()
    return Response(status_code=204)


async def upload(request: Request) -> JSONResponse:
    async with request.form() as form:
        file = form["file"]
        assert isinstance(file, UploadFile)
        hasher = hashlib.sha256()
        while part := await file.read(1 << 20):
            hasher.update(part)
        return JSONResponse({"name": file.filename, "size": file.size, "sha256": hasher.hexdigest()})


async def converse(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_json(known(socket))
    while (event := await socket.receive())["type"] == "websocket.receive":
        if event.get("text") == "leave":
            await socket.close(4001, "as you wish")
        elif event.get("text") is not None:
            await socket.send_text(event["text"])
        else:
            await socket.send_bytes(event["bytes"])
    ended(event["code"], event.get("reason"))


app = Starlette(
    routes=[
        Route("/", page),
        Route("/whoami", whoami),
        Route("/count/{upto:int}", count),
        Route("/events", events),
        Route("/event", event, methods=["POST"]),
        Route("/upload", upload, methods=["POST"]),
        WebSocketRoute("/ws", converse),
    ]
)
run(app, proxy_headers=True, forwarded_allow_ips="127.0.0.1")
