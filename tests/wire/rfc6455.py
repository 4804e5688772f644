"""A WebSocket client by hand, frame by frame, after RFC 6455 and 7692. Nothing is hidden from the test."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
import zlib
from types import TracebackType
from typing import NamedTuple

from .net import connect, text_of

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
DEFLATE = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TAIL = b"\x00\x00\xff\xff"
"""What RFC 7692 cuts off the end of a compressed message."""


class Frame(NamedTuple):
    opcode: int
    payload: bytes
    fin: bool
    compressed: bool


class Closed(Exception):
    """The server sent Close."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class Lost(Exception):
    """The connection ended without Close: what the standard calls 1006."""


def mask(data: bytes, key: bytes) -> bytes:
    """XOR with the key, over and over (RFC 6455 section 5.3)."""
    size = len(data)
    keys = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data) ^ int.from_bytes(keys)).to_bytes(size)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, compressed: bool = False) -> bytes:
    """A client's frame, with the shortest length and a fresh mask (section 5.2)."""
    head = bytes([opcode | fin << 7 | compressed << 6])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += struct.pack("!BH", 0x80 | 126, size)
    else:
        head += struct.pack("!BQ", 0x80 | 127, size)
    key = os.urandom(4)
    return head + key + mask(payload, key)


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_TAIL)


def inflate(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=-15).decompress(data + _TAIL)


class RawWebSocket:
    """One open WebSocket. ``sent`` and ``received`` count its bytes on the wire, handshake and all."""

    def __init__(
        self,
        address: str,
        path: str = "/",
        *,
        source: str | None = None,
        extensions: str | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.socket = connect(address, source, receive_buffer)
        self.local = text_of(self.socket.getsockname())
        self.sent = self.received = 0
        self.pongs: list[bytes] = []
        self._reader = self.socket.makefile("rb", buffering=1 << 16)
        try:
            self.extensions = self._shake_hands(address, path, extensions)
        except BaseException:
            self.abandon()
            raise

    def _shake_hands(self, address: str, path: str, extensions: str | None) -> str:
        key = base64.b64encode(os.urandom(16))
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {address}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key.decode()}",
        ]
        if extensions:
            lines.append(f"Sec-WebSocket-Extensions: {extensions}")
        self.send_bytes("\r\n".join([*lines, "", ""]).encode())
        status = self._line()
        if not status:
            raise Lost("no answer to the handshake")
        assert status.startswith("HTTP/1.1 101 "), status
        headers = {}
        while line := self._line():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        assert headers["sec-websocket-accept"] == accept
        return headers.get("sec-websocket-extensions", "")

    def _line(self) -> str:
        line = self._reader.readline()
        self.received += len(line)
        return line.decode().rstrip("\r\n")

    def _read(self, count: int) -> bytes:
        data = self._reader.read(count)
        self.received += len(data)
        if len(data) < count:
            raise Lost(f"ended after {len(data)} of {count} bytes")
        return data

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)
        self.sent += len(data)

    def send_frame(
        self, opcode: int, payload: bytes = b"", *, fin: bool = True, compressed: bool = False
    ) -> None:
        self.send_bytes(frame(opcode, payload, fin=fin, compressed=compressed))

    def read_frame(self) -> Frame:
        first, second = self._read(2)
        assert not second & 0x80, "a server does not mask"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._read(8))
        return Frame(first & 0x0F, self._read(size), bool(first & 0x80), bool(first & 0x40))

    def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.send_frame(TEXT, message.encode())
        else:
            self.send_frame(BINARY, message)

    def receive(self) -> str | bytes:
        """The next message. Pings on the way are answered; Close is answered and raised."""
        opcode, parts, compressed = CONTINUATION, [], False
        while True:
            got = self.read_frame()
            if got.opcode == PING:
                self.send_frame(PONG, got.payload)
            elif got.opcode == PONG:
                self.pongs.append(got.payload)
            elif got.opcode == CLOSE:
                self.send_frame(CLOSE, got.payload)
                code = int.from_bytes(got.payload[:2]) if got.payload else 1005
                raise Closed(code, got.payload[2:].decode())
            else:
                assert (got.opcode == CONTINUATION) == (opcode != CONTINUATION), "a frame out of order"
                if got.opcode != CONTINUATION:
                    opcode, compressed = got.opcode, got.compressed
                parts.append(got.payload)
                if got.fin:
                    break
        data = b"".join(parts)
        if compressed:
            data = inflate(data)
        return data.decode() if opcode == TEXT else data

    def ping(self, payload: bytes) -> None:
        """Until the pong; no message may come in between."""
        self.send_frame(PING, payload)
        while payload not in self.pongs:
            got = self.read_frame()
            assert got.opcode == PONG, got
            self.pongs.append(got.payload)

    def close(self, code: int = 1000, reason: str = "") -> int:
        """The closing handshake, up to the end of the connection; the server's code."""
        self.send_frame(CLOSE, struct.pack("!H", code) + reason.encode())
        while (got := self.read_frame()).opcode != CLOSE:
            pass
        assert self.rest() == [], "nothing comes after Close (section 5.5.1)"
        self.abandon()
        return int.from_bytes(got.payload[:2])

    def rest(self) -> list[Frame | str]:
        """All frames up to the end of the connection; last is "reset" if that is what ended it."""
        frames: list[Frame | str] = []
        try:
            while self._reader.peek(1):
                frames.append(self.read_frame())
        except ConnectionResetError:
            frames.append("reset")
        return frames

    def abandon(self) -> None:
        """Close the socket, without a word."""
        self._reader.close()
        self.socket.close()

    def __enter__(self) -> RawWebSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()
