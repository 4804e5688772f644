"""Processes that hold more connections than one descriptor table has room for.

``python -m tests.wire.holders answer FD MOST`` echoes on what it accepts from an inherited listening
socket, and at its end (standard input closes) prints how many connections came from each address.
``python -m tests.wire.holders call ADDRESS SOURCE`` opens connections and keeps them:

    open N    one byte there and back on each of N new ones → how many it holds, how many were refused
    echo      one more byte on every one → how many came back right
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
from collections import Counter
from itertools import cycle

from .net import PATIENCE, to

ROUND = 256
"""Connections that are opened before the first answer of them is awaited."""
BYTES = b"abcdefghijklmnopqrstuvwxyz"
"""What is sent, in turn. No PROXY header begins like this: one would be looked at for a while."""


def answer(descriptor: int, most: int) -> None:
    listening = socket.socket(fileno=descriptor)
    listening.setblocking(False)
    poller = select.epoll()
    poller.register(listening, select.EPOLLIN)
    poller.register(sys.stdin, select.EPOLLIN)
    held: dict[int, socket.socket] = {}
    hosts: Counter[str] = Counter()
    while True:
        for number, _ in poller.poll():
            if number == sys.stdin.fileno():
                print(json.dumps(hosts), flush=True)
                return
            if number != descriptor:
                data = b""
                with contextlib.suppress(OSError):
                    data = held[number].recv(4096)
                if data:
                    held[number].sendall(data)
                else:
                    held.pop(number).close()
                continue
            # Another process may have been faster.
            with contextlib.suppress(BlockingIOError):
                for _ in range(ROUND):
                    connection, (host, _) = listening.accept()
                    held[connection.fileno()] = connection
                    hosts[host] += 1
                    poller.register(connection, select.EPOLLIN)
            if len(held) + ROUND > most:
                poller.unregister(listening)


def _open(address: str, source: str) -> socket.socket:
    family, where = to(address)
    client = socket.socket(family)
    client.settimeout(PATIENCE)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
    client.bind((source, 0))
    # A refusal may be faster than connect.
    with contextlib.suppress(ConnectionResetError):
        client.connect(where)
    return client


def _echoed(clients: list[socket.socket]) -> list[socket.socket]:
    """Those of ``clients`` on which a byte of their own went there and back."""
    good = []
    for byte, client in zip(cycle(BYTES), clients):
        # Refusals are counted by recv.
        with contextlib.suppress(OSError):
            client.sendall(bytes([byte]))
    for byte, client in zip(cycle(BYTES), clients):
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            if client.recv(2) == bytes([byte]):
                good.append(client)
    return good


def call(address: str, source: str) -> None:
    held: list[socket.socket] = []
    for line in sys.stdin:
        match line.split():
            case ["open", count]:
                before, wanted = len(held), int(count)
                for start in range(0, wanted, ROUND):
                    fresh = [_open(address, source) for _ in range(min(ROUND, wanted - start))]
                    held += _echoed(fresh)
                print(len(held), wanted - (len(held) - before), flush=True)
            case ["echo"]:
                print(len(_echoed(held)), flush=True)


class Process:
    """One of them, as the test sees it."""

    def __init__(self, *arguments: object, pass_fds: tuple[int, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.wire.holders", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def heard(self) -> list[int]:
        assert self.process.stdout is not None
        return [int(word) for word in self.process.stdout.readline().split()]

    def end(self) -> str:
        """Let it end; its last words."""
        return self.process.communicate(timeout=PATIENCE)[0]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["answer", descriptor, most]:
            answer(int(descriptor), int(most))
        case ["call", address, source]:
            call(address, source)
