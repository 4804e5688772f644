"""``pybalancer serve`` as a process: what it prints, what signals do, and the commands that ask it."""

import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybalancer import _core
from tests.wire.net import PATIENCE, Server, connect, read_exactly, refused, server, text_of
from tests.wire.serving import Serve


@pytest.fixture
def backend() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path, backend: Server) -> Path:
    path = tmp_path / "pybalancer.toml"
    path.write_text(f"""
[balancer]
grace = "60s"
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
[[pools.chat.backends]]
name = "app-1"
address = "{backend.address}"
""")
    return path


def echoes(client: socket.socket) -> bool:
    client.sendall(b"hello")
    return read_exactly(client, 5) == b"hello"


def test_flags_alone_balance(serve: Serve, backend: Server) -> None:
    serving = serve("--listen", "127.0.0.1:0", "--to", backend.address)
    with connect(serving.address) as client:
        assert echoes(client)
    assert serving.line("→ pool default (.*)")[1] == "(1 backend, maglev)"
    serving.signal(signal.SIGTERM)
    assert serving.wait() == 0
    assert "Traceback" not in "\n".join(serving.lines)


def test_a_file_balances_and_the_commands_find_it(serve: Serve, file: Path) -> None:
    serving = serve(file)
    with connect(serving.address) as client:
        assert echoes(client)
        status = json.loads(serving.ask("status", "--json").stdout)
        assert status["active"] == 1
        assert status["config_file"] == str(file)
        shown = serving.ask("status").stdout
        for word in ("app-1", serving.address, "chat", "maglev by source", _core.__version__):
            assert word in shown
        here = text_of(client.getsockname())
        explained = json.loads(serving.ask("explain", here, "--json").stdout)
        assert explained["backend"] == "app-1"
        assert "goes here now" in serving.ask("explain", here).stdout
        assert serving.ask("explain", "nonsense").returncode == 1
        running = serving.ask("table", "--digest").stdout
        assert running == serving.ask("table", file, "--digest").stdout
        assert running.endswith("  chat\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_115_a_signal_lets_tunnels_end(serve: Serve, file: Path, number: int) -> None:
    serving = serve(file)
    with connect(serving.address) as client:
        assert echoes(client)
        serving.signal(number)
        serving.line("1 tunnels? ha(s|ve) 60 s to end")
        assert echoes(client)
    assert serving.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_115_a_second_signal_ends_them_at_once(serve: Serve, file: Path, second: int) -> None:
    serving = serve(file)
    with connect(serving.address) as client:
        assert echoes(client)
        serving.signal(signal.SIGTERM)
        serving.line("60 s to end")
        serving.signal(second)
        assert serving.wait() == 0
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_hup_and_reload_read_the_file_again(serve: Serve, file: Path) -> None:
    serving = serve(file)
    with connect(serving.address) as client:
        assert echoes(client)
        with server() as other:
            file.write_text(
                file.read_text() + f'[[pools.chat.backends]]\nname = "app-2"\naddress = "{other.address}"\n'
            )
            serving.signal(signal.SIGHUP)
            serving.line("reloaded .*app-2")
            file.write_text(file.read_text().replace("app-2", "app-3"))
            result = serving.ask("reload")
            assert result.returncode == 0
            assert "app-3 added" in result.stdout
        assert echoes(client)


def test_102_a_bad_file_changes_nothing_and_says_why(serve: Serve, file: Path) -> None:
    serving = serve(file)
    good = file.read_text()
    with connect(serving.address) as client:
        assert echoes(client)
        file.write_text(good.replace("address", "adress"))
        serving.signal(signal.SIGHUP)
        serving.line("not reloaded.*adress")
        result = serving.ask(
            "reload", "--config", file, "--admin", serving.line(r"admin interface at (\S+)")[1]
        )
        assert result.returncode == 1
        assert f"{file}:10:1: " in result.stderr
        assert 'did you mean "address"?' in result.stderr
        assert echoes(client)
    with connect(serving.address) as client:
        assert echoes(client)


def test_flags_stay_in_force_over_a_reload(serve: Serve, file: Path) -> None:
    serving = serve(file, "--grace", "0", "--log-format", "json")
    serving.line('"message": "listening')
    serving.signal(signal.SIGHUP)
    serving.line('"message": "reloaded')
    with connect(serving.line(r"listening on ([\d.:]+)")[1]) as client:
        assert echoes(client)
        serving.signal(signal.SIGTERM)
        assert serving.wait() == 0


def test_a_second_one_from_the_same_file_does_not_start(serve: Serve, file: Path) -> None:
    first = serve(file)
    first.line("admin interface")
    second = serve(file)
    assert second.wait() == 3
    second.line("already running")
    with connect(first.address) as client:
        assert echoes(client)


def test_a_second_one_from_flags_goes_without_admin_interface(
    serve: Serve, file: Path, backend: Server
) -> None:
    serve(file).line("admin interface at")
    second = serve("--listen", "127.0.0.1:0", "--to", backend.address)
    second.line("no admin interface.*already running")
    with connect(second.address) as client:
        assert echoes(client)


def test_the_admin_interface_can_be_switched_off(serve: Serve, file: Path, tmp_path: Path) -> None:
    serving = serve(file, "--admin", "none")
    with connect(serving.address) as client:
        assert echoes(client)
    assert not (tmp_path / "run").exists()


def test_a_taken_address_is_named_and_exits_with_3(serve: Serve, backend: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = text_of(taken.getsockname())
        serving = serve("--listen", address, "--to", backend.address)
        assert serving.wait() == 3
    assert address in serving.lines[-1]
    assert "in use" in serving.lines[-1]
    assert "Traceback" not in "\n".join(serving.lines)


def test_each_connection_leaves_a_record(serve: Serve, backend: Server) -> None:
    serving = serve("--listen", "127.0.0.1:0", "--to", backend.address, "--log-format", "json")
    with connect(serving.line(r"listening on ([\d.:]+)")[1]) as client:
        assert echoes(client)
        source = text_of(client.getsockname())
    record = json.loads(serving.line(f".*{source}.*")[0])
    assert record["backend"] == backend.address


def test_no_record_where_none_is_wanted(serve: Serve, backend: Server) -> None:
    serving = serve("--listen", "127.0.0.1:0", "--to", backend.address, "--no-log-connections")
    with connect(serving.address) as client:
        assert echoes(client)
        source = text_of(client.getsockname())
    serving.signal(signal.SIGTERM)
    assert serving.wait() == 0
    assert source not in "\n".join(serving.lines)


def test_systemd_is_told(serve: Serve, file: Path, environment: dict[str, str], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        serving = serve(file)
        assert systemd.recv(4096) == b"READY=1"
        serving.signal(signal.SIGHUP)
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", systemd.recv(4096))
        assert systemd.recv(4096) == b"READY=1"
        serving.signal(signal.SIGTERM)
        assert systemd.recv(4096) == b"STOPPING=1"
        assert serving.wait() == 0


def test_all_descriptors_that_are_allowed_are_used(serve: Serve, file: Path) -> None:
    serving = serve(file)
    serving.line("listening")
    limits = Path(f"/proc/{serving.process.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert soft == hard


def test_a_full_house_refuses(serve: Serve, backend: Server) -> None:
    serving = serve("--listen", "127.0.0.1:0", "--to", backend.address, "--max-connections", "1")
    with connect(serving.address) as client:
        assert echoes(client)
        assert refused(serving.address)
        assert echoes(client)


def test_the_admin_interface_on_tcp_wants_the_token(
    serve: Serve, file: Path, environment: dict[str, str]
) -> None:
    token = "an-admin-token-of-some-length"
    file.write_text(
        file.read_text().replace("[balancer]", f'[balancer]\nadmin = "127.0.0.1:0"\nadmin_token = "{token}"')
    )
    serving = serve(file)
    address = serving.line(r"admin interface at (\S+)")[1]
    result = serving.ask("status", "--admin", address)
    assert result.returncode == 1
    assert "set PYBALANCER_ADMIN_TOKEN" in result.stderr
    environment["PYBALANCER_ADMIN_TOKEN"] = token
    assert serving.ask("status", "--admin", address).returncode == 0
    assert token not in "\n".join(serving.lines)
