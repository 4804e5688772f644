"""HTTP/1.1 messages as the tests read them: one spelling of each thing, everything else fails."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Fields = list[tuple[str, str]]


@dataclass(frozen=True)
class Head:
    """First line and fields, decoded as latin-1: every byte is one character."""

    raw: bytes
    line: str
    fields: Fields

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """The value of a field that must not be there twice."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} stands {len(values)} times in {self.raw!r}"
        return values[0] if values else None

    @property
    def names(self) -> list[str]:
        return [name.lower() for name, _ in self.fields]

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    def options(self) -> set[str]:
        return {option.strip().lower() for value in self.all("connection") for option in value.split(",")}


def parse(raw: bytes) -> Head:
    assert raw.endswith(b"\r\n\r\n"), raw
    line, *rest = raw[:-4].decode("latin-1").split("\r\n")
    fields = []
    for text in rest:
        match = re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?(.*?)", text)
        assert match, f"no field: {text!r}"
        fields.append((match[1], match[2]))
    return Head(raw, line, fields)


@dataclass(frozen=True)
class Answer:
    """A response. Interim ones that came before it are in ``interim``."""

    head: Head
    body: bytes
    interim: tuple[Head, ...] = ()

    @property
    def status(self) -> int:
        return self.head.status

    def told(self) -> dict[str, Any]:
        """What a recorder says in it of the request that it answers."""
        import json

        found: dict[str, Any] = json.loads(self.body)
        return found


class Stream:
    """A socket that is read message by message."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = bytearray()

    def more(self) -> bool:
        """Read once; False at the end of the stream. A reset raises."""
        data = self.socket.recv(1 << 18)
        self.buffer += data
        return bool(data)

    def take(self, count: int) -> bytes:
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    def upto(self, mark: bytes) -> bytes | None:
        """With the mark; None if the stream ends before a first byte."""
        while (at := self.buffer.find(mark)) < 0:
            if not self.more():
                assert not self.buffer, f"ended within {bytes(self.buffer)!r}"
                return None
        return self.take(at + len(mark))

    def head(self) -> Head | None:
        raw = self.upto(b"\r\n\r\n")
        return None if raw is None else parse(raw)

    def length(self, count: int) -> Iterator[bytes]:
        while count:
            if not self.buffer:
                assert self.more(), f"ended {count} bytes too early"
            part = self.take(count)
            count -= len(part)
            yield part

    def chunks(self) -> Iterator[bytes]:
        while True:
            line = self.upto(b"\r\n")
            assert line, "ended between chunks"
            assert re.fullmatch(rb"0|[1-9a-f][0-9a-f]*\r\n|0\r\n", line), f"no canonical size: {line!r}"
            size = int(line, 16)
            if size == 0:
                assert self.upto(b"\r\n") == b"\r\n", "trailers"
                return
            yield from self.length(size)
            assert b"".join(self.length(2)) == b"\r\n"

    def until_end(self) -> Iterator[bytes]:
        while self.buffer or self.more():
            yield self.take(len(self.buffer))

    def parts(self, head: Head, bodyless: bool = False) -> Iterator[bytes]:
        """The body, as its head frames it."""
        length, coding = head.get("content-length"), head.get("transfer-encoding")
        assert length is None or coding is None, head.raw
        if bodyless:
            return iter(())
        if coding is not None:
            assert coding == "chunked", head.raw
            return self.chunks()
        if length is not None:
            return self.length(int(length))
        return self.until_end() if head.line.startswith("HTTP/") else iter(())

    def answer(self, to: str = "GET") -> Answer:
        """The next response to a request with this method, and its body."""
        interim = []
        while True:
            head = self.head()
            assert head is not None, "closed without an answer"
            if not 102 <= head.status <= 199 and head.status != 100:
                break
            interim.append(head)
        bodyless = to == "HEAD" or head.status in (101, 204, 304)
        return Answer(head, b"".join(self.parts(head, bodyless)), tuple(interim))

    def rest(self) -> bytes:
        """All until the end of the stream. A reset raises."""
        return b"".join(self.until_end())


KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def accept_of(key: str) -> str:
    """RFC 6455 section 1.3."""
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    return base64.b64encode(digest).decode()


def lines(*parts: str | bytes, end: str = "\r\n") -> bytes:
    """Lines and the empty one that ends a head. Text is latin-1, so that any byte can be written."""
    joined = [part if isinstance(part, bytes) else part.encode("latin-1") for part in parts]
    return b"".join(part + end.encode() for part in [*joined, b""])


def request(
    *fields: str | bytes, line: str = "GET / HTTP/1.1", host: str | None = "a.test", body: bytes = b""
) -> bytes:
    """A request with these fields besides Host."""
    hosts = [] if host is None else [f"Host: {host}"]
    return lines(line, *hosts, *fields) + body


WS = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")


def handshake(
    *fields: str | bytes,
    without: str = "-",
    line: str = "GET /ws HTTP/1.1",
    host: str = "a.test",
    body: bytes = b"",
) -> bytes:
    """A correct WebSocket handshake, without the fields that begin so, and with those given."""
    kept = [field for field in WS if not field.startswith(without)]
    return request(*kept, *fields, line=line, host=host, body=body)


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
