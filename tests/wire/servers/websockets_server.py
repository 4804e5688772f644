"""PyPI's websockets, on asyncio."""

import asyncio

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.wire.servers.app import BACKLOG, FRAGMENT, LEAVING, PATIENCE, ended, listening, report, start


def pieces(message: str | bytes) -> list[str] | list[bytes]:
    return [message[at : at + FRAGMENT] for at in range(0, len(message), FRAGMENT)]  # type: ignore[return-value]


async def main() -> None:
    options = start()

    async def converse(connection: ServerConnection) -> None:
        assert connection.request is not None
        path = connection.request.path
        try:
            async for message in connection:
                if path == "/leave":
                    await connection.close(*LEAVING)
                    break
                if path == "/ping":
                    await (await connection.ping(message))
                    await connection.send("pong")
                    continue
                if path == "/echo":
                    await connection.send(message)
                    continue
                await connection.send(report(options.name, message))
                if path == "/fragments":
                    await connection.send(pieces(message))
                elif path != "/digest":
                    await connection.send(message)
        except ConnectionClosed:
            pass
        ended(connection.close_code, connection.close_reason)

    async with serve(
        converse,
        "127.0.0.1",
        0,
        backlog=BACKLOG,
        max_size=options.largest or None,
        open_timeout=PATIENCE,
        ping_interval=options.ping_interval or None,
        ping_timeout=None,
        close_timeout=PATIENCE,
    ) as server:
        listening(server.sockets[0].getsockname()[1])
        await server.serve_forever()


asyncio.run(main())
