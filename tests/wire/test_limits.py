"""Limits of listeners as all workers keep them together, and as a file and a reload set them."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pybalancer.stats.reader import Stats

from .namespace import namespace, needs_namespaces
from .net import PATIENCE, connect, echoes, proxy, read_exactly, served, server, to, until
from .serving import Serve


def rush(stack: ExitStack, address: str, count: int) -> list[socket.socket]:
    """So many clients at the same moment; those that were served."""
    family, where = to(address)
    clients = [stack.enter_context(socket.socket(family)) for _ in range(count)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(where)
    inside = []
    for client in clients:
        client.settimeout(PATIENCE)
        # A refusal is a reset: at once, not at some deadline.
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            inside.append(client)
    return inside


def test_a_listeners_limit_is_exact_over_all_workers() -> None:
    listener = {"max_connections": 30}
    with (
        server() as backend,
        proxy([backend], workers=4, listener=listener) as balancer,
        ExitStack() as stack,
    ):
        stats = stack.enter_context(Stats(fd=balancer.engine.stats_fd))
        for round_ in range(1, 4):
            inside = rush(stack, balancer.address, 120)
            assert len(inside) == 30
            assert all(echoes(client) for client in inside)
            assert stats.listener("front").refused_full == 90 * round_
            for client in inside:
                client.close()
            until(lambda: balancer.engine.active() == 0)


def test_a_sources_limit_is_exact_over_all_workers() -> None:
    listener = {"max_connections_per_source": 20}
    with (
        server() as backend,
        proxy([backend], workers=4, listener=listener) as balancer,
        ExitStack() as stack,
    ):
        inside = rush(stack, balancer.address, 100)
        assert len(inside) == 20
        assert served(balancer.address, source="127.0.0.9")
        for client in inside[:7]:
            client.close()
        until(lambda: balancer.engine.active() == 13)
        assert len(rush(stack, balancer.address, 30)) == 7


@pytest.fixture
def ipv6_addresses() -> Iterator[None]:
    with namespace() as machine, machine.inside():
        machine.own("lo", "2001:db8:0:1::1/64", "2001:db8:0:1::2/64", "2001:db8:0:2::1/64")
        yield


@needs_namespaces
@pytest.mark.usefixtures("ipv6_addresses")
def test_a_source_is_a_whole_network_in_ipv6() -> None:
    """Anybody has 2⁶⁴ addresses there: all of a /64 are one source."""
    listener = {"max_connections_per_source": 2}
    with server() as backend, proxy([backend], bind="[::]:0", listener=listener) as balancer:
        address = balancer.address.replace("[::]", "[2001:db8:0:1::1]")
        with connect(address, "2001:db8:0:1::1") as one, connect(address, "2001:db8:0:1::2") as two:
            assert echoes(one)
            assert echoes(two)
            assert not served(address, "2001:db8:0:1::2")
            assert served(address, "2001:db8:0:2::1")


def test_the_accept_rate_is_one_for_all_workers() -> None:
    listener = {"accept_rate": 10.0, "accept_burst": 10}
    with (
        server() as backend,
        proxy([backend], workers=4, listener=listener) as balancer,
        ExitStack() as stack,
    ):
        started = time.monotonic()
        inside = rush(stack, balancer.address, 100)
        assert 10 <= len(inside) <= 10 + 10 * (time.monotonic() - started) + 1
        stats = stack.enter_context(Stats(fd=balancer.engine.stats_fd))
        assert stats.listener("front").refused_rate == 100 - len(inside)
        assert all(echoes(client) for client in inside)


def test_who_waits_for_the_accept_rate_comes_in_when_a_reload_lifts_it() -> None:
    listener = {"accept_rate": 0.01, "accept_burst": 1, "accept_queue": 5, "queue_timeout": 1.0}
    with server() as backend, proxy([backend], listener=listener) as balancer:
        assert served(balancer.address)
        with connect(balancer.address) as waiting:
            waiting.sendall(b"hello")
            until(lambda: balancer.engine.active() == 1)
            balancer.listener = {}
            balancer.apply()
            assert read_exactly(waiting, 5) == b"hello"


def test_limits_of_a_file_and_of_its_reload(serve: Serve, tmp_path: Path) -> None:
    with server() as backend, ExitStack() as stack:
        file = tmp_path / "pybalancer.toml"

        def write(public: int, narrow: int) -> None:
            file.write_text(f"""
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
max_connections = {public}
[[listeners]]
name = "narrow"
bind = "127.0.0.1:0"
pool = "chat"
max_connections_per_source = {narrow}
[[listeners]]
name = "slow"
bind = "127.0.0.1:0"
pool = "chat"
accept_rate = "1/s"
accept_burst = 3
[[pools.chat.backends]]
name = "app"
address = "{backend.address}"
""")

        write(public=5, narrow=4)
        serving = serve(file)
        serving.line("admin interface")
        bound = {listener["name"]: listener["bound"] for listener in serving.status()["listeners"]}
        inside = {name: rush(stack, bound[name], 10) for name in ("public", "narrow", "slow")}
        assert len(inside["public"]) == 5
        assert len(inside["narrow"]) == 4
        assert 3 <= len(inside["slow"]) < 10
        refused = {listener["name"]: listener["refused"] for listener in serving.status()["listeners"]}
        assert refused["public"] == {
            "full": 5,
            "source": 0,
            "rate": 0,
            "proxy": 0,
            "no_backend": 0,
            "request": 0,
        }
        assert refused["narrow"] == {
            "full": 0,
            "source": 6,
            "rate": 0,
            "proxy": 0,
            "no_backend": 0,
            "request": 0,
        }
        assert refused["slow"]["rate"] == 10 - len(inside["slow"])

        # More room for one; less for the other, whose tunnels stay nevertheless.
        write(public=8, narrow=2)
        serving.signal(signal.SIGHUP)
        serving.line("reloaded")
        assert len(rush(stack, bound["public"], 10)) == 3
        assert not served(bound["narrow"])
        assert all(echoes(client) for clients in inside.values() for client in clients)
        for client in inside["narrow"][:3]:
            client.close()
        until(lambda: served(bound["narrow"]), "room at the narrow one")
