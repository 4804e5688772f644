"""``attempts`` with PyPI's websockets, on threads and on asyncio, while nodes are killed."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pybalancer.client import Attempts, Retry, attempts

from .backends import Backend, backends
from .directories import Answer, directory, found

SOON = Retry(base_ms=50, max_ms=200)


class Fleet:
    """Real servers, of which the first that is alive is named."""

    def __init__(self, servers: list[Backend]) -> None:
        self.alive = list(servers)

    def answer(self) -> Answer:
        urls = [f"ws://{server.address}/echo" for server in self.alive]
        return found(*urls, backend=self.alive[0].name)

    def kill(self) -> None:
        self.alive[0].signal(signal.SIGKILL)
        self.alive[0].process.wait()
        del self.alive[0]


def test_on_threads() -> None:
    with backends("websockets", "websockets", "websockets") as servers:
        fleet = Fleet(servers)
        with directory(fleet.answer) as running:
            steps = attempts(running.url, retry=SOON)
            served = []
            for url, delay in steps:
                if url is None:
                    time.sleep(delay)
                    continue
                with connect(url, proxy=None) as socket:
                    steps.opened()
                    socket.send("hello")
                    assert socket.recv() == "hello"
                    served.append(steps.backend)
                    if len(fleet.alive) == 1:
                        steps.closed(1000)
                        continue
                    fleet.kill()
                    with pytest.raises(ConnectionClosed) as caught:
                        socket.recv()
                    steps.closed(caught.value.rcvd and caught.value.rcvd.code)
            assert served == [server.name for server in servers]
            assert (steps.end, len(running.asked)) == ((1000, ""), 3)


def test_on_asyncio() -> None:
    async def talk(steps: Attempts, fleet: Fleet) -> list[str | None]:
        served = []
        while step := await asyncio.to_thread(next, steps, None):
            url, delay = step
            if url is None:
                await asyncio.sleep(delay)
                continue
            async with connect_async(url, proxy=None) as socket:
                steps.opened()
                await socket.send("hello")
                assert await socket.recv() == "hello"
                served.append(steps.backend)
                if len(fleet.alive) == 1:
                    return served
                fleet.kill()
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
        raise AssertionError(steps.end)

    with backends("websockets", "websockets") as servers:
        fleet = Fleet(servers)
        with directory(fleet.answer) as running:
            assert asyncio.run(talk(attempts(running.url, retry=SOON), fleet)) == [
                one.name for one in servers
            ]
