"""Whoever cancels a change gets all of it or nothing: packets, workers and checks go by one configuration."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from pybalancer import Balancer

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
