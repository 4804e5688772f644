"""Tickets from the description in ``docs/direct.md``, without the product's code."""

import base64
import hashlib
import hmac
import ipaddress


def counted(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def derived(secret: bytes, pool: str) -> bytes:
    return hmac.new(secret, counted(b"pybalancer-ticket-key", pool.encode()), hashlib.sha256).digest()


def ticket(key: bytes, pool: str, backend: str, address: str | None, expiry: int, nonce: bytes) -> str:
    where = bytes(16)
    if address is not None:
        found = ipaddress.ip_address(address)
        where = found.packed.rjust(16, b"\0")
        if found.version == 4:
            where = b"\0" * 10 + b"\xff" * 2 + found.packed
    clear = bytes([2 if address is None else 1]) + expiry.to_bytes(8, "big") + nonce
    signed = counted(clear, pool.encode(), backend.encode(), where)
    return base64.urlsafe_b64encode(clear + hmac.new(key, signed, hashlib.sha256).digest()).decode()
