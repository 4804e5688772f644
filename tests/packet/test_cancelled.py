"""Whoever cancels a change gets all of it or nothing: packets, workers and checks go by one configuration."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio

from pybalancer import Balancer, StartError
from pybalancer.packet.control import PacketControl

from ..wire.balancing import configuration
from ..wire.net import server

pytestmark = pytest.mark.pure


async def test_a_reload_that_is_cancelled_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as one:
        async with Balancer(configuration({"app-1": one.address}), admin=False) as balancer:
            applied: list[int] = []

            async def apply(config: Any, *_given: Any) -> None:
                scope.cancel()
                await trio.lowlevel.checkpoint()
                applied.append(len(config.pools["chat"].backends))

            monkeypatch.setattr(balancer._packet, "apply", apply)
            with trio.CancelScope() as scope:
                await balancer.reload(configuration({"app-1": one.address, "app-2": one.address}))
            assert applied == [2]
            (pool,) = balancer.status().pools
            assert [backend.name for backend in pool.backends] == ["app-1", "app-2"]
            assert {name for _, name in balancer._watcher.snapshot()} == {"app-1", "app-2"}
            # And so is a drain, which takes back what was not done.
            with trio.CancelScope() as scope:
                await balancer.drain("chat/app-1", over=0)
            assert applied == [2, 2]
            (pool,) = balancer.status().pools
            assert pool.backends[0].draining
            assert balancer._draining.backends == {("chat", "app-1")}


@pytest.mark.parametrize("broken_off", [True, False])
async def test_a_start_after_a_crash_that_is_broken_off_ends_packets(
    monkeypatch: pytest.MonkeyPatch, broken_off: bool
) -> None:
    """And one that fails leaves them as they went on."""
    kept: list[bool] = []

    async def close(*, keep: bool) -> None:
        kept.append(keep)

    async def tasks(*_given: Any) -> None:
        if broken_off:
            scope.cancel()
            await trio.lowlevel.checkpoint()
        raise StartError("the admin address is taken")

    with server() as one:
        balancer = Balancer(configuration({"app-1": one.address}), admin=False)
        monkeypatch.setattr(balancer, "_start_tasks", tasks)
        monkeypatch.setattr(PacketControl, "found", property(lambda _control: True))
        monkeypatch.setattr(balancer._packet, "close", close)
        with trio.CancelScope() as scope, contextlib.suppress(StartError):
            async with balancer:
                pass
    # Before, and at the end: nothing is of mode packet here.
    assert kept == [False, not broken_off]
