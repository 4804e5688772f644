"""Whether a packet finds its connection, whatever each host knows: a model of directors and second hops.

Hosts get each change one after the other, in any order. Between any two of these steps connections begin, and
every one that has begun must be found by way of every director.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Collection, Mapping

import pytest

from pybalancer.packet.generations import History, Known, Member, Numbers, generation
from tests.model.packet import MOST_HOPS, after

SIZE, SECRET = 1021, bytes(range(16))
NAMES = "abcdefghi"
NUMBERS = Numbers({f"host {name}": number for number, name in enumerate(NAMES, 1)})

Weights = Mapping[str, int]


@functools.cache
def rows_of(known: Known) -> list[tuple[int, ...]]:
    rows = NUMBERS.rows(known, SECRET, SIZE)
    return [rows.row(slot) for slot in range(SIZE)]


class Host:
    """A director, or an agent on a backend: its history, and the rows that it makes of it."""

    def __init__(self, name: str, *, agent: bool) -> None:
        self.me = f"host {name}" if agent else None
        self.history = History()
        self.rows: list[tuple[int, ...]] = []

    def apply(self, weights: Weights, silent: Collection[str] = ()) -> None:
        """``silent`` are backends that do not answer, or to a director whose checks have failed."""
        members = [Member(name, weight, f"host {name}") for name, weight in weights.items()]
        if self.me is not None:
            self.history = self.history.joined_by(self.me, members)
        if self.me is not None:
            self.history = self.history.with_(generation(members))
        self.history = self.history.with_(generation([one for one in members if one.name not in silent]))
        self.rows = rows_of(self.history.seen_by(self.me, {f"host {name}" for name in silent}))


class Site:
    def __init__(self, seed: int, backends: str) -> None:
        self.dice = random.Random(seed)
        self.weights: dict[str, int] = dict.fromkeys(backends, 1)
        self.directors = [Host("", agent=False) for _ in range(3)]
        self.agents = {name: Host(name, agent=True) for name in backends}
        self.connections: list[tuple[int, int]] = []
        self.ever_lost: set[tuple[int, int]] = set()
        """Of them those that were not found once."""
        self.dead: set[str] = set()
        self.told = True
        """Whether backends notice who is dead."""
        for host in (*self.directors, *self.agents.values()):
            host.apply(self.weights)

    def open(self, count: int) -> None:
        """Connections by any director: slot, and who has it."""
        for _ in range(count):
            slot = self.dice.randrange(SIZE)
            self.connections.append((slot, self.dice.choice(self.directors).rows[slot][0]))

    def lost(self) -> int:
        lost = [
            (slot, owner)
            for slot, owner in self.connections
            for director in self.directors
            if not self.finds(director, slot, owner)
        ]
        self.ever_lost.update(lost)
        return len(lost)

    def finds(self, director: Host, slot: int, owner: int) -> bool:
        here = director.rows[slot][0]
        for hops in range(MOST_HOPS + 1):
            if here == owner:
                return True
            if NAMES[here - 1] in self.dead:
                return False
            there = after(self.agents[NAMES[here - 1]].rows[slot], here, hops)
            if not there:
                return False
            here = there
        return False

    def change(self, weights: dict[str, int], *, agents_first: bool, opening: int) -> int:
        """One change, host by host; how many connections were lost on the way, for some director."""
        self.weights = weights
        for name in weights:
            if name not in self.agents:
                self.agents[name] = Host(name, agent=True)
                self.agents[name].apply(weights, self.silent(self.agents[name]))
        agents, directors = list(self.agents.values()), list(self.directors)
        self.dice.shuffle(agents)
        self.dice.shuffle(directors)
        order = [*agents, *directors]
        if not agents_first:
            self.dice.shuffle(order)
        lost = 0
        for host in order:
            host.apply(weights, self.silent(host))
            self.open(opening)
            lost += self.lost()
        return lost

    def die(self, name: str) -> None:
        """Its machine. In the end all have noticed."""
        self.dead.add(name)
        number = NUMBERS[f"host {name}"]
        self.connections = [each for each in self.connections if each[1] != number]
        for host in (*self.directors, *self.agents.values()):
            host.apply(self.weights, self.silent(host))

    def silent(self, host: Host) -> set[str]:
        return self.dead if self.told or host.me is None else set()

    def next_weights(self) -> dict[str, int]:
        """One backend added, drained, taken back or removed."""
        active = [name for name, weight in self.weights.items() if weight]
        drained = [name for name, weight in self.weights.items() if not weight]
        new = next(name for name in NAMES if name not in self.agents)
        choices = [{**self.weights, new: 1}]
        if len(active) > 2:
            choices.append({**self.weights, self.dice.choice(active): 0})
        if drained:
            back = self.dice.choice(drained)
            choices.append({**self.weights, back: 1})
            choices.append({name: weight for name, weight in self.weights.items() if name != back})
        return self.dice.choice(choices)


@pytest.mark.parametrize("seed", range(20))
def test_agents_before_directors_and_nothing_is_lost(seed: int) -> None:
    site = Site(seed, "abcd")
    site.open(200)
    for _ in range(2):
        assert site.change(site.next_weights(), agents_first=True, opening=20) == 0


@pytest.mark.parametrize("seed", range(20))
def test_in_any_order_nothing_is_lost_that_began_before(seed: int) -> None:
    site = Site(seed, "abcd")
    for _ in range(2):
        site.open(100)
        assert site.change(site.next_weights(), agents_first=False, opening=0) == 0


def test_one_after_the_other_is_drained_and_taken_back() -> None:
    """A rolling restart: every connection outlives it but those of the backend whose turn it is."""
    site = Site(1, "abcdef")
    site.open(300)
    for name in "abcdef":
        assert site.change({**site.weights, name: 0}, agents_first=True, opening=10) == 0
        # It restarts: what it still has ends.
        number = NUMBERS[f"host {name}"]
        site.connections = [each for each in site.connections if each[1] != number]
        assert site.change({**site.weights, name: 1}, agents_first=True, opening=10) == 0


def test_without_second_hops_they_would_be_lost() -> None:
    site = Site(1, "abcd")
    site.open(400)
    for agent in site.agents.values():
        agent.rows = [(0, 0, 0, 0)] * SIZE
    for director in site.directors:
        director.apply({**site.weights, "a": 0})
    assert site.lost() > 100


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("removed", [False, True])
def test_a_machine_that_is_gone_takes_nobody_with_it(seed: int, removed: bool) -> None:
    """It had slots of others for a while, and so their packets used to go by it."""
    site = left_by(seed, "de", "d", removed)
    assert site.lost() == 0
    assert site.ever_lost == set()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("new", "gone"), [("def", "d"), ("def", "de"), ("def", "a")])
@pytest.mark.parametrize("removed", [False, True])
def test_in_the_end_nobody_goes_by_it(seed: int, new: str, gone: str, removed: bool) -> None:
    assert left_by(seed, new, gone, removed).lost() == 0


@pytest.mark.parametrize(
    ("new", "gone", "most"), [("def", "d", 0.0005), ("def", "de", 0.002), ("defg", "d", 0.002)]
)
def test_many_changes_one_after_the_other_cost_few(new: str, gone: str, most: float) -> None:
    """On the way, and what is found again a moment later is counted."""
    begun = broken = 0
    for seed in range(32):
        site = left_by(seed, new, gone, removed=True)
        site.lost()
        begun += len(site.connections)
        broken += len(site.ever_lost)
    assert 0 < broken < most * begun


def test_without_being_asked_late_it_would() -> None:
    assert left_by(1, "de", "d", removed=False, told=False).lost() > 20


def left_by(seed: int, new: str, gone: str, removed: bool, *, told: bool = True) -> Site:
    """A site that some have come to one by one, and some have left and are switched off."""
    site = Site(seed, "abc")
    site.told = told
    site.open(300)
    for name in new:
        site.change({**site.weights, name: 1}, agents_first=True, opening=0)
    for leaves in gone:
        if removed:
            site.change({**site.weights, leaves: 0}, agents_first=True, opening=0)
            weights = {name: weight for name, weight in site.weights.items() if name != leaves}
            site.change(weights, agents_first=True, opening=0)
        site.die(leaves)
    return site


@pytest.mark.parametrize("seed", range(20))
def test_a_check_that_fails_at_directors_only_costs_nothing(seed: int) -> None:
    """What begins meanwhile is found when it is over, by whom nobody has told of it."""
    site = Site(seed, "abcde")
    site.open(100)
    for sick in site.dice.sample("abcde", 3):
        for silent in ({sick}, set[str]()):
            site.dice.shuffle(site.directors)
            for director in site.directors:
                director.apply(site.weights, silent)
                site.open(10)
                assert site.lost() == 0


@pytest.mark.parametrize(("grown", "most"), [(False, 0.01), (True, 0.06)])
def test_two_checks_that_fail_at_once_cost_some(grown: bool, most: float) -> None:
    """If backends are not told, as where machines are there and servers do not answer."""
    begun = broken = 0
    for seed in range(40):
        site = Site(seed, "abc" if grown else "abcde")
        for new in "de" if grown else "":
            site.change({**site.weights, new: 1}, agents_first=True, opening=0)
        site.open(100)
        for _ in range(2):
            for silent in (set(site.dice.sample("abcde", 2)), set[str]()):
                for director in site.directors:
                    director.apply(site.weights, silent)
                site.open(50)
                broken += forget_broken(site)
        begun += 300
    assert 0 < broken < most * begun


def forget_broken(site: Site) -> int:
    """How many there are."""
    before = len(site.connections)
    site.connections = [
        each for each in site.connections if all(site.finds(one, *each) for one in site.directors)
    ]
    return before - len(site.connections)


def test_a_long_history_costs_few() -> None:
    """Backends change eight times, among five to nine, and connections never end."""
    begun = broken = 0
    for seed in range(20):
        site = Site(seed, "abcde")
        site.open(100)
        for _ in range(8):
            if len(site.agents) == len(NAMES):
                break
            site.change(site.next_weights(), agents_first=True, opening=0)
            broken += forget_broken(site)
            begun += 20
            site.open(20)
        begun += 100
    assert broken < 0.01 * begun


def stray(site: Site, slot: int) -> int:
    """Hops of a packet that nobody has a socket for."""
    here, hops = site.directors[0].rows[slot][0], 0
    while there := after(site.agents[NAMES[here - 1]].rows[slot], here, hops):
        here, hops = there, hops + 1
    return hops


def told(site: Site) -> None:
    """As if all had been there from the beginning: nobody supposes anything."""
    for agent in site.agents.values():
        agent.history = History(agent.history.generations)
        agent.apply(site.weights)


@pytest.mark.parametrize("seed", range(5))
def test_what_nobody_has_makes_few_hops(seed: int) -> None:
    site = Site(seed, "abcdefgh")
    assert max(stray(site, slot) for slot in range(SIZE)) <= 8
    told(site)
    hops = [stray(site, slot) for slot in range(SIZE)]
    assert sum(each <= 3 for each in hops) > 0.95 * SIZE
    assert max(hops) <= 7
    # One is drained: most rows have two entries, and some three.
    site.change({**site.weights, "c": 0}, agents_first=True, opening=0)
    hops = [stray(site, slot) for slot in range(SIZE)]
    assert sum(each <= 3 for each in hops) > 0.8 * SIZE
    assert max(hops) <= 7


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("agents_first", [True, False])
def test_several_join_in_one_change_and_nothing_is_lost(seed: int, agents_first: bool) -> None:
    site = Site(seed, "abcdef")
    site.open(300)
    assert site.change({**site.weights, "g": 1, "h": 1}, agents_first=agents_first, opening=0) == 0
    site.open(100)
    # Newcomers restart, with what they have written down.
    for name in "gh":
        again = Host(name, agent=True)
        before = site.agents[name].history
        again.history = History.from_json(before.to_json(), before.joined_to_json())
        again.apply(site.weights)
        site.agents[name] = again
    assert site.lost() == 0
    assert site.change({**site.weights, "a": 0}, agents_first=agents_first, opening=0) == 0


@pytest.mark.parametrize(
    ("before", "new", "broken"),
    [("abc", "de", 0), ("abcdef", "gh", 0), ("abc", "def", 7), ("abcdef", "ghi", 1)],
)
def test_what_joining_at_once_costs_in_a_table_of_its_real_size(before: str, new: str, broken: int) -> None:
    """Each slot has one connection, of its owner of before. All know of all now."""
    size, secret = 65537, bytes.fromhex("00112233445566778899aabbccddeeff")
    old, all_of_them = (
        generation([Member(name, 1, f"host {name}") for name in names]) for names in (before, before + new)
    )
    told = History().with_(old).with_(all_of_them)
    rows = {"": NUMBERS.rows(told.seen_by(None), secret, size)}
    for name in before + new:
        me, joined = f"host {name}", old if name in before else all_of_them
        history = History().joined_by(me, joined).with_(joined).with_(all_of_them)
        rows[name] = NUMBERS.rows(history.seen_by(me), secret, size)
    former = NUMBERS.rows(History().with_(old).seen_by(None), secret, size)

    def finds(slot: int) -> bool:
        here = rows[""].row(slot)[0]
        for hops in range(MOST_HOPS + 1):
            if here in {0, former.row(slot)[0]}:
                return here != 0
            here = after(rows[NAMES[here - 1]].row(slot), here, hops)
        return False

    assert sum(not finds(slot) for slot in range(size)) == broken


def test_without_supposing_newcomers_would_lose_some() -> None:
    site = Site(1, "abcdef")
    site.open(1000)
    site.change({**site.weights, "g": 1, "h": 1}, agents_first=True, opening=0)
    assert site.lost() == 0
    told(site)
    assert site.lost() > 0


def test_agents_that_have_lost_their_memory_suppose_again() -> None:
    site = Site(2, "abcdef")
    site.open(1000)
    assert site.change({**site.weights, "g": 1, "h": 1}, agents_first=True, opening=0) == 0
    for name in site.agents:
        site.agents[name] = Host(name, agent=True)
        site.agents[name].apply(site.weights)
    supposing = site.lost()
    told(site)
    # Not all: where a table and an order differ, there is nobody left who knows better.
    assert supposing * 4 < site.lost()
