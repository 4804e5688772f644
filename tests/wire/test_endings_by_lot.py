"""Two sides that send, read, end and break off as the dice say, and one rule: whoever reads a clean end has
every byte that the other sent, and the other did end. Else it was told of a reset.

A trial is replayed by its seed.
"""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Iterator

import pytest

from .net import PATIENCE, Proxy, connect, payload, proxy, reset, text_of, until

MB = 1 << 20
MORE = 6 * MB
BYTES = memoryview(payload(MORE + MB))
QUIET = 0.02
"""Seconds without anything to do after which a side that paused reads on."""


class Side:
    """One end of a connection. It says its words and then ends, breaks off, or the one after the other."""

    def __init__(self, connection: socket.socket, rng: random.Random) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.connection = connection
        begin = rng.randrange(MB)
        # The last of these finds no room on the way unless it is read.
        self.words = BYTES[begin : begin + rng.choice([0, 1, 1000, 70_000, MB, MORE])]
        self.ends, self.breaks_off = rng.choice([(True, False)] * 3 + [(False, True), (True, True)])
        self.hesitates = rng.choice([0, 0, 1, 3])
        """Turns between its last words and breaking off."""
        self.appetite = rng.choice([0, 1000, 100_000, MB, MORE])
        """Bytes that it reads before it pauses."""
        self.sent = 0
        self.got = bytearray()
        self.saw_end = self.was_told = self.ended = self.broke_off = False
        self.reads = self.writes = True

    def readers(self) -> list[socket.socket]:
        return [self.connection] if self.reads and len(self.got) <= self.appetite else []

    def writers(self) -> list[socket.socket]:
        return [self.connection] if self.writes else []

    def read(self) -> None:
        try:
            part = self.connection.recv(1 << 16)
        except OSError as error:
            self.reads = False
            self.was_told |= isinstance(error, ConnectionResetError)
        else:
            self.got += part
            self.saw_end = not part
            self.reads = bool(part)

    def write(self) -> None:
        try:
            if self.sent < len(self.words):
                self.sent += self.connection.send(self.words[self.sent :])
            elif self.ends and not self.ended:
                self.connection.shutdown(socket.SHUT_WR)
                self.ended = True
            elif not self.breaks_off:
                self.writes = False
            elif self.hesitates:
                self.hesitates -= 1
            else:
                reset(self.connection)
                self.broke_off = True
                self.reads = self.writes = False
        except OSError as error:
            # What came before can still be read.
            self.writes = False
            self.was_told |= isinstance(error, ConnectionResetError)

    def was_lied_to(self, other: Side) -> bool:
        if self.got != other.words[: len(self.got)]:
            return True
        if self.broke_off or self.was_told or not self.saw_end:
            return False
        return not other.ended or len(self.got) != other.sent

    def __str__(self) -> str:
        words = f"{self.sent} of {len(self.words)} B said, ended {self.ended}, broke off {self.broke_off}"
        return f"{words}; {len(self.got)} B read, saw an end {self.saw_end}, was told {self.was_told}"


def play(client: Side, backend: Side) -> None:
    """Until neither has anything left to say or to hear."""
    sides = (client, backend)
    deadline = time.monotonic() + PATIENCE
    while any(side.reads or side.writes for side in sides):
        readable, writable, _ = select.select(
            client.readers() + backend.readers(), client.writers() + backend.writers(), [], QUIET
        )
        for side in sides:
            if side.connection in readable:
                side.read()
            if side.connection in writable and side.writes:
                side.write()
            if not readable and not writable:
                side.appetite = len(BYTES)
        assert time.monotonic() < deadline, "somebody waits for ever"


@pytest.fixture(scope="module")
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(PATIENCE)
        yield made


@pytest.fixture(scope="module")
def balancer(listening: socket.socket) -> Iterator[Proxy]:
    with proxy([text_of(listening.getsockname())], pool={"half_closed_timeout": 0.0}) as running:
        yield running


@pytest.mark.parametrize("seed", range(150))
def test_93_a_clean_end_never_lies(balancer: Proxy, listening: socket.socket, seed: int) -> None:
    rng = random.Random(seed)
    with connect(balancer.address) as near:
        far, _ = listening.accept()
        with far:
            client, backend = Side(near, rng), Side(far, rng)
            play(client, backend)
    assert not client.was_lied_to(backend), f"client: {client}. backend: {backend}"
    assert not backend.was_lied_to(client), f"backend: {backend}. client: {client}"
    until(lambda: balancer.engine.active() == 0, "the end of the tunnel")
