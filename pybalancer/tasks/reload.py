"""Reload when the configuration's file changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

Mark = tuple[int, int, int, int, int] | None
"""What tells one state of a file from another; None while there is no file."""

_log = logging.getLogger("pybalancer")

GLANCE: Final = 5.0
"""Seconds after which the file is looked at in any case. The kernel tells of the directory that was
opened: not of another one that took its place, of one behind a link, nor of what others do on NFS."""


def mark(path: str | os.PathLike[str]) -> Mark:
    """The state of the file at ``path`` now."""
    try:
        stat = os.stat(path)  # Through links: Kubernetes swaps a link to a directory.
    except OSError:
        return None
    # The time of its change too: with other permissions it may have become readable.
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(path).absolute()


async def watch_file(
    path: str | os.PathLike[str], on_change: Callable[[], Awaitable[None]], seen: Mark
) -> None:
    """Await ``on_change()`` each time that the file at ``path`` has become another, until cancelled.

    ``seen`` is what it was when it was read. The directory is watched, not the file: editors and
    configuration management write a new file and rename it over the old one, and the old one never
    changes again.
    """
    file = _absolute(path)
    stop = trio.Event()

    async def look() -> None:
        nonlocal seen
        now = mark(file)
        # Gone for a moment between two renames: the new one makes another event.
        if now is not None and now != seen:
            seen = now
            await on_change()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_set_when_cancelled, stop)
        blind = False
        while True:
            await look()
            why = await _watch_directory(file.parent, look, stop)
            if why and not blind:
                _log.warning("%s is looked at every %g s only: %s", file, GLANCE, why)
            blind = why is not None
            if blind:
                await trio.sleep(GLANCE)


async def _watch_directory(
    directory: Path, look: Callable[[], Awaitable[None]], stop: trio.Event
) -> str | None:
    """Await ``look()`` whenever something happens in a directory, or nothing for a while.

    Returns when there is another directory in its place, or why it cannot be watched.
    """
    import watchfiles

    before = _identity(directory)
    changes = watchfiles.awatch(
        directory,
        watch_filter=None,
        recursive=False,
        step=100,
        rust_timeout=int(GLANCE * 1000),
        yield_on_timeout=True,
        stop_event=stop,
    )
    while True:
        try:
            stirred = await anext(changes, None)
        except (OSError, RuntimeError) as error:  # Out of watches, or no such directory.
            return str(error)
        if stirred is None:
            await trio.sleep_forever()  # It was told to stop, and so were we.
        await look()
        if _identity(directory) != before:
            return None


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(directory)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


async def _set_when_cancelled(event: trio.Event) -> None:
    """The thread that waits for the kernel does not notice that its caller is cancelled: this tells it."""
    try:
        await trio.sleep_forever()
    finally:
        event.set()
