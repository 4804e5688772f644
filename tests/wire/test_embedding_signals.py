"""Ctrl-C and TERM reach a host that embeds a balancer, whatever it waits for, and end it in time.

Each of the programs would go on for an hour, and has a tunnel open, so that waiting for tunnels is waiting.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from .hosts import NEVER, Host, refuses
from .net import Server, connect, server, until

TRIO = """
import trio
async def main():
    async with pybalancer.Balancer(configuration(sys.argv[1])) as lb:
        client = connect(lb.bound["front"])
        client.sendall(b"x"); client.recv(1)
        say(lb.bound["front"])
        await {wait}
        say("not interrupted")
try:
    trio.run(main)
except KeyboardInterrupt:
    until(lambda: not left(), "the end of all threads")
    say("interrupted")
"""

TRIO_ON_TERM = """
import trio
async def main():
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(balance)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break
    sys.exit(7)
async def balance():
    async with pybalancer.Balancer(configuration(sys.argv[1])) as lb:
        client = connect(lb.bound["front"])
        client.sendall(b"x"); client.recv(1)
        say(lb.bound["front"])
        await {wait}
trio.run(main)
"""

THREAD = """
try:
    with pybalancer.run_in_thread(configuration(sys.argv[1])) as lb:
        client = connect(lb.bound["front"])
        client.sendall(b"x"); client.recv(1)
        say(lb.bound["front"])
        {wait}
        say("not interrupted")
except KeyboardInterrupt:
    until(lambda: not left(), "the end of all threads")
    say("interrupted")
"""

ASYNCIO = """
import asyncio
async def main():
    with pybalancer.run_in_thread(configuration(sys.argv[1])) as lb:
        client = connect(lb.bound["front"])
        client.sendall(b"x"); client.recv(1)
        say(lb.bound["front"])
        await {wait}
        say("not interrupted")
try:
    asyncio.run(main())
except KeyboardInterrupt:
    until(lambda: not left(), "the end of all threads")
    say("interrupted")
"""

EXIT_ON_TERM = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"

AT_REST = {
    "trio": (TRIO, "trio.sleep_forever()"),
    "thread": (THREAD, f"time.sleep({NEVER})"),
    "asyncio": (ASYNCIO, f"asyncio.sleep({NEVER})"),
}
CLOSING = {
    "trio-closing": (TRIO, f"lb.stop({NEVER})"),
    "thread-closing": (THREAD, f"lb.close({NEVER})"),
    "asyncio-closing": (ASYNCIO, f"asyncio.to_thread(lb.close, {NEVER})"),
}


@pytest.fixture
def backend() -> Iterator[Server]:
    with server() as running:
        yield running


def waits(host: Host, wait: str) -> None:
    """Return when the program is where it was to be: whoever closes has closed the listener first."""
    address = host.line()
    if "lb." in wait:
        until(lambda: refuses(address), "the end of the listener")


@pytest.mark.parametrize(("program", "wait"), (AT_REST | CLOSING).values(), ids=AT_REST | CLOSING)
def test_115_ctrl_c(program: str, wait: str, backend: Server) -> None:
    with Host(program.format(wait=wait), backend.address) as host:
        waits(host, wait)
        host.signal(signal.SIGINT)
        assert host.line() == "interrupted"
        assert host.wait() == 0
        assert host.errors == ""


TERMINABLE = {
    "trio": (TRIO_ON_TERM, AT_REST["trio"][1]),
    "trio-closing": (TRIO_ON_TERM, CLOSING["trio-closing"][1]),
    "thread": (EXIT_ON_TERM + THREAD, AT_REST["thread"][1]),
    "thread-closing": (EXIT_ON_TERM + THREAD, CLOSING["thread-closing"][1]),
    "asyncio-closing": (EXIT_ON_TERM + ASYNCIO, CLOSING["asyncio-closing"][1]),
}


@pytest.mark.parametrize(("program", "wait"), TERMINABLE.values(), ids=TERMINABLE)
def test_115_term_that_the_host_handles(program: str, wait: str, backend: Server) -> None:
    with Host(program.format(wait=wait), backend.address) as host:
        waits(host, wait)
        host.signal(signal.SIGTERM)
        assert host.wait() == 7
        assert host.errors == ""


@pytest.mark.parametrize(("program", "wait"), CLOSING.values(), ids=CLOSING)
def test_115_term_that_nobody_handles(program: str, wait: str, backend: Server) -> None:
    """Workers do not get in its way."""
    with Host(program.format(wait=wait), backend.address) as host:
        waits(host, wait)
        host.signal(signal.SIGTERM)
        assert host.wait() == -signal.SIGTERM
        until(lambda: not backend.live, "the end of the tunnel")


SLOW_NAMES = """
import socket
real = socket.getaddrinfo
answer = threading.Event()
def slow(host, port, family=0, type=0, proto=0, flags=0):
    if flags & socket.AI_NUMERICHOST:
        return real(host, port, family, type, proto, flags)
    say("looking up")
    answer.wait()
    return real("127.0.0.1", port, family, type, proto, flags)
