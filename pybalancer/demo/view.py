"""Shows the demo while it runs: a table that stays in place, or a plain line a second."""

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pybalancer.demo.tally import Tally

_BAR = 18
"""Columns of the longest bar; the table then fits into 80."""


@dataclass(frozen=True, slots=True)
class BackendLine:
    """One backend, as the balancer sees it."""

    name: str
    address: str
    state: str
    tunnels: int
    opened: int


@dataclass(frozen=True, slots=True)
class Frame:
    """What is shown at one moment."""

    seconds: float
    messages_per_second: float
    tally: Tally
    backends: list[BackendLine]


class View(Protocol):
    """Somewhere to show frames, and what happened."""

    def show(self, frame: Frame) -> None: ...
    def tell(self, message: str) -> None: ...


class Plain:
    """Lines for a pipe, a log, a terminal that cannot more."""

    def show(self, frame: Frame) -> None:
        """One line."""
        backends = "  ".join(
            f"{backend.name} {backend.tunnels}" + ("" if backend.state == "up" else f" ({backend.state})")
            for backend in frame.backends
        )
        print(
            f"{frame.seconds:5.1f} s  {frame.tally.connected} clients  "
            f"{frame.messages_per_second:.0f} messages/s  tunnels: {backends}",
            flush=True,
        )

    def tell(self, message: str) -> None:
        """One line."""
        print(f"        {message}", flush=True)


class Silent:
    """For ``--json``: nothing until the end."""

    def show(self, frame: Frame) -> None:
        """Nothing."""

    def tell(self, message: str) -> None:
        """Nothing."""


class _Live:
    def __init__(self) -> None:
        from rich.live import Live

        self.screen = Live(auto_refresh=False)
        self._news: deque[str] = deque(maxlen=4)
        self._seconds = 0.0

    def show(self, frame: Frame) -> None:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        self._seconds = frame.seconds
        table = Table(title=f"pybalancer demo · {frame.seconds:.0f} s", title_justify="left")
        for column in ("backend", "address", "health"):
            table.add_column(column, no_wrap=True)
        table.add_column("tunnels", justify="right", no_wrap=True)
        table.add_column("", width=_BAR)
        table.add_column("opened", justify="right", no_wrap=True)
        most = max((backend.tunnels for backend in frame.backends), default=0) or 1
        for backend in frame.backends:
            table.add_row(
                backend.name,
                backend.address,
                Text(backend.state, style="green" if backend.state == "up" else "red"),
                str(backend.tunnels),
                Text("█" * round(_BAR * backend.tunnels / most), style="cyan"),
                str(backend.opened),
            )
        tally = frame.tally
        line = (
            f"{tally.connected} clients · {frame.messages_per_second:.0f} messages/s · "
            f"{tally.messages} echoed, {tally.wrong} wrong · {tally.reconnects} reconnects"
        )
        self.screen.update(Group(table, Text(line), *map(Text, self._news)), refresh=True)

    def tell(self, message: str) -> None:
        self._news.append(f"{self._seconds:5.1f} s  {message}")


@contextmanager
def open_view(*, json: bool) -> Iterator[View]:
    """The view that suits standard output."""
    if json:
        yield Silent()
    elif not sys.stdout.isatty():
        yield Plain()
    else:
        live = _Live()
        with live.screen:
            yield live
