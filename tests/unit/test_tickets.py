"""Tickets: what is verified, and what is tried to get past it."""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybalancer import tickets
from pybalancer.tickets import Seen, Ticket, TicketError, verify
from tests.model.tickets import ticket

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "tickets.json").read_text())["tickets"]
KEY = bytes(range(32))
NONCE = b"n" * 16
NOW = 1_800_000_000.0
LATER = 1_800_000_030
GOOD = ticket(KEY, "chat", "app-1", "192.0.2.1", LATER, NONCE)


def check(text: Any, address: str = "192.0.2.1", **how: Any) -> Ticket:
    given: dict[str, Any] = {"key": KEY, "pool": "chat", "backend": "app-1", "now": NOW, **how}
    return verify(text, address, **given)


def why(call: Callable[[], object]) -> str:
    with pytest.raises(TicketError) as caught:
        call()
    assert str(caught.value) == f"the ticket is {caught.value.why}"
    return caught.value.why


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case['address']} {case['expiry']}")
def test_what_the_model_makes_is_good(case: dict[str, Any]) -> None:
    key = tickets.derive_key(bytes.fromhex(case["secret"]), case["pool"])
    assert key.hex() == case["key"]
    expiry = int(case["expiry"], 16)
    found = verify(
        case["ticket"],
        case["address"] or "198.51.100.7",
        key=key,
        pool=case["pool"],
        backend=case["backend"],
        now=math.nextafter(float(expiry), -math.inf),
    )
    assert found == Ticket(expiry, bytes.fromhex(case["nonce"]), case["address"] is not None)


def test_every_bit_is_signed() -> None:
    raw = base64.urlsafe_b64decode(GOOD)
    for bit in range(len(raw) * 8):
        bent = bytearray(raw)
        bent[bit // 8] ^= 1 << bit % 8
        text = base64.urlsafe_b64encode(bent).decode()
        # Of the version's bits some make a version that there is not.
        assert why(lambda text=text: check(text)) == ("malformed" if bit < 8 and bent[0] != 2 else "forged")


@pytest.mark.parametrize(
    "text",
    ["", "x", GOOD[:-1], GOOD + "A", GOOD + "=", GOOD + "\n", " " + GOOD[1:], GOOD[:-1] + "+",
     GOOD[:-1] + "é",
     GOOD[:-1] + "\uff21", "%" + GOOD[1:], GOOD.encode(), None, 7, "A" * 76, "A" * 1_000_000],
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
def test_what_is_no_ticket_is_malformed(text: Any) -> None:
    assert why(lambda: check(text)) == "malformed"


@pytest.mark.parametrize(
    "other",
    [{"key": bytes(32)}, {"pool": "cha"}, {"pool": "rooms"}, {"backend": "app-2"}, {"backend": "app-1\0"},
     {"pool": "chatapp", "backend": "-1"}, {"address": "192.0.2.2"},
     {"address": "::"}, {"address": "::192.0.2.1"}],
    ids=str,
)  # fmt: skip
def test_a_ticket_is_for_one_backend_and_one_address(other: dict[str, Any]) -> None:
    assert why(lambda: check(GOOD, **other)) == "forged"


def test_an_address_is_the_same_on_either_kind_of_socket() -> None:
    assert check(GOOD, "::ffff:192.0.2.1") == check(GOOD)
    six = ticket(KEY, "chat", "app-1", "fe80::1", LATER, NONCE)
    assert check(six, "fe80::1%eth0").bound


def test_an_unbound_ticket_is_for_whoever_has_it() -> None:
    free = ticket(KEY, "chat", "app-1", None, LATER, NONCE)
    assert not check(free, "203.0.113.9").bound
    # To say of a bound one that it is not does not help: that is signed, too.
    raw = base64.urlsafe_b64decode(GOOD)
    lie = base64.urlsafe_b64encode(b"\2" + raw[1:]).decode()
    assert why(lambda: check(lie, "203.0.113.9")) == "forged"


def test_a_ticket_expires() -> None:
    assert check(GOOD, now=LATER - 0.001)
    for now in (LATER, LATER + 1, 2.0**40):
        assert why(lambda now=now: check(GOOD, now=now)) == "expired"
    fresh = ticket(KEY, "chat", "app-1", "192.0.2.1", int(time.time()) + 30, NONCE)
    assert check(fresh, now=None)
    assert why(lambda: check(ticket(KEY, "chat", "app-1", "192.0.2.1", 5, NONCE), now=None)) == "expired"


def test_a_ticket_is_good_once() -> None:
    seen = Seen()
    assert check(GOOD, seen=seen)
    assert why(lambda: check(GOOD, seen=seen)) == "used"
    assert why(lambda: check(GOOD, seen=seen, now=LATER)) == "expired"
    # Nobody fills it with what is not good.
    assert why(lambda: check(GOOD, seen=seen, address="192.0.2.9")) == "forged"
    assert len(seen) == 1


def test_what_was_seen_is_bounded_and_forgotten_in_time() -> None:
    seen = Seen(3)
    texts = [ticket(KEY, "chat", "app-1", None, LATER + n, bytes([n]) * 16) for n in range(4)]
    for text in (texts[3], texts[0], texts[2], texts[1]):
        assert check(text, seen=seen)
    assert len(seen) == 3
    # The one that expires first has made room; the others are remembered.
    for text in texts[1:]:
        assert why(lambda text=text: check(text, seen=seen)) == "used"
    late = ticket(KEY, "chat", "app-1", None, LATER + 100, b"x" * 16)
    assert check(late, seen=seen, now=LATER + 50)
    assert len(seen) == 1
    with pytest.raises(ValueError, match="at least 1"):
        Seen(0)


def test_mistakes_of_the_backend_are_no_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        check(GOOD, key=b"short")
    with pytest.raises(ValueError, match="nobody"):
        check(GOOD, "nobody")
    with pytest.raises(ValueError, match="16 bytes"):
        tickets.derive_key(b"", "chat")
    file = tmp_path / "key"
    file.write_text(KEY.hex() + "\n")
    assert tickets.read_key(file) == KEY
    for text in ("", KEY.hex()[1:], KEY.hex() + "00", "z" * 64, "é" * 32):
        file.write_text(text)
        with pytest.raises(ValueError, match="holds no key"):
            tickets.read_key(file)
