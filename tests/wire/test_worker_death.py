"""A worker that panics: its tunnels are lost, nobody else's, and everybody is told."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from contextlib import ExitStack

import pytest
import trio

from pybalancer import Balancer
from pybalancer._core import probe
from pybalancer.stats.reader import Stats

from .load import Talk
from .net import PATIENCE, SECRET, Proxy, connect, echoes, proxy, refused, served, server, until


def told(balancer: Proxy, kind: str, count: int) -> None:
    """Wait until something was told so many times."""
    until(lambda: len(balancer.events(kind)) == count, f"{kind}, {count} times")


def panic(balancer: Proxy, worker: int) -> None:
    """And wait until it serves again."""
    restarts = len(balancer.events("worker-restarted"))
    probe.panic_worker(balancer.engine, worker)
    told(balancer, "worker-restarted", restarts + 1)


def alive(clients: list[socket.socket]) -> list[socket.socket]:
    """Those whose tunnels stand."""
    good = []
    for client in clients:
        with contextlib.suppress(ConnectionError):
            if echoes(client):
                good.append(client)
    return good


def test_109_a_worker_that_dies_costs_its_own_tunnels_only() -> None:
    with server() as backend, proxy([backend], workers=3) as balancer, ExitStack() as stack:
        stats = stack.enter_context(Stats(fd=balancer.engine.stats_fd))
        clients = [stack.enter_context(connect(balancer.address)) for _ in range(90)]
        assert alive(clients) == clients
        until(lambda: sum(worker.tunnels for worker in stats.workers()) == 90)
        before = [worker.tunnels for worker in stats.workers()]
        assert all(before)

        panic(balancer, 1)
        (died,) = balancer.events("worker-died")
        assert (died.worker, died.count) == (1, before[1])
        assert "panic" in (died.message or "")
        survivors = alive(clients)
        assert len(survivors) == 90 - before[1]
        assert balancer.reasons() == ["worker-panic"] * before[1]
        assert [worker.tunnels for worker in stats.workers()] == [before[0], 0, before[2]]
        assert stats.workers()[1].restarts == 1

        # It takes its part of new clients again.
        more = [stack.enter_context(connect(balancer.address)) for _ in range(90)]
        assert alive(more) == more
        assert stats.workers()[1].tunnels > 0
        # And again and again, while the others' tunnels talk.
        with Talk(survivors) as talk:
            for _ in range(3):
                panic(balancer, 1)
            rounds = talk.rounds
            until(lambda: talk.rounds > rounds + 1 or talk.failures)
            assert talk.failures == []
        assert all(served(balancer.address) for _ in range(30))


def test_109_when_all_workers_die_what_they_held_is_free_again() -> None:
    limits = {"max_connections": 40, "max_connections_per_source": 40}
    with server() as backend, proxy([backend], workers=2, listener=limits) as balancer, ExitStack() as stack:
        for _ in range(2):
            clients = [stack.enter_context(connect(balancer.address)) for _ in range(40)]
            assert alive(clients) == clients
            assert refused(balancer.address)
            panic(balancer, 0)
            panic(balancer, 1)
            assert alive(clients) == []
            assert balancer.engine.active() == 0
            assert balancer.engine.ports()["pool"]["b0"][0] == 0


def test_109_who_waits_at_a_dead_worker_is_served_after_its_restart() -> None:
    with server() as backend, proxy([backend]) as balancer, ExitStack() as stack:
        for deaths in range(1, 4):
            probe.panic_worker(balancer.engine, 0)
            told(balancer, "worker-died", deaths)
            # From the second time on it rests for a while before it starts again.
            clients = [stack.enter_context(connect(balancer.address)) for _ in range(20)]
            assert alive(clients) == clients
            told(balancer, "worker-restarted", deaths)


async def test_114_the_balancer_says_that_a_worker_died_and_lives_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server() as backend, caplog.at_level(logging.INFO, logger="pybalancer"):
        config = {
            "balancer": {"workers": 2, "secret": SECRET.hex()},
            "listeners": [{"name": "front", "bind": "127.0.0.1:0", "pool": "pool"}],
            "pools": {"pool": {"backends": [{"name": "app", "address": backend.address}]}},
        }
        async with Balancer(config) as balancer:

            def said(pattern: str) -> list[re.Match[str]]:
                matches = (re.search(pattern, record.getMessage()) for record in caplog.records)
                return [match for match in matches if match]

            async def line(pattern: str) -> re.Match[str]:
                with trio.fail_after(PATIENCE):
                    while not said(pattern):  # noqa: ASYNC110
                        await trio.sleep(0.01)
                return said(pattern)[0]

            with ExitStack() as stack:
                address = balancer.bound["front"]
                clients = [stack.enter_context(connect(address)) for _ in range(40)]
                assert alive(clients) == clients
                probe.panic_worker(balancer._engine, 0)
                lost = int((await line(r"worker 0 failed and lost (\d+) tunnels; the others go on"))[1])
                await line("worker 0 serves again")
                assert 0 < lost < 40
                assert len(alive(clients)) == 40 - lost
                assert all(served(address) for _ in range(20))
                assert [worker.restarts for worker in balancer.status().workers] == [1, 0]
