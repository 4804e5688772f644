"""The backends: real processes that are restarted as an operator restarts a service."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from bench.wire.proxies import ROOT
from pybalancer.demo.backend import reserve

PATIENCE = 60.0


class Backend:
    """One of them: a name and an address that outlive its processes."""

    def __init__(self, name: str, notes: Path, manner: str, boot: float) -> None:
        self.name = name
        self._given = [str(notes), manner, str(boot)]
        # Held while it is dead, so that nobody else gets its port.
        self._reservation = reserve()
        self.address = f"127.0.0.1:{self._reservation.getsockname()[1]}"
        self.process: trio.Process | None = None

    async def start(self) -> None:
        port = self.address.rpartition(":")[2]
        self.process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "bench.ripple.backend", self.name, port, *self._given],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the bench, which ends them in order.
        )
        assert self.process.stdout
        with trio.fail_after(PATIENCE):
            if not await self.process.stdout.receive_some():
                raise RuntimeError(f"backend {self.name} did not start")

    async def stop(self) -> None:
        """TERM, and wait for its end."""
        if self.process is None:
            return
        self.process.terminate()
        with trio.move_on_after(PATIENCE, shield=True) as waited:
            await self.process.wait()
        if waited.cancelled_caught:
            self.process.kill()
            with trio.CancelScope(shield=True):
                await self.process.wait()
        assert self.process.stdout
        await trio.aclose_forcefully(self.process.stdout)
        self.process = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()


class Fleet:
    """All backends, and what reached them."""

    def __init__(self, backends: list[Backend], folder: Path, notes: Path) -> None:
        self.backends = backends
        self._notes = notes
        self.door = folder / "fleet.sock"
        """Who writes a backend's name here has it restarted: see restart.py."""

    @property
    def names(self) -> list[str]:
        return [backend.name for backend in self.backends]

    async def answer(self, stream: trio.SocketStream) -> None:
        """One order at the door."""
        name = (await stream.receive_some()).decode().strip()
        for backend in self.backends:
            if backend.name == name:
                await backend.restart()
                await stream.send_all(b"restarted\n")
                return
        await stream.send_all(b"there is no such backend\n")

    def reached(self) -> Counter[tuple[int, int]]:
        """By client and number of a message: how many times it reached a backend."""
        counts: Counter[tuple[int, int]] = Counter()
        for line in self._notes.read_text().splitlines():
            client, number = line.split()
            counts[int(client), int(number)] += 1
        return counts


@contextlib.asynccontextmanager
async def running_fleet(count: int, folder: Path, manner: str, boot: float) -> AsyncIterator[Fleet]:
    notes = folder / "reached"
    notes.touch()
    fleet = Fleet(
        [Backend(f"app-{number}", notes, manner, boot) for number in range(1, count + 1)], folder, notes
    )
    try:
        async with trio.open_nursery() as nursery:
            for backend in fleet.backends:
                nursery.start_soon(backend.start)
        door = trio.socket.socket(socket.AF_UNIX)
        await door.bind(str(fleet.door))
        door.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, fleet.answer, [trio.SocketListener(door)])
            yield fleet
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for backend in fleet.backends:
                    nursery.start_soon(backend.stop)
