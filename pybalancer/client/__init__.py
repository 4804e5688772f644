"""Clients that connect straight to a backend, and come back well.

Under trio::

    async with pybalancer.client.connect("https://www.example.com/connect") as socket:
        await socket.send("hello")
        async for message in socket:
            ...

and for any other library ``attempts`` yields where to connect and how long to wait. The same for browsers is
``pybalancer/js/client.js``, in the folder ``JAVASCRIPT``. How to use each: docs/clients.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pybalancer.client.rules import Comeback, Found, Retry, Told, is_final, retry_after
from pybalancer.client.steps import Attempts, attempts
from pybalancer.errors import ConnectionEnded

if TYPE_CHECKING:
    from pybalancer.client.connection import ReconnectingSocket, connect

__all__ = [
    "JAVASCRIPT",
    "Attempts",
    "Comeback",
    "ConnectionEnded",
    "Found",
    "ReconnectingSocket",
    "Retry",
    "Told",
    "attempts",
    "connect",
    "is_final",
    "retry_after",
]

JAVASCRIPT = Path(__file__).parents[1] / "js"
"""The folder of the browser's client; an npm package too."""


def __getattr__(name: str) -> Any:
    # Who has another library than trio-websocket need not load it.
    if name not in ("ReconnectingSocket", "connect"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pybalancer.client import connection

    return getattr(connection, name)
