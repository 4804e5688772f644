"""Frames after RFC 6455 section 5, with every liberty that a sender could take."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..rfc6455 import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, mask
from .messages import Stream

__all__ = ["BINARY", "CLOSE", "CONTINUATION", "PING", "PONG", "TEXT", "Frame", "close", "frame", "read_frame"]

KEY = b"\x1b\x9a\x00\xff"


def header(opcode: int, size: int, *, fin: bool = True, rsv: int = 0, masked: bool, width: int = 0) -> bytes:
    """Up to the mask, which is ``KEY``. ``width``: bits of the length, where it is not to be the shortest."""
    width = width or (7 if size < 126 else 16 if size < 1 << 16 else 64)
    first, flag = opcode | rsv << 4 | fin << 7, masked << 7
    if width == 7:
        head = struct.pack("!BB", first, flag | size)
    elif width == 16:
        head = struct.pack("!BBH", first, flag | 126, size)
    else:
        head = struct.pack("!BBQ", first, flag | 127, size)
    return head + KEY * masked


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool, width: int = 0
) -> bytes:
    head = header(opcode, len(payload), fin=fin, rsv=rsv, masked=masked, width=width)
    return head + (mask(payload, KEY) if masked else payload)


def close(code: int | None = None, reason: str = "", *, masked: bool) -> bytes:
    payload = b"" if code is None else struct.pack("!H", code) + reason.encode()
    return frame(CLOSE, payload, masked=masked)


class Frame(NamedTuple):
    """One that was read. ``payload`` is unmasked."""

    opcode: int
    payload: bytes
    fin: bool
    masked: bool

    @property
    def code(self) -> int:
        """Of a Close."""
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2])


def read_frame(stream: Stream) -> Frame:
    def take(count: int) -> bytes:
        return b"".join(stream.length(count))

    first, second = take(2)
    size = second & 0x7F
    if size > 125:
        size = int.from_bytes(take(2 if size == 126 else 8))
    masked = bool(second & 0x80)
    key = take(4) if masked else bytes(4)
    return Frame(first & 0x0F, mask(take(size), key), bool(first & 0x80), masked)
