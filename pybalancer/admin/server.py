"""Serves the admin interface inside the balancer's process: ``serve``.

Hypercorn speaks HTTP under trio and drops a client that dawdles with its headers or idles on a
kept connection; ``sockets`` makes the socket, ``guard`` says who may ask, ``app`` answers.
"""

import logging
import socket
from collections.abc import Collection

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.trio import serve as serve_asgi

from pybalancer.admin.address import TcpAddress, parse
from pybalancer.admin.app import Operable, make_app
from pybalancer.admin.guard import Policy
from pybalancer.admin.sockets import AlreadyRunning, Door, listen
from pybalancer.errors import AdminError

__all__ = ["AlreadyRunning", "serve"]

IDLE_SECONDS = 5.0
"""How long a connection may stay without a complete request head."""


class _ServerConfig(HypercornConfig):
    """Hypercorn's settings for one socket that is already listening."""

    def __init__(self, listener: socket.socket, log: logging.Logger) -> None:
        super().__init__()
        self._listener = listener
        self.errorlog = log
        self.accesslog = None
        self.include_server_header = False
        self.keep_alive_timeout = IDLE_SECONDS
        self.graceful_timeout = 1.0
        self.h11_max_incomplete_size = 16 * 1024
        self.websocket_max_message_size = 0

    def create_sockets(self) -> Sockets:
        """The socket that we made: hypercorn would bind one by name, open to all for a moment."""
        return Sockets([], [self._listener], [])


async def serve(
    balancer: Operable,
    address: str,
    *,
    token: str | None = None,
    origins: Collection[str] = (),
    door: Door | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the admin interface at ``address`` (``unix:/path`` or ``host:port``) until cancelled.

    ``task_status`` gets the address really bound. A TCP address needs a ``token``; ``origins`` may
    POST besides; ``door`` is what passes between two processes. Raises ``AlreadyRunning`` if another
    pybalancer answers at a Unix socket, else ``AdminError`` that says what is in the way.
    """
    where = parse(address)
    hosts: tuple[str, ...] = ()
    if isinstance(where, TcpAddress):
        if not token:
            raise AdminError(f"admin {where}: a TCP address needs balancer.admin_token or admin_token_file")
        hosts = (f"[{where.host}]" if ":" in where.host else where.host,)
    # Hypercorn announces itself at INFO; its errors are worth a line.
    log = logging.getLogger("pybalancer.admin.http")
    log.setLevel(logging.WARNING)
    policy = Policy(token=token if isinstance(where, TcpAddress) else None, hosts=hosts, origins=origins)
    with listen(where, door) as listener:
        if door is not None:
            door.listener = listener
        async with trio.open_nursery() as nursery:
            config = _ServerConfig(listener.dup(), log)
            await nursery.start(serve_asgi, make_app(balancer, policy), config)
            task_status.started(_bound(listener, where))


def _bound(listener: socket.socket, where: object) -> str:
    if isinstance(where, TcpAddress):
        return str(TcpAddress(where.host, listener.getsockname()[1]))
    return str(where)
