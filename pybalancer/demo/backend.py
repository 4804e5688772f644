"""One WebSocket echo server: ``python -m pybalancer.demo.backend PORT [NAME NOTES]``.

Prints its port when it listens and ends when its standard input does, so that it never outlives
the demo, however that ends. Listens with SO_REUSEPORT, because the demo keeps the port reserved
for it while it is dead. With NAME it answers with that before each message, and appends what it got to
the file NOTES: two numbers with which each message begins.
"""

import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, WebSocketServer

BACKLOG = 1024
LARGEST_MESSAGE = 1 << 20

Handler = Callable[[WebSocketRequest], Awaitable[None]]


def reserve(port: int = 0) -> socket.socket:
    """A socket that holds a loopback port, and lets others of this user listen there too."""
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", port))
    return holder


async def _echo(request: WebSocketRequest) -> None:
    connection = await request.accept()
    with suppress(ConnectionClosed):
        while True:
            await connection.send_message(await connection.get_message())


def _noting(name: str, notes: str) -> Handler:
    # Unbuffered: what was noted survives however this process ends.
    book = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def echo(request: WebSocketRequest) -> None:
        connection = await request.accept()
        with suppress(ConnectionClosed):
            while True:
                message = await connection.get_message()
                assert isinstance(message, str)
                client, number, _ = message.split(" ", 2)
                os.write(book, f"{client} {number}\n".encode())
                await connection.send_message(f"{name} {message}")

    return echo


async def _serve(port: int, handler: Handler) -> None:
    listener = reserve(port)
    listener.listen(BACKLOG)
    print(listener.getsockname()[1], flush=True)
    server = WebSocketServer(
        handler,
        [trio.SocketListener(trio.socket.from_stdlib_socket(listener))],
        max_message_size=LARGEST_MESSAGE,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as parent:
            while await parent.receive_some():
                pass
        nursery.cancel_scope.cancel()


def main() -> None:
    """Serve until standard input ends. Ctrl-C is the demo's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    port, *noted = sys.argv[1:] or ["0"]
    trio.run(_serve, int(port), _noting(*noted) if noted else _echo)


if __name__ == "__main__":
    main()
