"""Reloads and outages under load: what they do not concern goes on, and what can come back does."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pybalancer._core import BackendSpec, Engine, ListenerSpec, Plan, PoolSpec

from .load import Load, Talk
from .namespace import Namespace, namespace, needs_namespaces
from .net import SECRET, Server, connect, echoes, proxy, refused, reserved, served, server, until
from .packets import SlowClient
from .serving import Serve

RELOADS = int(os.environ.get("PYBALANCER_TEST_RELOADS", "40"))
"""How many reloads under load: 600 are more than a minute of ten a second."""


def test_97_reloads_without_a_pause_lose_nothing(serve: Serve, tmp_path: Path) -> None:
    """Changes that concern the load's pool and changes that do not, in turn, each as soon as the last is in
    force: more than ten a second."""
    file = tmp_path / "pybalancer.toml"

    def write(number: int, backends: list[Server], extra: str = "") -> None:
        chat = "".join(
            f'[[pools.chat.backends]]\nname = "app-{place}"\naddress = "{backend.address}"\n'
            for place, backend in enumerate(backends)
        )
        file.write_text(f"""
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
[pools.chat]
idle_timeout = "{600 + number}s"
{chat}
[[listeners]]
name = "other"
bind = "127.0.0.1:0"
pool = "other"
[[pools.other.backends]]
name = "app"
address = "{backends[0].address}"
{extra}
""")

    new_listener = '[[listeners]]\nname = "third"\nbind = "127.0.0.1:0"\npool = "other"\n'
    with server() as one, server() as two, server() as three, ExitStack() as stack:
        write(0, [one, two])
        serving = serve(file, "--no-log-connections")
        address = serving.line(r"listening on (\S+) → pool chat")[1]
        other = serving.line(r"listening on (\S+) → pool other")[1]
        clients = [stack.enter_context(connect(where)) for where in (address, other) for _ in range(20)]
        assert all(echoes(client) for client in clients)
        talk = stack.enter_context(Talk(clients))
        load = stack.enter_context(Load(address))
        load.pass_by(50)
        # Of the pool: a backend comes, a backend goes, a timeout changes. Of others: a weight, a listener.
        changes = itertools.cycle(
            [
                ([one, two, three], ""),
                ([one, two, three], new_listener),
                ([one, two], new_listener),
                ([one, two], "weight = 7"),
            ]
        )
        for number, (backends, extra) in zip(range(1, RELOADS + 1), changes, strict=False):
            write(number // 4, backends, extra)
            serving.signal(signal.SIGHUP)
            # The first generation was that of the start.
            serving.line(rf"reloaded \(generation {number + 1}\)")
        load.pass_by(50)
        rounds = talk.rounds
        until(lambda: talk.rounds > rounds + 1 or talk.failures)
        assert load.failures == []
        assert talk.failures == []


def test_97_plans_applied_as_fast_as_they_can_lose_nothing() -> None:
    """Hundreds of plans a second, with backends and listeners that come and go, under three workers."""
    with server() as one, server() as two, ExitStack() as stack:
        balancer = stack.enter_context(proxy([one, two], workers=3))
        clients = [stack.enter_context(connect(balancer.address)) for _ in range(30)]
        assert all(echoes(client) for client in clients)
        talk = stack.enter_context(Talk(clients))
        load = stack.enter_context(Load(balancer.address))
        for number in range(300):
            # Their tunnels are kept when they go (on_remove).
            balancer.backends = [one, two][: 1 + number % 2]
            balancer.apply()
        load.pass_by(50)
        assert load.failures == []
        assert talk.failures == []
        assert balancer.engine.generation == 301


def two_listeners(backend: Server, *, second: bool) -> Plan:
    kept = [ListenerSpec(name="kept", bind="127.0.0.1:0", pool="pool")]
    comes_and_goes = [ListenerSpec(name="second", bind="127.0.0.1:0", pool="pool")] if second else []
    return Plan(
        listeners=kept + comes_and_goes,
        pools=[PoolSpec(name="pool", backends=[BackendSpec(name="app", address=backend.address)])],
        secret=SECRET,
    )


def test_100_a_listener_that_goes_resets_nobody_at_the_others() -> None:
    with server() as backend, contextlib.closing(Engine(workers=3)) as engine:
        engine.apply(two_listeners(backend, second=False))
        with Load(engine.bound()["kept"]) as load:
            for number in range(100):
                engine.apply(two_listeners(backend, second=number % 2 == 0))
            load.pass_by(100)
            assert load.failures == []


def test_100_whoever_was_let_in_before_a_listener_goes_is_served() -> None:
    """Connections that wait in the kernel's queue when their listener is removed."""
    with server() as backend, contextlib.closing(Engine(workers=3)) as engine, ExitStack() as stack:
        for _ in range(20):
            engine.apply(two_listeners(backend, second=True))
            address = engine.bound()["second"]
            clients = [stack.enter_context(connect(address)) for _ in range(10)]
            engine.apply(two_listeners(backend, second=False))
            assert refused_outright(address)
            assert all(echoes(client) for client in clients)


