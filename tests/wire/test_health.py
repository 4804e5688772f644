"""Health from end to end: real backends that die, hang, flap and come back behind a real balancer.

Where many seconds have to pass, the clock of trio runs faster than the wall's: policy and probes take it
from there. Workers and sockets live in real time.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pybalancer import Balancer, EngineError
from pybalancer.demo.backends import DemoBackend

from .balancing import Moody, Named, Open, Run, Tunnel, backends_of, configuration, picks, states, until
from .net import PATIENCE, Server, refused, reserved, served, server, text_of

TCP = {"kind": "tcp", "interval": "50ms", "timeout": "1s", "rise": 1, "fall": 1}
HTTP = {**TCP, "kind": "http"}
WEBSOCKET = {**TCP, "kind": "websocket", "timeout": "500ms", "rise": 2, "fall": 2}


@pytest.fixture
def fast_clock(mock_clock: MockClock) -> MockClock:
    """Ten seconds for trio in one of ours."""
    mock_clock.rate = 10.0
    return mock_clock


@asynccontextmanager
async def websocket_servers(*names: str) -> AsyncIterator[list[DemoBackend]]:
    """Processes of trio-websocket, each at an address that stays its own when it dies."""
    servers = [DemoBackend(name) for name in names]
    try:
        async with trio.open_nursery() as nursery:
            for each in servers:
                nursery.start_soon(each.start)
        yield servers
    finally:
        with trio.CancelScope(shield=True):
            for each in servers:
                if each.pid is not None:
                    os.kill(each.pid, signal.SIGCONT)
                await each.kill()
                each.release()


def addresses(*servers: Any) -> dict[str, str]:
    return {f"app-{number}": each.address for number, each in enumerate(servers, 1)}


# Down, and up again.


async def test_a_killed_backend_goes_down_and_comes_back_to_its_clients() -> None:
    async with websocket_servers("app-1", "app-2") as (one, two):
        async with Balancer(configuration(addresses(one, two), health=WEBSOCKET)) as balancer:
            await until(lambda: {b.reason for b in backends_of(balancer).values()} == {"pong"})
            before = [balancer.explain(f"10.0.0.{host}:1")["backend"] for host in range(200)]
            assert set(before) == {"app-1", "app-2"}
            await one.kill()
            await until(lambda: picks(balancer) == {"app-2": 200}, "no more clients for it")
            assert states(balancer) == "down up"
            assert backends_of(balancer)["app-1"].reason == "connection refused"
            await one.start()
            await until(lambda: set(picks(balancer)) == {"app-1", "app-2"}, "clients for it")
            # Each is back where it was.
            assert [balancer.explain(f"10.0.0.{host}:1")["backend"] for host in range(200)] == before


@pytest.mark.parametrize("on_down", ["close", "keep"])
async def test_108_a_stopped_backend_goes_down_and_comes_back(on_down: str) -> None:
    """SIGSTOP: its kernel goes on accepting connects, so only a check that wants an answer can tell."""
    async with websocket_servers("app-1", "app-2") as (one, two):
        given = configuration(addresses(one, two), health=WEBSOCKET, on_down=on_down)
        async with Balancer(given) as balancer:
            await until(lambda: {b.reason for b in backends_of(balancer).values()} == {"pong"})
            with client_of(balancer, "app-1") as tunnel:
                await until(lambda: backends_of(balancer)["app-1"].opened)
                assert one.pid is not None
                os.kill(one.pid, signal.SIGSTOP)
                await until(lambda: picks(balancer) == {"app-2": 200}, "no more clients for it")
                assert backends_of(balancer)["app-1"].reason == "no answer within 0.5s"
                if on_down == "close":
                    with pytest.raises(ConnectionResetError):
                        await trio.to_thread.run_sync(tunnel.recv, 1)
                os.kill(one.pid, signal.SIGCONT)
                await until(lambda: set(picks(balancer)) == {"app-1", "app-2"}, "clients for it")
                assert states(balancer) == "up up"
                # Its tunnel slept with it, or is gone.
                assert backends_of(balancer)["app-1"].active == (on_down == "keep")


def client_of(balancer: Balancer, backend: str) -> socket.socket:
    """A client that the table sends to this backend."""
    host, _, port = balancer.bound["public"].rpartition(":")
    while True:
        client = socket.socket()
        client.settimeout(PATIENCE)
        client.bind((host, 0))
        if balancer.explain(text_of(client.getsockname()))["backend"] == backend:
            client.connect((host, int(port)))
            return client
        client.close()


async def test_an_http_check_follows_the_status(run: Run) -> None:
    one, two = run(Moody()), run(Moody())
    async with Balancer(
        configuration(addresses(one, two), health={**HTTP, "expect": [200, 429]})
    ) as balancer:
        await until(lambda: {b.reason for b in backends_of(balancer).values()} == {"HTTP 200"})
        for status, state in ((503, "down"), (200, "up"), (0, "down"), (429, "up"), (404, "down")):
            one.status = status
            await until(lambda state=state: states(balancer) == f"{state} up", f"{state} after {status}")


async def test_rise_and_fall_are_counted(run: Run) -> None:
    """With rise and fall far apart, each turn takes as many probes as it says."""
    backend = run(Moody())
    health = {**HTTP, "interval": "20ms", "rise": 5, "fall": 3}
    async with Balancer(configuration(addresses(backend), health=health)) as balancer:
        await until(lambda: backend.served >= 3)
        for status, state, probes in ((503, "down", 3), (200, "up", 5)):
            before = backend.served
            backend.status = status
            await until(lambda state=state: states(balancer) == state)
            # One may have been under way.
            assert backend.served - before >= probes - 1


# Flapping.


async def test_104_a_flapping_backend_costs_few_plans(fast_clock: MockClock, run: Run) -> None:
    """Down and up about each second, for 40 seconds of policy."""
    steady = run(Server())
    with reserved() as address:
        given = configuration(
            {"app-1": address, "app-2": steady.address},
            health={**TCP, "interval": "200ms", "jitter": 0.1, "timeout": "10s"},
        )
        async with Balancer(given) as balancer:
            generation, began, down = balancer.status().generation, trio.current_time(), 0
            for _ in range(40):
                # This is its trouble: half a second up, half a second down.
                flapping = Server(address=address)
                await trio.sleep(0.5)
                flapping.close()
                await trio.sleep(0.5)
                down += states(balancer) == "down up"
            plans = balancer.status().generation - generation
            minutes = max(1.0, (trio.current_time() - began) / 60)
            # Each turn would be two plans.
            assert 2 <= plans <= 24 * minutes
            assert down > 15
            assert "flapping: held down" in backends_of(balancer)["app-1"].reason
            # And when it is steady again it is used again.
            run(Server(address=address))
            await until(lambda: set(picks(balancer)) == {"app-1", "app-2"})


async def test_104_the_last_one_is_used_although_it_flaps(fast_clock: MockClock) -> None:
    with reserved() as address:
        given = configuration({"app-1": address}, health={**TCP, "interval": "200ms", "timeout": "10s"})
        async with Balancer(given) as balancer:
            for _ in range(4):
                flapping = Server(address=address)
                await until(lambda: states(balancer) == "up")
                flapping.close()
                await until(lambda: backends_of(balancer)["app-1"].reason.count("refused"))
            await until(lambda: "used, as no other is up" in backends_of(balancer)["app-1"].reason)
            assert states(balancer) == "up"
            with server(address=address):
                await until(lambda: served(balancer.bound["public"]))


# Panic.


async def test_below_the_panic_threshold_all_are_used(run: Run) -> None:
    """The check fails everywhere, the servers are fine: they are not all taken out."""
    servers = [run(Moody()) for _ in range(4)]
    async with Balancer(configuration(addresses(*servers), health=HTTP, panic=0.5)) as balancer:
        servers[0].status = servers[1].status = 503
        await until(lambda: set(picks(balancer)) == {"app-3", "app-4"})
        assert states(balancer) == "down down up up"
        servers[2].status = 503
        await until(lambda: set(picks(balancer)) == {"app-1", "app-2", "app-3", "app-4"})
        assert states(balancer) == "up up up up"
        assert backends_of(balancer)["app-1"].reason == "panic: 1 of 4 up; HTTP 503"
        servers[2].status = 200
        await until(lambda: set(picks(balancer)) == {"app-3", "app-4"})


async def test_a_spare_of_weight_0_does_not_keep_the_others_from_panic(run: Run) -> None:
    servers = [run(Moody(status)) for status in (503, 503, 200)]
    given = configuration(addresses(*servers), health=HTTP, panic=0.2)
    given["pools"]["chat"]["backends"][2]["weight"] = 0
    async with Balancer(given) as balancer:
        await until(lambda: "panic: 0 of 2 up" in backends_of(balancer)["app-1"].reason)
        await until(lambda: set(picks(balancer)) == {"app-1", "app-2"})


async def test_103_without_a_threshold_all_down_is_a_refusal(run: Run) -> None:
    one, two = run(Moody(503)), run(Moody(503))
    async with Balancer(configuration(addresses(one, two), health=HTTP)) as balancer:
        await until(lambda: picks(balancer) == {None: 200})
        assert states(balancer) == "down down"
        assert await trio.to_thread.run_sync(refused, balancer.bound["public"])
        assert balancer.status().listeners[0].refused["no_backend"] >= 1
        two.status = 200
        await until(lambda: picks(balancer) == {"app-2": 200})


# Slow start.


async def test_a_backend_that_came_back_is_brought_to_its_share_step_by_step(
    fast_clock: MockClock, run: Run
) -> None:
    one, two = run(Moody()), run(Moody())
    health = {**HTTP, "interval": "200ms", "timeout": "10s"}
    async with Balancer(configuration(addresses(one, two), health=health, slow_start="18s")) as balancer:
        full = picks(balancer)["app-1"]
        one.status = 503
        await until(lambda: states(balancer) == "down up")
        one.status = 200
        await until(lambda: states(balancer) == "up up")
        ramps: list[float] = []
        shares: dict[float, int] = {}
        while not ramps or ramps[-1] < 1.0:
            await trio.sleep(0.1)
            # The last look at each step counts: at the first one the workers may not have the plan yet.
            ramps.append(backends_of(balancer)["app-1"].ramp)
            shares[ramps[-1]] = picks(balancer).get("app-1", 0)
        await until(lambda: picks(balancer)["app-1"] == full, "its whole share")
        del shares[1.0]
        assert ramps == sorted(ramps)
        assert len(set(ramps)) >= 8
        # It takes about that part of its own keys.
        assert all(ramp * full * 0.4 <= taken <= ramp * full * 1.6 + 5 for ramp, taken in shares.items())


# Failed connects.


async def test_without_checks_failed_connects_mark_it_down_and_a_probe_up(
    fast_clock: MockClock, run: Run
) -> None:
    two = run(Named("app-2"))
    with reserved() as address:
        one = Named("app-1", address)
        async with Balancer(configuration({"app-1": address, "app-2": two.address})) as balancer:
            front = balancer.bound["public"]
            assert {(await tunnel_name(front)) for _ in range(40)} == {"app-1", "app-2"}
            one.close()
            # Every client is served, also those that try the dead one first.
            while states(balancer) != "down up":
                assert await tunnel_name(front) == "app-2"
            await until(lambda: picks(balancer) == {"app-2": 200})
            dead = backends_of(balancer)["app-1"]
            assert dead.reason.endswith("connects failed within 10s") or dead.reason == "connection refused"
            failures = dead.connect_failures
            assert failures >= 3
            for _ in range(40):
                assert await tunnel_name(front) == "app-2"
            assert backends_of(balancer)["app-1"].connect_failures == failures
            run(Named("app-1", address))
            await until(lambda: set(picks(balancer)) == {"app-1", "app-2"})
            assert states(balancer) == "up up"
            assert {(await tunnel_name(front)) for _ in range(40)} == {"app-1", "app-2"}


async def tunnel_name(address: str) -> str:
    tunnel = await trio.to_thread.run_sync(Tunnel, address)
    tunnel.close()
    return tunnel.backend


# Swaps.


async def test_what_the_workers_do_not_take_is_offered_again(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pybalancer.plans.RETRY", 0.1)
    caplog.set_level(logging.INFO, "pybalancer")

    class Stubborn:
        """An engine that refuses the next two plans."""

        def __init__(self, engine: Any) -> None:
            self._engine, self._left = engine, 2

        def apply(self, plan: Any) -> int:
            if self._left:
                self._left -= 1
                raise EngineError("a worker has not answered for 10 s")
            generation: int = self._engine.apply(plan)
            return generation

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

    one, two = run(Moody()), run(Moody())
    given = configuration(addresses(one, two), health={**HTTP, "timeout": "30s"})
    async with Balancer(given) as balancer:
        await until(lambda: {b.reason for b in backends_of(balancer).values()} == {"HTTP 200"})
        engine = balancer._handle
        balancer._handle = Stubborn(engine)  # type: ignore[assignment]
        one.status = 503
        await until(lambda: picks(balancer) == {"app-2": 200}, "the third attempt")
        balancer._handle = engine
    # Twice for the same reason is said once.
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == ["health changed, and the workers did not take it: a worker has not answered for 10 s"]
    assert "health changed, and the workers have taken it now" in caplog.text


async def test_connects_that_succeeded_in_between_count_for_it(run: Run, tunnels: Open) -> None:
    """A server at its limit turns some away: it is not taken out for that."""
    one, two = run(Named("app-1")), run(Named("app-2"))
    async with Balancer(configuration(addresses(one, two))) as balancer:
        for _ in range(5):
            tunnels(balancer, 40)
            balancer._connect_failed("chat", "app-1", 5)
            assert states(balancer) == "up up"
        balancer._connect_failed("chat", "app-1", 5)
        assert states(balancer) == "down up"


async def test_news_that_change_no_plan_make_none(run: Run) -> None:
    """In panic all are used: who of them fails is no reason to bother the workers."""
    servers = [run(Moody(503)) for _ in range(3)]
    async with Balancer(configuration(addresses(*servers), health=HTTP, panic=1.0)) as balancer:
        await until(lambda: "panic: 0 of 3 up" in backends_of(balancer)["app-1"].reason)
        generation = balancer.status().generation
        servers[0].status = 200
        await until(lambda: "panic: 1 of 3 up" in backends_of(balancer)["app-1"].reason)
        servers[0].status = 503
        await until(lambda: "panic: 0 of 3 up" in backends_of(balancer)["app-1"].reason)
        assert balancer.status().generation == generation


async def test_nobody_is_told_anything_while_it_stops(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    one, two = run(Moody()), run(Moody())
    given = configuration(addresses(one, two), health={**HTTP, "interval": "20ms"})
    async with Balancer(given) as balancer:
        client = socket.create_connection(balancer.bound["public"].rsplit(":", 1))  # type: ignore[arg-type]
        with client:
            await until(lambda: balancer.status().active == 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(balancer.stop, 30.0)
                await trio.lowlevel.checkpoint()
                one.status = 503
                await until(lambda: states(balancer) == "down up")
                client.close()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
