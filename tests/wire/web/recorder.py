"""A backend that keeps every byte that it gets, and answers as a test says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from ..net import PATIENCE, reset, text_of, until
from .messages import Head, Stream, accept_of

KEPT = 1 << 20
"""Bytes of a connection that are kept; of what is behind them only the number."""


class Talk(Stream):
    """One connection to the recorder."""

    def __init__(self, recorder: Recorder, connection: socket.socket, number: int) -> None:
        super().__init__(connection)
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.recorder, self.number = recorder, number
        self.seen = bytearray()
        """What came, up to a bound."""
        self.count = 0
        """How much came."""
        self.heads: list[Head] = []
        self.ended: str | None = None
        """How it ended: ``end`` by the balancer, ``reset`` by it, or ``closed`` by us."""

    def more(self) -> bool:
        before = len(self.buffer)
        try:
            alive = super().more()
        except ConnectionError:
            self.ended = "reset"
            raise
        new = self.buffer[before:]
        self.count += len(new)
        self.seen += new[: max(0, KEPT - len(self.seen))]
        if not alive:
            self.ended = "end"
        return alive

    def head(self) -> Head | None:
        head = super().head()
        if head is not None:
            self.heads.append(head)
        return head

    def digest(self, head: Head) -> tuple[int, str]:
        """Size and SHA-256 of a body, which is not kept."""
        size, hasher = 0, hashlib.sha256()
        for part in self.parts(head):
            size += len(part)
            hasher.update(part)
        return size, hasher.hexdigest()

    def send(self, *parts: str | bytes) -> None:
        for part in parts:
            self.socket.sendall(part.encode("latin-1") if isinstance(part, str) else part)

    def drain(self) -> None:
        """Keep what still comes, until the balancer ends or resets it."""
        with contextlib.suppress(OSError):
            while self.more():
                self.buffer.clear()

    def close(self) -> None:
        self.ended = self.ended or "closed"
        self.socket.close()

    def reset(self) -> None:
        self.ended = "closed"
        reset(self.socket)

    def drop(self, abort: bool = False) -> None:
        """End the connection while the script waits for the balancer; with RST if it shall be one."""
        if abort:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.shutdown(socket.SHUT_RD if abort else socket.SHUT_RDWR)
        # Its thread wakes up and closes.
        until(lambda: self.socket.fileno() < 0, "the end of the script")

    def silent(self) -> bool:
        """Whether nothing is there to be read now."""
        self.socket.setblocking(False)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return not self.buffer
        finally:
            self.socket.settimeout(PATIENCE)
        return False


Script = Callable[[Talk], None]


def switch(key: str, *fields: str) -> str:
    """A correct 101."""
    own = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept_of(key)}", *fields)
    return "".join(f"{line}\r\n" for line in ("HTTP/1.1 101 Switching Protocols", *own, ""))


def response(body: bytes = b"", *fields: str, status: str = "200 OK", length: bool = True) -> bytes:
    own = [f"Content-Length: {len(body)}"] if length else []
    return (
        "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *own, *fields, "")).encode("latin-1") + body
    )


def echo(talk: Talk) -> None:
    """Send back what comes."""
    while talk.buffer or talk.more():
        talk.send(talk.take(len(talk.buffer)))


def proper(talk: Talk) -> None:
    """A well-behaved server: it answers with what it understood, and echoes what comes on a WebSocket."""
    while (head := talk.head()) is not None:
        if head.get("upgrade") == "websocket":
            talk.send(switch(head.get("sec-websocket-key") or ""))
            return echo(talk)
        if head.get("expect"):
            talk.send("HTTP/1.1 100 Continue\r\n\r\n")
        size, digest = talk.digest(head)
        told = {
            "line": head.line,
            "fields": head.fields,
            "size": size,
            "sha": digest,
            "backend": talk.recorder.name,
            "talk": talk.number,
            "request": len(talk.heads),
        }
        body = json.dumps(told).encode()
        last = head.line.endswith("1.0") or "close" in head.options()
        full = response(body, f"X-Backend: {talk.recorder.name}", *(["Connection: close"] if last else []))
        talk.send(full.removesuffix(body) if head.method == "HEAD" else full)
        if last:
            return talk.close()
    return None


def replies(*parts: str | bytes, then: str = "drain") -> Script:
    """Wait for one head, send this, and go on as said: ``drain``, ``close`` or ``reset``."""

    def script(talk: Talk) -> None:
        if talk.head() is not None:
            talk.send(*parts)
            getattr(talk, then)()

    return script


class Recorder:
    """A listening socket. ``script`` says what it does on each connection; when the script returns,
    what still comes is recorded."""

    def __init__(self, name: str = "recorder") -> None:
        self.name = name
        self.script: Script = proper
        self.talks: list[Talk] = []
        self._number = 0
        self._lock = threading.Lock()
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.address = text_of(self.socket.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with self._lock:
                talk = Talk(self, connection, self._number)
                self._number += 1
                self.talks.append(talk)
                script = self.script
            threading.Thread(target=self._run, args=(talk, script), daemon=True).start()

    def _run(self, talk: Talk, script: Script) -> None:
        # A script that a test has broken on purpose is not to be reported by the thread.
        with contextlib.suppress(OSError, AssertionError):
            try:
                script(talk)
            except TimeoutError:
                # Nobody has asked it anything for long. Whoever does so later gets no answer from it.
                talk.close()
                return
        if talk.ended is None:
            talk.drain()
        talk.close()

    def forget(self) -> None:
        """What was recorded so far is no test's any more; behave well again."""
        with self._lock:
            self.script = proper
            self.talks = []

    @contextlib.contextmanager
    def behaving(self, script: Script) -> Iterator[None]:
        self.forget()
        self.script = script
        try:
            yield
        finally:
            self.script = proper

    def talk(self, index: int = 0) -> Talk:
        """The connection of this number since the last ``forget``, once it is there."""
        found: Talk = until(
            lambda: len(self.talks) > index and self.talks[index], "a connection to the recorder"
        )
        return found

    def ended(self, *, but: int | None = None) -> list[Talk]:
        """All connections, each over, but that of the number given."""
        with self._lock:
            talks = [talk for talk in self.talks if talk.number != but]
        for talk in talks:
            until(lambda talk=talk: talk.ended is not None, "the end of a connection to the recorder")
        return talks

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        with self._lock:
            for talk in self.talks:
                with contextlib.suppress(OSError):
                    talk.socket.shutdown(socket.SHUT_RDWR)
