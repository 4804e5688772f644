"""A stop while open files are used up: nothing spins, and whoever is inside stays until the end."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from .hosts import Host
from .net import connect, echoes, server

HOST = """
import resource
from tests.wire.hosts import refuses
from pybalancer.stats.reader import Stats
from tests.wire.net import Proxy
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
balancer = Proxy([sys.argv[1]])
address = balancer.address
stats = Stats(fd=balancer.engine.stats_fd)
say(address)
sys.stdin.readline()
until(lambda: balancer.events("accept-paused"))
say(balancer.engine.active())
close = threading.Thread(target=lambda: say("aborted", balancer.engine.close(60.0)))
if sys.argv[2] == "close":
    close.start()
else:
    balancer.engine.stop_accepting()
until(lambda: refuses(address))
def wakeups():
    return stats.workers()[0].wakeups
before = wakeups()
# Long enough for a loop to show: it would wake a hundred thousand times.
time.sleep(1.0)
say(wakeups() - before)
sys.stdin.readline()
if sys.argv[2] != "close":
    close.start()
close.join()
"""


@pytest.mark.parametrize("stop", ["stop_accepting", "close"])
def test_80_a_stop_while_files_are_used_up_makes_no_busy_loop(stop: str) -> None:
    with server() as backend, Host(HOST, backend.address, stop) as host, ExitStack() as stack:
        address = host.line()
        entered = [stack.enter_context(connect(address)) for _ in range(40)]
        host.tell()
        held = entered[: int(host.line())]
        assert 5 < len(held) < len(entered)
        assert all(echoes(client) for client in held)
        assert int(host.line()) < 10_000
        assert all(echoes(client) for client in held)
        for client in held:
            client.close()
        host.tell()
        assert host.line() == "aborted 0"
        assert host.wait() == os.EX_OK
