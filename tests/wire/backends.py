"""Real WebSocket servers as backends: the programs of ``servers/``, each a child process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from .net import PATIENCE, until

ROOT = Path(__file__).parents[2]
KINDS = {
    "websockets": ["websockets_server"],
    "autobahn": ["autobahn_server"],
    "uvicorn": ["uvicorn_server", "--protocol", "websockets-sansio"],
    "uvicorn-wsproto": ["uvicorn_server", "--protocol", "wsproto"],
}
"""Those that speak the little protocol."""
APPLICATIONS = {
    "socketio": ["socketio_server"],
    "starlette": ["starlette_server"],
    "channels": ["channels_server"],
}
"""Those that speak their own."""


class Backend:
    """One server. It starts at once; ``address`` waits until it listens."""

    def __init__(self, kind: str, *options: object, name: str | None = None) -> None:
        self.name = name or kind
        module, *more = (KINDS | APPLICATIONS)[kind]
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"tests.wire.servers.{module}", "--name", self.name, *more]
            + [str(option) for option in options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.ended: list[tuple[int | None, str]] = []
        """Code and reason of each WebSocket that has ended, as this server saw it."""
        self._port: str | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._port = self.process.stdout.readline().strip()
        for line in self.process.stdout:
            self.ended.append(tuple(json.loads(line)))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{until(lambda: self._port, f'the port of {self.name}')}"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextlib.contextmanager
def backends(*kinds: str, options: tuple[object, ...] = ()) -> Iterator[list[Backend]]:
    """One of each, or several of a kind: their names are the kind and a number then."""
    started = []
    try:
        for index, kind in enumerate(kinds):
            name = f"{kind}-{index + 1}" if kinds.count(kind) > 1 else kind
            started.append(Backend(kind, *options, name=name))
        yield started
    finally:
        for backend in started:
            backend.close()
