"""The file that tells which process serves."""

import contextlib
import logging
import os
from pathlib import Path

_log = logging.getLogger("pybalancer")


def write(path: str | None) -> None:
    """Write this process's id, whole at every moment. A service works as well without."""
    if path is None:
        return
    temporary = f"{path}.{os.getpid()}"
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(temporary).write_text(f"{os.getpid()}\n", encoding="ascii")
        os.rename(temporary, path)
    except OSError as error:
        _log.warning("no pid file %s: %s", path, error.strerror or error)


def remove(path: str | None) -> None:
    """Remove it, unless another process has written its own there."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        if Path(path).read_text(encoding="ascii") == f"{os.getpid()}\n":
            os.unlink(path)
