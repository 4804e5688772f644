"""A directory that answers as a test says. The real one is pybalancer's; this one can be wrong, or away."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


def answer(status: int, body: object = None, **fields: str) -> Answer:
    """An answer with this JSON; ``Retry_After`` is written ``Retry-After``."""
    return (
        status,
        {name.replace("_", "-"): value for name, value in fields.items()},
        json.dumps(body).encode(),
    )


def found(*urls: str, backend: str | None = None, **retry: Any) -> Answer:
    """The first is where to go, the others are alternatives."""
    body = {"url": urls[0], "backend": backend, "expires_in": 30, "alternatives": urls[1:], "retry": retry}
    return answer(200, body)


class Directory:
    """``answers`` is asked for each answer. ``asked`` are the requests: path and header fields."""

    def __init__(self, answers: Callable[[], Answer], context: ssl.SSLContext | None = None) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, str]]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                status, fields, body = owner.answers()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **fields}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.scheme = "http" if context is None else "https"
        if context is not None:
            # The handshake is for the thread of the connection.
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server.server_port}/connect?room=7"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@contextlib.contextmanager
def directory(answers: Callable[[], Answer], context: ssl.SSLContext | None = None) -> Iterator[Directory]:
    running = Directory(answers, context)
    try:
        yield running
    finally:
        running.close()
