"""The hash of rules, as the kernel computes it: ``jhash``."""

from __future__ import annotations

from typing import Final

MASK: Final = 0xFFFF_FFFF


def jhash(data: bytes, seed: int) -> int:
    """The kernel's ``jhash`` (Jenkins' lookup3) of 1 word or more, as little-endian machines have it."""
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
    a = b = c = (0xDEADBEEF + len(data) + seed) & MASK
    while len(words) > 3:
        a, b, c = _mix(a + words[0], b + words[1], c + words[2])
        words = words[3:]
    one, two, three = [*words, 0, 0][:3]
    return _last(a + one, b + two, c + three)


def _turned(word: int, bits: int) -> int:
    word &= MASK
    return (word << bits | word >> (32 - bits)) & MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = a - c & MASK ^ _turned(c, 4)
    c += b
    b = b - a & MASK ^ _turned(a, 6)
    a += c
    c = c - b & MASK ^ _turned(b, 8)
    b += a
    a = a - c & MASK ^ _turned(c, 16)
    c += b
    b = b - a & MASK ^ _turned(a, 19)
    a += c
    c = c - b & MASK ^ _turned(b, 4)
    b += a
    return a & MASK, b & MASK, c & MASK


def _last(a: int, b: int, c: int) -> int:
    c = (c ^ b & MASK) - _turned(b, 14) & MASK
    a = (a & MASK ^ c) - _turned(c, 11) & MASK
    b = (b & MASK ^ a) - _turned(a, 25) & MASK
    c = (c ^ b) - _turned(b, 16) & MASK
    a = (a ^ c) - _turned(c, 4) & MASK
    b = (b ^ a) - _turned(a, 14) & MASK
    return (c ^ b) - _turned(b, 24) & MASK
