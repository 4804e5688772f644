"""What an operator asks for while a process takes over: it is done whole, by one of the two, or refused."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybalancer.admin.client import Client, Refused

from .net import connect, echoes, server, until
from .upgrading import Upgrading, alive, children, tampered, upgrading

STEPS = ("on offer", "on sent")
"""Before anything stands still, and while all tunnels do."""


@pytest.fixture(params=STEPS)
def halfway(request: Any, environment: dict[str, str], tmp_path: Path) -> Iterator[Upgrading]:
    """An upgrade whose new process stands still at a step; the old one was told what is drained before."""
    # As long as a busy machine may take: what is frozen stays so until the test goes on.
    hanging = tampered(environment, tmp_path, STEP=request.param, STEP_SIGNAL="SIGSTOP", FREEZE_SECONDS="60")
    with server() as backend, server() as other:
        file = tmp_path / "pybalancer.toml"
        file.write_text(
            f"""
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
[pools.chat]
policy = "least-connections"
[[pools.chat.backends]]
name = "app-1"
address = "{backend.address}"
[[pools.chat.backends]]
name = "app-2"
address = "{other.address}"
"""
        )
        with upgrading(hanging, tmp_path, file) as running:
            clients = [connect(running.address) for _ in range(4)]
            assert all(echoes(client) for client in clients)
            os.kill(running.pid, signal.SIGUSR2)
            (child,) = until(lambda: children(running.pid))
            until(lambda: Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            yield running
            for client in clients:
                client.close()


class Asked:
    """A request under way, in a thread."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.answer: Any = None
        self._thread = threading.Thread(target=self._ask, args=(ask,), daemon=True)
        self._thread.start()

    def _ask(self, ask: Callable[[], Any]) -> None:
        try:
            self.answer = ask()
        except Refused as error:
            self.answer = error

    def wait(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.answer


def client_of(running: Upgrading) -> Client:
    return Client(running.serving.line(r"admin interface at (\S+)")[1])


def waiting_for_it(client: Client) -> dict[str, Asked]:
    drain = {"pool": "chat", "backend": "app-1", "over": 0.0, "deadline": 600.0}
    asked = {
        "drain": Asked(lambda: client.post("/drain", **drain)),
        "undrain": Asked(lambda: client.post("/undrain", pool="chat", backend="app-2")),
        "shed": Asked(lambda: client.post("/shed", pool="chat", to_skew=1.0)),
        "recheck": Asked(lambda: client.post("/recheck", pool="chat", backend="app-1")),
    }
    # The balancer has these when it answers what was asked later.
    for _ in range(3):
        assert client.get("/status")["drains"] == []
    assert [name for name, each in asked.items() if each.answer is not None] == []
    return asked


def test_what_is_asked_for_meanwhile_is_not_said_to_be_done_by_who_goes(halfway: Upgrading) -> None:
    client = client_of(halfway)
    asked = waiting_for_it(client)
    (child,) = children(halfway.pid)
    os.kill(child, signal.SIGCONT)
    for name, each in asked.items():
        answer = each.wait()
        assert isinstance(answer, Refused), (name, answer)
        assert (answer.status, str(answer)) == (503, f"process {child} has taken over: ask that one")
    until(lambda: not alive(halfway.pid))
    status = client.get("/status")
    assert (status["pid"], status["active"], status["drains"]) == (child, 4, [])
    assert not any(backend["draining"] for backend in status["pools"][0]["backends"])
    # Whoever asks again asks the right one.
    client.post("/drain", pool="chat", backend="app-1", over=0.0, deadline=600.0)
    assert client.get("/status")["pools"][0]["backends"][0]["draining"]


def test_if_nobody_takes_over_it_is_done(halfway: Upgrading) -> None:
    client = client_of(halfway)
    asked = waiting_for_it(client)
    (child,) = children(halfway.pid)
    os.kill(child, signal.SIGKILL)
    for name, each in asked.items():
        assert isinstance(each.wait(), dict), (name, each.answer)
    assert client.get("/status")["pools"][0]["backends"][0]["draining"]


def test_what_began_just_before_is_no_less_a_hindrance(environment: dict[str, str], tmp_path: Path) -> None:
    """It was not there when the upgrade was asked for, nor when the new process was told what there is."""
    late = tampered(environment, tmp_path, BUSY_LATER="a drain of chat is under way")
    with server() as backend:
        with upgrading(late, tmp_path, "--listen", "127.0.0.1:0", "--to", backend.address) as running:
            with connect(running.address) as client:
                assert echoes(client)
                asked = running.serving.ask("upgrade")
                assert asked.returncode == 1
                assert "not now: a drain of chat is under way" in asked.stderr
                assert echoes(client)
                assert running.running == [running.pid]
