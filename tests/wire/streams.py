"""Tunnels that move data in both directions all the time, and know at the end what each side should have got.

``Streams`` is both ends of all of them, in one thread: clients that connect to the balancer, and the backend
that they reach. Each side hashes what it sends and what it receives; what one has sent, the other must have.
Chunks end anywhere, in the middle of WebSocket frames too.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import struct
import threading
import time

from .net import PATIENCE, text_of, to, until
from .rfc6455 import BINARY, mask

HANDSHAKE = (
    b"GET /stream HTTP/1.1\r\nHost: streams\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
NOISE = random.Random(42).randbytes(1 << 17)
NAME = 16
"""Bytes of its name with which a client begins; in a WebSocket they have a header before them."""
LARGEST = 3000
"""Bytes of a chunk of a stream that is not bulk."""
WINDOW = 1 << 18
TURN = 0.005
"""Seconds until the next few ends say something."""


class End:
    """One end of one tunnel."""

    def __init__(self, connection: socket.socket, seed: int, *, client: bool, web: bool) -> None:
        self.socket = connection
        self.dice = random.Random(seed)
        self.client, self.web = client, web
        self.sent, self.received = hashlib.sha256(), hashlib.sha256()
        self.counts = [0, 0]
        self.first = b""
        """What it heard first: which tunnel it is."""
        self.ready = not web
        self.head = bytearray()
        self.ahead = b""
        """Made, and not yet sent."""
        self.bulk = self.deaf = self.said = self.ended = False
        self.failure = ""

    def made(self) -> bytes:
        """The next bytes of its stream: noise, in frames where it is a WebSocket."""
        size = 1 << 16 if self.bulk else self.dice.randrange(1, LARGEST)
        start = self.dice.randrange(len(NOISE) - size)
        data = NOISE[start : start + size]
        if not self.web:
            return data
        head = struct.pack("!BB", 0x80 | BINARY, self.client << 7 | (126 if size > 125 else size))
        if size > 125:
            head = struct.pack("!BBQ", head[0], head[1] | 127, size)
        return head + (b"\1\2\3\4" + mask(data, b"\1\2\3\4") if self.client else data)

    def say(self) -> bool:
        """Send a part of its stream, whatever the socket takes; whether it took all."""
        if not self.ahead:
            self.ahead = self.made()
        part = self.ahead if self.bulk else self.ahead[: self.dice.randrange(1, len(self.ahead) + 1)]
        return self.push(part)

    def push(self, part: bytes) -> bool:
        try:
            sent = self.socket.send(part)
        except BlockingIOError:
            return False
        except OSError as error:
            self.failure = self.failure or f"send: {error!r}"
            return False
        self.sent.update(part[:sent])
        self.counts[0] += sent
        self.ahead = self.ahead[sent:]
        return sent == len(part)

    def finish(self) -> bool:
        """End its stream, at the end of a frame; False if that has to be tried again."""
        if self.ahead:
            self.push(self.ahead)
        if self.ahead and not self.failure:
            return False
        self.said = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        return True

    def hear(self) -> None:
        """Read what is there."""
        for _ in range(4):
            try:
                data = self.socket.recv(WINDOW)
            except BlockingIOError:
                return
            except OSError as error:
                self.failure = self.failure or f"recv: {error!r}"
                self.ended = True
                return
            if not data:
                self.ended = True
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        if not self.ready:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            if self.client and not self.head.startswith(b"HTTP/1.1 101"):
                self.failure = self.head.decode(errors="replace")
            data = bytes(self.head[end + 4 :])
            self.ready = True
            if not self.client:
                self.socket.sendall(SWITCHING)
        if data:
            self.first += data[: NAME - len(self.first)]
            self.received.update(data)
            self.counts[1] += len(data)


class Streams:
    """``count`` tunnels through the balancer at ``address``, which leads to ``self.backend``."""

    def __init__(self, *, web: bool = False, backlog: int = 4096) -> None:
        self.web = web
        self.listening = socket.socket()
        self.listening.bind(("127.0.0.1", 0))
        self.listening.listen(backlog)
        self.listening.setblocking(False)
        self.backend = text_of(self.listening.getsockname())
        self.clients: list[End] = []
        self.servers: dict[int, End] = {}
        """By the number of the client."""
        self._ends: dict[int, End] = {}
        self._poller = select.epoll()
        self._poller.register(self.listening, select.EPOLLIN)
        self._dice = random.Random(7)
        self._lock = threading.Lock()
        self._phase = "open"
        self.turns = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def open(self, address: str, count: int, **kind: bool) -> list[End]:
        """Open so many more, and wait until all of them stand."""
        opened = []
        for _ in range(count):
            family, where = to(address)
            connection = socket.socket(family)
            connection.settimeout(PATIENCE)
            if kind.get("deaf"):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(where)
            end = End(connection, len(self.clients), client=True, web=self.web)
            for name, value in kind.items():
                setattr(end, name, value)
            with self._lock:
                self.clients.append(end)
            if self.web:
                connection.sendall(HANDSHAKE)
            # Told apart by the first bytes of their streams: a frame whose payload is a number.
            number = len(self.clients) - 1
            name = b"%016d" % number
            if self.web:
                name = struct.pack("!BB", 0x80 | BINARY, 0x80 | 10) + b"\0\0\0\0" + b"%010d" % number
            connection.sendall(name)
            end.sent.update(name)
            end.counts[0] += len(name)
            connection.setblocking(False)
            with self._lock:
                self._ends[connection.fileno()] = end
            self._poller.register(connection, 0 if end.deaf else select.EPOLLIN)
            opened.append(end)
        until(lambda: len(self.servers) >= len(self.clients), "every stream at the backend")
        return opened

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self.listening.accept()
                connection.setblocking(False)
                end = End(connection, -len(self._ends), client=False, web=self.web)
                with self._lock:
                    self._ends[connection.fileno()] = end
                self._poller.register(connection, select.EPOLLIN)

    def _run(self) -> None:
        due = time.monotonic()
        while self._phase != "closed":
            for number, _ in self._poller.poll(TURN):
                if number == self.listening.fileno():
                    self._accept()
                    continue
                end = self._ends[number]
                nameless = len(end.first) < NAME
                end.hear()
                if not end.client and nameless and len(end.first) == NAME:
                    self._name(end)
                if end.ended:
                    self._poller.unregister(number)
            if time.monotonic() >= due:
                due = time.monotonic() + TURN
                self._talk()
                self.turns += 1

    def _name(self, end: End) -> None:
        number = int(end.first[-10:])
        client = self.clients[number]
        # Whoever does not listen has a backend that talks all the more.
        end.bulk = client.bulk or client.deaf
        self.servers[number] = end

    def _talk(self) -> None:
        with self._lock:
            ends = [end for end in self._ends.values() if end.ready and not end.said and not end.failure]
        if self._phase == "talk":
            for end in self._dice.sample(ends, min(len(ends), 100)):
                end.say()
            for end in ends:
                if end.bulk:
                    end.say()
        elif self._phase == "finish":
            for end in ends:
                end.finish()

    def talk(self) -> None:
        """From now on every end sends."""
        self._phase = "talk"

    def pass_by(self, turns: int) -> None:
        """Wait until so many more times some of them have sent something."""
        goal = self.turns + turns
        until(lambda: self.turns >= goal, f"{turns} turns")

    def more(self) -> None:
        """Wait until something was received from now on."""
        before = self.moved
        until(lambda: self.moved > before, "more bytes")

    def finish(self) -> None:
        """All end their streams, and wait for the other side's end."""
        for end in self.clients:
            if end.deaf and not end.ended:
                end.deaf = False
                self._poller.modify(end.socket, select.EPOLLIN)
        self._phase = "finish"
        until(lambda: all(end.ended for end in list(self._ends.values())), "the end of every stream")

    def failures(self) -> list[str]:
        """What went wrong so far."""
        return [end.failure for end in list(self._ends.values()) if end.failure]

    def differences(self) -> list[str]:
        """After ``finish``: the streams of which one side has not got what the other has sent."""
        wrong = self.failures()
        for number, client in enumerate(self.clients):
            server = self.servers[number]
            for what, sender, receiver in (("to", client, server), ("from", server, client)):
                sent = sender.counts[0], sender.sent.hexdigest()
                received = receiver.counts[1], receiver.received.hexdigest()
                if sent != received:
                    wrong.append(
                        f"{what} the backend of {number}: sent {sent[0]} bytes, received {received[0]}"
                    )
        return wrong

    @property
    def moved(self) -> int:
        """Bytes received by either side."""
        return sum(end.counts[1] for end in list(self._ends.values()))

    def close(self) -> None:
        self._phase = "closed"
        self._thread.join()
        self._poller.close()
        for end in self._ends.values():
            end.socket.close()
        self.listening.close()
