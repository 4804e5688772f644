"""More connections to one backend than one source address has ports."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .holders import Process
from .namespace import Namespace, namespace, needs_namespaces
from .net import Proxy, Server, connect, echo, echoes, proxy, read_all, served, server, text_of, until
from .serving import Serve

pytestmark = needs_namespaces

RANGE = "ipv4/ip_local_port_range"
PORTS = 20


@pytest.fixture
def machine() -> Iterator[Namespace]:
    with namespace() as made:
        made.own("lo", "fd00::1", "fd00::2", "fd00::3")
        with made.inside():
            yield made


@pytest.fixture
def front(tmp_path: Path) -> str:
    """A listener that uses up no port itself."""
    return f"unix:{tmp_path}/front"


def narrow(machine: Namespace, *servers: Server) -> None:
    """Leave ``PORTS`` ports, none of them a server's."""
    low = 20000
    while any(low <= int(known.address.rpartition(":")[2]) < low + PORTS for known in servers):
        low += PORTS
    machine.set(RANGE, f"{low} {low + PORTS - 1}")


def fill(address: str, most: int) -> list[socket.socket]:
    """Open tunnels until one is refused, but not more than ``most``."""
    held: list[socket.socket] = []
    while len(held) < most:
        client = connect(address)
        try:
            assert echoes(client)
        except (ConnectionError, AssertionError):
            client.close()
            break
        held.append(client)
    return held


def metrics(admin: str) -> str:
    with connect(admin) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return read_all(client).decode()


def metric(page: str, name: str, pool: str) -> float:
    found = re.search(rf'^{name}{{backend="app",pool="{pool}"}} (\S+)$', page, re.MULTILINE)
    assert found, f"{name} of {pool} in {page}"
    return float(found[1])


def test_81_past_the_last_port_refusals_are_fast_and_others_are_served(
    machine: Namespace, serve: Serve, tmp_path: Path
) -> None:
    with server() as chat, server() as other:
        narrow(machine, chat, other)
        file = tmp_path / "pybalancer.toml"
        text = "".join(
            f"""
[[listeners]]
name = "{name}"
bind = "unix:{tmp_path}/{name}"
pool = "{name}"
[[pools.{name}.backends]]
name = "app"
address = "{backend.address}"
"""
            for name, backend in (("chat", chat), ("other", other))
        )
        file.write_text(text)
        serving = serve(file)
        admin = serving.line(r"admin interface at (\S+)")[1]
        held = fill(f"unix:{tmp_path}/chat", PORTS + 1)
        assert len(held) == PORTS

        # The deadline of a connect is 5 s: these are not even begun.
        assert not any(served(f"unix:{tmp_path}/chat") for _ in range(50))
        assert served(f"unix:{tmp_path}/other")
        assert all(echoes(client) for client in held)
        said = serving.line(r"warning no outgoing port left to chat/app: .*")[0]
        assert "pools.chat.sources" in said

        status = {pool["name"]: pool["backends"][0] for pool in serving.status()["pools"]}
        assert (status["chat"]["ports_used"], status["chat"]["ports_total"]) == (PORTS, PORTS)
        assert (status["other"]["ports_used"], status["other"]["ports_total"]) == (0, PORTS)
        assert status["chat"]["ports_exhausted"] >= 51
        assert status["other"]["ports_exhausted"] == 0
        assert status["chat"]["connect_failures"] == 0
        page = metrics(admin)
        assert metric(page, "pybalancer_backend_ports_used", "chat") == PORTS
        assert metric(page, "pybalancer_backend_ports", "chat") == PORTS
        assert metric(page, "pybalancer_backend_ports_exhausted_total", "chat") >= 51

        sources = '[pools.chat]\nsources = ["127.0.0.2", "127.0.0.3"]\n'
        file.write_text(text + sources)
        serving.signal(signal.SIGHUP)
        serving.line("reloaded .*pool chat changed")
        more = fill(f"unix:{tmp_path}/chat", 2 * PORTS + 1)
        assert len(more) == 2 * PORTS
        assert all(echoes(client) for client in held + more)
        status = {pool["name"]: pool["backends"][0] for pool in serving.status()["pools"]}
        assert (status["chat"]["ports_used"], status["chat"]["ports_total"]) == (2 * PORTS, 2 * PORTS)


