"""What the servers have in common."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading

BACKLOG = 1024
FRAGMENT = 1000
"""Bytes of a fragment on ``/fragments``."""
LEAVING = (1001, "going away")
PATIENCE = 60.0


class Options(argparse.Namespace):
    name: str
    largest: int
    """Bytes of the largest message that is taken; 0: no limit."""
    ping_interval: float
    """Seconds between the server's own pings; 0: none."""
    protocol: str
    external_port: int | None
    """The port under which clients know it, where that is another one than its own (autobahn)."""


def start() -> Options:
    """Read the command line, and from then on end when standard input does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="app")
    parser.add_argument("--largest", type=int, default=0)
    parser.add_argument("--ping-interval", type=float, default=0.0)
    parser.add_argument("--protocol", default="auto")
    parser.add_argument("--external-port", type=int)

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    return parser.parse_args(namespace=Options())


def listening(port: int) -> None:
    print(port, flush=True)


def report(name: str, message: str | bytes) -> str:
    """What came, so that the client can compare it with what it sent."""
    data = message.encode() if isinstance(message, str) else message
    return json.dumps(
        {
            "server": name,
            "kind": "text" if isinstance(message, str) else "binary",
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    )


def ended(code: int | None, reason: str | None) -> None:
    print(json.dumps([code, reason or ""]), flush=True)
