"""``Balancer.roll``: real servers restarted by functions and by commands, under clients that come back."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from pybalancer import Balancer
from pybalancer.errors import RollError, TargetError
from pybalancer.status import RollResult
from pybalancer.tasks import rolls
from pybalancer.tasks.commands import Command

from . import net
from .balancing import Named, backends_of, configuration, picks, states, until
from .test_operations import Guests, at, guests

__all__ = ["guests"]

NAMES = ("app-1", "app-2", "app-3")
QUICK: dict[str, Any] = {"over": 0.0, "deadline": 1000.0, "slow_start": 0.0}
HEALTH = {"kind": "tcp", "interval": "50ms", "timeout": "1s", "rise": 1, "fall": 1}


class Servers:
    """Three that can be restarted at their addresses. ``log`` has who was."""

    def __init__(self) -> None:
        self.running = {name: Named(name) for name in NAMES}
        self.addresses = {name: server.address for name, server in self.running.items()}
        self.log: list[str] = []
        self.lock = threading.Lock()

    def restart(self, name: str) -> None:
        """Once nobody is there, which a drained one is soon: what it has yet to hear of is on its way, and
        a check may just be looking."""
        net.until(lambda: not self.running[name].live, f"the end of the last client of {name}")
        with self.lock:
            self.stop(name)
            self.running[name] = Named(name, self.addresses[name])

    def stop(self, name: str) -> None:
        self.log.append(name)
        self.running[name].close()

    def close(self) -> None:
        for server in self.running.values():
            server.close()


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often: most of a roll is waiting for the next look."""
    monkeypatch.setattr(rolls, "LOOK", 0.01)


def balancer_of(servers: Servers, **more: Any) -> Balancer:
    return Balancer(
        configuration(servers.addresses, policy="least-connections", health=HEALTH, slow_start="0", **more)
    )


def steps(result: RollResult | None) -> dict[str, str]:
    assert result is not None
    return {each.backend: each.step for each in result.steps}


async def test_each_is_restarted_when_nobody_is_there_and_taken_back(
    servers: Servers, guests: Guests
) -> None:
    events: list[dict[str, Any]] = []
    async with balancer_of(servers) as balancer:
        there = guests(balancer, 12, returns=True)

        async def restart(name: str) -> None:
            assert [each.draining for each in backends_of(balancer).values()].count(True) == 1
            assert backends_of(balancer)[name].draining
            await trio.to_thread.run_sync(servers.restart, name)

        result = await balancer.roll("chat", restart, on_event=events.append, **QUICK)
        assert result.outcome == "done"
        assert steps(result) == dict.fromkeys(NAMES, "done")
        assert servers.log == list(NAMES)
        assert not any(backend.draining for backend in backends_of(balancer).values())
        assert states(balancer) == "up up up"
        await until(lambda: None not in at(there))
        assert sum(guest.cut for guest in there) == 0, "all were told, none was cut"
    moved = [(each["backend"], each["to"]) for each in events if each["event"] == "moved"]
    assert moved == [(name, step) for name in NAMES for step in ("draining", "acting", "checking", "done")]


async def test_two_at_a_time_by_functions_that_block(servers: Servers, guests: Guests) -> None:
    async with balancer_of(servers) as balancer:
        guests(balancer, 12, returns=True)
        together = threading.Barrier(2, timeout=30)

        def restart(name: str) -> None:
            if name != "app-3":
                together.wait()  # Ends only if both are restarted at the same time.
            servers.restart(name)

        result = await balancer.roll("chat", restart, max_down=2, **QUICK)
        assert result.outcome == "done"
        assert sorted(servers.log) == list(NAMES)


async def test_a_command_restarts_and_what_it_says_is_kept(servers: Servers, tmp_path: Path) -> None:
    said = shlex.join([sys.executable, "-c", "import sys; print('restarted', *sys.argv[1:])"])
    async with balancer_of(servers) as balancer:
        result = await balancer.roll("chat", Command(f"{said} {{name}} {{address}}"), **QUICK)
    assert [each.output for each in result.steps] == [
        f"restarted {name} {servers.addresses[name]}\n" for name in NAMES
    ]


async def test_a_failure_stops_it_and_the_next_roll_leaves_that_one_alone(
    servers: Servers, guests: Guests
) -> None:
    async with balancer_of(servers) as balancer:
        guests(balancer, 12, returns=True)

        def restart(name: str) -> None:
            if name == "app-2":
                raise OSError("no such unit")
            servers.restart(name)

        with pytest.raises(RollError, match="app-2: the action failed: no such unit") as caught:
            await balancer.roll("chat", restart, **QUICK)
        assert steps(caught.value.result) == {"app-1": "done", "app-2": "failed", "app-3": "waiting"}
        found = backends_of(balancer)
        assert [found[name].draining for name in NAMES] == [False, True, False]
        assert set(picks(balancer)) == {"app-1", "app-3"}

        again = await balancer.roll("chat", servers.restart, **QUICK)
        assert steps(again) == {"app-1": "done", "app-2": "skipped", "app-3": "done"}
        assert backends_of(balancer)["app-2"].draining
        await balancer.undrain("app-2", slow_start=0.0)
        assert not any(backend.draining for backend in backends_of(balancer).values())


