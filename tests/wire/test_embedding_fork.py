"""``fork`` in a host that embeds a balancer: the child is told that it has none, and does no harm.

A fork copies memory and descriptors but no threads: the workers, and their descriptors, stay the parent's.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from .hosts import Host, refuses
from .net import Server, connect, echoes, served, server, to, until

CHILD = """
import json, traceback
def calls(lb):
    return {
        "status": lb.status,
        "metrics": lb.metrics,
        "bound": lambda: lb.bound,
        "explain": lambda: lb.explain("192.0.2.1:1"),
        "reload": lambda: lb.reload(configuration(sys.argv[1])),
    }
def refusal(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
def answers(lb, left_out=()):
    return json.dumps({name: refusal(call) for name, call in calls(lb).items() if name not in left_out})
def reap(child):
    _, status = os.waitpid(child, 0)
    say("exit", os.waitstatus_to_exitcode(status))
"""


@pytest.fixture
def backend() -> Iterator[Server]:
    with server() as running:
        yield running


def assert_all_refused(line: str, count: int) -> None:
    answers = json.loads(line)
    assert len(answers) == count
    for name, answer in answers.items():
        assert answer.startswith("EngineError: "), name
        assert "parent process" in answer
        assert "after the fork" in answer


def test_117_a_child_is_told_and_its_exit_harms_nobody(backend: Server) -> None:
    """The child leaves the block, and ends as programs end, with all that Python does then."""
    source = (
        CHILD
        + """
with pybalancer.run_in_thread(configuration(sys.argv[1])) as lb:
    say(lb.bound["front"])
    sys.stdin.readline()
    child = os.fork()
    if child:
        reap(child)
        sys.stdin.readline()
    else:
        say(answers(lb))
        lb.close(5.0)
if not child:
    import gc
    del lb
    gc.collect()
    sys.exit(5)
"""
    )
    with Host(source, backend.address) as host:
        address = host.line()
        with connect(address) as client:
            assert echoes(client)
            host.tell()
            assert_all_refused(host.line(), 5)
            assert host.line() == "exit 5"
            assert echoes(client)
            assert served(address)
            host.tell()
            assert host.wait() == 0
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert "Traceback" not in host.errors


def test_117_a_fork_under_trio(backend: Server) -> None:
    """As trio has it, the child of a fork within ``trio.run`` may only ``exec`` or ``_exit``."""
    source = (
        CHILD
        + """
import trio
async def main():
    async with pybalancer.Balancer(configuration(sys.argv[1])) as lb:
        say(lb.bound["front"])
        await trio.to_thread.run_sync(sys.stdin.readline)
        child = os.fork()
        if not child:
            say(answers(lb, left_out=["reload"]))
            os._exit(5)
        reap(child)
        await lb.reload(configuration(sys.argv[1]))
        say(lb.status().active)
        await trio.to_thread.run_sync(sys.stdin.readline)
trio.run(main)
"""
    )
    with Host(source, backend.address) as host:
        address = host.line()
        with connect(address) as client:
            assert echoes(client)
            host.tell()
            assert_all_refused(host.line(), 4)
            assert host.line() == "exit 5"
            assert host.line() == "1"
            assert echoes(client)
            assert served(address)
            host.tell()
            assert host.wait() == 0
        assert "Traceback" not in host.errors


def test_117_multiprocessing_that_forks(backend: Server) -> None:
    source = (
        CHILD
        + """
import multiprocessing
def work(queue):
    queue.put(answers(lb))
with pybalancer.run_in_thread(configuration(sys.argv[1])) as lb:
    say(lb.bound["front"])
    sys.stdin.readline()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    say(queue.get())
    process.join()
    say("exit", process.exitcode)
    sys.stdin.readline()
"""
    )
    with Host(source, backend.address) as host:
        address = host.line()
        with connect(address) as client:
            assert echoes(client)
            host.tell()
            assert_all_refused(host.line(), 5)
            assert host.line() == "exit 0"
            assert echoes(client)
            assert served(address)
            host.tell()
            assert host.wait() == 0


def test_117_a_child_that_lives_on_holds_nothing_open(backend: Server) -> None:
    """When the parent closes, its port is free and its clients are cut off, whatever its children do."""
    source = (
        CHILD
        + """
with pybalancer.run_in_thread(configuration(sys.argv[1])) as lb:
    say(lb.bound["front"])
    sys.stdin.readline()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
say("closed")
sys.stdin.readline()
os.close(writing)
reap(child)
"""
    )
    with Host(source, backend.address) as host:
        address = host.line()
        with connect(address) as client:
            assert echoes(client)
            host.tell()
            assert host.line() == "closed"
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert refuses(address)
        until(lambda: not backend.live, "the end of the connection to the backend")
        # Somebody else can have it, without SO_REUSEPORT. (SO_REUSEADDR is for the tunnel's TIME_WAIT.)
        family, where = to(address)
        with socket.socket(family) as successor:
            successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            successor.bind(where)
            successor.listen()
        host.tell()
        assert host.line() == "exit 0"
        assert host.wait() == 0


def test_117_a_child_may_have_a_balancer_of_its_own(backend: Server) -> None:
    source = (
        CHILD
        + """
# What was made before the fork, and not started, belongs to whoever starts it.
own = pybalancer.run_in_thread(configuration(sys.argv[1]))
with pybalancer.run_in_thread(configuration(sys.argv[1])) as lb:
    say(lb.bound["front"])
    child = os.fork()
    if not child:
        with own:
            say(own.bound["front"])
            sys.stdin.readline()
        os._exit(0)
    reap(child)
"""
    )
    with Host(source, backend.address) as host:
        first, second = host.line(), host.line()
        assert first != second
        with connect(first) as client:
            assert echoes(client)
            assert served(second)
            host.tell()
            assert host.line() == "exit 0"
            assert host.wait() == 0
        assert "Traceback" not in host.errors


def test_117_programs_that_it_starts_inherit_nothing(backend: Server) -> None:
    """``subprocess`` is fine: what it starts has the standard streams, and no socket of ours."""
    source = (
        CHILD
        + """
import subprocess
with pybalancer.run_in_thread(configuration(sys.argv[1])) as lb:
    connect(lb.bound["front"]).detach()
    listed = "import os; print(sorted(int(name) for name in os.listdir('/proc/self/fd')))"
    for keep in (True, False):
        run = subprocess.run([sys.executable, "-c", listed], close_fds=keep, capture_output=True, text=True)
        say(run.stdout.strip())
"""
    )
    with Host(source, backend.address) as host:
        # 3 is the directory that is being listed.
        assert host.line() == host.line() == "[0, 1, 2, 3]"
        assert host.wait() == 0


def test_117_a_childs_exit_leaves_the_unix_socket(
    backend: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("unix") / "front.sock"
    source = (
        CHILD
        + """
from pybalancer import _core
from tests.wire.net import Proxy
proxy = Proxy([sys.argv[1]], bind=f"unix:{sys.argv[2]}")
child = os.fork()
if not child:
    import gc
    del proxy
    gc.collect()
    sys.exit(0)
reap(child)
sys.stdin.readline()
"""
    )
    with Host(source, backend.address, str(path)) as host:
        assert host.line() == "exit 0"
        assert served(f"unix:{path}")
        host.tell()
        assert host.wait() == 0
    assert not path.exists()
