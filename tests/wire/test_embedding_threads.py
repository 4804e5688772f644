"""An embedded balancer among other things: threads, an asyncio loop, programs that only import it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pybalancer
from pybalancer import PybalancerError, run_in_thread

from .hosts import NEVER, ROOT, configuration
from .net import PATIENCE, Server, connect, echoes, served, server, until

LONG = 2.0
"""Seconds that no call may hold up an event loop; each takes some milliseconds."""


@pytest.fixture
def backend() -> Iterator[Server]:
    with server() as running:
        yield running


class Crowd:
    """Threads that each do one thing again and again, and the errors that ended them."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self.errors: list[BaseException] = []
        self.rounds = [0] * len(works)
        self.enough = threading.Event()
        self.threads = [threading.Thread(target=self._do, args=pair) for pair in enumerate(works)]

    def _do(self, index: int, work: Callable[[], object]) -> None:
        try:
            while not self.enough.is_set():
                work()
                self.rounds[index] += 1
        except BaseException as error:
            self.errors.append(error)

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_many_threads_at_once(backend: Server) -> None:
    """Questions and reloads from all sides, under traffic; a reload in between closes nobody's tunnel."""
    with run_in_thread(configuration(backend.address)) as lb, connect(lb.bound["front"]) as kept:
        address = lb.bound["front"]
        given = [configuration(backend.address), configuration(backend.address, backend.address)]
        crowd = Crowd(
            lambda: lb.status().to_dict(),
            lambda: lb.status().to_dict(),
            lambda: lb.explain("192.0.2.1:1"),
            lb.metrics,
            lambda: lb.bound,
            lambda: lb.reload(given[0]),
            lambda: lb.reload(given[1]),
            lambda: served(address),
        )
        crowd.start()
        until(lambda: min(crowd.rounds) >= 20 or crowd.errors, "twenty rounds of each")
        assert echoes(kept)
        crowd.enough.set()
        crowd.join()
        assert not crowd.errors


def test_threads_that_ask_while_it_ends_are_told(backend: Server) -> None:
    for _ in range(5):
        with run_in_thread(configuration(backend.address)) as lb:
            crowd = Crowd(
                lb.status,
                lb.metrics,
                lambda lb=lb: lb.bound,  # type: ignore[misc]
                lambda lb=lb: lb.reload(configuration(backend.address)),  # type: ignore[misc]
            )
            crowd.start()
            until(lambda crowd=crowd: min(crowd.rounds) or crowd.errors, "a round of each")
        crowd.join()
        assert {type(error) for error in crowd.errors} <= {PybalancerError, pybalancer.EngineError}
        assert len(crowd.errors) == 4


def test_closed_from_many_threads(backend: Server) -> None:
    with run_in_thread(configuration(backend.address)) as lb, connect(lb.bound["front"]) as client:
        assert echoes(client)
        closers = [threading.Thread(target=lb.close, args=(grace,)) for grace in (NEVER, NEVER, 0.0)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(PATIENCE)
            assert not closer.is_alive()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


# asyncio.


async def longest_pause(work: Awaitable[object]) -> float:
    """How long the event loop did nothing else, at most, while ``work`` was done."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            worst, last = max(worst, now - last), now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await work
    await asyncio.sleep(0.002)
    ticking.cancel()
    return worst


async def ask(lb: Any, count: int) -> None:
    for _ in range(count):
        lb.status()
        lb.explain("192.0.2.1:1")
        lb.metrics()
        await asyncio.sleep(0)


def test_calls_do_not_hold_up_an_asyncio_loop(backend: Server) -> None:
    async def main() -> None:
        with run_in_thread(configuration(backend.address)) as lb:
            host, _, port = lb.bound["front"].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), PATIENCE) == b"hello"
            assert await longest_pause(ask(lb, 50)) < LONG
            reload = asyncio.to_thread(lb.reload, configuration(backend.address, backend.address))
            assert await longest_pause(reload) < LONG
            # The tunnel goes on, so this takes as long as it may.
            grace = LONG + 0.5
            started = time.monotonic()
            assert await longest_pause(asyncio.to_thread(lb.close, grace)) < LONG
            assert time.monotonic() - started >= grace
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.readexactly(1), PATIENCE)
            writer.close()

    asyncio.run(main())


def test_a_cancelled_asyncio_task_does_not_wait_for_tunnels(backend: Server) -> None:
    async def host(started: asyncio.Event) -> None:
        with run_in_thread(configuration(backend.address)) as lb:
            clients.append(connect(lb.bound["front"]))
            assert echoes(clients[0])
            started.set()
            await asyncio.to_thread(lb.close, NEVER)

    async def main() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(host(started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE)

    clients: list[Any] = []
    asyncio.run(main())
    with clients[0], pytest.raises(ConnectionResetError):
        clients[0].recv(1)


# Importing.

PICTURE = """
import json, os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
def picture():
    return {
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "tasks": os.listdir("/proc/self/task"),
        "threads": threading.active_count(),
        "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "environment": dict(os.environ),
        "files": os.listdir("."),
        "umask": os.umask(0o77),
    }
before, modules = picture(), set(sys.modules)
import pybalancer
loaded = set(sys.modules) - modules
light = picture()
for name in pybalancer.__all__:
    getattr(pybalancer, name)
print(json.dumps({"before": before, "light": light, "whole": picture(), "loaded": sorted(loaded)}))
"""


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", PICTURE, str(ROOT)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads(done.stdout)
    seen["before"]["umask"] = seen["light"]["umask"]  # The first picture set it.
    assert seen["before"] == seen["light"] == seen["whole"]
    # Nothing but itself, and what is in Python: what is heavy comes when it is first used.
    foreign = {name.partition(".")[0] for name in seen["loaded"]} - sys.stdlib_module_names
    assert foreign == {"pybalancer"}
    assert not {"asyncio", "logging", "ssl", "pybalancer._core"} & set(seen["loaded"])


def test_every_name_that_is_promised_is_there() -> None:
    assert set(pybalancer.__all__) <= set(dir(pybalancer))
    for name in pybalancer.__all__:
        assert getattr(pybalancer, name).__name__ == name
    with pytest.raises(AttributeError, match="balancr"):
        pybalancer.balancr  # noqa: B018
