"""The ways of restarting all backends, one after the other: naively, and as each proxy's operators do it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from bench.ripple.fleet import Fleet
from bench.ripple.proxies import SLOW_START, HAProxy, Nginx, Pybalancer, Terms

PAUSE = 2.0
"""Seconds between two restarts where nobody looks at anything: checks have seen by then that it is back."""


@dataclass(frozen=True)
class Way:
    """One row of the report."""

    proxy: str
    name: str
    title: str
    make: Callable[[Fleet, Path, Terms], Any]
    roll: Callable[[Any, Fleet, Terms], Awaitable[None]]
    reload: str = "reload"


async def restart_only(_proxy: Any, fleet: Fleet, _terms: Terms) -> None:
    for backend in fleet.backends:
        await backend.restart()
        await trio.sleep(PAUSE)


async def haproxy_drain(proxy: HAProxy, fleet: Fleet, terms: Terms) -> None:
    """``drain`` keeps new clients away. Those that are there stay, so in the end it is the application
    that sends them off."""
    for backend in fleet.backends:
        await proxy.set_state(backend, "drain")
        await trio.sleep(terms.drain)
        await backend.restart()
        await proxy.wait_up(backend)
        await proxy.set_state(backend, "ready")


async def nginx_down(proxy: Nginx, fleet: Fleet, terms: Terms) -> None:
    """``down`` and a reload keep new clients away; the old worker keeps all that are there."""
    for backend in fleet.backends:
        await proxy.mark_down(backend)
        await trio.sleep(terms.drain)
        await backend.restart()
        await proxy.mark_down(None)


async def pybalancer_roll(proxy: Pybalancer, fleet: Fleet, terms: Terms) -> None:
    """The roll, and then whoever is too many on the fullest backends is asked to come again."""
    restart = shlex.join([sys.executable, "-m", "bench.ripple.restart", str(fleet.door)])
    await proxy.run("roll", "chat", "--exec", f"{restart} {{name}}")
    await trio.sleep(SLOW_START)  # Before, the last one would take a part of its share only.
    await proxy.run("shed", "chat", "--to-skew", "1.05", "--rate", f"{terms.cap}/s")


WAYS = [
    Way("pybalancer", "restart", "restart only", Pybalancer, restart_only),
    Way(
        "pybalancer",
        "restart-reattach",
        "restart only; reattach",
        partial(Pybalancer, reattach=True),
        restart_only,
    ),
    Way("pybalancer", "roll", "roll, shed", partial(Pybalancer, paced=True), pybalancer_roll),
    Way(
        "pybalancer",
        "reattach",
        "roll, shed; reattach",
        partial(Pybalancer, paced=True, reattach=True),
        pybalancer_roll,
        "upgrade",
    ),
    Way(
        "haproxy",
        "restart",
        "restart only",
        partial(HAProxy, hard_stop=False),
        restart_only,
    ),
    Way(
        "haproxy",
        "drain",
        "drain, restart, ready; hard-stop-after",
        partial(HAProxy, hard_stop=True),
        haproxy_drain,
    ),
    Way(
        "nginx",
        "restart",
        "restart only",
        partial(Nginx, max_fails=1),
        restart_only,
    ),
    Way(
        "nginx",
        "restart-0",
        "restart only; max_fails=0",
        Nginx,
        restart_only,
    ),
    Way(
        "nginx",
        "down",
        "down, reload, restart, reload; max_fails=0",
        Nginx,
        nginx_down,
    ),
    Way(
        "nginx",
        "down-timeout",
        "down, reload, restart, reload; worker_shutdown_timeout",
        partial(Nginx, shutdown_timeout=True),
        nginx_down,
    ),
]
