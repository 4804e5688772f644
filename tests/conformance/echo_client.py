"""PyPI's websockets as the client of a fuzzing server: echo in every case, then ask for the report.

``/getCaseCount``, ``/runCase`` and ``/updateReports`` are Autobahn's protocol.
"""

import asyncio
import contextlib
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tests.conformance.suite import LARGEST

AGENT = "websockets"


async def main(server: str) -> None:
    options = {
        "max_size": LARGEST,
        "ping_interval": None,
        "proxy": None,
        "open_timeout": 60,
        "close_timeout": 60,
    }
    async with connect(f"{server}/getCaseCount", **options) as connection:
        count = int(await connection.recv())
    for case in range(1, count + 1):
        # That the server breaks the rules is what it is for.
        with contextlib.suppress(WebSocketException, ConnectionError):
            async with connect(f"{server}/runCase?case={case}&agent={AGENT}", **options) as connection:
                async for message in connection:
                    await connection.send(message)
    async with connect(f"{server}/updateReports?agent={AGENT}", **options) as connection:
        await connection.wait_closed()


asyncio.run(main(sys.argv[1]))
