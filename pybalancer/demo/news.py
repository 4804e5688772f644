"""What the balancer logs is news for who watches the demo: a backend is down, it is up again."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _News(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


@contextmanager
def log_to(tell: Callable[[str], None]) -> Iterator[None]:
    """The log goes there, and nowhere else."""
    log, news = logging.getLogger("pybalancer"), _News(tell)
    level, propagate = log.level, log.propagate
    log.addHandler(news)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(news)
        log.setLevel(level)
        log.propagate = propagate
