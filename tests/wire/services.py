"""Backends that a command restarts (``servers/service.py``), and clients that see which of them they have."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from .net import PATIENCE, connect, read_exactly, reserved, until

SERVICE = Path(__file__).parent / "servers" / "service.py"


class Services:
    """Some of them, in a folder that knows their ports and process ids."""

    def __init__(self, folder: Path, addresses: dict[str, str]) -> None:
        self.folder = folder
        self.addresses = addresses

    @property
    def command(self) -> str:
        """For ``--exec``."""
        words = [sys.executable, "-I", "-S", str(SERVICE), "restart", str(self.folder)]
        return f"{shlex.join(words)} {{name}}"

    def start(self) -> None:
        """All of them."""
        commands = [shlex.split(self.command.replace("{name}", name)) for name in self.addresses]
        starting = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
        assert [process.wait(PATIENCE) for process in starting] == [0] * len(starting)
        (self.folder / "restarts").unlink()

    @property
    def pids(self) -> dict[str, int]:
        return {name: int((self.folder / f"{name}.pid").read_text()) for name in self.addresses}

    @property
    def restarts(self) -> list[str]:
        """Who was restarted, in this order."""
        return self._noted("restarts")

    def hold(self, *names: str) -> None:
        """Their restarts wait from now on."""
        for name in names:
            os.mkfifo(self.folder / f"{name}.gate")

    def reached(self, *names: str) -> None:
        """Wait until all of their restarts wait."""
        until(lambda: set(names) <= set(self._noted("reached")), f"restarts of {names}")

    def release(self, name: str) -> None:
        """Let go on who waits."""
        gate = self.folder / f"{name}.gate"
        gate.open("w").close()
        gate.unlink()

    def _noted(self, what: str) -> list[str]:
        book = self.folder / what
        return book.read_text().split() if book.exists() else []

    def toml(self, pool: str = "chat") -> str:
        return "".join(
            f'[[pools.{pool}.backends]]\nname = "{name}"\naddress = "{address}"\n'
            for name, address in self.addresses.items()
        )

    def close(self) -> None:
        # Of a test that has failed there may be restarts that nobody lets go on.
        for pid in [*map(int, self._noted("waiting")), *self.pids.values()]:
            with contextlib.suppress(OSError):
                if str(SERVICE).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def services(folder: Path, names: Sequence[str]) -> Iterator[Services]:
    """As many as there are names, running."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        addresses = {name: stack.enter_context(reserved()) for name in names}
        for name, address in addresses.items():
            (folder / f"{name}.port").write_text(address.rpartition(":")[2])
        made = Services(folder, addresses)
        made.start()
        stack.callback(made.close)
        yield made


class Visitor:
    """A client: whom it has come to."""

    def __init__(self, address: str) -> None:
        self.socket = connect(address)
        line = b""
        while not line.endswith(b"\n"):
            line += read_exactly(self.socket, 1)
        self.backend, _, self.pid = line.decode().strip().partition(" ")

    def echoes(self) -> bool:
        self.socket.sendall(b"still there?")
        return read_exactly(self.socket, 12) == b"still there?"

    def told_to_go(self) -> bool:
        """Whether its end is there already. It gets nothing else unasked."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def ended(self) -> bool:
        """Wait for its end; whether that was a clean one."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return False


def visit(address: str, count: int, least: Sequence[str] = ()) -> list[Visitor]:
    """So many of them, and more until each of ``least`` has one."""
    made = [Visitor(address) for _ in range(count)]

    def all_there() -> bool:
        if set(least) <= {one.backend for one in made}:
            return True
        made.append(Visitor(address))
        return False

    until(all_there, f"a client at each of {least}")
    return made


@contextlib.contextmanager
def leaving(visitors: Sequence[Visitor]) -> Iterator[list[bool]]:
    """Meanwhile they go when they are told to. Of each that has gone whether its end was a clean one."""
    ends: list[bool] = []
    left = {visitor.socket: visitor for visitor in visitors}
    enough = threading.Event()

    def watch() -> None:
        while left and not enough.is_set():
            for ready in select.select(list(left), [], [], 0.05)[0]:
                ends.append(left.pop(ready).ended())
                ready.close()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield ends
    finally:
        enough.set()
        thread.join()