def refused_outright(address: str) -> bool:
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    return False


@contextlib.contextmanager
def far_client(machine: Namespace, port: int) -> Iterator[SlowClient]:
    """A client on another machine, 10.9.0.77, of the balancer's on ``machine``, 10.9.0.1."""
    with namespace() as far:
        machine.join(far, "near0", "far0")
        machine.own("near0", "10.9.0.1/24")
        far.own("far0", "10.9.0.2/24")
        # Nobody owns the client's address, so that no kernel answers in its place.
        machine.ip(f"neigh add 10.9.0.77 lladdr {far.mac('far0')} dev near0")
        with far.inside():
            client = SlowClient("far0", ("10.9.0.77", 5000), ("10.9.0.1", port))
        with client:
            yield client


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@needs_namespaces
@pytest.mark.parametrize(
    "move_to",
    [None, "10.9.0.1", "[::]"],
    ids=["stays", "to-one-address", "to-ipv6-too"],
)
def test_100_a_handshake_under_way_survives_reloads(move_to: str | None) -> None:
    """A client that is a long way away: its SYN is answered, its ACK comes after the reload. The listener
    stays, or moves to another address that this client's connection fits as well."""
    with namespace() as machine, machine.inside(), server() as backend, ExitStack() as stack:
        port = free_port()
        balancer = stack.enter_context(proxy([backend], bind=f"0.0.0.0:{port}", workers=2))
        client = stack.enter_context(far_client(machine, port))
        client.begin()
        if move_to is not None:
            balancer.bind = f"{move_to}:{port}"
        for _ in range(10):
            balancer.apply()
        client.finish(b"hello")
        assert client.answered() == b"hello"


@pytest.mark.parametrize("watched", [True, False], ids=["health-checked", "unwatched"])
def test_103_with_all_backends_down_refusals_are_fast_and_it_recovers(
    serve: Serve, tmp_path: Path, watched: bool
) -> None:
    file = tmp_path / "pybalancer.toml"
    with reserved() as one, reserved() as two, ExitStack() as stack:
        health = '[pools.chat.health]\nkind = "tcp"\ninterval = "50ms"\nrise = 1\nfall = 1\n'
        file.write_text(f"""
listeners = [{{ name = "public", bind = "127.0.0.1:0", pool = "chat" }}]
[pools.chat]
on_down = "close"
backends = [{{ name = "app-1", address = "{one}" }}, {{ name = "app-2", address = "{two}" }}]
{health if watched else ""}
""")
        backends = [stack.enter_context(server(address=address)) for address in (one, two)]
        serving = serve(file, "--no-log-connections")
        until(lambda: served(serving.address))

        def states() -> set[str]:
            return {backend["state"] for backend in serving.status()["pools"][0]["backends"]}

        with connect(serving.address) as client:
            assert echoes(client)
            for backend in backends:
                backend.close()
            # Its backend is gone: so is the tunnel, at the latest when the check says so.
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        if watched:
            until(lambda: states() == {"down"}, "both down")
        # A connect has 5 s. None of these waits for that, or for anything.
        started = time.monotonic()
        assert all(refused(serving.address) for _ in range(50))
        assert time.monotonic() - started < 5.0

        stack.enter_context(server(address=two))
        until(lambda: served(serving.address), "service by one backend")
        stack.enter_context(server(address=one))
        if watched:
            until(lambda: states() == {"up"}, "both up")
        assert all(served(serving.address) for _ in range(10))
