"""What h11 understands of the bytes of a connection: one reader for what was sent and for what arrived."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import h11

from .messages import accept_of

LARGEST = 1 << 22
HOPS = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"http2-settings",
    b"content-length",  # the body itself is compared
}
"""For one hop only (RFC 9110 section 7.6.1), or about how the message is framed there."""


def of_trust(name: bytes) -> bool:
    """What a front proxy says of a client, in whatever spelling."""
    name = re.sub(rb"[^a-z0-9]", b"-", name)
    return name in (b"forwarded", b"x-request-id") or name.startswith(b"x-forwarded-")


@dataclass
class Message:
    """A request as h11 tells it: names in lower case, values without the space around them."""

    method: bytes
    target: bytes
    version: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytearray = field(default_factory=bytearray)
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    complete: bool = False

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]

    def options(self) -> set[bytes]:
        return {option.strip().lower() for value in self.all(b"connection") for option in value.split(b",")}

    @property
    def is_handshake(self) -> bool:
        """One that asks for a WebSocket and nothing else."""
        asks = self.method == b"GET" and self.version == b"1.1" and b"upgrade" in self.options()
        return asks and [value.lower() for value in self.all(b"upgrade")] == [b"websocket"]

    def meaning(self) -> tuple[object, ...]:
        """What is the same on every hop."""
        host, target = b",".join(self.all(b"host")), self.target
        scheme, separator, rest = target.partition(b"://")
        if separator and scheme.isalpha():
            host, slash, path = rest.partition(b"/")
            target = slash + path or (b"*" if self.method == b"OPTIONS" else b"/")
        dropped = HOPS | self.options() | {b"host"}
        kept = [pair for pair in self.fields if pair[0] not in dropped and not of_trust(pair[0])]
        return self.method, target, host.lower(), kept, bytes(self.body), self.is_handshake


class Reader:
    """A connection. ``messages`` are its requests; the last may be cut off, or what follows be no request."""

    def __init__(self, *, lenient: bool = False) -> None:
        self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST)
        self.lenient = lenient
        """Allow two things that h11 does without: an empty line before a request (RFC 9112 section 2.2), and
        HTTP/1.0 with keep-alive (appendix C.2.2). Only where all bytes are there at once."""
        self.count = 0
        """Bytes that came."""
        self.messages: list[Message] = []
        self.error: str | None = None
        self.over = False
        """No more requests are read: an error, the end, or another protocol from here on."""

    def feed(self, data: bytes) -> Iterator[Message]:
        """The next bytes, none at the end. A message comes when its head is there, and again when it is
        complete: answer it then."""
        self.count += len(data)
        if self.over:
            return
        if self.lenient:
            data = data.removeprefix(b"\r\n")
        try:
            self.connection.receive_data(data)
            while not self.over:
                match event := self.connection.next_event():
                    case h11.NEED_DATA:
                        return
                    case h11.Request():
                        self.messages.append(
                            Message(event.method, event.target, event.http_version, list(event.headers))
                        )
                        yield self.messages[-1]
                    case h11.Data():
                        self.messages[-1].body += event.data
                    case h11.EndOfMessage():
                        self.messages[-1].complete = True
                        self.messages[-1].trailers = list(event.headers)
                        yield self.messages[-1]
                    case _:
                        self.over = True
        except h11.RemoteProtocolError as error:
            self.error, self.over = str(error), True

    def answer(self, message: Message, body: bytes = b"") -> bytes:
        """The response to it; from then on the next may be read, if there may be one."""
        send = self.connection.send
        if message.is_handshake:
            self.over = True
            key = b",".join(message.all(b"sec-websocket-key"))
            return (
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_of(key.decode("latin-1")).encode()
            )
        length = (b"content-length", b"%d" % len(body))
        parts = [send(h11.Response(status_code=200, headers=[length]))]
        if message.method != b"HEAD":
            parts.append(send(h11.Data(data=body)))
        parts.append(send(h11.EndOfMessage()))
        if self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE:
            more = True
        else:
            options = message.options()
            more = (
                self.lenient
                and message.version == b"1.0"
                and b"keep-alive" in options
                and b"close" not in options
            )
        if more and self.lenient:
            rest, _ = self.connection.trailing_data
            self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST)
            self.connection.receive_data(rest.removeprefix(b"\r\n"))
        elif more:
            self.connection.start_next_cycle()
        else:
            self.over = True
        return b"".join(part for part in parts if part)


def understood(data: bytes) -> Reader:
    """All that h11 understands of a connection on which nothing else came."""
    reader = Reader(lenient=True)
    for part in (data, b""):
        for message in reader.feed(part):
            if message.complete:
                reader.answer(message)
    return reader
