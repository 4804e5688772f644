"""A balancer for programs that do not run trio: asyncio, threads, Django, a notebook."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar

import trio

from pybalancer.errors import PybalancerError, plain

if TYPE_CHECKING:
    from pybalancer.balancer import Balancer
    from pybalancer.diff import Diff
    from pybalancer.plans import Source
    from pybalancer.status import DrainResult, ReloadResult, RollResult, ShedResult, Status
    from pybalancer.tasks.commands import Command

_T = TypeVar("_T")

_log = logging.getLogger("pybalancer")


def run_in_thread(
    config: Source, *, admin: bool = False, records: BinaryIO | None = None
) -> ThreadedBalancer:
    """Start a balancer in a thread of its own: ``with pybalancer.run_in_thread(config) as lb:``.

    Arguments as of ``Balancer``. It listens when the block is entered; errors at the start are raised
    there. Methods may be called from any thread, asyncio's too: none waits for traffic but ``close``
    with a ``grace`` (``await asyncio.to_thread(lb.close, 30)``), ``drain``, ``shed`` and ``roll``. No signal
    handler is installed; Ctrl-C reaches the host, which leaves the block.
    """
    return ThreadedBalancer(config, admin=admin, records=records)


class ThreadedBalancer:
    """What ``run_in_thread`` gives."""

    def __init__(self, config: Source, *, admin: bool, records: BinaryIO | None) -> None:
        self._arguments = (config, admin, records)
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        # Not Thread.is_alive: before Python 3.13 a join that Ctrl-C interrupts takes the thread for ended.
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._process = os.getpid()
        self._given_up = False
        self._balancer: Balancer
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: trio.Event
        self._starting: trio.CancelScope
        self._ending: trio.CancelScope

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("this balancer was started before; make another")
        self._process = os.getpid()
        # A daemon: a host that forgets to leave the block can still exit.
        self._thread = threading.Thread(target=self._run, name="pybalancer-trio", daemon=True)
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            # Ctrl-C during a slow start: nobody will leave the block, so nothing may stay behind.
            self._given_up = True
            self._finish(0.0)
            raise
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
            self._error = plain(error)
            if self._ready.is_set():
                _log.critical("the balancer has ended: nobody asked it to", exc_info=self._error)
        finally:
            self._ready.set()
            self._ended.set()

    async def _main(self) -> None:
        from pybalancer.balancer import Balancer

        config, admin, records = self._arguments
        self._stop = trio.Event()
        self._starting, self._ending = trio.CancelScope(), trio.CancelScope()
        self._token = trio.lowlevel.current_trio_token()
        if self._given_up:
            return
        with self._starting:
            async with Balancer(config, admin=admin, records=records) as balancer:
                self._balancer = balancer
                self._ready.set()
                await self._stop.wait()
                left = self._ending.deadline - trio.current_time()
                if left > 0:
                    with self._ending:
                        await balancer.stop(left)

    def _call(self, ask: Callable[[Balancer], _T]) -> _T:
        return self._running(lambda: trio.from_thread.run_sync(ask, self._balancer, trio_token=self._token))

    def _wait(self, ask: Callable[[Balancer], Awaitable[_T]]) -> _T:
        async def asked() -> _T:
            return await ask(self._balancer)

        return self._running(lambda: trio.from_thread.run(asked, trio_token=self._token))

    def _fresh(self, ask: Callable[[Balancer], _T]) -> _T:
        async def asked(balancer: Balancer) -> _T:
            await balancer.refresh()
            return ask(balancer)

        return self._wait(asked)

    def _running(self, call: Callable[[], _T]) -> _T:
        if os.getpid() != self._process:
            from pybalancer._core import EngineError

            # The thread that would answer is not here: the call would wait for ever.
            raise EngineError(
                "this balancer was started by the parent process: a fork copies its memory but not its "
                "threads; start one after the fork"
            )
        if self._thread is None or not self._ready.is_set():
            raise PybalancerError("this balancer does not run: enter its `with` block first")
        try:
            return call()
        except (trio.RunFinishedError, trio.Cancelled):
            raise self._has_ended() from self._error
        except BaseExceptionGroup as group:
            # What has tasks of its own is cancelled in each of them.
            if group.split(trio.Cancelled)[1] is not None:
                raise
            raise self._has_ended() from self._error

    def _has_ended(self) -> PybalancerError:
        return PybalancerError("this balancer has ended" + (f": {self._error}" if self._error else ""))

    def close(self, grace: float = 0.0) -> None:
        """Stop, after letting live tunnels end for up to ``grace`` seconds.

        Idempotent; called again with less ``grace`` while it waits, as leaving the block does, it ends
        sooner.
        """
        if not 0 <= grace < math.inf:
            raise ValueError(f"grace is a number of seconds from 0, not {grace}")
        if self._thread is None or os.getpid() != self._process:
            return
        self._finish(grace)
        self._ended.wait()
        self._thread.join()

    def _finish(self, grace: float) -> None:
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._finish_soon, grace)

    def _finish_soon(self, grace: float) -> None:
        """In the thread of trio."""
        if not self._ready.is_set():
            self._starting.cancel()
        self._ending.deadline = min(self._ending.deadline, trio.current_time() + grace)
        self._stop.set()

    @property
    def bound(self) -> dict[str, str]:
        """Listener names and the addresses really bound."""
        return self._call(lambda balancer: balancer.bound)

    def status(self) -> Status:
        """A picture of this moment."""
        return self._fresh(lambda balancer: balancer.status())

    def explain(
        self,
        source: str,
        pool: str | None = None,
        *,
        listener: str | None = None,
        host: str | None = None,
        path: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> dict[str, Any]:
        """As ``Balancer.explain``."""
        return self._fresh(
            lambda balancer: balancer.explain(
                source, pool, listener=listener, host=host, path=path, headers=headers
            )
        )

    def metrics(self) -> str:
        """As ``Balancer.metrics``."""
        return self._fresh(lambda balancer: balancer.metrics())

    def reload(self, config: Source | None = None) -> ReloadResult:
        """As ``Balancer.reload``; waits for its result."""
        return self._wait(lambda balancer: balancer.reload(config))

    def drain(
        self,
        name: str | None = None,
        *,
        pool: str | None = None,
        backend: str | None = None,
        listener: str | None = None,
        everything: bool = False,
        over: float | None = None,
        deadline: float | None = None,
        code: int | None = None,
        rate: float | None = None,
        force: bool = False,
        wait: bool = True,
    ) -> DrainResult:
        """As ``Balancer.drain``; without ``wait``, or interrupted, it goes on by itself."""
        named = {"pool": pool, "backend": backend, "listener": listener}
        return self._wait(
            lambda balancer: balancer.drain(
                name,
                **named,
                everything=everything,
                over=over,
                deadline=deadline,
                code=code,
                rate=rate,
                force=force,
                wait=wait,
            )
        )

    def undrain(
        self,
        name: str | None = None,
        *,
        pool: str | None = None,
        backend: str | None = None,
        listener: str | None = None,
        everything: bool = False,
        slow_start: float | None = None,
    ) -> DrainResult:
        """As ``Balancer.undrain``."""
        named = {"pool": pool, "backend": backend, "listener": listener}
        return self._wait(
            lambda balancer: balancer.undrain(name, **named, everything=everything, slow_start=slow_start)
        )

    def recheck(self, pool: str, backend: str) -> None:
        """As ``Balancer.recheck``."""
        self._wait(lambda balancer: balancer.recheck(pool, backend))

    def shed(
        self,
        pool: str,
        to_skew: float = 1.05,
        *,
        rate: float | None = None,
        code: int | None = None,
        dry_run: bool = False,
        wait: bool = True,
    ) -> ShedResult:
        """As ``Balancer.shed``; without ``wait``, or interrupted, it goes on by itself."""
        return self._wait(
            lambda balancer: balancer.shed(pool, to_skew, rate=rate, code=code, dry_run=dry_run, wait=wait)
        )

    def roll(
        self,
        pool: str,
        action: Callable[[str], object] | Command,
        *,
        backends: Sequence[str] = (),
        max_down: int = 1,
        timeout: float = 60.0,
        over: float | None = None,
        deadline: float | None = None,
        code: int | None = None,
        rate: float | None = None,
        slow_start: float | None = None,
        force: bool = False,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> RollResult:
        """As ``Balancer.roll``. ``action`` runs in a thread, ``on_event`` in that of the balancer.

        It is over when this returns, unless Ctrl-C interrupts the waiting: then it goes on until the block
        is left.
        """
        return self._wait(
            lambda balancer: balancer.roll(
                pool,
                action,
                backends=backends,
                max_down=max_down,
                timeout=timeout,
                over=over,
                deadline=deadline,
                code=code,
                rate=rate,
                slow_start=slow_start,
                force=force,
                on_event=on_event,
            )
        )

    def diff(self, config: Source) -> Diff:
        """As ``Balancer.diff``."""
        return self._wait(lambda balancer: balancer.diff(config))