socket.getaddrinfo = slow
"""


@pytest.mark.parametrize("program", [TRIO, THREAD], ids=["trio", "thread"])
def test_115_ctrl_c_during_a_slow_start(program: str) -> None:
    """A name server that does not answer holds up the start; Ctrl-C does not wait for it."""
    with Host(SLOW_NAMES + program.format(wait="nothing()"), "slow.example:1") as host:
        assert host.line() == "looking up"
        host.signal(signal.SIGINT)
        assert host.line() == "interrupted"
        assert host.wait() == 0
        assert host.errors == ""


def test_115_what_is_interrupted_at_its_start_does_not_start_later() -> None:
    """``with run_in_thread`` was interrupted: nobody will close what its thread would open."""
    source = f"""{SLOW_NAMES}
try:
    with pybalancer.run_in_thread(configuration("slow.example:1")):
        say("started")
except KeyboardInterrupt:
    answer.set()
    until(lambda: not left(), "the end of all threads")
    say("interrupted")
"""
    with Host(source) as host:
        assert host.line() == "looking up"
        host.signal(signal.SIGINT)
        assert host.line() == "interrupted"
        assert host.wait() == 0


def test_115_ctrl_c_twice(backend: Server) -> None:
    """People press it more than once. The second one may come at any moment of the end, and hangs nothing."""
    program, wait = CLOSING["thread-closing"]
    with Host(program.format(wait=wait), backend.address) as host:
        waits(host, wait)
        host.signal(signal.SIGINT)
        host.signal(signal.SIGINT)
        host.wait()
        until(lambda: not backend.live, "the end of the tunnel")


def test_115_signals_stay_the_hosts(backend: Server) -> None:
    """Neither a handler, nor a mask, nor the wake-up descriptor changes."""
    source = """
    def picture():
        handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
        return handlers, signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.set_wakeup_fd(-1)
    before = picture()
    with pybalancer.run_in_thread(configuration(sys.argv[1])) as lb:
        during = picture()
    say(before == during == picture())
    """
    with Host(source, backend.address) as host:
        assert host.line() == "True"
        assert host.wait() == 0


def test_115_ctrl_c_in_the_main_threads_engine_close(backend: Server) -> None:
    source = f"""
    from tests.wire.net import Proxy
    proxy = Proxy([sys.argv[1]])
    client = connect(proxy.address)
    client.sendall(b"x"); client.recv(1)
    try:
        say(proxy.address)
        proxy.engine.close({NEVER})
    except KeyboardInterrupt:
        say("interrupted", proxy.engine.close(0))
    """
    with Host(source, backend.address) as host:
        waits(host, "lb.close")
        host.signal(signal.SIGINT)
        assert host.line(patience=5) == "interrupted 1"


def test_115_clients_are_cut_off_when_the_host_ends(backend: Server) -> None:
    program, wait = AT_REST["thread"]
    with Host(program.format(wait=wait), backend.address) as host, connect(host.line()) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        host.signal(signal.SIGINT)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
