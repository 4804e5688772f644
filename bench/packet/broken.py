"""Connections that break while backends come and go, in simulation.

Rows are those that the product makes, by the history of each machine; a packet goes from machine to machine
as in the packet room. Connections last to the end, so each meets every change that comes after its
beginning: that is what WebSockets do, and the hardest case.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pybalancer.packet.generations import Generation, History, Member, Numbers, generation
from tests.model import maglev
from tests.model.packet import MOST_HOPS, after

SECRET, SIZE = bytes(range(16)), 65537
STEPS = (24, 30, 22)
DIRECTORS = 3
NUMBERS = Numbers({f"host-{number}": number for number in range(1, 31)})

PUBLISHED = (
    ("hash", 0.95),
    ("consistent hash", 0.67),
    ("Beamer", 0.05),
    ("Cheetah", 0.0),
)
"""Per cent, from Cheetah's experiments."""


@dataclass(frozen=True)
class Broken:
    way: str
    connections: int
    broken: int


class Machine:
    """A director, or the agent of a backend."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.history = History()
        self.row: Callable[[int], tuple[int, ...]] = lambda _: (0, 0, 0, 0, 0, 0)

    def apply(self, newest: Generation) -> None:
        host = f"host-{self.number}"
        if self.number:
            self.history = self.history.joined_by(host, newest)
        self.history = self.history.with_(newest)
        self.row = NUMBERS.rows(self.history.seen_by(host if self.number else None), SECRET, SIZE).row


def finds(director: Machine, agents: dict[int, Machine], slot: int, owner: int) -> bool:
    here = director.row(slot)[0]
    for hops in range(MOST_HOPS + 1):
        if here == owner:
            return True
        here = after(agents[here].row(slot), here, hops)
        if not here:
            return False
    return False


def members(numbers: Sequence[int]) -> Generation:
    return generation([Member(f"app-{number}", 1, f"host-{number}") for number in numbers])


def simulate(connections: int, seed: int) -> list[Broken]:
    """Backends that come and go one after the other, and all of them at once."""
    found = run(steps(1), connections, seed)
    at_once = run(steps(max(STEPS)), connections, seed)[-1]
    *others, ours = found
    all_at_once = replace(at_once, way=f"{at_once.way}, all at once")
    return [*others, all_at_once, ours]


def steps(most: int) -> list[int]:
    """Numbers of backends, of which at most so many come or go between two."""
    made = [STEPS[0]]
    for count in STEPS[1:]:
        while made[-1] != count:
            made.append(made[-1] + max(-most, min(most, count - made[-1])))
    return made


def run(counts: list[int], connections: int, seed: int) -> list[Broken]:
    """A third of the connections begins at each of ``STEPS``.

    Who comes has begun when the others hear of it; who leaves is drained, and keeps what it has. After each
    step of each change, machine by machine in any order, every connection is looked for by way of every
    director.
    """
    dice = random.Random(seed)
    present = list(range(1, counts[0] + 1))
    directors = [Machine() for _ in range(DIRECTORS)]
    agents = {number: Machine(number) for number in present}
    for machine in (*directors, *agents.values()):
        machine.apply(members(present))
    hashes: list[int] = []
    owners: list[int] = []
    by_modulo: list[int] = []
    lost: dict[str, set[int]] = {"hash": set(), "table": set(), "chain": set()}
    begins = list(STEPS)
    for step, count in enumerate(counts):
        if step:
            if count > len(present):
                new = range(len(present) + 1, count + 1)
                present = [*present, *new]
                agents |= {number: Machine(number) for number in new}
                for number in new:
                    agents[number].apply(members(present))
            else:
                present = sorted(dice.sample(present, count))
            machines = [*directors, *agents.values()]
            dice.shuffle(machines)
            for machine in machines:
                machine.apply(members(present))
                look(directors, agents, hashes, owners, lost)
            now = (present[hashed % len(present)] for hashed in hashes)
            lost["hash"] |= {
                which for which, (had, has) in enumerate(zip(by_modulo, now, strict=True)) if had != has
            }
        if begins and count == begins[0]:
            begins.pop(0)
            for _ in range(connections // len(STEPS)):
                hashed = dice.getrandbits(64)
                hashes.append(hashed)
                owners.append(directors[0].row(maglev.slot(hashed, SIZE))[0])
                by_modulo.append(present[hashed % len(present)])
    names = {
        "hash": "hash modulo backends",
        "table": "table without second hops",
        "chain": "table and second hops",
    }
    return [Broken(names[way], len(hashes), len(lost[way])) for way in names]


def look(
    directors: list[Machine],
    agents: dict[int, Machine],
    hashes: list[int],
    owners: list[int],
    lost: dict[str, set[int]],
) -> None:
    for which, (hashed, owner) in enumerate(zip(hashes, owners, strict=True)):
        slot = maglev.slot(hashed, SIZE)
        for director in directors:
            if director.row(slot)[0] != owner:
                lost["table"].add(which)
                if not finds(director, agents, slot, owner):
                    lost["chain"].add(which)
