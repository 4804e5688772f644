"""Operations that a reload has come between."""

from __future__ import annotations

from pybalancer import Balancer

from .balancing import Open, backends_of, configuration, until


async def test_undrain_of_one_goes_on_with_those_that_are_still_there(
    three: dict[str, str], tunnels: Open
) -> None:
    settings = {"policy": "round-robin", "on_remove": "keep", "drain": {"over": "1h", "deadline": "2h"}}
    async with Balancer(configuration(three, **settings), admin=False) as balancer:
        clients = tunnels(balancer, 6)
        await balancer.drain(pool="chat", wait=False)
        del three["app-3"]
        await balancer.reload(configuration(three, **settings))
        await balancer.undrain(backend="app-1")
        assert [name for name, each in backends_of(balancer).items() if each.draining] == ["app-2"]
        (running,) = [each for each in balancer.status().drains if each.state == "running"]
        assert [part.backend for part in running.parts] == ["app-2"]
        for client in clients:
            client.close()
        await until(lambda: balancer.status().active == 0)
