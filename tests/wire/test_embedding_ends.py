"""How an embedded balancer ends: by an error at its start, by leaving the block, by cancellation.

Errors come out as what they are, and nothing stays behind.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from pybalancer import Balancer, ConfigError, PybalancerError, StartError, run_in_thread

from .hosts import NEVER, Descriptors, Either, Start, configuration, in_thread, refuses, under_trio
from .net import PATIENCE, Server, connect, echoes, served, server, until

each = pytest.mark.parametrize("start", [under_trio, in_thread])


@pytest.fixture
def one() -> Iterator[Server]:
    with server() as running:
        yield running


BAD: dict[str, tuple[Callable[[Server, Path], dict[str, Any]], type[Exception], str]] = {
    "nonsense": (lambda taken, tmp: {"surplus": 1}, ConfigError, "surplus"),
    "unresolvable": (lambda taken, tmp: configuration("nowhere.invalid:1"), ConfigError, "nowhere.invalid"),
    "address taken": (
        lambda taken, tmp: configuration(taken.address, bind=taken.address),
        StartError,
        "in use",
    ),
    "admin address taken": (
        lambda taken, tmp: configuration(taken.address, admin=taken.address, admin_token="t" * 20),
        StartError,
        "in use",
    ),
    "no admin directory": (
        lambda taken, tmp: configuration(taken.address, admin=f"unix:{taken_file(tmp)}/a.sock"),
        StartError,
        "irectory",
    ),
    "no token": (
        lambda taken, tmp: configuration(taken.address, admin="127.0.0.1:0", admin_token_file=f"{tmp}/none"),
        ConfigError,
        "No such file",
    ),
    "no statistics file": (
        lambda taken, tmp: configuration(taken.address, stats=f"{taken_file(tmp)}/stats"),
        StartError,
        "cannot start workers: .*stats",
    ),
}


def taken_file(directory: Path) -> Path:
    """A file, where a directory is wanted."""
    (directory / "file").touch()
    return directory / "file"


@each
@pytest.mark.parametrize("name", BAD)
def test_an_error_at_the_start(start: Start, name: str, one: Server, tmp_path: Path) -> None:
    make, kind, message = BAD[name]
    before = Descriptors()
    with pytest.raises(kind, match=message) as raised:
        start(make(one, tmp_path), admin=True)
    assert type(raised.value) is kind
    if name == "address taken":
        assert (raised.value.errno, raised.value.filename) == (errno.EADDRINUSE, one.address)  # type: ignore[attr-defined]
    before.assert_none_came()


def test_a_missing_file(tmp_path: Path) -> None:
    for start in (under_trio, in_thread):
        with pytest.raises(ConfigError, match="No such file"):
            start(tmp_path / "missing.toml")


WHOLE = """
[balancer]
workers = 3
secret = "00112233445566778899aabbccddeeff"
admin = "unix:{directory}/admin.sock"
watch = true
[[listeners]]
name = "front"
bind = "127.0.0.1:0"
pool = "pool"
[[listeners]]
name = "unix"
bind = "unix:{directory}/front.sock"
pool = "pool"
[pools.pool.health]
kind = "tcp"
interval = "50ms"
[[pools.pool.backends]]
name = "app-1"
address = "{backend}"
"""


@each
def test_leaving_the_block_closes_everything(start: Start, one: Server, tmp_path: Path) -> None:
    """With all that a balancer can have: tunnels, checks, an admin interface, a log, a watched file."""
    file = tmp_path / "lb.toml"
    file.write_text(WHOLE.format(directory=tmp_path, backend=one.address))

    def once() -> None:
        clients: list[socket.socket] = []
        addresses: list[str] = []

        def body(lb: Either) -> None:
            addresses.append(lb.bound["front"])
            clients.extend(connect(lb.bound["front"]) for _ in range(20))
            assert all(echoes(client) for client in clients)
            assert served(lb.bound["unix"])
            assert lb.status().admin == f"unix:{tmp_path}/admin.sock"

        with (tmp_path / "records").open("wb") as records:
            start(file, body, admin=True, records=records)
        for client in clients:
            with client, pytest.raises(ConnectionResetError):
                client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(addresses[0])
        until(lambda: not one.live, "the end of all connections to the backend")

    once()  # Python opens some things once, and keeps them.
    before = Descriptors()
    once()
    before.assert_none_came()
    assert {path.name for path in tmp_path.iterdir()} == {"lb.toml", "records"}


# Grace.


async def test_tunnels_may_end_first(one: Server) -> None:
    async with Balancer(configuration(one.address)) as lb:
        address = lb.bound["front"]
        with connect(address) as client:
            assert echoes(client)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lb.stop, NEVER)
                with trio.fail_after(PATIENCE):
                    await listener_ends(address)
                assert echoes(client)
                assert not lb._closed.is_set()
                client.close()
            with trio.fail_after(PATIENCE):
                await lb.wait_closed()


async def listener_ends(address: str) -> None:
    await trio.to_thread.run_sync(until, lambda: refuses(address), "the end of the listener")


def test_tunnels_may_end_first_and_a_thread_waits_for_them(one: Server) -> None:
    with run_in_thread(configuration(one.address)) as lb:
        address = lb.bound["front"]
        with connect(address) as client:
            assert echoes(client)
            closing = threading.Thread(target=lb.close, args=(NEVER,))
            closing.start()
            until(lambda: refuses(address), "the end of the listener")
            assert echoes(client)
            assert closing.is_alive()
        closing.join(PATIENCE)
        assert not closing.is_alive()


def test_leaving_the_block_does_not_wait_for_what_another_thread_waits_for(one: Server) -> None:
    with run_in_thread(configuration(one.address)) as lb:
        address = lb.bound["front"]
        client = connect(address)
        assert echoes(client)
        closing = threading.Thread(target=lb.close, args=(NEVER,))
        closing.start()
        until(lambda: refuses(address), "the end of the listener")
    closing.join(PATIENCE)
    assert not closing.is_alive()
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)


@pytest.mark.parametrize("grace", [-1, float("inf"), float("nan")])
def test_a_grace_that_is_no_time(grace: float, one: Server) -> None:
    with run_in_thread(configuration(one.address)) as lb:
        with pytest.raises(ValueError, match="seconds"):
            lb.close(grace)
        assert served(lb.bound["front"])


# Cancellation and exceptions, with a tunnel that would go on.


async def test_cancellation_ends_the_block(one: Server) -> None:
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        async with Balancer(configuration(one.address)) as lb:
            client = connect(lb.bound["front"])
            assert echoes(client)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)


async def test_cancellation_ends_the_wait_for_tunnels(one: Server) -> None:
    with trio.fail_after(PATIENCE), trio.CancelScope() as outer:
        async with Balancer(configuration(one.address)) as lb:
            address = lb.bound["front"]
            client = connect(address)
            assert echoes(client)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lb.stop, NEVER)
                await listener_ends(address)
                nursery.cancel_scope.cancel()
            # They keep their time, until the block is left.
            assert echoes(client)
            outer.cancel()
            await trio.lowlevel.checkpoint()
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)


async def test_cancellation_during_the_start_leaves_nothing(one: Server) -> None:
    class SlowResolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *arguments: Any) -> Any:
            asked.set()
            await trio.sleep_forever()

        async def getnameinfo(self, *arguments: Any) -> Any:
            raise NotImplementedError

    asked = trio.Event()
    before = Descriptors()
    previous = trio.socket.set_custom_hostname_resolver(SlowResolver())
    try:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Balancer(configuration("slow.example:1")).__aenter__)
                await asked.wait()
                nursery.cancel_scope.cancel()
    finally:
        trio.socket.set_custom_hostname_resolver(previous)
    before.assert_none_came()


class OwnError(Exception):
    pass


@each
@pytest.mark.parametrize(
    "error",
    [OwnError("mine"), ExceptionGroup("mine", [OwnError("one"), OwnError("two")]), KeyboardInterrupt()],
    ids=["plain", "group", "interrupt"],
)
def test_an_exception_in_the_block_leaves_it_as_it_was(
    start: Start, error: BaseException, one: Server
) -> None:
    clients: list[socket.socket] = []

    def body(lb: Either) -> None:
        clients.append(connect(lb.bound["front"]))
        assert echoes(clients[0])
        raise error

    with pytest.raises(type(error)) as raised:
        start(configuration(one.address), body)
    assert raised.value is error
    with clients[0], pytest.raises(ConnectionResetError):
        clients[0].recv(1)


def test_a_group_of_one_is_not_taken_apart(one: Server) -> None:
    """What the host raises is the host's, though it look like what a nursery makes."""
    group = ExceptionGroup("mine", [OwnError()])

    def body(lb: Either) -> None:
        raise group

    for start in (under_trio, in_thread):
        with pytest.raises(ExceptionGroup) as raised:
            start(configuration(one.address), body)
        assert raised.value is group


