"""Upgrades under load: a new process takes over, again and again, and nobody notices."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from .load import Load
from .net import connect, echoes, server, until
from .streams import Streams
from .upgrading import alive, upgrading

UPGRADES = 10
TUNNELS = int(os.environ.get("UPGRADE_TUNNELS", "5000"))
"""That say something now and then. Both ends of all of them are in one descriptor table, of 20,000."""


def configuration(streams: Streams, echo: str, *, web: bool, more: str = "") -> str:
    mode = 'mode = "websocket"' if web else ""
    return f"""
[balancer]
{more}
[log]
connections = false
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "streams"
{mode}
[[pools.streams.backends]]
name = "app-1"
address = "{streams.backend}"
[[listeners]]
name = "echo"
bind = "127.0.0.1:0"
pool = "echo"
[[pools.echo.backends]]
name = "app-1"
address = "{echo}"
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["tcp", "websocket"])
def test_ten_upgrades_in_a_row_lose_no_tunnel_and_no_byte(
    environment: dict[str, str], tmp_path: Path, mode: str
) -> None:
    web = mode == "websocket"
    file = tmp_path / "pybalancer.toml"
    with contextlib.ExitStack() as stack:
        streams = Streams(web=web)
        stack.callback(streams.close)
        echo = stack.enter_context(server())
        file.write_text(configuration(streams, echo.address, web=web))
        workers = {**environment, "PYBALANCER_WORKERS": "2"}
        running = stack.enter_context(upgrading(workers, tmp_path, file))
        frozen = []
        streams.open(running.address, TUNNELS)
        streams.open(running.address, 3, bulk=True)
        streams.open(running.address, 20, deaf=True)
        silent = streams.open(running.address, 20)
        for end in silent:
            end.finish()
        streams.talk()
        door = running.serving.line(r"listening on (\S+) → pool echo")[1]
        load = stack.enter_context(Load(door))
        for _ in range(UPGRADES):
            streams.pass_by(5)
            load.pass_by(20)
            result = running.upgrade()
            frozen.append(result["frozen_seconds"])
            assert result["tunnels"] >= TUNNELS + 43
            streams.more()
            assert streams.failures() == []
        load.pass_by(50)
        load.__exit__()
        assert running.running == [running.pid]
        listeners = {each["name"]: each for each in running.status()["listeners"]}
        assert listeners["public"]["active"] == TUNNELS + 43
        streams.finish()
        assert streams.differences() == []
        assert load.failures == []
        until(lambda: running.status()["active"] == 0)
    print(f"{TUNNELS + 43} tunnels, frozen for {[round(each * 1000) for each in frozen]} ms")


def test_usr2_upgrades_too(environment: dict[str, str], tmp_path: Path) -> None:
    with server() as backend:
        with upgrading(environment, tmp_path, "--listen", "127.0.0.1:0", "--to", backend.address) as running:
            with connect(running.address) as client:
                assert echoes(client)
                os.kill(running.pid, signal.SIGUSR2)
                running.serving.line("upgraded: process .* serves, with 1 tunnels")
                until(lambda: not alive(running.pid))
                (pid,) = running.running
                assert pid != running.pid
                assert echoes(client)
