"""10,000 requests by chance: what arrives at the backend means what was sent, or nothing arrives.

The judge is h11: it reads what a client sends and what the backend gets, and both must mean the same (method,
target, host, fields, body). What h11 or pybalancer understands in no way or only in part must be refused: no
request comes out of it that was not there. Valid requests go in pipelines, and all of them must arrive.

``SEED=7 pytest tests/wire/web/test_differential.py`` makes other requests, and those of a failure again.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ..net import PATIENCE, connect, server, until
from ..serving import Serving, environment_in
from .generator import LIE, Generator
from .understanding import Message, Reader, of_trust, understood

SEED = os.environ.get("SEED", "0")
PIPELINES, LENGTH = 300, 20
MUTATED = 4000
CLIENTS = 4
"""Connections at a time."""
SHOWN = 3
"""Failures that are told in full."""
LONGEST = 2000
"""Bytes of a failed case that are shown."""
OWN_REFUSALS = {400, 405, 408, 413, 414, 417, 426, 431, 501, 505}
"""Statuses with which pybalancer may say that it is the client's fault."""
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")

CONFIG = """
[balancer]
admin = "none"
workers = 2
[log]
connections = false
[[listeners]]
name = "main"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "main"
[[pools.main.backends]]
name = "main-1"
address = "{}"
"""


class Arrived:
    """What came to the backend: a reader for each of its connections, in order."""

    def __init__(self) -> None:
        self.readers: list[Reader] = []
        self._lock = threading.Lock()

    def serve(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        reader = Reader()
        with self._lock:
            self.readers.append(reader)
        try:
            while not reader.over:
                for message in reader.feed(connection.recv(1 << 16)):
                    if message.complete:
                        connection.sendall(reader.answer(message, b"understood"))
                    elif reader.connection.they_are_waiting_for_100_continue:
                        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):  # or what is not read becomes a reset
                pass
        finally:
            # A reset too is an end: what was cut off stays so.
            reader.over = True

    def by_client(self) -> dict[str, list[Reader]]:
        """By the address that pybalancer tells."""
        found: dict[str, list[Reader]] = {}
        for reader in self.readers:
            if not reader.count:  # a connection, and not a byte on it
                continue
            told = {
                value.decode() for message in reader.messages for value in message.all(b"x-forwarded-for")
            }
            assert len(told) == 1, f"from nobody or from several: {reader.messages} {reader.error}"
            found.setdefault(told.pop(), []).append(reader)
        return found


@dataclass
class Case:
    """One connection: what the client sends on it, and what it is answered."""

    number: int
    data: bytes
    cuts: list[int]
    """Where TCP may cut it."""
    hurry: bool = False
    """Say at once that nothing more comes, and not only when the answers are there."""
    sent: list[Message] = field(init=False)
    answers: bytes = b""
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sent = understood(self.data).messages

    @property
    def source(self) -> str:
        """An address that no other connection comes from."""
        return f"127.{64 + (self.number >> 16)}.{self.number >> 8 & 255}.{self.number & 255}"

    def run(self, address: str) -> None:
        with connect(address, self.source) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for start, end in zip([0, *self.cuts], [*self.cuts, len(self.data)], strict=True):
                    client.sendall(self.data[start:end])
                count = 0 if self.hurry else sum(message.complete for message in self.sent)
                while len(self.statuses()) < count and (part := client.recv(1 << 16)):
                    self.answers += part
                client.shutdown(socket.SHUT_WR)
                while part := client.recv(1 << 16):
                    self.answers += part
            except OSError as error:
                # A request that is cut off is cut off to both sides; all others get an answer.
                if not self.sent or self.sent[-1].complete:
                    self.problems.append(f"the client did not get a clean end: {error!r}")

    def statuses(self) -> list[int]:
        """Of all responses but interim ones. A 101 is the last."""
        return [status for found in STATUS.findall(self.answers) if (status := int(found)) != 100]

    def check(self, readers: list[Reader], *, whole: bool) -> None:
        sent = self.sent
        arrived = [message for reader in readers for message in reader.messages]
        for reader in readers:
            if reader.error and reader.messages[-1].complete:
                self.problems.append(f"the backend got no HTTP: {reader.error}")
        if len(arrived) > len(sent):
            self.problems.append(f"{len(arrived)} requests arrived, {len(sent)} were sent")
        for number, (one, other) in enumerate(zip(sent, arrived, strict=False)):
            self.compare(number, one, other, last=number == len(arrived) - 1)
        *first, last = [*self.statuses(), None]
        good = [101 if message.is_handshake else 200 for message in arrived if message.complete]
        refused = [status for status in (*first, last) if status is not None][len(good) :]
        if self.statuses()[: len(good)] != good or not set(refused) <= OWN_REFUSALS or len(refused) > 1:
            self.problems.append(f"answers {self.statuses()} to {len(good)} requests that arrived")
        missing = [message for message in sent[len(good) :] if message.complete]
        if missing and not refused:
            self.problems.append(f"neither arrived nor refused: {missing[0]}")
        if whole and (len(good) != len(sent) or refused):
            self.problems.append(f"valid, but {len(good)} of {len(sent)} arrived: {self.answers[-400:]!r}")

    def compare(self, number: int, sent: Message, arrived: Message, *, last: bool) -> None:
        *head, body, handshake = sent.meaning()
        *arrived_head, arrived_body, arrived_handshake = arrived.meaning()
        assert isinstance(body, bytes)
        assert isinstance(arrived_body, bytes)
        same = body == arrived_body if arrived.complete else last and body.startswith(arrived_body)
        if (head, handshake) != (arrived_head, arrived_handshake) or not same:
            self.problems.append(f"request {number} was {sent}, and became {arrived}")
        elif arrived.complete and not sent.complete:
            self.problems.append(f"request {number} was cut off, and became whole: {arrived}")
        if arrived.trailers:
            self.problems.append(f"request {number} has trailers: {arrived}")
        if arrived.all(b"x-forwarded-for") != [self.source.encode()]:
            self.problems.append(f"request {number} is not told to be from {self.source}: {arrived}")
        told = [value for name, value in arrived.fields if of_trust(name)]
        if any(LIE.encode() in value for value in told):
            self.problems.append(f"request {number} still has what the client says of itself: {arrived}")


