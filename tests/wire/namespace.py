"""Network namespaces: a machine of its own for a test, with its own addresses, ports and kernel settings.

A namespace is entered by a thread. Sockets that the thread makes inside belong there, and so do the
threads and processes that it starts: servers, workers and ``pybalancer serve`` are started inside and
know nothing of it. No namespace here has a name, so none can be left behind: each is gone with the
last socket and descriptor that refer to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from .net import until

CLONE_NEWNET = 0x40000000
HERE = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Namespace:
    """One, with its loopback interface up."""

    def __init__(self) -> None:
        home = os.open(HERE, os.O_RDONLY)
        try:
            _check(_libc.unshare(CLONE_NEWNET))
            try:
                self.descriptor = os.open(HERE, os.O_RDONLY)
            finally:
                _check(_libc.setns(home, CLONE_NEWNET))
        finally:
            os.close(home)
        self.ip("link set lo up")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread's place until the end of the block."""
        home = os.open(HERE, os.O_RDONLY)
        try:
            _check(_libc.setns(self.descriptor, CLONE_NEWNET))
            try:
                yield
            finally:
                _check(_libc.setns(home, CLONE_NEWNET))
        finally:
            os.close(home)

    def ip(self, *commands: str) -> None:
        """Commands of ip(8)."""
        with self.inside():
            for command in commands:
                done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"ip {command}: {done.stderr}"

    def join(self, other: Namespace, here: str, there: str) -> None:
        """A cable: two interfaces, one in each, up."""
        with self.inside():
            cable = f"ip link add name {here} type veth peer name {there}"
            cable += f" netns /proc/self/fd/{other.descriptor}"
            subprocess.run(cable.split(), pass_fds=[other.descriptor], check=True)
        self.ip(f"link set {here} up")
        other.ip(f"link set {there} up")

    def own(self, interface: str, *addresses: str) -> None:
        """Give an interface addresses (``10.0.0.1/24``), and wait until they can be used."""
        for address in addresses:
            self.ip(f"addr add {address} dev {interface} {'nodad' if ':' in address else ''}")
        for address in addresses:
            until(partial(self._is_local, address.partition("/")[0]), f"{address} on {interface}")

    def _is_local(self, address: str) -> bool:
        # The kernel brings IPv6 addresses into service behind the scenes.
        with self.inside():
            shown = subprocess.run(
                ["ip", "route", "get", address], capture_output=True, text=True, check=False
            )
        return shown.stdout.startswith("local ")

    def mac(self, interface: str) -> str:
        """The hardware address of an interface."""
        with self.inside():
            shown = subprocess.run(["ip", "-br", "link", "show", interface], capture_output=True, check=True)
        return shown.stdout.decode().split()[2]

    def set(self, name: str, value: object) -> None:
        """A setting under /proc/sys/net, as ``ipv4/ip_forward``."""
        with self.inside():
            Path("/proc/sys/net", name).write_text(str(value))

    def setting(self, name: str) -> str:
        with self.inside():
            return Path("/proc/sys/net", name).read_text().strip()

    def counter(self, name: str) -> int:
        """One of the kernel's counters of TCP (``nstat -az``), as ``ListenOverflows``."""
        with self.inside():
            lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            if name in names.split():
                return int(values.split()[names.split().index(name)])
        raise KeyError(name)

    def close(self) -> None:
        os.close(self.descriptor)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    try:
        yield made
    finally:
        made.close()


@functools.cache
def _why_not() -> str:
    try:
        Namespace().close()
    except (OSError, AssertionError) as error:
        return str(error)
    return ""


needs_namespaces = pytest.mark.skipif(
    bool(_why_not()), reason=f"cannot make a network namespace (needs root and ip(8)): {_why_not()}"
)
