"""Operations that meet: a shed and a newer one, undrain and a shed, a roll and its drains."""

from __future__ import annotations

import select
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pybalancer import Balancer, RollError

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


async def skewed(lb: Balancer, polite: Open) -> list[Tunnel]:
    """24 tunnels: 12, 12 and 0."""
    await lb.drain("app-3")
    held = polite(lb, 24)
    await lb.undrain("app-3", slow_start=0)
    return held


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


def _is_open(tunnel: Tunnel) -> bool:
    try:
        return tunnel.stands()
    except (AssertionError, OSError):
        return False
