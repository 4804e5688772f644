"""Workers need no Python: a host that keeps the interpreter to itself does not slow down the relay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .hosts import Host
from .net import Server, connect, echoes, read_exactly, server, until

HOLD = 3.0
"""Seconds. More would show the same: what waits for the interpreter waits for all of it."""
FLOOR = 0.05
"""Seconds that a round trip may take by chance on a busy machine."""

HOST = """
import ctypes
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.001)
given = configuration(sys.argv[1])
# So that Python has something to do for every connection, and besides.
given["pools"]["pool"]["health"] = {"kind": "tcp", "interval": "50ms"}
threading.Thread(target=tick, daemon=True).start()
with open(sys.argv[2], "wb") as records, pybalancer.run_in_thread(given, records=records) as lb:
    say(lb.bound["front"])
    sys.stdin.readline()
    # PyDLL, unlike CDLL, does not give the interpreter away during the call.
    hold = ctypes.PyDLL(None).usleep
    before = ticks
    say("holding")
    hold(int(float(sys.argv[3]) * 1e6))
    say("held", ticks - before)
    sys.stdin.readline()
"""


@pytest.fixture
def backend() -> Iterator[Server]:
    with server() as running:
        yield running


def round_trips(address: str, go_on: Callable[[int], bool]) -> list[float]:
    """Seconds of each echo over a tunnel. Every tenth is the first over a new one, connect included."""
    taken = []
    with connect(address) as client:
        assert echoes(client)
        while go_on(len(taken)):
            start = time.perf_counter()
            if len(taken) % 10:
                client.sendall(b"hello")
                assert read_exactly(client, 5) == b"hello"
            else:
                with connect(address) as fresh:
                    assert echoes(fresh)
            taken.append(time.perf_counter() - start)
    return sorted(taken)


def p99(taken: list[float]) -> float:
    return taken[len(taken) * 99 // 100]


def test_116_the_relay_goes_on_while_the_host_holds_the_interpreter(backend: Server, tmp_path: Path) -> None:
    with Host(HOST, backend.address, str(tmp_path / "records"), str(HOLD)) as host:
        address = host.line()
        before = round_trips(address, lambda count: count < 1000)
        host.tell()
        assert host.line() == "holding"
        during = round_trips(address, lambda _: not host.says_something())
        word, ticks = host.line().split()
        # Else nothing was held, and nothing is shown.
        assert word == "held"
        assert int(ticks) < 10
        # One that waited would be one of few: the worst of them tells, not the 99th of a hundred alone.
        assert p99(during) <= 10 * p99(before) + FLOOR
        assert during[-1] < HOLD / 2
        assert len(during) >= 100
        # Python comes back to find its work waiting, and does it.
        after = round_trips(address, lambda count: count < 100)
        assert p99(after) <= 10 * p99(before) + FLOOR
        fresh = len([*before, *during, *after]) // 10
        until(lambda: len((tmp_path / "records").read_text().splitlines()) >= fresh, "all records")
        host.tell()
        assert host.wait() == 0
        assert host.errors == ""