@pytest.fixture(scope="module")
def arrived() -> Arrived:
    return Arrived()


@pytest.fixture(scope="module")
def address(arrived: Arrived, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("differential")
    with server(arrived.serve) as backend:
        file = directory / "pybalancer.toml"
        file.write_text(CONFIG.format(backend.address))
        serving = Serving(environment_in(directory), file)
        try:
            yield serving.address
        finally:
            serving.close()
        until(lambda: not backend.live, "the end of all connections to the backend")


def pipeline(number: int) -> Case:
    generator = Generator(f"{SEED}-valid-{number}")
    pieces = [generator.valid(last=index == LENGTH - 1) for index in range(LENGTH)]
    data = b"".join(piece.data for piece in pieces)
    cuts = sorted(generator.random.sample(range(1, len(data)), 5))
    return Case(number, data, cuts, generator.chance(0.5))


def mutated(number: int) -> Case:
    generator = Generator(f"{SEED}-mutated-{number}")
    data = generator.mutated()
    cuts = generator.random.sample(range(1, len(data)), 1) if generator.chance(0.3) and len(data) > 1 else []
    return Case(number, data, cuts, generator.chance(0.5))


def run(cases: list[Case], address: str, arrived: Arrived, *, whole: bool) -> dict[str, list[Reader]]:
    arrived.readers.clear()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda case: case.run(address), cases))
    until(lambda: all(reader.over for reader in arrived.readers), "the end of what comes to the backend")
    readers = arrived.by_client()
    assert readers.keys() <= {case.source for case in cases}
    for case in cases:
        case.check(readers.get(case.source, []), whole=whole)
    bad = [case for case in cases if case.problems]
    told = [
        f"case {case.number}: {case.data[:LONGEST]!r}\n" + "\n".join(case.problems) for case in bad[:SHOWN]
    ]
    if bad:
        pytest.fail(f"SEED={SEED}: {len(bad)} of {len(cases)} failed\n\n" + "\n\n".join(told), pytrace=False)
    return readers


def test_valid_requests_arrive_as_they_were_meant(address: str, arrived: Arrived) -> None:
    cases = [pipeline(number) for number in range(PIPELINES)]
    readers = run(cases, address, arrived, whole=True)
    count = sum(len(reader.messages) for found in readers.values() for reader in found)
    assert count == PIPELINES * LENGTH


def test_wrong_requests_are_refused_or_mean_the_same(address: str, arrived: Arrived) -> None:
    cases = [mutated(number) for number in range(MUTATED)]
    readers = run(cases, address, arrived, whole=False)
    # The control: neither does everything pass, nor is everything refused.
    assert MUTATED / 20 < len(readers) < MUTATED * 19 / 20


@pytest.mark.parametrize(
    "spoil",
    [
        lambda messages: messages.append(messages[0]),
        lambda messages: messages.pop(),
        lambda messages: setattr(messages[0], "method", b"HEAD"),
        lambda messages: setattr(messages[0], "target", b"/admin"),
        lambda messages: setattr(messages[0], "complete", False),
        lambda messages: setattr(messages[0], "trailers", [(b"x", b"y")]),
        lambda messages: messages[0].body.extend(b"GET / HTTP/1.1"),
        lambda messages: messages[0].fields.append((b"x", b"y")),
        lambda messages: messages[0].fields.remove((b"cookie", b"a=b")),
        lambda messages: messages[0].fields.append((b"host", b"b.test")),
        lambda messages: messages[0].fields.append((b"x-forwarded-for", LIE.encode())),
    ],
)
def test_the_judge_is_strict(spoil: Callable[[list[Message]], object]) -> None:
    """The control: two requests arrive as they were sent, and then something is different."""
    parts = [
        f"POST /{n} HTTP/1.1\r\nHost: a.test\r\nCookie: a=b\r\n{{}}Content-Length: 2\r\n\r\nhi"
        for n in (1, 2)
    ]
    case = Case(0, "".join(parts).replace("{}", "").encode(), [])
    told = f"X-Forwarded-For: {case.source}\r\n"
    reader = understood("".join(parts).replace("{}", told).encode())
    case.answers = b"HTTP/1.1 200 OK\r\n\r\n" * 2
    case.check([reader], whole=True)
    assert case.problems == []
    spoil(reader.messages)
    case.check([reader], whole=True)
    assert case.problems != []
