"""Threads that keep a balancer busy while something happens to it."""

from __future__ import annotations

import socket
import threading

from .net import connect, echoes, until


class Load:
    """Threads that connect, talk and leave, as fast as they can. ``failures`` says what was not served."""

    def __init__(self, address: str, threads: int = 2) -> None:
        self.address = address
        self.done = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with connect(self.address) as client:
                    assert echoes(client)
                self.done += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))

    def pass_by(self, count: int) -> None:
        """Wait until so many more were served."""
        goal = self.done + count
        until(lambda: self.done >= goal or self.failures, f"{count} more connections")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Talk:
    """A thread that sends messages over tunnels that stand, all the time, and reads the echo of each."""

    def __init__(self, clients: list[socket.socket]) -> None:
        self.clients = clients
        self.rounds = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set() and not self.failures:
            for number, client in enumerate(self.clients):
                try:
                    assert echoes(client, b"%d of %d" % (self.rounds, number))
                except (OSError, AssertionError) as error:
                    self.failures.append(f"tunnel {number}, round {self.rounds}: {error!r}")
            self.rounds += 1

    def __enter__(self) -> Talk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
