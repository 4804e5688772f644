"""One backend: ``python -m bench.ripple.backend NAME PORT NOTES polite|abrupt BOOT``.

An echo server as people write them with the `websockets` library. It answers each message with its
own name and process id before it, and appends every message that it gets to the file NOTES, so that
what clients say they sent can be compared with what arrived. On TERM a polite one does what that
library's servers (and uvicorn) do: it takes nothing new, tells every client to go at once (1001), and
ends. An abrupt one just ends, as programs do that nobody taught otherwise. BOOT is how many seconds it
takes at least before it listens: programs load code, data and connections of their own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from pybalancer.demo.backend import reserve

BACKLOG = 4096


async def run(name: str, port: int, notes: str, manner: str, boot: float) -> None:
    mark = f"{name} {os.getpid()} "
    # Written at once and unbuffered: what was noted survives however this process ends.
    book = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    async def echo(connection: ServerConnection) -> None:
        try:
            async for message in connection:
                assert isinstance(message, str)
                client, number, _ = message.split(" ", 2)
                os.write(book, f"{client} {number}\n".encode())
                await connection.send(mark + message)
        except ConnectionClosed:
            pass

    ended = asyncio.Event()
    if manner == "polite":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await asyncio.sleep(boot)
    listener = reserve(port)
    listener.listen(BACKLOG)
    async with serve(echo, sock=listener, compression=None, backlog=BACKLOG):
        print("ready", flush=True)
        await ended.wait()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name, port, notes, manner, boot = sys.argv[1:]
    asyncio.run(run(name, int(port), notes, manner, float(boot)))


if __name__ == "__main__":
    main()
