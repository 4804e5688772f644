"""Reloads that fail, that come together, that are cancelled; and what a reload says."""

from __future__ import annotations

import copy
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from pybalancer import Balancer, ConfigError, StartError

from .balancing import SECRET, Moody, Named, Open, Run, backends_of, configuration, picks, until
from .net import PATIENCE, text_of

TCP = {"kind": "tcp", "interval": "50ms", "timeout": "1s", "rise": 1, "fall": 1}


Change = Callable[[dict[str, Any]], None]


# Reloads that fail.


def unknown_key(given: dict[str, Any]) -> None:
    given["pools"]["chat"]["backend"] = []


def no_such_pool(given: dict[str, Any]) -> None:
    given["listeners"][0]["pool"] = "chatt"


def duplicate_name(given: dict[str, Any]) -> None:
    given["pools"]["chat"]["backends"] *= 2


def bad_value(given: dict[str, Any]) -> None:
    given["pools"]["chat"]["idle_timeout"] = "soon"


def taken_address(given: dict[str, Any]) -> None:
    given["listeners"].append({"name": "taken", "bind": TAKEN, "pool": "chat"})


def no_such_host(given: dict[str, Any]) -> None:
    given["pools"]["chat"]["backends"][0]["address"] = "nobody.invalid:80"


def no_such_secret(given: dict[str, Any]) -> None:
    del given["balancer"]["secret"]
    given["balancer"]["secret_file"] = "/nowhere/secret"


TAKEN = "127.0.0.9:0"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (unknown_key, "pools.chat.backend: unknown key"),
        (no_such_pool, "chatt"),
        (duplicate_name, "app-1"),
        (bad_value, "'soon' is not a time"),
        (taken_address, "in use"),
        (no_such_host, "'nobody.invalid' does not resolve"),
        (no_such_secret, "No such file"),
    ],
    ids=lambda value: getattr(value, "__name__", "-"),
)
async def test_102_a_reload_that_fails_changes_nothing(
    spoil: Change, says: str, three: dict[str, str], monkeypatch: pytest.MonkeyPatch, tunnels: Open
) -> None:
    with socket.create_server(("127.0.0.9", 0)) as taken:
        monkeypatch.setitem(globals(), "TAKEN", text_of(taken.getsockname()))
        given = configuration(three, on_remove="close")
        async with Balancer(given) as balancer:
            before, keys = tunnels(balancer, 6), picks(balancer)
            running = balancer.status()
            spoiled = copy.deepcopy(given)
            # Much else is new, too.
            spoiled["pools"]["chat"]["backends"].pop()
            spoiled["balancer"]["secret"] = SECRET[::-1]
            spoiled["listeners"][0]["bind"] = "127.0.0.8:0"
            spoil(spoiled)
            with pytest.raises((ConfigError, StartError), match="(?s).*" + says) as caught:
                await balancer.reload(spoiled)
            after = balancer.status()
            assert after.generation == running.generation
            assert after.pools[0].digest == running.pools[0].digest
            assert balancer.bound == {"public": running.listeners[0].bound}
            assert after.last_reload is not None
            assert not after.last_reload.ok
            assert after.last_reload.error == str(caught.value)
            assert picks(balancer) == keys
            assert all(tunnel.stands() for tunnel in [*before, *tunnels(balancer, 6)])
            # Nothing is left that would hinder the next one.
            spoiled = copy.deepcopy(given)
            spoiled["balancer"]["secret"] = SECRET[::-1]
            result = await balancer.reload(spoiled)
            assert result.generation == running.generation + 1
            assert result.changes == ["secret changed: clients go to other backends than before"]
            assert picks(balancer) != keys


async def test_health_goes_on_after_a_reload_that_failed(run: Run) -> None:
    one, two = run(Named("app-1")), run(Named("app-2"))
    given = configuration({"app-1": one.address, "app-2": two.address}, health=TCP)
    async with Balancer(given) as balancer:
        for _ in range(3):
            with pytest.raises(ConfigError):
                await balancer.reload({**given, "pools": {}})
        one.close()
        await until(lambda: picks(balancer) == {"app-2": 200})


