"""The page's part, from Python: talks to its node, and goes on when that restarts.

python examples/direct/client.py 'http://127.0.0.1:8080/connect?room=7'
"""

import json
import sys

import trio
from trio_websocket import WebSocketConnection

from pybalancer.client import connect

MESSAGES = 10


async def greet(connection: WebSocketConnection) -> None:
    """Each new connection begins with this: a place to log in, to subscribe."""
    await connection.send_message("hello from Python")


async def main(directory: str) -> None:
    async with connect(directory, on_open=greet) as socket:
        async for message in socket:
            said = json.loads(message)
            print(f"{said['node']} at {socket.url}: {said['text']}", flush=True)
            _, _, number = said["text"].partition("message ")
            if number == str(MESSAGES):
                break
            await socket.send(f"message {int(number or 0) + 1}")


trio.run(main, sys.argv[1])
