"""When something runs out: open files, room in the kernel's queues. Whoever is in stays in."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from pybalancer.stats.reader import Stats

from .namespace import Namespace, namespace, needs_namespaces
from .net import Proxy, connect, echoes, processor_time, proxy, read_exactly, reset, served, server, to, until
from .packets import SYN, packet, raw_socket
from .serving import Serve, Serving

WINDOW = 1.0
"""Seconds over which processor time is measured: a loop would use all of it."""
IDLE = 0.2


def limit(serving: Serving, files: int) -> None:
    resource.prlimit(serving.process.pid, resource.RLIMIT_NOFILE, (files, files))


def processor_time_of(serving: Serving) -> float:
    fields = Path(f"/proc/{serving.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def paused(serving: Serving) -> bool:
    return any("accepts nothing for now" in line for line in list(serving.lines))


def settled(client: socket.socket, serving: Serving) -> bool:
    """Whether it is known if this client is served."""
    return bool(readable([client])) or paused(serving)


def readable(clients: list[socket.socket]) -> list[socket.socket]:
    return select.select(clients, [], [], 0)[0]


def test_80_out_of_files_accepting_pauses_and_goes_on_by_itself(serve: Serve, tmp_path: Path) -> None:
    with server() as backend, ExitStack() as stack:
        file = tmp_path / "pybalancer.toml"
        file.write_text(f"""
listeners = [{{ name = "public", bind = "127.0.0.1:0", pool = "chat" }}]
pools.chat.backends = [{{ name = "app", address = "{backend.address}" }}]
""")
        serving = serve(file)
        address = serving.address
        limit(serving, 128)
        # A reload looks at the limit again.
        serving.signal(signal.SIGHUP)
        serving.line("reloaded")

        entered = [stack.enter_context(connect(address)) for _ in range(70)]
        for client in entered:
            client.sendall(b"hello")
        serving.line("accepts nothing for now.*open files are used up")

        before = processor_time_of(serving)
        time.sleep(WINDOW)
        assert processor_time_of(serving) - before < IDLE
        held = readable(entered)
        waiting = entered[len(held) :]
        # Two sockets each, and some files that are kept back. First come, first served.
        assert 40 <= len(held) <= 64
        assert held == entered[: len(held)]
        assert all(read_exactly(client, 5) == b"hello" for client in held)
        assert all(echoes(client) for client in held)
        assert not readable(waiting)

        for client in held[: len(waiting)]:
            client.close()
        assert all(read_exactly(client, 5) == b"hello" for client in waiting)
        serving.line("accepts again")
        assert all(echoes(client) for client in held[len(waiting) :] + waiting)
        status = serving.status()
        assert status["workers"][0]["accept_pauses"] >= 1
        assert sum(status["listeners"][0]["refused"].values()) == 0


@pytest.mark.parametrize("files", [127, 128])
def test_80_a_limit_that_sank_unseen_costs_only_newcomers(serve: Serve, files: int) -> None:
    """Nobody told the workers: they meet it in a system call, in accept or already in the next one."""
    with server() as backend, ExitStack() as stack:
        serving = serve("--listen", "127.0.0.1:0", "--to", backend.address)
        address = serving.address
        limit(serving, files)
        held: list[socket.socket] = []
        # Refused or not accepted, depending on which call meets the limit.
        with contextlib.suppress(ConnectionError):
            while True:
                client = stack.enter_context(connect(address))
                client.sendall(b"hello")
                until(partial(settled, client, serving))
                if not readable([client]):
                    break
                assert read_exactly(client, 5) == b"hello"
                held.append(client)
        assert 40 <= len(held) <= 64
        before = processor_time_of(serving)
        time.sleep(WINDOW)
        assert processor_time_of(serving) - before < IDLE
        assert all(echoes(client) for client in held)
        for client in held[:5]:
            client.close()
        until(lambda: served(address), "room for one more")
        assert all(echoes(client) for client in held[5:])


def test_80_a_stop_while_accepting_pauses_makes_no_busy_loop() -> None:
    with server() as backend, proxy([backend]) as balancer, ExitStack() as stack:
        room_for(balancer, files=100)
        held = [stack.enter_context(connect(balancer.address)) for _ in range(60)]
        until(lambda: balancer.events("accept-paused"))
        balancer.engine.stop_accepting()
        before = processor_time()
        time.sleep(WINDOW)
        assert processor_time() - before < IDLE
        assert all(echoes(client) for client in held[:30])


def room_for(balancer: Proxy, files: int) -> None:
    """Let the workers believe that so many files may be open: they look when a plan is applied."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        balancer.apply()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def machine() -> Iterator[Namespace]:
    with namespace() as made, made.inside():
        yield made


