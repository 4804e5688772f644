"""What an upgrade keeps beside tunnels: sockets, names, secrets, limits, what systemd and scripts know."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
from pathlib import Path

import pytest
import trio

from pybalancer import Balancer
from pybalancer.errors import UpgradeError

from .balancing import configuration
from .net import connect, echoes, read_all, read_exactly, refused, served, server, until
from .rfc6455 import BINARY, CLOSE, frame
from .streams import HANDSHAKE, SWITCHING
from .upgrading import alive, upgrading


def listening(port: str) -> list[str]:
    """The inodes of the TCP sockets that listen on a port of the loopback."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sorted(row[9] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == int(port))


def test_99_listeners_are_inherited_not_bound_again(environment: dict[str, str], tmp_path: Path) -> None:
    environment["PYBALANCER_WORKERS"] = "3"
    unix = f"unix:{tmp_path}/front.sock"
    with server() as backend:
        arguments = ("--listen", "127.0.0.1:0", "--listen", unix, "--to", backend.address)
        with upgrading(environment, tmp_path, *arguments) as running:
            port = running.address.rpartition(":")[2]
            before, file = listening(port), (tmp_path / "front.sock").stat().st_ino
            assert len(before) == 3
            for _ in range(2):
                running.upgrade()
                assert listening(port) == before
                assert (tmp_path / "front.sock").stat().st_ino == file
                assert served(unix)
            os.kill(running.pid, signal.SIGTERM)
            until(lambda: not running.running)
            assert not (tmp_path / "front.sock").exists()
            assert listening(port) == []


def test_a_new_file_is_taken_up(environment: dict[str, str], tmp_path: Path) -> None:
    """Other numbers of workers, a listener less, a listener more, a backend less, a route's new rules."""
    del environment["PYBALANCER_WORKERS"]
    file = tmp_path / "pybalancer.toml"

    def write(workers: int, listeners: dict[str, str], backend: str) -> None:
        text = f"[balancer]\nworkers = {workers}\n"
        for name, bind in listeners.items():
            text += f'[[listeners]]\nname = "{name}"\nbind = "{bind}"\npool = "chat"\n'
        file.write_text(text + f'[[pools.chat.backends]]\nname = "{backend[0]}"\naddress = "{backend[1:]}"\n')

    with server() as first, server() as second:
        write(1, {"a": "127.0.0.1:0", "b": f"unix:{tmp_path}/b.sock"}, "1" + first.address)
        with upgrading(environment, tmp_path, file) as running:
            clients = [connect(running.address) for _ in range(40)]
            clients += [connect(f"unix:{tmp_path}/b.sock") for _ in range(10)]
            assert all(echoes(client) for client in clients)
            for workers in (3, 2, 1):
                listeners = {"a": "127.0.0.1:0", "c": f"unix:{tmp_path}/c{workers}.sock"}
                write(workers, listeners, "2" + second.address)
                assert running.upgrade()["tunnels"] == len(clients)
                assert all(echoes(client) for client in clients)
                status = running.status()
                assert len(status["workers"]) == workers
                assert status["active"] == len(clients)
                clients += [connect(running.address) for _ in range(10)]
                clients.append(connect(f"unix:{tmp_path}/c{workers}.sock"))
                assert all(echoes(client) for client in clients)
                assert not (tmp_path / "b.sock").exists()
            assert (first.served, second.served) == (50, 33)


def test_limits_count_those_who_came_along(environment: dict[str, str], tmp_path: Path) -> None:
    with server() as backend:
        arguments = ("--listen", "127.0.0.1:0", "--to", backend.address, "--max-connections", "5")
        with upgrading(environment, tmp_path, *arguments) as running:
            clients = [connect(running.address) for _ in range(5)]
            assert all(echoes(client) for client in clients)
            running.upgrade()
            assert refused(running.address)
            clients.pop().close()
            until(lambda: running.status()["active"] == 4)
            assert served(running.address)


def test_a_random_secret_is_handed_on(environment: dict[str, str], tmp_path: Path) -> None:
    del environment["PYBALANCER_SECRET"]
    with server() as backend:
        with upgrading(environment, tmp_path, "--listen", "127.0.0.1:0", "--to", backend.address) as running:
            before = running.serving.ask("table", "--digest").stdout
            # Nobody could read it again.
            shutil.rmtree(tmp_path / "state")
            (tmp_path / "state").write_text("no directory")
            for _ in range(2):
                running.upgrade()
                assert running.serving.ask("table", "--digest").stdout == before != ""


