"""The whole demo: backends, the balancer before them, clients, outages, and a view on it."""

import signal
from typing import Any

import trio

from pybalancer.balancer import Balancer
from pybalancer.demo.backends import DemoBackend, run_backends
from pybalancer.demo.crowd import run_crowd
from pybalancer.demo.news import log_to
from pybalancer.demo.outages import run_outages
from pybalancer.demo.tally import Tally
from pybalancer.demo.view import BackendLine, Frame, View

POOL = "demo"


async def play(*, backends: int, clients: int, duration: float | None, view: View) -> Tally:
    """Run the demo for ``duration`` seconds, or until Ctrl-C or SIGTERM; what was seen.

    Nothing that it started is left when it returns, nor when it is cancelled.
    """
    tally = Tally()
    with log_to(view.tell), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at, signals, nursery.cancel_scope)
            async with run_backends(backends) as servers:
                await _play(servers, clients, duration, view, tally)
            nursery.cancel_scope.cancel()
    return tally


async def _stop_at(signals: Any, scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _play(
    servers: list[DemoBackend], clients: int, duration: float | None, view: View, tally: Tally
) -> None:
    async with Balancer(_configuration(servers), admin=False) as balancer:
        host, _, port = balancer.bound[POOL].rpartition(":")
        started = trio.current_time()
        try:
            with trio.move_on_after(duration if duration is not None else float("inf")):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run_crowd, clients, host, int(port), tally)
                    nursery.start_soon(run_outages, servers, tally, view.tell, duration)
                    nursery.start_soon(_show, balancer, view, tally)
        finally:
            tally.seconds = trio.current_time() - started
            tally.spread = {line.name: line.opened for line in _lines(balancer)}


def _configuration(servers: list[DemoBackend]) -> dict[str, Any]:
    return {
        "balancer": {"workers": 1},
        "log": {"connections": False},
        "listeners": [{"name": POOL, "bind": "127.0.0.1:0", "pool": POOL}],
        "pools": {
            POOL: {
                "backends": [{"name": server.name, "address": server.address} for server in servers],
                "health": {
                    "kind": "websocket",
                    "interval": "250ms",
                    "timeout": "1s",
                    "rise": 1,
                    "fall": 2,
                },
            }
        },
    }


async def _show(balancer: Balancer, view: View, tally: Tally) -> None:
    started = then = trio.current_time()
    before = 0
    while True:
        await trio.sleep(1.0)
        now = trio.current_time()
        rate = (tally.messages - before) / (now - then)
        before, then = tally.messages, now
        view.show(Frame(now - started, rate, tally, _lines(balancer)))


def _lines(balancer: Balancer) -> list[BackendLine]:
    (pool,) = balancer.status().to_dict()["pools"]
    return [
        BackendLine(
            name=backend["name"],
            address=backend["address"],
            state=backend["state"],
            tunnels=backend["active"],
            opened=backend["opened"],
        )
        for backend in pool["backends"]
    ]
