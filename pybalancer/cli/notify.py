"""Tells systemd how the service is (sd_notify(3)): one datagram, no library."""

import os
import socket
import time


def notify(*assignments: str) -> None:
    """Send ``READY=1`` and the like; nothing happens where nobody listens."""
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect(address)
            sender.sendall("\n".join(assignments).encode())
        except OSError:
            pass  # the service works as well without


def reloading() -> None:
    """Type=notify-reload wants to know when the reload began, to see that READY=1 came after it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