# Several at a time.


async def test_reloads_at_the_same_time_come_one_after_another(three: dict[str, str]) -> None:
    given = configuration(three)
    async with Balancer(given) as balancer:
        generations: list[int] = []

        async def reload(weight: int) -> None:
            changed = copy.deepcopy(given)
            changed["pools"]["chat"]["backends"][0]["weight"] = weight
            generations.append((await balancer.reload(changed)).generation)

        first = balancer.status().generation
        async with trio.open_nursery() as nursery:
            for weight in range(1, 31):
                nursery.start_soon(reload, weight)
        assert sorted(generations) == list(range(first + 1, first + 31))
        assert balancer.status().generation == first + 30
        assert balancer.config.pools["chat"].backends[0].weight == backends_of(balancer)["app-1"].weight


class Resolver(trio.abc.HostnameResolver):
    """A name server: ``addresses``, or silence until it is to ``answer``."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.answer = trio.Event()
        self.answer.set()
        self.asked = 0

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        self.asked += 1
        await self.answer.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


async def test_health_does_not_wait_for_a_reload_that_waits_for_a_name_server(run: Run) -> None:
    one, two = run(Named("app-1")), run(Named("app-2"))
    given = configuration({"app-1": one.address, "app-2": two.address}, health=TCP)
    resolver = Resolver("127.0.0.1")
    resolver.answer = trio.Event()
    trio.socket.set_custom_hostname_resolver(resolver)
    async with Balancer(given) as balancer:
        named = copy.deepcopy(given)
        named["pools"]["chat"]["backends"][1]["address"] = "app.example:" + two.address.rpartition(":")[2]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(balancer.reload, named)
            await until(lambda: resolver.asked)
            generation = balancer.status().generation
            one.close()
            await until(lambda: picks(balancer) == {"app-2": 200})
            assert balancer.status().generation > generation
            resolver.answer.set()
        assert balancer.config.pools["chat"].backends[1].address.startswith("app.example:")
        # What was learned meanwhile is not forgotten by it.
        assert picks(balancer) == {"app-2": 200}


async def test_the_last_reload_is_the_last_word(three: dict[str, str]) -> None:
    """However long the one before it takes."""
    given = configuration(three)
    resolver = Resolver("127.0.0.1")
    resolver.answer = trio.Event()
    trio.socket.set_custom_hostname_resolver(resolver)
    async with Balancer(given) as balancer:
        named = copy.deepcopy(given)
        named["pools"]["chat"]["backends"][0]["address"] = "app.example:80"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(balancer.reload, named)
            await until(lambda: resolver.asked)
            nursery.start_soon(balancer.reload, given)
            await trio.testing.wait_all_tasks_blocked(0.1)
            resolver.answer.set()
        assert balancer.config.pools["chat"].backends[0].address == three["app-1"]
        assert backends_of(balancer)["app-1"].address == three["app-1"]


async def test_plans_of_health_and_of_reloads_do_not_cross(run: Run) -> None:
    """One that was made before another must not be applied after it."""

    class Slow:
        """An engine that notes how many plans it is given at a time."""

        def __init__(self, engine: Any) -> None:
            self._engine, self._lock = engine, threading.Lock()
            self.crossed, self.applied = 0, 0

        def apply(self, plan: Any) -> int:
            alone = self._lock.acquire(blocking=False)
            time.sleep(0.01)
            generation: int = self._engine.apply(plan)
            self.applied += 1
            if alone:
                self._lock.release()
            else:
                self.crossed += 1
            return generation

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

    one, two = run(Moody()), run(Moody())
    health = {**TCP, "kind": "http", "interval": "20ms", "timeout": "30s"}
    given = configuration({"app-1": one.address, "app-2": two.address}, health=health)
    async with Balancer(given) as balancer:
        engine = balancer._handle
        slow = Slow(engine)
        balancer._handle = slow  # type: ignore[assignment]
        for turn in range(6):
            one.status = two.status = 503 if turn % 2 == 0 else 200
            for _ in range(5):
                await balancer.reload(given)
        balancer._handle = engine
        assert slow.applied >= 30
        assert slow.crossed == 0


async def test_a_reload_that_is_cancelled_changes_nothing(three: dict[str, str]) -> None:
    given = configuration(three)
    resolver = Resolver("127.0.0.1")
    resolver.answer = trio.Event()
    trio.socket.set_custom_hostname_resolver(resolver)
    async with Balancer(given) as balancer:
        named = copy.deepcopy(given)
        named["balancer"]["secret"] = SECRET[::-1]
        named["pools"]["chat"]["backends"][0]["address"] = "app.example:80"
        keys, generation = picks(balancer), balancer.status().generation
        async with trio.open_nursery() as nursery:
            nursery.start_soon(balancer.reload, named)
            await until(lambda: resolver.asked)
            nursery.cancel_scope.cancel()
        assert (picks(balancer), balancer.status().generation) == (keys, generation)
        assert balancer.status().last_reload is None
        with trio.fail_after(PATIENCE):
            await balancer.reload(given)
        assert picks(balancer) == keys


async def test_a_name_with_many_addresses_stays_at_one(run: Run, tunnels: Open) -> None:
    """Name servers turn their answers round; a backend does not move with them."""
    first = run(Named("here"))
    port = first.address.rpartition(":")[2]
    second = run(Named("there", f"127.0.0.2:{port}"))
    resolver = Resolver("127.0.0.1", "127.0.0.2")
    trio.socket.set_custom_hostname_resolver(resolver)
    given = configuration({"app-1": f"app.example:{port}"}, on_remove="close")
    async with Balancer(given) as balancer:
        before = tunnels(balancer, 3)
        assert {tunnel.backend for tunnel in before} == {"here"}
        for _ in range(3):
            resolver.addresses.reverse()
            await balancer.reload(given)
            assert backends_of(balancer)["app-1"].address == first.address
            assert all(tunnel.stands() for tunnel in before)
        # Until it is no longer among them.
        resolver.addresses = ["127.0.0.2"]
        await balancer.reload(given)
        assert backends_of(balancer)["app-1"].address == second.address
        assert all([await tunnel.was_reset() for tunnel in before])


# What it says.


async def test_it_tells_what_it_changed_and_what_must_wait(
    three: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    given = configuration(three)
    async with Balancer(given) as balancer:
        changed = copy.deepcopy(given)
        changed["balancer"] |= {"workers": 7, "watch": True, "grace": "1s"}
        changed["log"] = {"format": "json"}
        changed["listeners"].append({"name": "second", "bind": "127.0.0.1:0", "pool": "rooms"})
        changed["pools"] = {"rooms": given["pools"]["chat"], **changed["pools"]}
        backends = changed["pools"]["chat"]["backends"]
        backends[0]["weight"] = 3
        del backends[1]
        backends.append({"name": "app-4", "address": "127.0.0.1:9"})
        result = await balancer.reload(changed)
        assert result.changes == [
            "log.format changed",
            "balancer.grace changed",
            "listener second added",
            "pool rooms added",
            "pool chat changed",
            "backend chat/app-4 added",
            "backend chat/app-2 removed",
            "backend chat/app-1 changed",
        ]
        assert result.ignored == ["balancer.workers", "balancer.watch"]
        assert (await balancer.reload(changed)).changes == []
        caplog.set_level(logging.INFO, "pybalancer")
        await balancer.reload_and_log()
        generation = balancer.status().generation
        assert f"reloaded (generation {generation}): no change" in caplog.text


async def test_a_defect_of_ours_in_a_reload_ends_nothing(
    three: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tunnels: Open
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    async with Balancer(configuration(three)) as balancer:
        before = tunnels(balancer, 3)
        with monkeypatch.context() as patched:
            patched.setattr(balancer, "_load", fail)
            await balancer.reload_and_log()
        assert "not reloaded" in caplog.text
        assert "RuntimeError: a defect" in caplog.text
        last = balancer.status().last_reload
        assert last is not None
        assert last.error == "a defect"
        await balancer.reload()
        assert all(tunnel.stands() for tunnel in before)
