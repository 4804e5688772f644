"""How far something is that a command waits for: one line that changes, or without a terminal some lines."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

from pybalancer.errors import AdminError

if TYPE_CHECKING:
    from pybalancer.admin.client import Client

EVERY: Final = 5.0
"""Seconds between two lines where nobody looks at them change."""

LOOK: Final = 0.25
"""Seconds between two looks."""


class Progress:
    """``show`` what is now; ``end`` before anything else is printed. ``quiet``: it shows nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stdout.isatty()
        self._shown: float | None = None
        self._begun = time.monotonic()

    def show(self, text: str) -> None:
        """One line."""
        if self._quiet:
            return
        if self._terminal:
            print(f"\r{text}\x1b[K", end="", flush=True)
            self._shown = time.monotonic()
        elif time.monotonic() - (self._shown or self._begun) >= EVERY:
            print(text, flush=True)
            self._shown = time.monotonic()

    def end(self) -> None:
        """The line that changes is over."""
        if self._terminal and self._shown is not None:
            print("\r\x1b[K", end="", flush=True)
            self._shown = None


def watch(client: Client, begun: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Wait until the drain that ``begun`` told of has ended; how it stands then.

    ``begun`` is the answer to /drain or /shed. Raises AdminError if its process ends before, and
    KeyboardInterrupt: it goes on without us.
    """
    progress = Progress(quiet=quiet)
    drain: dict[str, Any] = begun["drain"]
    try:
        while drain["state"] == "running":
            progress.show(left(drain))
            time.sleep(LOOK)
            drain = _look(client, begun, drain)
    finally:
        progress.end()
    return drain


def _look(client: Client, begun: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    try:
        seen = client.get("/drains")
    except AdminError as error:
        left_then = f"{last['left']:,} of {last['total']:,} tunnels were left when the balancer last answered"
        raise AdminError(f"{left_then}: {error}") from error
    if any(seen[key] != begun[key] for key in ("pid", "started")):
        raise AdminError(
            f"the pybalancer that had {last['left']:,} of {last['total']:,} tunnels left to end is gone: "
            "another process answers now, and `pybalancer status` shows what it drains"
        )
    found = (each for each in seen["drains"] if each["id"] == last["id"])
    # Those that are long over are forgotten there.
    return next(found, {**last, "state": "done"})


def left(drain: dict[str, Any]) -> str:
    """``left 4,210 of 10,000, 23 s``."""
    return f"left {drain['left']:,} of {drain['total']:,}, {drain['seconds_left']:.0f} s"


def outcome(drain: dict[str, Any]) -> str:
    """``closed 9,988, cut 12 of 10,000 tunnels in 60.1 s``."""
    parts = [f"{how} {drain[how]:,}" for how in ("closed", "moved", "cut") if drain[how] or how == "closed"]
    if drain["left"]:
        # Told to go, and their last words are not said yet; or nobody told them, if it was stopped.
        parts.append(f"{drain['left']:,} still there")
    return f"{', '.join(parts)} of {count(drain['total'], 'tunnel')} in {drain['age_seconds']:.1f} s"


def count(number: int, noun: str) -> str:
    """``1 tunnel``, ``4,210 tunnels``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def warn(warnings: list[str]) -> None:
    """What may not go as one has hoped, on standard error."""
    for warning in warnings:
        print(f"pybalancer: warning: {warning}", file=sys.stderr, flush=True)
