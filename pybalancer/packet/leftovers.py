"""What a process that was killed has left in the kernel for one of another kind: ``clear``, ``notice``.

One of the same role and engine takes it over. Where a machine has become a backend that was a director, or
rules of nftables have become programs, it would go on beside what is set up now.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pybalancer import _core
from pybalancer.errors import PybalancerError
from pybalancer.packet import nft_counters, state, vip
from pybalancer.packet.forwarder import NFT_TABLE, PINS, pin_name
from pybalancer.packet.marks import Ways

if TYPE_CHECKING:
    from pybalancer.config.packet_model import PacketConfig

_log = logging.getLogger("pybalancer")

Kind = Literal["director", "agent"]
KINDS: Final[tuple[Kind, ...]] = ("director", "agent")
NAMES: Final = {"director": "director", "agent": "backend"}
"""What users call them."""


def clear(
    section: PacketConfig, secret: bytes, size: int, known: state.State, directory: Path
) -> state.State:
    """Remove what this role and engine do not take over; what is remembered after that.

    Raises PybalancerError if it is no leftover: its process lives.
    """
    kind = kind_of(section)
    programs = section.engine == "xdp"
    for other in KINDS:
        if pinned(other):
            _clear_programs(other, secret, size, keep=programs and other == kind)
    if nft_counters.read(NFT_TABLE) and (programs or kind != "director"):
        _clear_rules()
    if kind == "director" and (known.added or known.settings):
        # It was a backend.
        known = _clear_addresses(known, directory)
    return known


def remove(directory: Path) -> None:
    """All of it: the process that had to take it over ends, too, and could not.

    Raises PybalancerError if it is no leftover, ``_core.PacketError`` or OSError if the kernel refuses.
    """
    for kind in KINDS:
        if pinned(kind):
            # By which table packets go does not matter any more.
            _clear_programs(kind, bytes(16), 1, keep=False)
    if nft_counters.read(NFT_TABLE):
        _clear_rules()
    known = state.load(directory)
    if known.added or known.settings:
        _clear_addresses(known, directory)


def notice() -> str:
    """What is there, where this process has nothing to do with packets; "" if nothing is."""
    for kind in KINDS:
        if pinned(kind):
            what = f"programs of mode packet that a {NAMES[kind]} has left still do what they did"
            return f"{what}; if no process is to take them over, `rm -r {PINS / pin_name(kind)}` ends that"
    return ""


def kind_of(section: PacketConfig) -> Kind:
    return "director" if section.role == "director" else "agent"


def pinned(kind: Kind) -> bool:
    """Whether there is something of that kind, in this network namespace."""
    with contextlib.suppress(OSError):
        return any((PINS / pin_name(kind)).iterdir())
    return False


def _clear_programs(kind: Kind, secret: bytes, size: int, *, keep: bool) -> None:
    path = _core.PacketPath(kind, secret=secret, size=size, pin=pin_name(kind))
    interfaces = list(path.interfaces())
    if (holder := living(interfaces)) is not None:
        path.close(keep=True)
        where = ", ".join(interfaces)
        raise PybalancerError(
            f"process {holder} forwards packets of {where} already, as a {NAMES[kind]}: end it first"
        )
    path.close(keep=keep)
    if keep:
        return
    if kind == "director":
        Ways.clean()
    where = ", ".join(interfaces) or "no interface"
    _log.warning("packets: programs that a %s has left at %s are removed", NAMES[kind], where)


def _clear_addresses(known: state.State, directory: Path) -> state.State:
    vip.remove(known.added)
    vip.restore(known.settings)
    known = replace(known, added=(), settings={})
    with contextlib.suppress(OSError):
        state.save(known, directory)
    return known


def _clear_rules() -> None:
    from pybalancer.packet.nft import nft
    from pybalancer.packet.nft_rules import TABLE

    done, _ = nft("delete", "table", *TABLE.split(), check=False)
    Ways.clean()
    said = "are removed" if done else f"cannot be removed: `nft delete table {TABLE}` does it"
    _log.warning("packets: rules that a director with engine = nftables has left %s", said)


def living(interfaces: Iterable[str]) -> int | None:
    """A process whose programs run at one of these interfaces; but this one, and the one that it replaces."""
    here = os.stat("/proc/thread-self/ns/net").st_ino
    numbers = set()
    for name in interfaces:
        with contextlib.suppress(OSError):
            numbers.add(socket.if_nametoindex(name))
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) in (os.getpid(), os.getppid()):
            continue
        with contextlib.suppress(OSError):
            if os.stat(process / "ns/net").st_ino == here and numbers & set(_attached(process)):
                return int(process.name)
    return None


def _attached(process: Path) -> Iterator[int]:
    """Numbers of interfaces where programs of this process run (proc_pid_fdinfo(5))."""
    for each in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            # A process may have a million sockets, which are not worth opening.
            if "bpf" in os.readlink(each):
                text = (process / "fdinfo" / each.name).read_text()
                fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
                if fields.get("link_type", "").strip() == "xdp":
                    yield int(fields.get("ifindex", "0"))