async def test_one_that_does_not_come_up_stops_it(servers: Servers) -> None:
    async with balancer_of(servers) as balancer:
        with pytest.raises(RollError, match=r"app-1: it did not come up within 0\.5 s: connection refused"):
            await balancer.roll("chat", servers.stop, timeout=0.5, **QUICK)
        found = backends_of(balancer)
        assert (found["app-1"].draining, found["app-1"].state) == (True, "down")
        assert servers.log == ["app-1"]


async def test_a_backend_that_is_down_comes_first(servers: Servers) -> None:
    async with balancer_of(servers) as balancer:
        servers.stop("app-3")
        await until(lambda: states(balancer) == "up up down")
        servers.log.clear()
        await balancer.roll("chat", servers.restart, **QUICK)
        assert servers.log == ["app-3", "app-1", "app-2"]
        assert states(balancer) == "up up up"


async def test_some_of_them_only(servers: Servers) -> None:
    async with balancer_of(servers) as balancer:
        result = await balancer.roll("chat", servers.restart, backends=["app-3", "app-2"], **QUICK)
        assert steps(result) == {"app-2": "done", "app-3": "done"}
        assert servers.log == ["app-2", "app-3"]


async def test_cancelled_while_it_drains_it_takes_back(servers: Servers, guests: Guests) -> None:
    async with balancer_of(servers) as balancer:
        there = guests(balancer, 12)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: balancer.roll("chat", servers.restart, over=1000.0, deadline=2000.0))
            await until(lambda: backends_of(balancer)["app-1"].draining)
            nursery.cancel_scope.cancel()
        assert not any(backend.draining for backend in backends_of(balancer).values())
        assert balancer.hindrance() is None
        assert servers.log == []
        assert at(there) == dict.fromkeys(NAMES, 4)


async def test_cancelled_while_it_acts_it_leaves_that_one_drained(servers: Servers) -> None:
    """Whether it serves nobody knows: so it gets nobody."""
    begun = trio.Event()

    async def hang(_name: str) -> None:
        begun.set()
        await trio.sleep_forever()

    async with balancer_of(servers) as balancer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: balancer.roll("chat", hang, **QUICK))
            await begun.wait()
            nursery.cancel_scope.cancel()
        assert [each.draining for each in backends_of(balancer).values()] == [True, False, False]


async def test_each_begins_again_slowly(servers: Servers) -> None:
    """It comes back with nothing, so least-connections would give it every new tunnel there is."""
    async with balancer_of(servers) as balancer:
        result = await balancer.roll(
            "chat", servers.restart, backends=["app-1"], over=0.0, deadline=1000.0, slow_start=3600.0
        )
        assert result.outcome == "done"
        assert backends_of(balancer)["app-1"].ramp <= 0.2


async def test_the_only_backend_is_rolled_by_force_only(servers: Servers) -> None:
    given = configuration({"app-1": servers.addresses["app-1"]}, health=HEALTH)
    async with Balancer(given) as balancer:
        with pytest.raises(
            RollError, match="not begun with app-1: no other backend than app-1 takes tunnels"
        ):
            await balancer.roll("chat", servers.restart, timeout=0.3, **QUICK)
        assert servers.log == []
        assert not backends_of(balancer)["app-1"].draining
        result = await balancer.roll("chat", servers.restart, force=True, **QUICK)
        assert result.outcome == "done"
        assert servers.log == ["app-1"]


async def test_undrained_by_somebody_it_stops(servers: Servers, guests: Guests) -> None:
    async with balancer_of(servers) as balancer:
        guests(balancer, 12)
        caught: list[RollError] = []

        async def roll() -> None:
            try:
                await balancer.roll("chat", servers.restart, over=1000.0, deadline=2000.0)
            except RollError as error:
                caught.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(roll)
            await until(lambda: backends_of(balancer)["app-1"].draining)
            # The roll has to have seen it, or it takes its own order for one that was not obeyed.
            await until(lambda: balancer.status().drains)
            await balancer.undrain("app-1")
        assert "app-1: it was undrained by somebody" in str(caught[0])
        assert servers.log == []


async def test_what_makes_no_sense_is_said_before_anything_is_done(servers: Servers) -> None:
    async with balancer_of(servers) as balancer:
        wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
            (TargetError, "there is no pool 'chatt'", {"pool": "chatt"}),
            (RollError, "there is no backend 'app-9' in pool chat", {"backends": ["app-9"]}),
            (ValueError, "max_down is at least 1", {"max_down": 0}),
            (ValueError, "timeout is a number", {"timeout": 0.0}),
            (ValueError, "deadline of a drain", {"over": 2.0, "deadline": 1.0}),
            (ValueError, "may not be sent", {"code": 1005}),
        ]
        for error, says, given in wrong:
            with pytest.raises(error, match=says):
                await balancer.roll(**{"pool": "chat", "action": servers.restart, **given})
        assert servers.log == []
        assert balancer.status().drains == []
