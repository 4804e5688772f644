"""Reads counters of nftables by netlink: ``read``.

``nft list counters`` reads all rules first, which for a table of 65537 slots takes a second or so.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

NETLINK_NETFILTER: Final = 12
GET_OBJECT: Final = 10 << 8 | 19
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_GETOBJ."""
REQUEST_DUMP: Final = 0x301
ERROR, DONE = 2, 3
INTERRUPTED: Final = 0x10
"""NLM_F_DUMP_INTR."""
TRIES: Final = 4
FAMILY_NETDEV: Final = 5
NAME, TYPE, DATA, TABLE = 2, 3, 4, 1
"""NFTA_OBJ_*."""
BYTES, PACKETS = 1, 2
"""NFTA_COUNTER_*."""
COUNTER: Final = 1
"""NFT_OBJECT_COUNTER."""
MOST: Final = 1 << 18
"""Bytes of one answer; the kernel's are 32 KiB at most."""


def read(table: str) -> dict[str, tuple[int, int]]:
    """Packets and bytes of each counter of a table of family netdev; none if it is not there.

    Raises OSError.
    """
    name = table.encode() + b"\0"
    body = struct.pack("BBH", FAMILY_NETDEV, 0, 0) + _attribute(TABLE, name)
    body += _attribute(TYPE, struct.pack("!I", COUNTER))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(5.0)
        kernel.bind((0, 0))
        for number in range(TRIES):
            kernel.send(struct.pack("=IHHII", 16 + len(body), GET_OBJECT, REQUEST_DUMP, number, 0) + body)
            found, whole = _answer(kernel)
            if whole:
                break
        # Else somebody changes rules all the time: what was found has to do.
        return found


def _answer(kernel: socket.socket) -> tuple[dict[str, tuple[int, int]], bool]:
    """Counters, and whether no change of rules came between the parts of the answer."""
    found: dict[str, tuple[int, int]] = {}
    whole = True
    while True:
        for kind, flags, content in _messages(kernel.recv(MOST)):
            whole = whole and not flags & INTERRUPTED
            if kind == ERROR and (problem := -struct.unpack_from("=i", content)[0]) not in (0, errno.ENOENT):
                raise OSError(problem, f"counters of nftables: {os.strerror(problem)}")
            if kind in (DONE, ERROR):
                return found, whole
            attributes = dict(_attributes(content[4:]))
            counted = dict(_attributes(attributes[DATA]))
            (packets,), (size,) = (struct.unpack("!Q", counted[what]) for what in (PACKETS, BYTES))
            found[attributes[NAME].rstrip(b"\0").decode()] = packets, size


def _attribute(kind: int, value: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((len(value) + 7) & ~3, b"\0")


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= 16:
        length, kind, flags = struct.unpack_from("=IHH", data)
        yield kind, flags, data[16:length]
        data = data[max(16, (length + 3) & ~3) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[max(4, (length + 3) & ~3) :]
