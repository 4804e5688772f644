"""Make the test vectors from the model: python -m tests.model.make_vectors

They are committed, so that whoever writes another implementation (the packet program, a client that
looks its backend up) needs nothing but the files. Numbers of 64 and more bits are hexadecimal text,
since JSON readers round them.
"""

import json
import sys
from pathlib import Path

from tests.model import maglev, tickets

VECTORS = Path(__file__).parents[1] / "vectors"

SECRETS = (bytes(range(16)), bytes(16), bytes.fromhex("ffeeddccbbaa99887766554433221100"))
SOURCES = (
    "0.0.0.0:0",
    "127.0.0.1:1",
    "192.0.2.1:49152",
    "192.0.2.1:49153",
    "255.255.255.255:65535",
    "[::]:0",
    "[::1]:443",
    "[2001:db8::1]:49152",
    "[2001:db8:0:1:2:3:4:5]:65535",
    # Mapped is IPv4; compatible (deprecated) and the rest of the IPv4-like forms are not.
    "[::ffff:192.0.2.1]:49152",
    "[::ffff:255.255.255.255]:65535",
    "[::192.0.2.1]:49152",
    "[64:ff9b::192.0.2.1]:49152",
)
SIZES = (251, 16381, 65537, 655357)

SPREAD = [(f"app-{number}", 1) for number in range(1, 21)]
TABLES: tuple[tuple[str, list[tuple[str, int]], int], ...] = (
    ("one backend", [("only", 1)], 7),
    ("nobody has weight", [("a", 0), ("b", 0)], 7),
    ("no backends", [], 7),
    ("as many backends as slots", [(name, 1) for name in "gfedcba"], 7),
    ("equal", [("a", 1), ("b", 1), ("c", 1)], 251),
    ("equal, listed otherwise", [("c", 1), ("a", 1), ("b", 1)], 251),
    ("equal, of another weight", [("a", 1000), ("b", 1000), ("c", 1000)], 251),
    ("one of three without weight", [("a", 1), ("b", 0), ("c", 1)], 251),
    ("weights", [("a", 1), ("b", 2), ("c", 3), ("d", 5)], 251),
    ("weights without a common divisor", [("a", 97), ("b", 89), ("c", 13)], 1021),
    ("extreme weights", [("heavy", 65535), ("light", 1), ("middle", 300)], 1021),
    ("names by their bytes", [("é", 1), ("z", 1), ("Z", 1), ("\U0001f600", 1), ("\uff5e", 1)], 251),
    ("default size", SPREAD, 65537),
    ("default size, weights", [(name, number) for number, (name, _) in enumerate(SPREAD)], 65537),
    ("smallest size of the configuration", SPREAD[:5], 16381),
)
# Tables up to this size are given in full; of larger ones, every so many-th slot and the digest.
IN_FULL = 1021
SAMPLE = 997


def flow_vectors() -> dict[str, object]:
    flows = []
    for secret in SECRETS:
        for source in SOURCES:
            address, port = source.rsplit(":", 1)
            for key, with_port in (("source", int(port)), ("source-ip", None)):
                data = maglev.flow_key(address.strip("[]"), with_port)
                hashed = maglev.flow_hash(secret, data)
                flows.append({
                    "secret": secret.hex(), "source": source, "key": key,
                    "bytes": data.hex(), "hash": f"{hashed:016x}",
                    "slots": {str(size): maglev.slot(hashed, size) for size in SIZES},
                })  # fmt: skip
    return {"about": "SipHash-1-3 of a client's key, and its slot in tables of several sizes", "flows": flows}


def table_vectors() -> dict[str, object]:
    tables = []
    for name, backends, size in TABLES:
        for secret in SECRETS[:1] if size > IN_FULL else SECRETS:
            slots = maglev.table(secret, backends, size)
            walks = {}
            for source in SOURCES[:8] if slots else ():
                hashed = maglev.flow_hash(secret, source.encode())
                walks[f"{hashed:016x}"] = maglev.walk(slots, hashed)
            tables.append({
                "name": name, "secret": secret.hex(), "size": size, "backends": backends,
                "counts": [slots.count(index) for index in range(len(backends))],
                "digest": f"{maglev.digest(backends, slots, size):032x}",
                "every": 1 if size <= IN_FULL else SAMPLE,
                "slots": slots if size <= IN_FULL else slots[::SAMPLE],
                "walks": walks,
            })  # fmt: skip
    return {
        "about": "Maglev tables: owners as indexes into backends, and each key's preference order",
        "tables": tables,
    }


def ticket_vectors() -> dict[str, object]:
    made = []
    for secret in SECRETS:
        for pool, backend in (("chat", "app-1"), ("a", "b"), ("räume", "näme \U0001f600")):
            key = tickets.derived(secret, pool)
            for address in (None, "192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "::"):
                for expiry, nonce in (
                    (0, bytes(16)),
                    (1_800_000_000, bytes(range(16))),
                    (2**64 - 1, b"\xff" * 16),
                ):
                    made.append({
                        "secret": secret.hex(), "pool": pool, "backend": backend, "key": key.hex(),
                        "address": address, "expiry": f"{expiry:016x}", "nonce": nonce.hex(),
                        "ticket": tickets.ticket(key, pool, backend, address, expiry, nonce),
                    })  # fmt: skip
    return {"about": "Tickets, and the keys that are derived for them", "tickets": made}


def render(vectors: dict[str, object]) -> str:
    """One vector a line: readable in a diff."""
    (_, about), (name, rows) = vectors.items()
    assert isinstance(rows, list)
    lines = ",\n".join(json.dumps(row, ensure_ascii=True) for row in rows)
    return f'{{"about": {json.dumps(about)},\n"{name}": [\n{lines}\n]}}\n'


def files() -> dict[str, str]:
    """Contents by file name."""
    return {
        "flow.json": render(flow_vectors()),
        "maglev.json": render(table_vectors()),
        "tickets.json": render(ticket_vectors()),
    }


if __name__ == "__main__":
    for name, text in files().items():
        (VECTORS / name).write_text(text)
        sys.stdout.write(f"{VECTORS / name}\n")
