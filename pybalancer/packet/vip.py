"""A backend's part in direct server return: it has the address of the service, and tells nobody.

The address is on ``lo``, so that the stack takes its packets. Were it known on the network, the router would
send all packets for it here, past the directors: so ARP is answered for addresses of the asked interface
only (``arp_ignore``), and none is asked in its name (``arp_announce``). IPv6 does both by itself.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from pybalancer.packet.hops import kernel_error

_log = logging.getLogger("pybalancer")

SETTINGS: Final[Mapping[str, str]] = {"ipv4/conf/all/arp_ignore": "1", "ipv4/conf/all/arp_announce": "2"}
"""Under /proc/sys/net. The largest of an interface's own and of all counts."""
ROOT: Final = Path("/proc/sys/net")


def add(vips: Collection[str]) -> tuple[str, ...]:
    """Put addresses on ``lo``; those that were not there. Raises OSError."""
    from pyroute2 import IPRoute

    added = []
    with IPRoute() as kernel:
        loopback = kernel.link_lookup(ifname="lo")[0]
        kernel.link("set", index=loopback, state="up")
        for vip in vips:
            try:
                kernel.addr("add", **_address(loopback, vip))
            except kernel_error() as error:
                number = getattr(error, "code", 0)
                if number != errno.EEXIST:
                    raise OSError(number, f"cannot add {vip} to lo: {error}") from None
                continue
            added.append(vip)
    return tuple(added)


def remove(vips: Collection[str]) -> None:
    """Take them away again, as far as they are there."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        loopback = kernel.link_lookup(ifname="lo")[0]
        for vip in vips:
            try:
                kernel.addr("del", **_address(loopback, vip))
            except kernel_error() as error:
                if getattr(error, "code", 0) != errno.EADDRNOTAVAIL:
                    _log.warning("cannot take %s from lo: %s", vip, error)


def _address(loopback: int, vip: str) -> dict[str, Any]:
    six = ":" in vip
    return {
        "index": loopback,
        "address": vip,
        "prefixlen": 128 if six else 32,
        "family": socket.AF_INET6 if six else socket.AF_INET,
        # Scope "host" would keep IPv4 from answering with it. Without NODAD, IPv6 waits before it does.
        **({"IFA_FLAGS": 0x02} if six else {"scope": 0}),
    }


def quiet() -> dict[str, str]:
    """Make the settings; what those were that have changed. Raises OSError."""
    before = {}
    for name, wanted in SETTINGS.items():
        path = ROOT / name
        found = path.read_text().strip()
        if int(found) < int(wanted):
            path.write_text(wanted)
            before[name] = found
    return before


def restore(before: Mapping[str, str]) -> None:
    """Undo ``quiet``. Only these settings are touched, whatever a file says."""
    for name, value in before.items():
        if name not in SETTINGS or not value.isdigit():
            continue
        try:
            (ROOT / name).write_text(value)
        except OSError as error:
            _log.warning("cannot set %s back to %s: %s", name, value, error)
