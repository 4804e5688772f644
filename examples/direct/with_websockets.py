"""The same with PyPI's websockets, on asyncio: `attempts` says where to connect and how long to wait.

python examples/direct/with_websockets.py 'http://127.0.0.1:8080/connect?room=7'
"""

import asyncio
import json
import sys

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from pybalancer.client import attempts

MESSAGES = 10


async def stay_connected(directory: str) -> None:
    steps = attempts(directory)
    # In a thread, since it asks the directory.
    while step := await asyncio.to_thread(next, steps, None):
        url, delay = step
        if url is None:
            await asyncio.sleep(delay)
            continue
        try:
            async with connect(url) as socket:
                steps.opened()
                await talk(socket)
                return
        except ConnectionClosed as error:
            steps.closed(error.rcvd and error.rcvd.code, error.rcvd and error.rcvd.reason)
        except InvalidStatus as error:
            steps.refused(error.response.status_code, error.response.headers.get("Retry-After"))
        except (OSError, WebSocketException):
            pass  # Nothing told: a loss.
    print("over:", steps.end)


async def talk(socket: ClientConnection) -> None:
    await socket.send("hello from asyncio")
    for number in range(1, MESSAGES + 1):
        said = json.loads(await socket.recv())
        print(f"{said['node']}: {said['text']}", flush=True)
        await socket.send(f"message {number}")


asyncio.run(stay_connected(sys.argv[1]))
