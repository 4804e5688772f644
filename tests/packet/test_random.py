"""A site under changes in an order that a seed chooses: several at once, of all kinds, while machines die.

What docs/packet.md promises is asked after each of them: whoever has begun goes on.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable

import pytest

from tests.wire.namespace import needs_namespaces

from .conftest import Start
from .fleet import Fleet, Serve
from .talks import Talks
from .test_site import CHECK, open_both
from .topology import VIP, VIP6, Site

pytestmark = needs_namespaces


class Operator:
    """Who changes the site. Backends hear of it first, then directors, each among themselves in any order."""

    def __init__(self, seed: int, site: Site, fleet: Fleet, talking: Talks) -> None:
        self.dice = random.Random(seed)
        self.site, self.fleet, self.talking = site, fleet, talking
        self.left: list[str] = []
        """Drained, and after that removed."""
        self.done: list[str] = []

    @property
    def in_file(self) -> list[str]:
        return [machine.name for machine in self.fleet.plan.backends]

    def run(self, kinds: list[str]) -> None:
        """These changes in some order, each when it can be."""
        waiting = list(kinds)
        while waiting:
            kind = self.dice.choice([one for one in waiting if self.can(one)])
            waiting.remove(kind)
            self.done.append(kind)
            getattr(self, kind)()
            self.look()
            open_both(self.talking, 16)

    def can(self, kind: str) -> bool:
        drained = [name for name in self.left if name in self.in_file]
        return {
            "drain_while_a_director_dies": len(self.fleet.directors) > 1,
            "remove": bool(drained),
            "switch_off": any(name not in self.in_file for name in self.fleet.agents),
            "new_director": len(self.fleet.directors) < len(self.site.directors),
        }.get(kind, True)

    def look(self) -> None:
        lost = self.talking.lost(
            [one for one in self.talking.conversations if one.server in self.fleet.agents]
        )
        said = [(one.source, one.server, one.failure) for one in lost]
        assert lost == [], f"after {self.done}: {said}"

    def reload(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        agents, directors = list(self.fleet.agents.values()), list(self.fleet.directors.values())
        self.dice.shuffle(agents)
        self.dice.shuffle(directors)
        order = [*agents, *directors]
        middle = self.dice.randrange(1, len(order))
        self.fleet.apply(self.fleet.plan, order[:middle])
        meanwhile()
        there = self.fleet.all
        self.fleet.apply(self.fleet.plan, [one for one in order[middle:] if one in there])

    def someone(self) -> str:
        return self.dice.choice([name for name in self.in_file if name not in self.left])

    def add_two(self) -> None:
        known = {*self.fleet.agents, *self.left}
        new = [one for one in self.site.backends if one.name not in known][:2]
        self.fleet.plan.backends = [*self.fleet.plan.backends, *new]
        for machine in new:
            self.fleet.start_agent(machine, self.fleet.plan)
        for machine in new:
            self.fleet.agents[machine.name].ready()
        self.reload()

    def drain_while_a_director_dies(self) -> None:
        name = self.someone()
        self.left.append(name)
        self.fleet.plan.weights = {name: 0}
        self.reload(lambda: self.fleet.kill(self.dice.choice(list(self.fleet.directors))))
        new = {one.server for one in self.talking.open(VIP, 12) + self.talking.open(VIP6, 12)}
        assert name not in new

    def remove(self) -> None:
        """From the file. Its connections live on, for its own process runs."""
        name = self.dice.choice([name for name in self.left if name in self.in_file])
        self.fleet.plan.backends = [one for one in self.fleet.plan.backends if one.name != name]
        self.reload()

    def switch_off(self) -> None:
        """One that was removed, with what it still has."""
        self.fleet.kill_backend(
            self.dice.choice([one for one in self.fleet.agents if one not in self.in_file])
        )

    def forward(self) -> None:
        self.fleet.plan.forward = "ipip" if self.fleet.plan.forward == "l2" else "l2"
        self.reload()

    def new_director(self) -> None:
        """In place of one that died, and it knows nothing."""
        machine = next(one for one in self.site.directors if one.name not in self.fleet.directors)
        shutil.rmtree(self.fleet.folder / machine.name)
        machine.on()
        self.fleet.directors[machine.name] = Serve(machine, self.fleet.folder, self.fleet.plan).ready()
        self.site.route_to([one.machine for one in self.fleet.directors.values()])

    def crash(self, serving: Serve) -> None:
        self.fleet.crash(serving)
        if self.dice.random() < 0.5:
            self.look()
        self.fleet.start_again(serving)

    def crash_director(self) -> None:
        self.crash(self.dice.choice(list(self.fleet.directors.values())))

    def crash_backend(self) -> None:
        self.crash(self.dice.choice([one for name, one in self.fleet.agents.items() if name in self.in_file]))

    def upgrade(self) -> None:
        """Then the new process dies, and another takes over from it."""
        everyone = [*self.fleet.directors.values(), *self.fleet.agents.values()]
        serving = self.dice.choice([one for one in everyone if one.machine.name not in self.left])
        done = serving.ask("upgrade")
        assert done.returncode == 0, done.stderr
        new = serving.client.get("/status")["pid"]
        assert new != serving.process.pid
        self.look()
        os.kill(new, signal.SIGKILL)
        self.crash(serving)


KINDS = [
    "add_two",
    "drain_while_a_director_dies",
    "remove",
    "switch_off",
    "forward",
    "new_director",
    "crash_director",
    "crash_backend",
    "upgrade",
]
"""Owners change twice. After more than that a few of a thousand connections break (docs/packet.md)."""


def season(start: Start, seed: int, kinds: list[str] = KINDS) -> None:
    site, fleet, talking = start(backends=8, present=4, health=CHECK)
    site.client.ip(
        "route replace default via 10.9.0.1 mtu 1400", "-6 route replace default via fd00:9::1 mtu 1400"
    )
    open_both(talking, 200)
    operator = Operator(seed, site, fleet, talking)
    operator.run(kinds)


@pytest.mark.parametrize("seed", [1])
def test_in_any_order_nothing_is_lost(start: Start, seed: int) -> None:
    season(start, seed)