@pytest.mark.parametrize(
    ("at", "sources"),
    [("127.0.0.1:0", ["127.0.0.2", "127.0.0.3"]), ("[fd00::1]:0", ["fd00::2", "fd00::3"])],
    ids=["ipv4", "ipv6"],
)
def test_81_each_source_adds_its_ports_and_all_are_used_alike(
    machine: Namespace, front: str, at: str, sources: list[str]
) -> None:
    peers: Counter[str] = Counter()

    def note(connection: socket.socket) -> None:
        peers[connection.getpeername()[0]] += 1
        echo(connection)

    with server(note, at) as backend:
        narrow(machine, backend)
        with proxy([backend], bind=front, workers=2, pool={"sources": sources}) as balancer:
            half = fill(front, PORTS)
            assert set(peers.values()) == {PORTS // 2}
            held = half + fill(front, PORTS + 1)
            assert len(held) == 2 * PORTS
            assert peers == dict.fromkeys(sources, PORTS)
            assert balancer.engine.ports() == {"pool": {"b0": (2 * PORTS, 2 * PORTS)}}
            assert until(lambda: balancer.events("ports-exhausted"))[0].backend == "b0"
            assert all(echoes(client) for client in held)
            # Tunnels that were opened before a reload still hold their ports after it.
            balancer.apply()
            assert balancer.engine.ports() == {"pool": {"b0": (2 * PORTS, 2 * PORTS)}}


def test_81_a_backend_without_ports_left_passes_clients_on(machine: Namespace, front: str) -> None:
    with server() as one, server() as two:
        narrow(machine, one, two)
        with proxy([one, two], bind=front, pool={"policy": "round-robin", "tries": 1}) as balancer:
            held = fill(front, 2 * PORTS + 1)
            assert len(held) == 2 * PORTS
            assert (one.served, two.served) == (PORTS, PORTS)
            assert balancer.engine.ports()["pool"] == {"b0": (PORTS, PORTS), "b1": (PORTS, PORTS)}
            assert "ports-exhausted" in until(balancer.reasons)
            assert not balancer.events("connect-failed")


def test_81_ports_come_back_with_the_end_of_tunnels(machine: Namespace, front: str) -> None:
    with server() as backend:
        narrow(machine, backend)
        with proxy([backend], bind=front) as balancer:
            held = fill(front, PORTS)
            assert not served(front)
            for client in held[:5]:
                client.close()
            # The kernel lets a port rest before it gives it to the same backend again: on loopback a second.
            again: list[socket.socket] = []
            until(lambda: again.extend(fill(front, 5 - len(again))) or len(again) == 5, "five free ports")
            assert balancer.engine.ports()["pool"]["b0"] == (PORTS, PORTS)
            assert all(echoes(client) for client in held[5:])


def test_81_a_source_that_is_not_ours_is_said_and_the_others_serve(machine: Namespace, front: str) -> None:
    with server() as backend:
        narrow(machine, backend)
        sources = ["192.0.2.1", "127.0.0.2"]
        with proxy([backend], bind=front, pool={"sources": sources}) as balancer:
            assert len(fill(front, PORTS)) == PORTS
            event = until(lambda: balancer.events("source-failed"))[0]
            assert event.pool == "pool"
            assert (event.message or "").startswith("192.0.2.1: ")
            assert not balancer.events("ports-exhausted")


FULL_RANGE = 28232
"""Ports of the usual range: the "64k limit" of one source address."""


def test_81_thirty_thousand_tunnels_to_one_backend(machine: Namespace) -> None:
    """All of a source's ports, the refusal of more, and two thousand more from a second source; then a byte
    on each of them, while all stand."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most_files < 20_000:
        pytest.skip(f"needs 20,000 open files per table, and {most_files} are allowed")
    low, high = map(int, machine.setting(RANGE).split())
    assert high - low + 1 == FULL_RANGE
    # The two listening ports are not to be of those that are counted.
    machine.set(RANGE, "10000 19999")
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    with socket.create_server(("127.0.0.1", 0)) as free:
        bind = text_of(free.getsockname())
    machine.set(RANGE, f"{low} {high}")

    with ExitStack() as stack:
        stack.enter_context(listening)
        stack.enter_context(all_files())

        def start(*arguments: object, **options: Any) -> Process:
            process = Process(*arguments, **options)
            stack.callback(process.close)
            return process

        fd = listening.fileno()
        backends = [start("answer", fd, 19_000, pass_fds=(fd,)) for _ in range(2)]
        backend, sources = text_of(listening.getsockname()), ["127.0.0.2"]
        balancer = Proxy([backend], bind=bind, workers=4, pool={"sources": sources})
        stack.callback(balancer.close)
        balancer.engine.log_connections(False)
        # Each from an address of its own, and few enough that the kernel finds them ports at once.
        callers = [start("call", bind, f"127.0.1.{number}") for number in range(1, 4)]

        def all_of(command: str) -> list[int]:
            for caller in callers:
                caller.tell(command)
            return [sum(column) for column in zip(*(caller.heard() for caller in callers), strict=True)]

        ask_first, rest = divmod(FULL_RANGE, 3)
        callers[0].tell(f"open {rest}")
        assert callers[0].heard() == [rest, 0]
        assert all_of(f"open {ask_first}") == [FULL_RANGE, 0]
        assert balancer.engine.ports() == {"pool": {"b0": (FULL_RANGE, FULL_RANGE)}}
        assert all_of("open 100") == [FULL_RANGE, 300]
        assert until(lambda: balancer.events("ports-exhausted"))

        sources.append("127.0.0.3")
        balancer.apply()
        assert all_of("open 667") == [FULL_RANGE + 2001, 0]
        assert balancer.engine.ports() == {"pool": {"b0": (FULL_RANGE + 2001, 2 * FULL_RANGE)}}
        assert all_of("echo") == [FULL_RANGE + 2001]
        assert balancer.engine.active() == FULL_RANGE + 2001
        # Aborted, so that no port has to rest.
        balancer.close()
        hosts = sum((Counter(json.loads(process.end())) for process in backends), Counter())
        assert hosts == {"127.0.0.2": FULL_RANGE, "127.0.0.3": 2001}


@contextlib.contextmanager
def all_files() -> Iterator[None]:
    """As many open files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
