"""Backends as an operator has them: processes that a command restarts.

``python -m tests.wire.services serve NAME PORT`` listens there and, to each client, says its name and process
id in one line and echoes then. ``python -m tests.wire.services restart FOLDER NAME`` ends the one that runs
and starts another in its place; it returns when that listens.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .net import PATIENCE, connect, read_exactly, reserved, until

ROOT = Path(__file__).parents[2]


def serve(name: str, port: str) -> None:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", int(port)))
    listening.listen(1024)
    print("listening", flush=True)
    selector = selectors.DefaultSelector()
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listening:
                connection, _ = listening.accept()
                connection.sendall(f"{name} {os.getpid()}\n".encode())
                selector.register(connection, selectors.EVENT_READ)
                continue
            connection = key.fileobj  # type: ignore[assignment]
            data = b""
            with contextlib.suppress(OSError):
                data = connection.recv(1 << 16)
                connection.sendall(data)
            if not data:
                selector.unregister(connection)
                connection.close()


def restart(folder: Path, name: str) -> None:
    book = folder / f"{name}.pid"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pid = int(book.read_text())
        handle = os.pidfd_open(pid)
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            assert selector.select(PATIENCE), f"{name} does not end"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.wire.services", "serve", name, (folder / f"{name}.port").read_text()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"listening\n"
    book.write_text(str(process.pid))
    print(f"{name} restarted")


class Services:
    """Some of them, in a folder that knows their ports and process ids."""

    def __init__(self, folder: Path, addresses: dict[str, str]) -> None:
        self.folder = folder
        self.addresses = addresses

    @property
    def command(self) -> str:
        """For ``--exec``."""
        return f"{sys.executable} -m tests.wire.services restart {self.folder} {{name}}"

    def start(self, name: str) -> None:
        """It, or another in its place."""
        command = self.command.replace("{name}", name).split()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    @property
    def pids(self) -> dict[str, int]:
        return {name: self.pid(name) for name in self.addresses}

    def toml(self, pool: str = "chat") -> str:
        return "".join(
            f'[[pools.{pool}.backends]]\nname = "{name}"\naddress = "{address}"\n'
            for name, address in self.addresses.items()
        )

    def close(self) -> None:
        for name in self.addresses:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(self.pid(name), signal.SIGKILL)


@contextlib.contextmanager
def services(folder: Path, names: Sequence[str]) -> Iterator[Services]:
    """As many as there are names, running."""
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        addresses = {name: stack.enter_context(reserved()) for name in names}
        for name, address in addresses.items():
            (folder / f"{name}.port").write_text(address.rpartition(":")[2])
        made = Services(folder, addresses)
        stack.callback(made.close)
        for name in names:
            made.start(name)
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


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        restart(Path(sys.argv[2]), sys.argv[3])
