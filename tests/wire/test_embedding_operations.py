"""Drain, shed, roll and diff of a balancer in a thread of its own, from a program that does not run trio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pybalancer import Command, DrainError, PybalancerError, RollError, TargetError, run_in_thread
from pybalancer.thread import ThreadedBalancer

from .balancing import Tunnel, configuration
from .net import PATIENCE, until

NOW = {"over": 0.0, "deadline": 0.0}


@pytest.fixture
def given(three: dict[str, str]) -> dict[str, Any]:
    return configuration(three, policy="least-connections")


@pytest.fixture
def balancer(given: dict[str, Any]) -> Iterator[ThreadedBalancer]:
    with run_in_thread(given) as running:
        yield running


@pytest.fixture
def tunnels(balancer: ThreadedBalancer) -> Iterator[list[Tunnel]]:
    made = [Tunnel(balancer.bound["public"]) for _ in range(12)]
    yield made
    for tunnel in made:
        tunnel.close()


def drained(balancer: ThreadedBalancer) -> list[str]:
    return [backend.name for backend in balancer.status().pools[0].backends if backend.draining]


def test_drain_and_undrain(balancer: ThreadedBalancer, tunnels: list[Tunnel]) -> None:
    result = balancer.drain("app-1", **NOW)
    assert (result.what, result.drains[0].state, result.drains[0].total) == ("chat/app-1", "done", 4)
    assert drained(balancer) == ["app-1"]
    assert all(tunnel.stands() for tunnel in tunnels if tunnel.backend != "app-1")
    balancer.undrain(pool="chat", backend="app-1")
    assert drained(balancer) == []
    begun = balancer.drain("app-2", over=3600.0, deadline=7200.0, wait=False)
    assert begun.drains[0].state == "running"
    (stopped,) = balancer.undrain("app-2").drains
    assert stopped.state == "cancelled"


def test_their_errors_come_through(balancer: ThreadedBalancer) -> None:
    with pytest.raises(TargetError, match="there is no backend, pool or listener 'app-9'"):
        balancer.drain("app-9")
    with pytest.raises(ValueError, match="say one thing"):
        balancer.undrain()
    for name in ("app-1", "app-2"):
        balancer.drain(name, **NOW)
    with pytest.raises(DrainError, match="force it"):
        balancer.drain("app-3", **NOW)
    with pytest.raises(TargetError, match="rooms"):
        balancer.recheck("rooms", "app-1")


def test_shed_and_diff(
    balancer: ThreadedBalancer, tunnels: list[Tunnel], given: dict[str, Any], three: dict[str, str]
) -> None:
    assert balancer.shed("chat", 1.0).surplus == {}
    assert balancer.shed("chat", 1.0, dry_run=True).dry_run
    fewer = {name: address for name, address in three.items() if name != "app-1"}
    found = balancer.diff(configuration(fewer, policy="least-connections", on_remove="close"))
    assert found.tunnels == {"kept": 0, "drained": 0, "closed": 4}
    assert balancer.diff(given).nothing
    assert all(tunnel.stands() for tunnel in tunnels)


def test_roll_with_a_function(balancer: ThreadedBalancer) -> None:
    acted: list[tuple[str, list[str], bool]] = []
    events: list[dict[str, Any]] = []

    def action(name: str) -> None:
        # It may block, and it may ask the balancer.
        acted.append((name, drained(balancer), threading.current_thread().name == "pybalancer-trio"))

    result = balancer.roll("chat", action, on_event=events.append, backends=["app-1", "app-2"], **NOW)
    assert (result.outcome, [step.step for step in result.steps]) == ("done", ["done", "done"])
    assert acted == [("app-1", ["app-1"], False), ("app-2", ["app-2"], False)]
    assert [event["to"] for event in events if event["event"] == "moved"][-1] == "done"


def test_roll_that_fails_says_how_far_it_came(balancer: ThreadedBalancer) -> None:
    with pytest.raises(RollError, match="app-1: /bin/false: exit code 1") as caught:
        balancer.roll("chat", Command("/bin/false"), **NOW)
    assert caught.value.result is not None
    assert [step.step for step in caught.value.result.steps] == ["failed", "waiting", "waiting"]
    assert drained(balancer) == ["app-1"]


def test_a_roll_under_way_ends_with_the_block(given: dict[str, Any]) -> None:
    """Whoever waits for it in another thread is told."""
    begun, release = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def action(_name: str) -> None:
        begun.set()
        release.wait(PATIENCE)

    def rolling() -> None:
        try:
            running.roll("chat", action, **NOW)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=rolling)
    with run_in_thread(given) as running:
        thread.start()
        assert begun.wait(PATIENCE)
    release.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    (error,) = errors
    assert isinstance(error, PybalancerError)
    assert "has ended" in str(error)


def test_from_asyncio_the_loop_goes_on(balancer: ThreadedBalancer) -> None:
    async def main() -> None:
        over = asyncio.create_task(asyncio.to_thread(balancer.drain, "app-1", over=3600.0, deadline=7200.0))
        # Nothing is there to be ended, so it is over at once, and meanwhile the loop has its turns.
        assert (await asyncio.wait_for(over, PATIENCE)).drains[0].state == "done"

    asyncio.run(main())
    until(lambda: drained(balancer) == ["app-1"])
