"""Tickets, as a Python backend verifies them.

With ``ticket = true`` the directory and redirects add a signed parameter to the URLs that they name. A
backend that verifies it serves only clients that were sent to it, from the address that they asked from, a
moment ago::

    KEY = tickets.read_key("/etc/pybalancer/tickets")
    SEEN = tickets.Seen()

    tickets.verify(query["ticket"], client_ip, key=KEY, pool="chat", backend="app-1", seen=SEEN)

This module needs nothing but the standard library.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import hmac
import ipaddress
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import Final, Literal

from pybalancer.errors import PybalancerError

_LETTERS: Final = re.compile(r"[A-Za-z0-9_-]{76}", re.ASCII)
_SIGNED: Final = 25
"""Bytes before the signature: version, expiry (8), nonce (16)."""
_BOUND: Final = 1
_UNBOUND: Final = 2


class TicketError(PybalancerError):
    """Not to be served. ``why``: malformed, forged (also: for another backend or address), expired, used."""

    def __init__(self, why: Literal["malformed", "forged", "expired", "used"]) -> None:
        super().__init__(f"the ticket is {why}")
        self.why = why


@dataclass(frozen=True, slots=True)
class Ticket:
    """One that is good. ``expiry`` is Unix time, ``nonce`` 16 bytes that no other ticket has."""

    expiry: int
    nonce: bytes
    bound: bool
    """Whether it is for one address."""


class Seen:
    """Tickets that were used, so that each is good once; for one process.

    Remembers at most ``most`` until they expire. Beyond that the one that expires first is forgotten: it
    could be used again for the rest of its time.
    """

    def __init__(self, most: int = 100_000) -> None:
        if most < 1:
            raise ValueError(f"most is at least 1, not {most}")
        self._most = most
        self._nonces: set[bytes] = set()
        self._order: list[tuple[int, bytes]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._nonces)

    def first(self, ticket: Ticket, now: float) -> bool:
        """Whether it has not been seen before; it has been from now on."""
        with self._lock:
            while self._order and self._order[0][0] <= now:
                self._nonces.discard(heapq.heappop(self._order)[1])
            if ticket.nonce in self._nonces:
                return False
            self._nonces.add(ticket.nonce)
            heapq.heappush(self._order, (ticket.expiry, ticket.nonce))
            if len(self._order) > self._most:
                self._nonces.discard(heapq.heappop(self._order)[1])
            return True


def verify(
    ticket: str,
    address: str,
    *,
    key: bytes,
    pool: str,
    backend: str,
    now: float | None = None,
    seen: Seen | None = None,
) -> Ticket:
    """The ticket of a client at ``address`` (an IP address), if it is good for this backend of this pool.

    ``key`` has 32 bytes: see ``read_key`` and ``derive_key``. ``now`` is Unix time, by default the clock's.
    With ``seen`` a ticket is good once. Raises TicketError, and ValueError for what is no address or key.
    """
    if len(key) != 32:
        raise ValueError(f"a key has 32 bytes, this one {len(key)}")
    # Also where the ticket is for any address: else a mistake here would be found only later.
    bound_to = _address(address)
    if not isinstance(ticket, str) or not _LETTERS.fullmatch(ticket):
        raise TicketError("malformed")
    raw = base64.urlsafe_b64decode(ticket)
    signed, signature = raw[:_SIGNED], raw[_SIGNED:]
    bound = signed[0] == _BOUND
    if not bound and signed[0] != _UNBOUND:
        raise TicketError("malformed")
    known = _mac(key, signed, pool.encode(), backend.encode(), bound_to if bound else bytes(16))
    if not hmac.compare_digest(signature, known):
        raise TicketError("forged")
    found = Ticket(int.from_bytes(signed[1:9], "big"), signed[9:], bound)
    now = time.time() if now is None else now
    if found.expiry <= now:
        raise TicketError("expired")
    if seen is not None and not seen.first(found, now):
        raise TicketError("used")
    return found


def read_key(path: str | os.PathLike[str]) -> bytes:
    """The key in a file such as the balancer's ``ticket_secret_file``: 64 hexadecimal digits.

    Raises OSError, and ValueError if something else is in it.
    """
    with open(path, encoding="ascii", errors="replace") as file:
        text = file.read(4096).strip()
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise ValueError(f"{os.fspath(path)} holds no key of 64 hexadecimal digits")
    return bytes.fromhex(text)


def derive_key(secret: bytes, pool: str) -> bytes:
    """The key of a pool that has none of its own, from the balancer's secret (16 bytes).

    To be done where the secret is. Backends get the result: it does not tell the secret, with which one
    could aim at them.
    """
    if len(secret) != 16:
        raise ValueError(f"a secret has 16 bytes, this one {len(secret)}")
    return _mac(secret, b"pybalancer-ticket-key", pool.encode())


def _mac(key: bytes, *parts: bytes) -> bytes:
    """Each part goes in with its length before it, so that no two lists of parts are the same bytes."""
    text = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hmac.digest(key, text, hashlib.sha256)


def _address(text: str) -> bytes:
    """16 bytes; of IPv4 the mapped address, so that it does not matter on what socket a client came."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
