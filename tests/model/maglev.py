"""How pybalancer decides, once more: short, slow, and sharing no line with the code that it checks.

Flow keys and Maglev's table (Eisenbud et al., NSDI 2016, section 3.4) with weights, walked round by
round as in the paper. Where the order of the slots comes from is told in rust/core/src/maglev.rs.
"""

from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, ip_address

from tests.model.siphash import MASK, siphash

Backends = Sequence[tuple[str, int]]


def flow_key(address: str, port: int | None) -> bytes:
    """Bytes that are hashed for a client: its address as on the wire, then its port unless None."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.packed + (b"" if port is None else port.to_bytes(2, "big"))


def flow_hash(secret: bytes, key: bytes) -> int:
    return siphash(secret, key, c=1, d=3)


def slot(hashed: int, size: int) -> int:
    return (hashed >> 32) * size >> 32


def preferences(secret: bytes, name: str, size: int) -> Iterator[int]:
    """The slots that a backend would take, the best first, some of them more than once."""
    state = flow_hash(secret, b"maglev state\0" + name.encode())
    increment = flow_hash(secret, b"maglev increment\0" + name.encode()) | 1
    while True:
        state = (state * 6364136223846793005 + increment) & MASK
        yield slot(state, size)


def table(secret: bytes, backends: Backends, size: int) -> list[int]:
    """Who owns each slot, as indexes into `backends`; empty if none has weight."""
    order = sorted(
        (i for i, (_, weight) in enumerate(backends) if weight), key=lambda i: backends[i][0].encode()
    )
    if not order:
        return []
    highest = max(weight for _, weight in backends)
    wishes = {i: preferences(secret, backends[i][0], size) for i in order}
    saved = dict.fromkeys(order, 0)
    slots: list[int | None] = [None] * size
    free = size
    while True:
        for i in order:
            saved[i] += backends[i][1]
            if saved[i] < highest:
                continue
            saved[i] -= highest
            slots[next(wish for wish in wishes[i] if slots[wish] is None)] = i
            free -= 1
            if not free:
                return [owner for owner in slots if owner is not None]


def walk(slots: Sequence[int], hashed: int) -> list[int]:
    """The preference order of a key: each owner once, as met from the key's slot on."""
    start = slot(hashed, len(slots))
    return list(dict.fromkeys([*slots[start:], *slots[:start]]))


def digest(backends: Backends, slots: Sequence[int], size: int) -> int:
    """The fingerprint by which balancers compare their tables."""
    order = sorted(range(len(backends)), key=lambda i: backends[i][0].encode())
    rank = {i: place for place, i in enumerate(order)}
    data = bytearray(size.to_bytes(4, "little"))
    for i in order:
        name, weight = backends[i][0].encode(), backends[i][1]
        data += len(name).to_bytes(8, "little") + name + weight.to_bytes(4, "little")
    for owner in slots:
        data += rank[owner].to_bytes(2, "little")
    return siphash(b"pybalancer table", bytes(data), c=2, d=4, wide=True)
