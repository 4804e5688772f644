"""The line between the old process and the new one: words with a little JSON, and descriptors.

A message is a length and a count of descriptors; then bytes that carry those, up to ``PER_BYTE`` each; then
the JSON. Ours are the only programs at both ends, and still nothing of it is believed unseen.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from pybalancer.errors import UpgradeError

_HEADER: Final = struct.Struct("<II")
PER_BYTE: Final = 250
"""Descriptors with one byte; the kernel takes 253."""
MOST_BYTES: Final = 16 * 1024 * 1024
MOST_DESCRIPTORS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``descriptors`` are the receiver's, who closes them."""

    word: str
    body: dict[str, Any]
    descriptors: list[int]

    def close(self) -> None:
        """Close what came along."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors.clear()


def encode(word: str, body: Mapping[str, Any]) -> bytes:
    """A message without descriptors, whole."""
    text = json.dumps({"word": word, **body}).encode()
    return _HEADER.pack(len(text), 0) + text


class Line:
    """One end."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = trio.socket.from_stdlib_socket(end)

    async def send(self, word: str, body: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message. Raises UpgradeError where nobody takes it."""
        text = json.dumps({"word": word, **body}).encode()
        try:
            await self._send_all(_HEADER.pack(len(text), len(descriptors)))
            for some in _slices(descriptors):
                rights = array.array("i", some)
                await self._socket.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            await self._send_all(text)
        except OSError as error:
            raise UpgradeError(f"the other process is gone ({error.strerror})") from error

    async def receive(self) -> Message | None:
        """The next message; None once the other end is closed. Raises UpgradeError for nonsense."""
        descriptors: list[int] = []
        try:
            header = await self._read(_HEADER.size)
            if header is None:
                return None
            length, count = _HEADER.unpack(header)
            _check(length, count)
            for wanted in (min(PER_BYTE, count - done) for done in range(0, count, PER_BYTE)):
                descriptors += await self._receive_rights(wanted)
            text = await self._read(length)
            if text is None:
                return None
            content = json.loads(text)
            word = content.pop("word")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            Message("", {}, descriptors).close()
            raise UpgradeError("the other process speaks nonsense") from error
        except BaseException:
            Message("", {}, descriptors).close()
            raise
        return Message(str(word), content, descriptors)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    async def _send_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._socket.send(view) :]

    async def _read(self, count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            try:
                part = await self._socket.recv(count - len(data))
            except ConnectionResetError:
                return None
            if not part:
                return None
            data += part
        return bytes(data)

    async def _receive_rights(self, count: int) -> list[int]:
        size = array.array("i").itemsize
        _, ancillary, _, _ = await self._socket.recvmsg(
            1, socket.CMSG_SPACE(PER_BYTE * size), socket.MSG_CMSG_CLOEXEC
        )
        rights = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                rights.frombytes(data[: len(data) - len(data) % size])
        if len(rights) != count:
            Message("", {}, list(rights)).close()
            raise UpgradeError("open files are used up (see ulimit -n)")
        return list(rights)


def _check(length: int, count: int) -> None:
    if length > MOST_BYTES or count > MOST_DESCRIPTORS:
        raise UpgradeError("the other process speaks nonsense")


def _slices(descriptors: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(descriptors), PER_BYTE):
        yield descriptors[start : start + PER_BYTE]
