"""Reload when the configuration's file changes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

_Mark = tuple[int, int, int] | None


def _mark(path: Path) -> _Mark:
    try:
        stat = os.stat(path)  # Through links: Kubernetes swaps a link to a directory.
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _absolute(path: str) -> Path:
    return Path(path).absolute()


async def watch_file(path: str, on_change: Callable[[], Awaitable[None]]) -> None:
    """Await ``on_change()`` each time that the file at ``path`` has become another, until cancelled.

    The directory is watched, not the file: editors and configuration management write a new file and
    rename it over the old one, and the old one never changes again.
    """
    import watchfiles

    file = _absolute(path)
    before = _mark(file)
    async for _ in watchfiles.awatch(file.parent, recursive=False, step=100, watch_filter=None):
        now = _mark(file)
        # Gone for a moment between two renames: the new one makes another event.
        if now is not None and now != before:
            before = now
            await on_change()
