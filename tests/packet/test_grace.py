"""Kernels that refuse membarrier(2), as those with ``nohz_full`` do: changes are waited for another way."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybalancer import _core
from tests.wire.namespace import Namespace

MEMBARRIER = {"x86_64": 324, "aarch64": 283}.get(platform.machine())
SECRET = bytes(range(16))

pytestmark = pytest.mark.skipif(MEMBARRIER is None, reason="the number of membarrier(2) is not known here")

SWAPS = """
import ctypes, errno, os, struct, sys
from tests.packet.test_path import test_a_table_is_swapped_whole, test_a_way_changes_whole

libc = ctypes.CDLL(None, use_errno=True)
number, refusal, pin = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
# seccomp: load the number of the call; if it is this one, refuse it; else allow it.
code = struct.pack("<HBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 0, 1, number,
                   0x06, 0, 0, 0x50000 | refusal, 0x06, 0, 0, 0x7FFF0000)
code = ctypes.create_string_buffer(code, len(code))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(code)), 16)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
assert libc.syscall(number, 1, 0, 0) == -1 and ctypes.get_errno() == refusal
test_a_table_is_swapped_whole(None, pin + "/table")
test_a_way_changes_whole(None, pin + "/way")
print("swapped")
"""


@pytest.fixture
def pin() -> Iterator[str]:
    name = f"pybalancer-test-{os.getpid()}/grace"
    yield name
    for kind in ("table", "way"):
        size = 65537 if kind == "table" else 251
        _core.PacketPath("director", secret=SECRET, size=size, pin=f"{name}/{kind}").close(keep=False)
    Path("/sys/fs/bpf", name).rmdir()
    Path("/sys/fs/bpf", name).parent.rmdir()


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.ENOSYS, errno.EPERM], ids=errno.errorcode.get)
def test_changes_are_whole_without_the_barrier(place: Namespace, pin: str, refusal: int) -> None:
    with place.inside():
        done = subprocess.run(
            [sys.executable, "-c", SWAPS, str(MEMBARRIER), str(refusal), pin],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout == "swapped\n", done.stderr
