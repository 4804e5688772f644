"""What is there of a proxy: its processes, found by their session, and the memory that they hold."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import trio


@dataclass(frozen=True)
class Footprint:
    """At one moment. Bytes."""

    processes: int
    rss: int
    """Shared pages counted for each process that has them."""
    pss: int
    """Shared pages by proportion: what they cost together."""


def of_session(session: int) -> list[int]:
    """Every process that was started in it, whoever its parent is by now."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # Behind the name, which may hold anything: state, parent, group, session.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def footprint(session: int) -> Footprint:
    sums = {"Rss": 0, "Pss": 0}
    pids = of_session(session)
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                key, _, rest = line.partition(":")
                if key in sums:
                    sums[key] += int(rest.split()[0]) * 1024
    return Footprint(len(pids), sums["Rss"], sums["Pss"])


async def end(session: int) -> None:
    """TERM, then KILL, all that is left of it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in of_session(session):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with trio.move_on_after(5.0, shield=True):
            while of_session(session):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.05)
