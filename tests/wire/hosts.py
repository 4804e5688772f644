"""Programs that embed a balancer: their configuration, and the processes that they run in."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import trio

from pybalancer import Balancer, run_in_thread
from pybalancer.thread import ThreadedBalancer

from .net import PATIENCE, SECRET, connect, until

ROOT = Path(__file__).parents[2]
NEVER = 3600
"""Seconds. What waits so long has not ended in time."""

PRELUDE = """
import os, signal, sys, threading, time
import pybalancer
from tests.wire.hosts import configuration
from tests.wire.net import connect, read_exactly, until
def say(*words): print(*words, flush=True)
def left():
    # Threads of balancers.
    names = [thread.name for thread in threading.enumerate()]
    for task in os.listdir("/proc/self/task"):
        try:
            names.append(open(f"/proc/self/task/{task}/comm").read())
        except OSError:
            pass  # It has ended since.
    return [name for name in names if name.startswith("pybalancer")]
"""


def configuration(*backends: str, bind: str = "127.0.0.1:0", **balancer: Any) -> dict[str, Any]:
    """One listener, ``front``, and one pool, whose backends are called app-1, app-2…"""
    named = [{"name": f"app-{number}", "address": address} for number, address in enumerate(backends, 1)]
    return {
        "balancer": {"workers": 1, "secret": SECRET.hex(), **balancer},
        "listeners": [{"name": "front", "bind": bind, "pool": "pool"}],
        "pools": {"pool": {"backends": named}},
    }


def refuses(address: str) -> bool:
    """Whether nobody listens there."""
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # It was closed just now, with this client in its queue.
    return False


Either = Balancer | ThreadedBalancer
Start = Callable[..., Any]


def under_trio(given: Any, body: Callable[[Balancer], Any] = lambda lb: None, **options: Any) -> None:
    """Run a balancer, and ``body`` with it."""

    async def main() -> None:
        async with Balancer(given, **options) as lb:
            body(lb)

    trio.run(main)


def in_thread(given: Any, body: Callable[[ThreadedBalancer], Any] = lambda lb: None, **options: Any) -> None:
    with run_in_thread(given, **options) as lb:
        body(lb)


class Descriptors:
    """What this process has open, and the threads that it runs: to be compared with later."""

    def __init__(self) -> None:
        self.files, self.tasks = self._files(), self._tasks()

    @staticmethod
    def _files() -> set[tuple[str, str]]:
        found = set()
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the one that listdir itself had open
                found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        return found

    @staticmethod
    def _tasks() -> set[int]:
        # trio keeps threads for later work; they are its own, and hold nothing of ours.
        cached = {thread.native_id for thread in threading.enumerate() if "Trio thread" in thread.name}
        return {int(task) for task in os.listdir("/proc/self/task")} - cached

    def assert_none_came(self) -> None:
        # A thread that was joined may be listed for a moment more, with what it had open.
        until(lambda: not self._tasks() - self.tasks, "the end of all threads")
        came = self._files() - self.files
        assert not came, f"still open: {came}"


class Host:
    """A Python program in a process of its own, given as source. It speaks by lines (``say``)."""

    def __init__(self, source: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(source), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        self.errors = ""
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=reader, daemon=True) for reader in (self._read_output, self._read_errors)
        ]
        for thread in self._readers:
            thread.start()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line.rstrip("\n"))
        self._said.put("(it ended)")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line

    def line(self, patience: float = PATIENCE) -> str:
        """The next line that it says."""
        try:
            return self._said.get(timeout=patience)
        except queue.Empty:
            raise AssertionError(f"it says nothing; its errors: {self.errors}") from None

    def says_something(self) -> bool:
        """Whether ``line`` would return at once."""
        return not self._said.empty()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        code = self.process.wait(PATIENCE)
        for thread in self._readers:
            thread.join(PATIENCE)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # With all its children, which hold its pipes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
