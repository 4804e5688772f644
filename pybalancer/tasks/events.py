"""What workers tell: to policy what it must act on, to the log what an operator must know."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from pybalancer._core import Engine, Event

_log = logging.getLogger("pybalancer")

PAUSE: Final = 0.1
"""Seconds between two looks: a storm of connections wakes Python ten times a second, not once for each."""


async def watch(
    engine: Engine,
    on_connect_failed: Callable[[str, str, int], None],
    on_records: Callable[[], None],
) -> None:
    """Pass on events until cancelled. ``on_connect_failed`` gets pool, backend and count."""
    while True:
        await trio.lowlevel.wait_readable(engine.event_fd)
        for event in engine.take_events():
            if event.kind == "connect-failed" and event.pool and event.backend:
                on_connect_failed(event.pool, event.backend, event.count)
            level, text = describe(event)
            _log.log(level, "%s", text)
        on_records()
        await trio.sleep(PAUSE)


def describe(event: Event) -> tuple[int, str]:
    """A level of ``logging`` and a line that says what happened and what to do."""
    where = f"{event.pool}/{event.backend}"
    match event.kind:
        case "connect-failed":
            times = "" if event.count == 1 else f" ({event.count} times)"
            return logging.INFO, f"cannot connect to {where}: {event.message}{times}"
        case "ports-exhausted":
            return logging.WARNING, (
                f"no outgoing port left to {where}: {event.count} connections went elsewhere or were "
                f"refused; add addresses to pools.{event.pool}.sources, each gives about 28,000 more"
            )
        case "source-failed":
            return logging.WARNING, (
                f"pool {event.pool} cannot connect from {event.message} ({event.count} times); "
                "check its sources"
            )
        case "worker-died":
            return logging.ERROR, (
                f"worker {event.worker} failed and lost {event.count} tunnels; the others go on, it starts "
                f"again: {event.message}. This is a defect of pybalancer: please report it"
            )
        case "worker-restarted":
            return logging.WARNING, f"worker {event.worker} serves again"
        case "accept-paused":
            return logging.WARNING, (
                f"worker {event.worker} accepts nothing for now: {event.message}; tunnels are not touched"
            )
        case "accept-resumed":
            return logging.INFO, f"worker {event.worker} accepts again"