# Before and after.


async def test_before_and_after_there_is_no_balancer(one: Server) -> None:
    lb = Balancer(configuration(one.address))

    async def is_refused(message: str) -> None:
        for ask in (lb.status, lb.metrics, lambda: lb.bound, lambda: lb.explain("192.0.2.1")):
            with pytest.raises(PybalancerError, match=message):
                ask()
        with pytest.raises(PybalancerError, match=message):
            await lb.reload()

    await is_refused("enter its block first")
    async with lb:
        with pytest.raises(RuntimeError, match="was started before"):
            await lb.__aenter__()
        assert served(lb.bound["front"])
    await is_refused("has ended")
    assert await lb.stop() == 0
    with pytest.raises(RuntimeError, match="was started before"):
        async with lb:
            pass


def test_before_and_after_there_is_no_balancer_in_a_thread(one: Server) -> None:
    lb = run_in_thread(configuration(one.address))

    def is_refused(message: str) -> None:
        for ask in (lb.status, lb.metrics, lb.reload, lambda: lb.bound, lambda: lb.explain("192.0.2.1")):
            with pytest.raises(PybalancerError, match=message):
                ask()

    lb.close()
    is_refused("enter its `with` block first")
    with lb:
        assert served(lb.bound["front"])
        lb.close()
        lb.close()
        is_refused("has ended")
    is_refused("has ended")
    with pytest.raises(RuntimeError, match="was started before"), lb:
        pass


# Two.


async def test_two_balancers_know_nothing_of_each_other(one: Server) -> None:
    with server() as two:
        async with Balancer(configuration(one.address)) as first:
            with run_in_thread(configuration(two.address)) as second:
                with connect(first.bound["front"]) as of_first:
                    assert echoes(of_first)
                    # The second one's thread answers while this loop waits for it.
                    address, status = await trio.to_thread.run_sync(
                        lambda: (second.bound["front"], second.status())
                    )
                    assert (first.status().active, status.active) == (1, 0)
                    with connect(address) as of_second:
                        assert echoes(of_second)
                        assert (one.served, two.served) == (1, 1)
                        await trio.to_thread.run_sync(second.close)
                        with pytest.raises(ConnectionResetError):
                            of_second.recv(1)
                    assert echoes(of_first)
            assert served(first.bound["front"])