def test_a_backend_that_was_down_stays_down(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "pybalancer.toml"
    with server() as backend, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        file.write_text(f"""
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
[pools.chat.health]
kind = "tcp"
interval = "1h"
fall = 1
[[pools.chat.backends]]
name = "app-1"
address = "{backend.address}"
[[pools.chat.backends]]
name = "app-2"
address = "127.0.0.1:{silent.getsockname()[1]}"
""")

        def states() -> dict[str, str]:
            (pool,) = running.status()["pools"]
            return {each["name"]: each["state"] for each in pool["backends"]}

        with upgrading(environment, tmp_path, file) as running:
            # The first probe comes within a tenth of the hour: a connect that fails is faster.
            until(lambda: [served(running.address) for _ in range(20)] and states()["app-2"] == "down")
            running.upgrade()
            assert states() == {"app-1": "up", "app-2": "down"}


def test_what_is_drained_stays_drained(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "pybalancer.toml"
    with server() as first, server() as second:
        text = '[[listeners]]\nname = "public"\nbind = "127.0.0.1:0"\npool = "chat"\n'
        for name, backend in (("app-1", first), ("app-2", second)):
            text += f'[[pools.chat.backends]]\nname = "{name}"\naddress = "{backend.address}"\n'
        file.write_text(text)

        def draining() -> dict[str, bool]:
            (pool,) = running.status()["pools"]
            return {each["name"]: each["draining"] for each in pool["backends"]}

        with upgrading(environment, tmp_path, file) as running:
            asked = running.serving.ask("drain", "app-1", "--over", "0s")
            assert asked.returncode == 0, asked.stderr
            running.upgrade()
            assert draining() == {"app-1": True, "app-2": False}
            before = second.served
            assert all(served(running.address) for _ in range(10))
            assert (first.served, second.served - before) == (0, 10)
            assert running.serving.ask("undrain", "app-1").returncode == 0
            running.upgrade()
            assert draining() == {"app-1": False, "app-2": False}


def test_the_pid_file_and_statistics_follow(environment: dict[str, str], tmp_path: Path) -> None:
    file, pid, stats = (tmp_path / name for name in ("pybalancer.toml", "pid", "stats"))
    with server() as backend:
        file.write_text(f"""
[balancer]
stats = "{stats}"
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
[[pools.chat.backends]]
name = "app-1"
address = "{backend.address}"
""")
        with upgrading(environment, tmp_path, file, "--pid-file", pid) as running:
            until(pid.exists)
            assert int(pid.read_text()) == running.pid
            for _ in range(2):
                before = stats.stat().st_ino
                running.upgrade()
                assert int(pid.read_text()) == running.pid
                assert stats.stat().st_ino != before
            os.kill(running.pid, signal.SIGTERM)
            until(lambda: not running.running)
            assert not pid.exists()
            assert sorted(path.name for path in tmp_path.iterdir()) == ["pybalancer.toml", "run", "stats"]


def test_systemd_learns_which_process_is_the_main_one(environment: dict[str, str], tmp_path: Path) -> None:
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(30)

    def next_one() -> tuple[int, str]:
        data, ancillary, _, _ = told.recvmsg(4096, socket.CMSG_SPACE(12))
        ((_, _, credentials),) = ancillary
        return struct.unpack("iII", credentials)[0], data.decode()

    environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    with told, server() as backend:
        with upgrading(environment, tmp_path, "--listen", "127.0.0.1:0", "--to", backend.address) as running:
            old = running.pid
            assert next_one() == (old, "READY=1")
            new = running.upgrade()["new_pid"]
            pid, text = next_one()
            assert pid == old
            assert text.startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert next_one() == (new, "READY=1")
            # Until here systemd believes the old one only.
            assert next_one() == (old, f"MAINPID={new}\nREADY=1")
            os.kill(new, signal.SIGTERM)
            assert next_one() == (new, "STOPPING=1")


def test_an_admin_interface_on_tcp_changes_hands(environment: dict[str, str], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    file = tmp_path / "pybalancer.toml"
    with server() as backend, server() as placeholder:
        address = placeholder.address
        placeholder.close()
        file.write_text(f"""
[balancer]
admin = "{address}"
admin_token_file = "{token}"
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
[[pools.chat.backends]]
name = "app-1"
address = "{backend.address}"
""")
        environment["PYBALANCER_ADMIN_TOKEN"] = token.read_text()
        with upgrading(environment, tmp_path, file) as running:
            running.serving.environment["PYBALANCER_ADMIN"] = address
            inodes = listening(address.rpartition(":")[2])
            for _ in range(2):
                running.upgrade()
                assert running.status()["admin"] == address
                assert listening(address.rpartition(":")[2]) == inodes


def web(directory: Path, backend: str, more: str = "") -> Path:
    file = directory / "pybalancer.toml"
    file.write_text(f"""
[balancer]
grace = "1s"
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "chat"
{more}
[[pools.chat.backends]]
name = "app-1"
address = "{backend}"
""")
    return file


def switching(connection: socket.socket) -> None:
    """Opens a WebSocket and echoes."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(4096)
    connection.sendall(SWITCHING)
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def head_of(client: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(client, 1)
    return head


def websocket(address: str) -> socket.socket:
    client = connect(address)
    client.sendall(HANDSHAKE)
    assert head_of(client).startswith(b"HTTP/1.1 101")
    return client


def test_frames_are_followed_across_processes(environment: dict[str, str], tmp_path: Path) -> None:
    """A frame that one process has seen the beginning of ends in another, and the Close comes behind it."""
    with server(switching) as backend:
        file = web(tmp_path, backend.address, "max_message = 100000")
        with upgrading(environment, tmp_path, file) as running:
            client = websocket(running.address)
            # Taken for a header, this payload would be nonsense.
            whole = struct.pack("!BBH", 0x80 | BINARY, 126, 1000) + b"\xff" * 1000
            # The backend sends the client's bytes back as they are, so they are a server's frame.
            for cut in (1, 3, 500):
                client.sendall(whole[:cut])
                # With a limit the header has to be whole before any of it may pass.
                got = read_exactly(client, cut) if cut > 3 else b""
                assert running.upgrade()["tunnels"] == 1
                client.sendall(whole[cut:])
                assert got + read_exactly(client, 1004 - len(got)) == whole
            client.sendall(whole[:600])
            assert read_exactly(client, 600) == whole[:600]
            running.upgrade()
            os.kill(running.pid, signal.SIGTERM)
            running.serving.line("1 tunnels? ha")
            client.sendall(whole[600:])
            assert read_exactly(client, 404) == whole[600:]
            assert read_exactly(client, 4) == bytes([0x80 | CLOSE, 2, 0x03, 0xF4])


def test_limits_of_messages_hold_across_processes(environment: dict[str, str], tmp_path: Path) -> None:
    with server(switching) as backend:
        file = web(tmp_path, backend.address, "max_message = 1000")
        with upgrading(environment, tmp_path, file) as running:
            client = websocket(running.address)
            part = frame(BINARY, bytes(600), fin=False)
            client.sendall(part)
            assert read_exactly(client, len(part)) == part
            running.upgrade()
            client.sendall(frame(0, bytes(600)))
            assert read_exactly(client, 4) == bytes([0x80 | CLOSE, 2, 0x03, 0xF1])


def test_requests_under_way_are_answered_by_the_old_process(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """And a handshake under way becomes a tunnel of the new one."""
    gate = tmp_path / "gate"

    def slow(connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(4096)
        until(gate.exists)
        if b"upgrade: websocket" in data.lower():
            connection.sendall(SWITCHING)
            while data := connection.recv(1 << 16):
                connection.sendall(data)
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
            connection.recv(1)

    with server(slow) as backend, upgrading(environment, tmp_path, web(tmp_path, backend.address)) as running:
        plain, opening = connect(running.address), connect(running.address)
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        opening.sendall(HANDSHAKE)
        until(lambda: len(backend.live) == 2)
        asked = running.serving.ask("upgrade", "--json")
        result = json.loads(asked.stdout)
        assert result["tunnels"] == 0
        assert alive(running.pid)
        gate.touch()
        answer = read_all(plain)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"done")
        assert head_of(opening).startswith(b"HTTP/1.1 101")
        until(lambda: not alive(running.pid), "the end of the old process")
        running.pid = result["new_pid"]
        assert running.status()["active"] == 1
        message = frame(BINARY, b"hello")
        opening.sendall(message)
        assert read_exactly(opening, len(message)) == message


def test_hup_after_an_upgrade_reaches_the_new_process(environment: dict[str, str], tmp_path: Path) -> None:
    with server() as backend:
        with upgrading(environment, tmp_path, "--listen", "127.0.0.1:0", "--to", backend.address) as running:
            running.upgrade()
            os.kill(running.pid, signal.SIGHUP)
            running.serving.line("reloaded \\(generation 2")


async def test_an_embedded_balancer_is_not_upgraded() -> None:
    with server() as backend:
        async with Balancer(configuration({"app-1": backend.address})) as balancer:
            with pytest.raises(UpgradeError, match="part of another program"):
                await balancer.upgrade()
            assert await trio.to_thread.run_sync(served, balancer.bound["public"])


def test_the_first_process_of_a_container_refuses(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, sys\nif 'serve' in sys.orig_argv:\n    os.getpid = lambda: 1\n"
    )
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
    with server() as backend:
        with upgrading(environment, tmp_path, "--listen", "127.0.0.1:0", "--to", backend.address) as running:
            asked = running.serving.ask("upgrade")
            assert asked.returncode == 1
            assert "process 1 of its container" in asked.stderr
            assert served(running.address)


def test_nobody_else_starts_as_a_successor(environment: dict[str, str]) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "pybalancer", "serve", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:9"],
        env={**environment, "PYBALANCER_UPGRADE": "77"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "set by `pybalancer upgrade` only" in done.stderr


def test_connections_between_requests_change_hands(environment: dict[str, str], tmp_path: Path) -> None:
    """One that has not asked for anything, one whose answers have come, and one in the middle of a head."""

    def answers(connection: socket.socket) -> None:
        data = b""
        while part := connection.recv(4096):
            data += part
            while b"\r\n\r\n" in data:
                data = data.partition(b"\r\n\r\n")[2]
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def ask(client: socket.socket) -> bytes:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head = head_of(client)
        assert head.startswith(b"HTTP/1.1 200")
        assert read_exactly(client, 2) == b"ok"
        return head

    with (
        server(answers) as backend,
        upgrading(environment, tmp_path, web(tmp_path, backend.address)) as running,
    ):
        fresh, kept, cut = (connect(running.address) for _ in range(3))
        assert b"close" not in ask(kept).lower()
        cut.sendall(b"GET / HTTP/1.1\r\nHo")
        until(lambda: running.status()["active"] == 3)
        for _ in range(2):
            old = running.pid
            running.pid = json.loads(running.serving.ask("upgrade", "--json").stdout)["new_pid"]
            until(lambda: running.status()["active"] == 2)
            assert b"close" not in ask(kept).lower()
            assert b"close" not in ask(fresh).lower()
            if cut is not None:
                assert alive(old)
                cut.sendall(b"st: x\r\n\r\n")
                assert b"close" in head_of(cut).lower()
                assert read_all(cut) == b"ok"
                cut = None
            until(lambda: running.running == [running.pid])
        assert running.status()["active"] == 2


def test_a_handshake_under_way_passes_through_two_upgrades(
    environment: dict[str, str], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    def slow(connection: socket.socket) -> None:
        until(gate.exists)
        switching(connection)

    with server(slow) as backend, upgrading(environment, tmp_path, web(tmp_path, backend.address)) as running:
        client = connect(running.address)
        client.sendall(HANDSHAKE)
        until(lambda: backend.live)
        asked = [running.serving.ask("upgrade", "--json") for _ in range(2)]
        pids = [running.pid, *(json.loads(each.stdout)["new_pid"] for each in asked)]
        assert sorted(running.running) == sorted(pids)
        gate.touch()
        assert head_of(client).startswith(b"HTTP/1.1 101")
        until(lambda: running.running == pids[2:])
        running.pid = pids[2]
        assert running.status()["active"] == 1
        message = frame(BINARY, b"hello")
        client.sendall(message)
        assert read_exactly(client, len(message)) == message
