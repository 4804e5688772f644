"""The proxies: how each is started before the fleet, how its operator restarts a backend, how it reloads."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from bench.ripple.fleet import Backend, Fleet
from bench.wire.proxies import NGINX_HTTP, ROOT, free_port, wait_open

SLOW_START = 2.0
"""Seconds in which pybalancer brings a restarted backend to its full share."""

PYBALANCER = [sys.executable, "-m", "pybalancer"]


@dataclass(frozen=True)
class Terms:
    """What is the same for all."""

    clients: int
    drain: float
    """Seconds that a backend's clients are given to go, and old processes where they are given any."""

    @property
    def cap(self) -> int:
        """Handshakes a second where the proxy can be told: a tenth of the clients."""
        return max(20, self.clients // 10)


class Proxy(Protocol):
    """One of them, running."""

    process: trio.Process
    address: str

    async def reload(self) -> None:
        """Take over a configuration that has changed in something that concerns nobody here."""


class HAProxy:
    """In master-worker mode, as its packages run it; steered over its runtime socket."""

    def __init__(self, fleet: Fleet, folder: Path, terms: Terms, *, hard_stop: bool) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._socket = folder / "haproxy.sock"
        self._file = folder / "haproxy.cfg"
        self._lines = f"""global
  nbthread 1
  maxconn {4 * terms.clients + 100}
  stats socket {self._socket} mode 600 level admin expose-fd listeners
  {f"hard-stop-after {round(1000 * terms.drain)}ms" if hard_stop else ""}
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
  timeout http-request 10s
  option redispatch 1
  retries 3
frontend public
  bind {self.address} backlog 4096
  default_backend chat
backend chat
  balance leastconn
  default-server check inter 250ms fall 2 rise 2
"""
        for backend in fleet.backends:
            self._lines += f"  server {backend.name} {backend.address}\n"
        self._file.write_text(self._lines)

    async def start(self) -> None:
        command = ["haproxy", "-W", "-db", "-f", str(self._file)]
        self.process = await open_quietly(command)
        await trio.to_thread.run_sync(wait_open, self.address)

    async def say(self, command: str) -> str:
        stream = await trio.open_unix_socket(str(self._socket))
        async with stream:
            await stream.send_all(command.encode() + b"\n")
            answer = b""
            while part := await stream.receive_some():
                answer += part
        return answer.decode().strip()

    async def set_state(self, backend: Backend, state: str) -> None:
        if complaint := await self.say(f"set server chat/{backend.name} state {state}"):
            raise RuntimeError(f"haproxy: {complaint}")

    async def wait_up(self, backend: Backend) -> None:
        """Until its checks have seen that it is back."""
        while True:
            for line in (await self.say("show stat -1 4 -1")).splitlines():
                fields = line.split(",")
                if fields[:2] == ["chat", backend.name] and fields[17] in {"UP", "DRAIN"}:
                    return
            await trio.sleep(0.05)

    async def reload(self) -> None:
        self._file.write_text(self._lines.replace("timeout connect 5s", "timeout connect 4s"))
        before = children(self.process.pid)
        self.process.send_signal(signal.SIGUSR2)
        await until(lambda: children(self.process.pid) - before, "a new worker of haproxy")


class Nginx:
    """A master and one worker; a backend is taken out by ``down`` in the file and a reload.

    By default (``max_fails`` 1) a backend that failed once gets one connection each ``fail_timeout`` until
    a connection to it has *ended* well, which a WebSocket does not for hours. Who knows that says 0.
    """

    def __init__(
        self, fleet: Fleet, folder: Path, terms: Terms, *, shutdown_timeout: bool = False, max_fails: int = 0
    ) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._fleet, self._folder, self._max_fails = fleet, folder, max_fails
        self._timeout = f"worker_shutdown_timeout {round(1000 * terms.drain)}ms;" if shutdown_timeout else ""
        self._write(down=None)

    def _write(self, down: Backend | None, comment: str = "") -> None:
        servers = " ".join(
            f"server {backend.address} max_fails={self._max_fails}{' down' if backend is down else ''};"
            for backend in self._fleet.backends
        )
        http = NGINX_HTTP.format(at=self.address, backend="chat")
        http = http.replace("http {", f"http {{\n  upstream chat {{ least_conn; {servers} }}", 1)
        (self._folder / "nginx.conf").write_text(
            f"""{comment}
daemon off; worker_processes 1; {self._timeout}
pid {self._folder}/nginx.pid; error_log {self._folder}/nginx.log;
events {{ worker_connections 19000; }}
{http}
"""
        )

    async def start(self) -> None:
        self.process = await open_quietly(["nginx", "-c", str(self._folder / "nginx.conf")])
        await trio.to_thread.run_sync(wait_open, self.address)

    async def mark_down(self, backend: Backend | None) -> None:
        """Take this one out, and every other in."""
        self._write(backend)
        await self._hup()

    async def reload(self) -> None:
        self._write(None, "# a comment more")
        await self._hup()

    async def _hup(self) -> None:
        before = children(self.process.pid)
        self.process.send_signal(signal.SIGHUP)
        await until(lambda: children(self.process.pid) - before, "a new worker of nginx")


class Pybalancer:
    """As `pybalancer serve` runs it; steered by its own commands."""

    def __init__(
        self,
        fleet: Fleet,
        folder: Path,
        terms: Terms,
        *,
        paced: bool = False,
        reattach: bool = False,
    ) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.terms = terms
        self._admin = f"unix:{folder}/admin.sock"
        self._file = folder / "pybalancer.toml"
        self._log = folder / "pybalancer.log"
        drain = f"""
[pools.chat.drain]
over = "{round(1000 * terms.drain)}ms"
deadline = "{round(1500 * terms.drain)}ms"
"""
        self._lines = f"""
[balancer]
workers = 1
admin = "{self._admin}"
[log]
connections = false
[[listeners]]
name = "public"
bind = "{self.address}"
mode = "websocket"
pool = "chat"
{f'handshakes = "{terms.cap}/s"' if paced else ""}
{'reattach = "replay"' if reattach else ""}
[pools.chat]
policy = "least-connections"
{f'slow_start = "{SLOW_START:g}s"' if paced else ""}
{drain if paced else ""}
[pools.chat.health]
kind = "tcp"
interval = "250ms"
timeout = "1s"
rise = 2
fall = 2
"""
        for backend in fleet.backends:
            self._lines += (
                f'[[pools.chat.backends]]\nname = "{backend.name}"\naddress = "{backend.address}"\n'
            )
        self._file.write_text(self._lines)

    async def start(self) -> None:
        self.process = await open_quietly([*PYBALANCER, "serve", str(self._file)], self._log)
        await trio.to_thread.run_sync(wait_open, self.address)

    async def run(self, *command: str) -> str:
        """One of its commands; what it printed."""
        given = [*PYBALANCER, *command, "--admin", self._admin]
        # What a roll that was broken off leaves behind goes with the folder.
        environment = {**os.environ, "STATE_DIRECTORY": str(self._file.parent)}
        done = await trio.run_process(
            given, capture_stdout=True, capture_stderr=True, check=False, cwd=ROOT, env=environment
        )
        said = (done.stdout + done.stderr).decode().strip()
        if done.returncode:
            raise RuntimeError(f"pybalancer {command[0]}: {said}\n{self._log.read_text()}")
        return done.stdout.decode()

    async def reload(self) -> None:
        self._file.write_text(self._lines.replace('timeout = "1s"', 'timeout = "2s"'))
        await self.run("reload")

    async def upgrade(self) -> None:
        await self.run("upgrade")


async def open_quietly(command: list[str], log: Path = Path(os.devnull)) -> trio.Process:
    """In a session of its own: what is left of it is found by that, and Ctrl-C does not reach it."""
    with log.open("ab") as book:
        return await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=book,
            stderr=book,
            start_new_session=True,
            cwd=ROOT,
        )


async def until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    with trio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110 - /proc tells nobody
            await trio.sleep(0.02)
        return
    raise RuntimeError(f"{what} did not come about within {seconds:g} s")


def children(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(child) for child in task.read_text().split()}
    return found
