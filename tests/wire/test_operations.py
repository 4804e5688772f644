"""Drain, undrain, shed, roll and diff of a balancer that runs in the test, over real tunnels."""

from __future__ import annotations

import select
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pybalancer import Balancer, DrainError, RollError

from .balancing import Open, Tunnel, backends_of, configuration, until

SLOW = {"over": "1h", "deadline": "2h"}
FAST = {"over": "100ms", "deadline": "1h"}


@pytest.fixture
def polite(tunnels: Open) -> Iterator[Open]:
    """Tunnels whose clients end, too, as soon as they are told the end."""
    poll, sockets, over = select.epoll(), {}, threading.Event()

    def open_(balancer: Balancer, count: int = 24, listener: str = "public") -> list[Tunnel]:
        made = tunnels(balancer, count, listener)
        for tunnel in made:
            sockets[tunnel.socket.fileno()] = tunnel.socket
            poll.register(tunnel.socket.fileno(), select.EPOLLRDHUP)
        return made

    def leave() -> None:
        while not over.is_set():
            for number, _ in poll.poll(0.05):
                sockets.pop(number).close()

    thread = threading.Thread(target=leave)
    thread.start()
    yield open_
    over.set()
    thread.join()
    poll.close()


@asynccontextmanager
async def balancing(three: dict[str, str], **pool: Any) -> AsyncIterator[Balancer]:
    settings = {"policy": "least-connections", "drain": FAST, **pool}
    async with Balancer(configuration(three, **settings), admin=False) as balancer:
        yield balancer


def spread(balancer: Balancer) -> dict[str, int]:
    return {name: backend.active for name, backend in backends_of(balancer).items()}


def owners(tunnels: list[Tunnel]) -> Counter[str]:
    return Counter(tunnel.backend for tunnel in tunnels)


async def test_a_drained_backend_gets_nothing_and_loses_what_it_has(
    three: dict[str, str], polite: Open
) -> None:
    async with balancing(three) as lb:
        first = polite(lb, 24)
        result = await lb.drain("app-1")
        (drain,) = result.drains
        assert (drain.total, drain.closed, drain.cut, drain.left, drain.state) == (8, 8, 0, 0, "done")
        assert owners(polite(lb, 12)) == {"app-2": 6, "app-3": 6}
        assert all(tunnel.stands() for tunnel in first if tunnel.backend != "app-1")
        assert not any(_is_open(tunnel) for tunnel in first if tunnel.backend == "app-1")
        await lb.undrain("app-1", slow_start=0)
        assert owners(polite(lb, 8)) == {"app-1": 8}


async def test_undrain_stops_it_at_once(three: dict[str, str], polite: Open) -> None:
    async with balancing(three, drain=SLOW) as lb:
        held = polite(lb, 24)
        (drain,) = (await lb.drain("app-1", wait=False)).drains
        assert (drain.state, drain.total) == ("running", 8)
        (stopped,) = (await lb.undrain("app-1")).drains
        assert (stopped.id, stopped.state) == (drain.id, "cancelled")
        assert all(tunnel.stands() for tunnel in held)


async def test_of_a_drained_pool_one_is_taken_back_and_the_others_go_on(
    three: dict[str, str], polite: Open
) -> None:
    async with balancing(three, drain=SLOW) as lb:
        polite(lb, 24)
        await lb.drain(pool="chat", force=True, wait=False)
        await lb.undrain("app-2")
        (running,) = (each for each in lb.status().drains if each.state == "running")
        assert {part.backend for part in running.parts} == {"app-1", "app-3"}
        assert running.over_seconds <= 3600
        assert owners(polite(lb, 4)) == {"app-2": 4}


async def test_the_last_one_is_not_drained_unless_forced(three: dict[str, str], polite: Open) -> None:
    async with balancing(three) as lb:
        await lb.drain("app-1")
        await lb.drain("app-2")
        with pytest.raises(DrainError, match="no other backend of pool chat takes new tunnels"):
            await lb.drain("app-3")
        result = await lb.drain("app-3", force=True)
        assert result.warnings == ["no other backend of pool chat takes new tunnels: clients get 503"]


async def test_a_reload_keeps_what_is_drained(three: dict[str, str], polite: Open) -> None:
    async with balancing(three) as lb:
        await lb.drain("app-1")
        await lb.reload(configuration(three, policy="round-robin"))
        assert backends_of(lb)["app-1"].draining
        assert owners(polite(lb, 10)) == {"app-2": 5, "app-3": 5}


async def skewed(lb: Balancer, polite: Open) -> list[Tunnel]:
    """24 tunnels: 12, 12 and 0."""
    await lb.drain("app-3")
    held = polite(lb, 24)
    await lb.undrain("app-3", slow_start=0)
    return held


async def test_a_shed_makes_room_where_there_is_some(three: dict[str, str], polite: Open) -> None:
    async with balancing(three) as lb:
        held = await skewed(lb, polite)
        result = await lb.shed("chat", 1.0, rate=1000.0)
        assert (result.skew, result.surplus) == (1.5, {"app-1": 3, "app-2": 3})
        assert result.drain is not None
        assert (result.drain.closed, result.drain.state) == (6, "done")
        await until(lambda: spread(lb) == {"app-1": 9, "app-2": 9, "app-3": 0})
        assert sum(1 for tunnel in held if _is_open(tunnel)) == 18
        # They come back.
        assert owners(polite(lb, 6)) == {"app-3": 6}
        assert (await lb.shed("chat", 1.0)).surplus == {}


