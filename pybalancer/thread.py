"""A balancer for programs that do not run trio: asyncio, threads, Django, a notebook."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar

import trio

from pybalancer.errors import PybalancerError

if TYPE_CHECKING:
    from pybalancer.balancer import Balancer, Source
    from pybalancer.status import ReloadResult, Status

_T = TypeVar("_T")


def run_in_thread(
    config: Source, *, admin: bool = False, records: BinaryIO | None = None
) -> ThreadedBalancer:
    """Start a balancer in a thread of its own: ``with pybalancer.run_in_thread(config) as lb:``.

    Arguments as of ``Balancer``. It listens when the block is entered; errors at the start are raised
    there. Methods may be called from any thread, asyncio's too: none waits for traffic. No signal
    handler is installed; Ctrl-C reaches the host, which leaves the block.
    """
    return ThreadedBalancer(config, admin=admin, records=records)


class ThreadedBalancer:
    """What ``run_in_thread`` gives."""

    def __init__(self, config: Source, *, admin: bool, records: BinaryIO | None) -> None:
        self._arguments = (config, admin, records)
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._balancer: Balancer
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self._grace = 0.0

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("this balancer was started before; make another")
        # A daemon: a host that forgets to leave the block can still exit.
        self._thread = threading.Thread(target=self._run, name="pybalancer-trio", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._error = _plain(error)
        finally:
            self._ready.set()

    async def _main(self) -> None:
        from pybalancer.balancer import Balancer

        config, admin, records = self._arguments
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        async with Balancer(config, admin=admin, records=records) as balancer:
            self._balancer = balancer
            self._ready.set()
            await self._stop.wait()
            if self._grace > 0:
                await balancer.stop(self._grace)

    def _call(self, function: Callable[[], _T]) -> _T:
        return self._running(lambda: trio.from_thread.run_sync(function, trio_token=self._token))

    def _running(self, call: Callable[[], _T]) -> _T:
        if self._thread is None or not self._ready.is_set():
            raise PybalancerError("this balancer does not run: enter its `with` block first")
        try:
            return call()
        except trio.RunFinishedError:
            why = f": {self._error}" if self._error else ""
            raise PybalancerError(f"this balancer has ended{why}") from self._error

    def close(self, grace: float = 0.0) -> None:
        """Stop, after letting live tunnels end for up to ``grace`` seconds. Idempotent."""
        if self._thread is None or not self._thread.is_alive():
            return
        self._grace = grace
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._stop.set)
        self._thread.join()

    @property
    def bound(self) -> dict[str, str]:
        """Listener names and the addresses really bound."""
        return self._call(lambda: self._balancer.bound)

    def status(self) -> Status:
        """A picture of this moment."""
        return self._call(self._balancer.status)

    def explain(self, source: str, pool: str | None = None) -> dict[str, Any]:
        """As ``Balancer.explain``."""
        return self._call(lambda: self._balancer.explain(source, pool))

    def metrics(self) -> str:
        """As ``Balancer.metrics``."""
        return self._call(self._balancer.metrics)

    def reload(self, config: Source | None = None) -> ReloadResult:
        """As ``Balancer.reload``; waits for its result."""
        return self._running(
            lambda: trio.from_thread.run(self._balancer.reload, config, trio_token=self._token)
        )


def _plain(error: BaseException) -> BaseException:
    """The one error of a group: at the start there is rarely more than one thing wrong."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
