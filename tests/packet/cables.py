"""What virtual cables need so that XDP works on them, beside ``tests.wire.namespace``.

``XDP_TX`` on a veth needs a program at its other end, even one that only passes, and checksums that
the sender has left to hardware must be there: both are set up here, by the bare system calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import socket
import struct

from tests.wire.namespace import Namespace

SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 0)
PROG_LOAD, LINK_CREATE = 5, 28
PROG_TYPE_XDP, ATTACH_XDP, NATIVE = 6, 37, 4
SIOCETHTOOL = 0x8946
OFF = (0x17, 0x1F, 0x24)
"""ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO."""
PASS = struct.pack("<BBhi", 0xB7, 0, 0, 2) + struct.pack("<BBhi", 0x95, 0, 0, 0)
"""r0 = XDP_PASS; exit."""

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> int:
    memory = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    descriptor: int = _libc.syscall(SYS_BPF, command, memory, 128)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor


def passing_program() -> int:
    """An XDP program that does nothing; its descriptor."""
    code, licence = ctypes.create_string_buffer(PASS, len(PASS)), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQ", PROG_TYPE_XDP, len(PASS) // 8, ctypes.addressof(code), ctypes.addressof(licence)
    )
    return bpf(PROG_LOAD, attributes)


def let_pass(space: Namespace, *interfaces: str) -> list[int]:
    """Attach such a program; it is there as long as the descriptors are."""
    program = passing_program()
    try:
        with space.inside():
            return [
                bpf(
                    LINK_CREATE,
                    struct.pack("<IIII", program, socket.if_nametoindex(interface), ATTACH_XDP, NATIVE),
                )
                for interface in interfaces
            ]
    finally:
        os.close(program)


def plain(space: Namespace, interface: str) -> None:
    """No checksum or segmentation is left to a hardware that is not there."""
    with space.inside(), socket.socket() as asking:
        for command in OFF:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP8x", interface.encode(), ctypes.addressof(value))
            with contextlib.suppress(OSError):
                fcntl.ioctl(asking, SIOCETHTOOL, request)
