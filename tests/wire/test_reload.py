"""Reloads: what they do not concern they do not touch, what is wrong changes nothing, what is new serves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from pybalancer import Balancer

from .balancing import SECRET, Named, Open, Run, backends_of, configuration, picks, states, until
from .net import connect, refused, reserved

TCP = {"kind": "tcp", "interval": "50ms", "timeout": "1s", "rise": 1, "fall": 1}


# What a reload does not concern.

Change = Callable[[dict[str, Any]], None]


def add_backend(given: dict[str, Any]) -> None:
    given["pools"]["chat"]["backends"].append({"name": "app-0", "address": "127.0.0.1:9"})


def remove_the_other_backends(given: dict[str, Any]) -> None:
    del given["pools"]["chat"]["backends"][1:]


def weights(given: dict[str, Any]) -> None:
    given["pools"]["chat"]["backends"][1]["weight"] = 100


def weight_nothing(given: dict[str, Any]) -> None:
    """Not even its own: it takes nobody new, and keeps whom it has."""
    given["pools"]["chat"]["backends"][0]["weight"] = 0


def add_listener(given: dict[str, Any]) -> None:
    given["listeners"].insert(0, {"name": "another", "bind": "127.0.0.1:0", "pool": "chat"})


def other_limits(given: dict[str, Any]) -> None:
    given["listeners"][0] |= {"max_connections": 1, "max_connections_per_source": 1, "accept_rate": "1/h"}


def add_pool(given: dict[str, Any]) -> None:
    given["pools"]["rooms"] = {"backends": [{"name": "app-1", "address": "127.0.0.1:9"}]}


def another_policy(given: dict[str, Any]) -> None:
    given["pools"]["chat"] |= {"policy": "least-connections", "key": "source-ip", "table_size": 16381}


def another_secret(given: dict[str, Any]) -> None:
    given["balancer"]["secret"] = SECRET[::-1]


def other_timeouts(given: dict[str, Any]) -> None:
    given["pools"]["chat"] |= {
        "connect_timeout": "1ms",
        "idle_timeout": "10m",
        "half_closed_timeout": "1ms",
        "keepalive": "7s",
        "user_timeout": "9s",
        "tries": 1,
        "max_skew": 1.1,
        "panic": 0.5,
        "slow_start": "1h",
    }


def another_check(given: dict[str, Any]) -> None:
    given["pools"]["chat"]["health"] |= {"interval": "1h", "timeout": "2s", "rise": 7, "fall": 9}


def other_sources(given: dict[str, Any]) -> None:
    given["pools"]["chat"]["sources"] = ["127.0.0.7", "127.0.0.8"]


def nothing(given: dict[str, Any]) -> None:
    pass


CHANGES: list[Change] = [
    add_backend,
    remove_the_other_backends,
    weights,
    weight_nothing,
    add_listener,
    other_limits,
    add_pool,
    another_policy,
    another_secret,
    other_timeouts,
    another_check,
    other_sources,
    nothing,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_tunnel_that_a_reload_does_not_concern_stands(
    change: Change, three: dict[str, str], tunnels: Open
) -> None:
    """With ``close`` wherever something may be closed."""
    given = configuration(three, on_remove="close", on_down="close", health=TCP)
    async with Balancer(given) as balancer:
        before = [tunnel for tunnel in tunnels(balancer) if tunnel.backend == "app-1"]
        assert before
        ports = {tunnel.socket.getsockname() for tunnel in before}
        changed = copy.deepcopy(given)
        change(changed)
        for config in (changed, given, changed):
            await balancer.reload(config)
            assert all(tunnel.stands() for tunnel in before)
        assert {tunnel.socket.getsockname() for tunnel in before} == ports
        assert backends_of(balancer)["app-1"].active == len(before)


# Backends that go.


@pytest.mark.parametrize("on_remove", ["keep", "close"])
async def test_tunnels_of_a_backend_that_is_removed(
    on_remove: str, three: dict[str, str], tunnels: Open
) -> None:
    given = configuration(three, on_remove=on_remove)
    async with Balancer(given) as balancer:
        before = tunnels(balancer)
        assert {tunnel.backend for tunnel in before} == set(three)
        result = await balancer.reload(
            configuration({name: three[name] for name in ("app-2", "app-3")}, on_remove=on_remove)
        )
        assert result.changes == ["pool chat changed", "backend chat/app-1 removed"]
        for tunnel in before:
            if tunnel.backend == "app-1" and on_remove == "close":
                assert await tunnel.was_reset()
            else:
                assert tunnel.stands()
        assert {tunnel.backend for tunnel in tunnels(balancer)} == {"app-2", "app-3"}
        assert set(picks(balancer)) == {"app-2", "app-3"}


@pytest.mark.parametrize("on_remove", ["keep", "close"])
async def test_tunnels_of_a_backend_that_moves(
    on_remove: str, three: dict[str, str], run: Run, tunnels: Open
) -> None:
    """At another address it is another server, though of the same name and so with the same keys."""
    given = configuration(three, on_remove=on_remove)
    async with Balancer(given) as balancer:
        keys = {host: balancer.explain(f"10.0.0.{host}:1")["backend"] for host in range(100)}
        before = tunnels(balancer)
        moved = run(Named("app-1 in its new place"))
        await balancer.reload(configuration({**three, "app-1": moved.address}, on_remove=on_remove))
        assert {host: balancer.explain(f"10.0.0.{host}:1")["backend"] for host in range(100)} == keys
        for tunnel in before:
            if tunnel.backend == "app-1" and on_remove == "close":
                assert await tunnel.was_reset()
            else:
                assert tunnel.stands()
        assert {tunnel.backend for tunnel in tunnels(balancer)} == {"app-2", "app-3", moved.name}


@pytest.mark.parametrize("on_remove", ["keep", "close"])
async def test_tunnels_of_a_pool_that_is_removed(
    on_remove: str, three: dict[str, str], tunnels: Open
) -> None:
    given = configuration(three, on_remove=on_remove)
    rooms = {"backends": [{"name": "app-1", "address": three["app-1"]}]}
    given["pools"]["rooms"] = rooms
    async with Balancer(given) as balancer:
        before = tunnels(balancer, 6)
        after = copy.deepcopy(given)
        del after["pools"]["chat"]
        after["listeners"][0]["pool"] = "rooms"
        await balancer.reload(after)
        for tunnel in before:
            if on_remove == "close":
                assert await tunnel.was_reset()
            else:
                assert tunnel.stands()
        assert {tunnel.backend for tunnel in tunnels(balancer, 6)} == {"app-1"}


async def test_a_backend_that_moves_while_it_is_down_is_used_at_once(run: Run, tunnels: Open) -> None:
    """What was known of the old address says nothing of the new one."""
    with reserved() as dead:
        given = configuration({"app-1": dead}, health={**TCP, "interval": "50ms"})
        async with Balancer(given) as balancer:
            await until(lambda: picks(balancer) == {None: 200})
            alive = run(Named("app-1"))
            # An hour to the next probe: nothing but the reload itself can bring it up.
            await balancer.reload(configuration({"app-1": alive.address}, health={**TCP, "interval": "1h"}))
            assert picks(balancer) == {"app-1": 200}
            assert states(balancer) == "up"
            assert tunnels(balancer, 1)[0].stands()


async def test_a_backend_that_is_down_stays_down_over_a_reload(run: Run) -> None:
    alive = run(Named("app-2"))
    with reserved() as dead:
        given = configuration({"app-1": dead, "app-2": alive.address}, health=TCP)
        async with Balancer(given) as balancer:
            await until(lambda: picks(balancer) == {"app-2": 200})
            for weight in (2, 3, 4):
                given["pools"]["chat"]["backends"][1]["weight"] = weight
                await balancer.reload(given)
                assert picks(balancer) == {"app-2": 200}
                assert states(balancer) == "down up"


# Listeners.


def connects(address: str) -> bool:
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return False
    return True


async def test_a_listener_that_moves_leaves_its_tunnels_alone(three: dict[str, str], tunnels: Open) -> None:
    given = configuration(three)
    async with Balancer(given) as balancer:
        before, old = tunnels(balancer, 6), balancer.bound["public"]
        given["listeners"][0]["bind"] = "127.0.0.2:0"
        result = await balancer.reload(given)
        assert result.changes == ["listener public changed"]
        assert balancer.bound["public"].startswith("127.0.0.2:")
        after = tunnels(balancer, 6)
        assert all(tunnel.stands() for tunnel in [*before, *after])
        # They count for it still.
        assert balancer.status().listeners[0].active == 12
        # The old address is served a little longer, for clients under way to it; then it is not.
        await until(lambda: not connects(old), "the end of the old address", every=0.25)
        assert all(tunnel.stands() for tunnel in [*before, *after])


async def test_a_listener_that_stays_keeps_its_address(three: dict[str, str]) -> None:
    """Port 0 is chosen once."""
    given = configuration(three)
    async with Balancer(given) as balancer:
        address = balancer.bound["public"]
        for _ in range(3):
            await balancer.reload(given)
            assert balancer.bound["public"] == address


async def test_a_listener_that_is_removed_leaves_its_tunnels(three: dict[str, str], tunnels: Open) -> None:
    given = configuration(three)
    given["listeners"].append({"name": "second", "bind": "127.0.0.1:0", "pool": "chat"})
    async with Balancer(given) as balancer:
        before, second = tunnels(balancer, 6, "second"), balancer.bound["second"]
        del given["listeners"][1]
        result = await balancer.reload(given)
        assert result.changes == ["listener second removed"]
        assert list(balancer.bound) == ["public"]
        with pytest.raises(ConnectionRefusedError):
            connect(second)
        assert all(tunnel.stands() for tunnel in before)
        # It may come back meanwhile.
        given["listeners"].append({"name": "second", "bind": second, "pool": "chat"})
        await balancer.reload(given)
        assert all(tunnel.stands() for tunnel in [*before, *tunnels(balancer, 6, "second")])


async def test_a_listener_that_gets_another_pool(three: dict[str, str], run: Run, tunnels: Open) -> None:
    rooms = run(Named("rooms-1"))
    given = configuration(three, pools={"rooms": {"backends": [{"name": "a", "address": rooms.address}]}})
    async with Balancer(given) as balancer:
        before = tunnels(balancer, 6)
        given["listeners"][0]["pool"] = "rooms"
        await balancer.reload(given)
        assert {tunnel.backend for tunnel in tunnels(balancer, 6)} == {"rooms-1"}
        assert all(tunnel.stands() for tunnel in before)


async def test_new_limits_are_for_newcomers(three: dict[str, str], tunnels: Open) -> None:
    given = configuration(three)
    async with Balancer(given) as balancer:
        before = tunnels(balancer, 3)
        given["listeners"][0]["max_connections"] = 2
        await balancer.reload(given)
        assert all(tunnel.stands() for tunnel in before)
        assert refused(balancer.bound["public"])