async def test_a_dry_run_counts_and_is_no_shed(three: dict[str, str], polite: Open) -> None:
    async with balancing(three) as lb:
        held = await skewed(lb, polite)
        before = [each.id for each in lb.status().drains]
        result = await lb.shed("chat", 1.0, dry_run=True)
        assert result.surplus == {"app-1": 3, "app-2": 3}
        assert [each.id for each in lb.status().drains] == before
        assert not lb.busy("chat")
        assert all(tunnel.stands() for tunnel in held)


async def test_a_newer_shed_takes_the_place_of_the_older(three: dict[str, str], polite: Open) -> None:
    async with balancing(three) as lb:
        await skewed(lb, polite)
        older = (await lb.shed("chat", 1.0, rate=0.001, wait=False)).drain
        newer = (await lb.shed("chat", 1.0, rate=1000.0)).drain
        assert older is not None
        assert newer is not None
        found = {each.id: each.state for each in lb.status().drains}
        assert (found[older.id], found[newer.id]) == ("cancelled", "done")
        await until(lambda: spread(lb) == {"app-1": 9, "app-2": 9, "app-3": 0})


@pytest.mark.parametrize("named", ["app-1", None])
async def test_undrain_stops_a_shed(three: dict[str, str], polite: Open, named: str | None) -> None:
    async with balancing(three) as lb:
        held = await skewed(lb, polite)
        shed = (await lb.shed("chat", 1.0, rate=0.001, wait=False)).drain
        assert shed is not None
        result = await (lb.undrain(named) if named else lb.undrain(pool="chat"))
        assert [(each.id, each.state) for each in result.drains] == [(shed.id, "cancelled")]
        assert not any(each.state == "running" for each in lb.status().drains), "nothing goes on in its place"
        assert all(tunnel.stands() for tunnel in held)


async def test_a_pool_that_hashes_sheds_only_what_the_table_would_place_elsewhere(
    three: dict[str, str], polite: Open
) -> None:
    two = {name: address for name, address in three.items() if name != "app-3"}
    settings = {"policy": "maglev", "key": "source", "drain": FAST}
    async with Balancer(configuration(two, **settings), admin=False) as lb:
        held = polite(lb, 90)
        await lb.reload(configuration(three, **settings))
        moves = {
            tunnel: lb.explain("{}:{}".format(*tunnel.socket.getsockname()))["backend"] != tunnel.backend
            for tunnel in held
        }
        assert any(moves.values())
        await lb.shed("chat", 1.0, rate=10_000.0)
        await until(lambda: sum(spread(lb).values()) < 90)
        closed = [tunnel for tunnel in held if not _is_open(tunnel)]
        assert closed
        assert all(moves[tunnel] for tunnel in closed)


async def test_a_roll_restarts_each_once_it_is_empty(three: dict[str, str], polite: Open) -> None:
    seen: list[tuple[str, dict[str, int]]] = []
    async with balancing(three) as lb:
        polite(lb, 24)

        async def restart(name: str) -> None:
            seen.append((name, spread(lb)))

        result = await lb.roll("chat", restart, slow_start=0)
        assert (result.outcome, [step.step for step in result.steps]) == ("done", ["done"] * 3)
        assert [name for name, _ in seen] == ["app-1", "app-2", "app-3"]
        assert all(loads[name] == 0 for name, loads in seen)
        assert not any(backend.draining for backend in backends_of(lb).values())


async def test_a_roll_whose_action_fails_leaves_the_rest_untouched(
    three: dict[str, str], polite: Open
) -> None:
    async with balancing(three) as lb:
        held = polite(lb, 24)

        def restart(name: str) -> None:
            if name == "app-2":
                raise RuntimeError("the unit is masked")

        with pytest.raises(RollError, match="app-2: the action failed: the unit is masked") as caught:
            await lb.roll("chat", restart, slow_start=0)
        result = caught.value.result
        assert result is not None
        assert [step.step for step in result.steps] == ["done", "failed", "waiting"]
        assert {name: each.draining for name, each in backends_of(lb).items()} == {
            "app-1": False,
            "app-2": True,
            "app-3": False,
        }
        assert all(tunnel.stands() for tunnel in held if tunnel.backend == "app-3")


async def test_a_diff_says_what_a_reload_would_do_and_does_nothing(
    three: dict[str, str], polite: Open
) -> None:
    async with balancing(three, policy="maglev", on_remove="drain") as lb:
        held = polite(lb, 60)
        two = {name: address for name, address in three.items() if name != "app-3"}
        wanted = configuration(two, policy="maglev", on_remove="drain", drain=FAST)
        found = (await lb.diff(wanted)).to_dict()
        (pool,) = found["pools"]
        (gone,) = (each for each in pool["backends"] if each["change"] == "removed")
        assert gone["name"] == "app-3"
        assert gone["tunnels"] == sum(1 for tunnel in held if tunnel.backend == "app-3")
        # A third has to move, and little else does.
        assert 0.33 <= pool["moved"] < 0.36
        assert all(tunnel.stands() for tunnel in held)
        await lb.reload(wanted)
        assert (await lb.diff(wanted)).to_dict()["pools"] == []


def _is_open(tunnel: Tunnel) -> bool:
    try:
        return tunnel.stands()
    except (AssertionError, OSError):
        return False
