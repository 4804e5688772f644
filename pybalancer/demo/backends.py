"""The demo's backends: processes that can be killed and brought back at the same address."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from pybalancer.demo.backend import reserve
from pybalancer.errors import PybalancerError

START_SECONDS = 30.0
"""Time for a backend to listen; a fresh Python on a busy machine may take a few."""


class DemoBackend:
    """One backend: a name, an address that stays its own, and a process while it lives."""

    def __init__(self, name: str, notes: Path | None = None) -> None:
        self.name = name
        self._noted = [] if notes is None else [name, str(notes)]
        self._reservation = reserve()
        self.port: int = self._reservation.getsockname()[1]
        self._process: trio.Process | None = None

    @property
    def address(self) -> str:
        """``host:port``, the same over all its lives."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of its process, while it lives."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process and wait until it listens."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "pybalancer.demo.backend", str(self.port), *self._noted],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._process = process
        assert process.stdout is not None
        with trio.move_on_after(START_SECONDS):
            if await process.stdout.receive_some():
                return
        await self.kill()
        raise PybalancerError(f"the demo's backend {self.name} did not start")

    async def kill(self) -> None:
        """SIGKILL, as a crash would be; waits for its end. Nothing happens if it is dead already."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                await trio.aclose_forcefully(pipe)

    async def restart(self) -> None:
        """Kill it, and start it again."""
        await self.kill()
        await self.start()

    def release(self) -> None:
        """Give the port back."""
        self._reservation.close()


@asynccontextmanager
async def run_backends(count: int, notes: Path | None = None) -> AsyncIterator[list[DemoBackend]]:
    """``count`` backends that listen; all are dead and buried when the context ends."""
    backends = [DemoBackend(f"app-{number}", notes) for number in range(1, count + 1)]
    try:
        async with trio.open_nursery() as nursery:
            for backend in backends:
                nursery.start_soon(backend.start)
        yield backends
    finally:
        with trio.CancelScope(shield=True):
            for backend in backends:
                await backend.kill()
                backend.release()
