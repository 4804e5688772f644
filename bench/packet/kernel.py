"""Programs by bare system calls: what a run costs, without help from what is measured.

``BPF_PROG_TEST_RUN`` repeats a program on one packet and does not set the packet back, so the second run of a
director would see what the first has forwarded. A **rewinder** sets it back (length, and the bytes in front)
and goes on into the program by a tail call. The same one goes on into a program that only passes: the
difference of the two is the program's cost. It is a little more than that where headers come or go, since
only one of the two has a length to set back.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 0)
MAP_CREATE, MAP_UPDATE, PROG_LOAD, PROG_TEST_RUN, PROG_GET_FD_BY_ID = 0, 2, 5, 10, 13
PROG_ARRAY, XDP, ATTACH_XDP = 3, 6, 37
TAIL_CALL, ADJUST_HEAD = 12, 44
VERDICTS = ("aborted", "drop", "pass", "tx", "redirect")

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    memory = attributes
    if isinstance(memory, bytes):
        memory = ctypes.create_string_buffer(memory.ljust(144, b"\0"), 144)
    done: int = _libc.syscall(SYS_BPF, command, memory, len(memory))
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf({command}): {os.strerror(number)}")
    return done


def load(instructions: bytes) -> int:
    """Descriptor of an XDP program."""
    code, licence = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(1 << 16)
    given = struct.pack(
        "<IIQQIIQII16sII", XDP, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(licence),
        1, len(log), ctypes.addressof(log), 0, 0, b"bench", 0, ATTACH_XDP,
    )  # fmt: skip
    try:
        return bpf(PROG_LOAD, given)
    except OSError as error:
        raise RuntimeError(f"{error}\n{log.value.decode()}") from error


def op(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhI", code, to | of << 4, offset, value & 0xFFFFFFFF)


EXIT = op(0x95)
PASSING = op(0xB7, 0, value=2) + EXIT
LOAD_DATA = op(0x61, 2, 6, 0) + op(0x61, 3, 6, 4)
"""r2 = data, r3 = data_end; r6 is the context."""


def rewinding(packet: bytes, front: int, programs: int) -> bytes:
    """Set the packet back to ``packet``, of which only the first ``front`` bytes may have changed."""
    bound = op(0xBF, 4, 2) + op(0x07, 4, value=front)
    stores = b"".join(
        op(0x62, 2, offset=at, value=int.from_bytes(packet[at : at + 4], "little"))
        for at in range(0, front - 3, 4)
    )
    if front % 4:
        stores += op(0x6A, 2, offset=front - 2, value=int.from_bytes(packet[front - 2 : front], "little"))
    end = (
        op(0xBF, 1, 6)
        + op(0x18, 2, 1, value=programs) + op(0)
        + op(0xB7, 3)
        + op(0x85, value=TAIL_CALL)
        + op(0xB7, 0) + EXIT
    )  # fmt: skip
    stored = bound + op(0x2D, 4, 3, offset=(len(stores) // 8) + len(end) // 8 - 2) + stores + end
    return (
        op(0xBF, 6, 1)
        + LOAD_DATA
        + op(0xBF, 4, 3) + op(0x1F, 4, 2)                       # r4 = length
        + op(0xBF, 2, 4) + op(0x07, 2, value=-len(packet))      # r2 = what it has more
        + op(0x15, 2, offset=2, value=0)
        + op(0xBF, 1, 6) + op(0x85, value=ADJUST_HEAD)
        + LOAD_DATA
        + stored
    )  # fmt: skip


def attached(interface: str) -> int:
    """Descriptor of the program that is attached to an interface."""
    shown = subprocess.run(
        ["ip", "-j", "-d", "link", "show", interface], capture_output=True, text=True, check=True
    )
    number = json.loads(shown.stdout)[0]["xdp"]["prog"]["id"]
    return bpf(PROG_GET_FD_BY_ID, struct.pack("<I", number))


@dataclass(frozen=True)
class Run:
    verdict: str
    packet: bytes
    duration: int
    """Nanoseconds a run, as the kernel says."""


def run(program: int, packet: bytes, interface: str, repeat: int) -> Run:
    given, out = ctypes.create_string_buffer(packet, len(packet)), ctypes.create_string_buffer(4096)
    index = socket.if_nametoindex(interface)
    context = ctypes.create_string_buffer(struct.pack("<6I", 0, len(packet), 0, index, 0, 0), 24)
    attributes = ctypes.create_string_buffer(144)
    struct.pack_into(
        "<IIIIQQIIIIQQIII", attributes, 0, program, 0, len(packet), len(out), ctypes.addressof(given),
        ctypes.addressof(out), repeat, 0, len(context), 0, ctypes.addressof(context), 0, 0, 0, 0,
    )  # fmt: skip
    bpf(PROG_TEST_RUN, attributes)
    _, verdict, _, size, _, _, _, duration = struct.unpack_from("<IIIIQQII", attributes)
    return Run(VERDICTS[verdict], out.raw[:size], duration)


@contextlib.contextmanager
def rewinder(packet: bytes, front: int, target: int) -> Iterator[int]:
    """A program that sets the packet back and goes on into ``target``; its descriptor."""
    programs = bpf(MAP_CREATE, struct.pack("<IIII", PROG_ARRAY, 4, 4, 1))
    try:
        key, value = ctypes.c_uint32(0), ctypes.c_uint32(target)
        bpf(MAP_UPDATE, struct.pack("<IxxxxQQQ", programs, ctypes.addressof(key), ctypes.addressof(value), 0))
        program = load(rewinding(packet, front, programs))
        try:
            yield program
        finally:
            os.close(program)
    finally:
        os.close(programs)
