"""Records of connections, and the daemon's own log."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import trio

if TYPE_CHECKING:
    from pybalancer._core import Engine

Format = Literal["human", "json"]


class RecordWriter:
    """Writes the records of ended connections to a stream.

    In a thread: a pipe that nobody reads blocks that thread and nothing else. What does not fit into
    the engine's ring meanwhile is dropped, and counted there.
    """

    def __init__(self, engine: Engine, stream: BinaryIO, log_format: Format) -> None:
        self._engine = engine
        self._stream = stream
        self.format: Format = log_format
        self._wanted = trio.Event()

    def wake(self) -> None:
        """There may be records."""
        self._wanted.set()

    async def run(self) -> None:
        """Write until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                await trio.to_thread.run_sync(self._write_all, abandon_on_cancel=True)
        finally:
            # The last words, unless the stream is stuck.
            with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                await trio.to_thread.run_sync(self._write_all, abandon_on_cancel=True)

    def _write_all(self) -> None:
        # The reader of the log may be gone: that ends the log, not the balancer.
        with contextlib.suppress(OSError, ValueError):
            while text := self._engine.take_log(self.format):
                self._stream.write(text)
                self._stream.flush()


def configure_logging(log_format: Format, level: str) -> None:
    """Set up the daemon's log on standard error. A library must not: only ``serve`` calls this."""
    import structlog

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    if log_format == "json":
        final: list[Any] = [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.EventRenamer("message"),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(ensure_ascii=True),
        ]
    else:
        final = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, _human]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    logger = logging.getLogger("pybalancer")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


def _human(_logger: Any, _name: str, event: dict[str, Any]) -> str:
    """``time level text``, on one line whatever the text says (a hostile name must not forge a line)."""
    text = str(event.get("event", ""))
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    line = f"{event.get('time', '')} {event.get('level', 'info')} {safe}"
    if trace := event.get("exc_info"):
        import traceback

        line += "\n" + "".join(traceback.format_exception(*trace)).rstrip()
    return line