@needs_namespaces
def test_85_a_full_accept_queue_leaves_tunnels_unharmed(machine: Namespace) -> None:
    with server() as backend, ExitStack() as stack, proxy([backend], listener={"backlog": 8}) as balancer:
        room_for(balancer, files=100)
        entered = [stack.enter_context(connect(balancer.address)) for _ in range(45)]
        stats = stack.enter_context(Stats(fd=balancer.engine.stats_fd))
        # Two for a tunnel, and 16 that are kept back.
        until(lambda: stats.workers()[0].descriptors > 100 - 18)
        assert balancer.events("accept-paused")
        held = entered[: balancer.engine.active()]
        assert 20 < len(held) < len(entered)

        family, where = to(balancer.address)
        overflows = machine.counter("ListenOverflows")
        with ExitStack() as flood:
            for _ in range(500):
                knocking = flood.enter_context(socket.socket(family))
                knocking.setblocking(False)
                knocking.connect_ex(where)
            for round_ in range(20):
                assert all(echoes(client, b"%d" % round_) for client in held)
            # It was full indeed: the kernel dropped handshakes.
            assert machine.counter("ListenOverflows") - overflows > 400
            assert balancer.engine.active() == len(held)

        # Some tunnels end: those who waited are let in, then others, and who stayed is still served.
        for client in held[:10]:
            client.close()
        assert all(echoes(client) for client in entered[len(held) :])
        until(lambda: served(balancer.address), "a new client's tunnel")
        assert all(echoes(client) for client in held[10:])


@needs_namespaces
@pytest.mark.parametrize("cookies", [0, 1])
def test_85_a_syn_flood_leaves_tunnels_unharmed(machine: Namespace, cookies: int) -> None:
    """Handshakes that are never finished, from addresses that nobody has. Without SYN cookies new clients
    may have to try again; with them they are served at once."""
    machine.set("ipv4/tcp_syncookies", cookies)
    # Answers to the flood go nowhere.
    machine.ip("route add 198.18.0.0/15 dev lo")
    with server() as backend, proxy([backend], workers=2, listener={"backlog": 128}) as balancer:
        with ExitStack() as stack:
            held = [stack.enter_context(connect(balancer.address)) for _ in range(50)]
            assert all(echoes(client) for client in held)
            _, target = to(balancer.address)
            stop = threading.Event()

            def flood(raw: socket.socket) -> None:
                for number in itertools.count():
                    if stop.is_set():
                        return
                    source = (f"198.18.{number >> 8 & 255}.{number & 255}", 1024 + number % 60000)
                    raw.sendto(packet(source, target, SYN, number), (target[0], 0))

            flooding = threading.Thread(target=flood, args=(stack.enter_context(raw_socket()),))
            flooding.start()
            try:
                full = "TCPReqQFullDoCookies" if cookies else "TCPReqQFullDrop"
                until(lambda: machine.counter(full) > 2000, f"2000 times {full}")
                for round_ in range(20):
                    assert all(echoes(client, b"%d" % round_) for client in held)
                if cookies:
                    assert all(served(balancer.address) for _ in range(10))
            finally:
                stop.set()
                flooding.join()
            assert all(echoes(client) for client in held)
            assert "client-reset" not in balancer.reasons()
            assert balancer.engine.active() == len(held)


def test_85_connects_that_never_talk_leave_tunnels_unharmed() -> None:
    with server() as backend, proxy([backend], workers=2) as balancer, ExitStack() as stack:
        held = [stack.enter_context(connect(balancer.address)) for _ in range(50)]
        assert all(echoes(client) for client in held)
        stop = threading.Event()
        gone = 0

        def knock() -> None:
            nonlocal gone
            silent: list[socket.socket] = []
            while not stop.is_set() or silent:
                if not stop.is_set():
                    silent.append(connect(balancer.address))
                if len(silent) > 200 or stop.is_set():
                    reset(silent.pop(0))
                    gone += 1

        knocking = threading.Thread(target=knock)
        knocking.start()
        try:
            round_ = 0
            while gone < 2000:
                round_ += 1
                assert all(echoes(client, b"%d" % round_) for client in held)
        finally:
            stop.set()
            knocking.join()
        until(lambda: balancer.engine.active() == len(held), "the silent ones' end")
        assert all(echoes(client) for client in held)
