"""Admin addresses, and who may own the socket's directory."""

import os
import socket
from pathlib import Path

import pytest

from pybalancer.admin import address
from pybalancer.admin.address import TcpAddress, UnixAddress
from pybalancer.admin.sockets import AlreadyRunning, listen
from pybalancer.errors import AdminError


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("unix:/run/x.sock", UnixAddress(Path("/run/x.sock"))),
        ("/run/x.sock", UnixAddress(Path("/run/x.sock"))),
        ("127.0.0.1:9090", TcpAddress("127.0.0.1", 9090)),
        ("[::1]:9090", TcpAddress("::1", 9090)),
        (":9090", TcpAddress("127.0.0.1", 9090)),
        ("localhost:0", TcpAddress("localhost", 0)),
    ],
)
def test_addresses_that_are(text: str, means: UnixAddress | TcpAddress) -> None:
    assert address.parse(text) == means


@pytest.mark.parametrize(
    "text", ["", "unix:", "9090", "host:", "host:99999", "host:-1", "host:٣", "/" + "x" * 107]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(AdminError):
        address.parse(text)


def test_an_address_is_written_as_it_is_read() -> None:
    for text in ("unix:/run/x.sock", "127.0.0.1:9090", "[::1]:9090"):
        assert str(address.parse(text)) == text


def test_systemd_says_where_the_run_directory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one:/run/two")
    assert address.default() == "unix:/run/one/admin.sock"


def test_the_socket_is_private_and_goes_when_closed(tmp_path: Path) -> None:
    path = tmp_path / "made" / "admin.sock"
    before = os.umask(0)
    try:
        with listen(UnixAddress(path)) as listener:
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
            assert [entry.name for entry in path.parent.iterdir()] == ["admin.sock"]
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                listener.setblocking(True)
                listener.accept()[0].close()
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listen(UnixAddress(path)):
        with pytest.raises(AlreadyRunning, match="already running"), listen(UnixAddress(path)):
            pass
        assert path.exists()


def test_a_successors_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with listen(UnixAddress(path)):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
    assert path.exists()


def test_a_file_that_is_no_socket_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("precious")
    with pytest.raises(AdminError, match="no socket"), listen(UnixAddress(path)):
        pass
    assert path.read_text() == "precious"


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with (
        pytest.raises(AdminError, match="others can write there"),
        listen(UnixAddress(open_to_all / "a.sock")),
    ):
        pass


def test_a_taken_tcp_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(AdminError, match=f"127.0.0.1:{port}.*in use"),
            listen(TcpAddress("127.0.0.1", port)),
        ):
            pass
