"""A backend as an operator has it: a process that a command restarts. It starts fast: standard library only.

``service.py serve NAME PORT`` listens there and, to each client, says its name and process id in one line and
echoes then. ``service.py restart FOLDER NAME`` ends the one that runs and starts another in its place; it
returns when that listens. The folder has a file ``NAME.port``, and gets ``NAME.pid`` and ``restarts``. Where
it has a pipe ``NAME.gate``, a restart waits for somebody to open that, and notes in ``reached`` that it
waits, in ``waiting`` its process id.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
from pathlib import Path

PATIENCE = 30.0


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
    gate = folder / f"{name}.gate"
    if gate.exists():
        note(folder / "waiting", str(os.getpid()))
        note(folder / "reached", name)
        gate.open().close()
    book = folder / f"{name}.pid"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        handle = os.pidfd_open(int(book.read_text()))
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        assert poller.poll(1000 * PATIENCE), f"{name} does not end"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, "serve", name, (folder / f"{name}.port").read_text()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"listening\n"
    book.write_text(str(process.pid))
    note(folder / "restarts", name)
    print(f"{name} restarted")


def note(book: Path, name: str) -> None:
    with book.open("a") as file:
        file.write(f"{name}\n")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        restart(Path(sys.argv[2]), sys.argv[3])
