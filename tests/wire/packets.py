"""TCP segments made by hand, for what no well-behaved kernel would send: floods and slow handshakes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from .net import PATIENCE

SYN, RST, PSH, ACK = 0x02, 0x04, 0x08, 0x10
Place = tuple[str, int]


def _sum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def packet(source: Place, target: Place, flags: int, seq: int = 0, ack: int = 0, data: bytes = b"") -> bytes:
    """An IPv4 packet with a TCP segment. The kernel fills in the IP checksum."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(target[0])
    ports = struct.pack("!HH", source[1], target[1])
    head = struct.pack("!IIBBH", seq, ack, 5 << 4, flags, 0xFFFF)
    pseudo = addresses + struct.pack("!HH", socket.IPPROTO_TCP, 20 + len(data))
    checksum = _sum(pseudo + ports + head + data)
    segment = ports + head + struct.pack("!HH", checksum, 0) + data
    return (
        struct.pack("!BBHIBBH", 0x45, 0, 20 + len(segment), 0, 64, socket.IPPROTO_TCP, 0)
        + addresses
        + segment
    )


def raw_socket() -> socket.socket:
    """For whole packets, from whatever address they say they are."""
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


class Segment(NamedTuple):
    flags: int
    seq: int
    ack: int
    data: bytes


class SlowClient:
    """A TCP client without a kernel: it answers when the test says so.

    It lives in the current network namespace, whose machine must not own ``here``, lest the kernel answer
    in its place; the packets to it come by ``interface``.
    """

    def __init__(self, interface: str, here: Place, there: Place) -> None:
        self.here, self.there = here, there
        self.out = raw_socket()
        self.into = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self.into.bind((interface, 0x0800))
        self.into.settimeout(PATIENCE)
        self.seq, self.ack = 1000, 0

    def send(self, flags: int, data: bytes = b"") -> None:
        self.out.sendto(packet(self.here, self.there, flags, self.seq, self.ack, data), (self.there[0], 0))
        self.seq += len(data) + (flags & SYN > 0)

    def segments(self) -> Iterator[Segment]:
        """What the other side sends."""
        while True:
            got = self.into.recv(1 << 16)
            segment = got[(got[0] & 15) * 4 :]
            ours = got[9] == socket.IPPROTO_TCP and got[16:20] == socket.inet_aton(self.here[0])
            if ours and segment.startswith(struct.pack("!HH", self.there[1], self.here[1])):
                seq, ack, offset, flags = struct.unpack("!IIBB", segment[4:14])
                yield Segment(flags, seq, ack, segment[(offset >> 4) * 4 :])

    def begin(self) -> None:
        """The first half of a handshake: SYN, and wait for the answer to it."""
        self.send(SYN)
        answer = next(self.segments())
        assert answer.flags == SYN | ACK
        self.ack = answer.seq + 1

    def finish(self, data: bytes) -> None:
        """The other half, and the first bytes."""
        self.send(ACK)
        self.send(ACK | PSH, data)

    def answered(self) -> bytes | None:
        """The first bytes that come back, or None for a reset."""
        for segment in self.segments():
            if segment.flags & RST:
                return None
            if segment.data:
                return segment.data
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The other side need not wait for somebody who is gone.
        self.send(RST)
        self.out.close()
        self.into.close()
