"""The admin interface of a real balancer, over real sockets."""

import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from pybalancer.admin import app as admin_app
from pybalancer.admin import server
from pybalancer.admin.client import Client, Refused
from pybalancer.balancer import Balancer
from pybalancer.errors import AdminError, StartError
from tests.wire.net import Server
from tests.wire.net import server as echo_server

TOKEN = "an-admin-token-of-some-length"
SCRIPT = "<script>alert(1)</script>"


def configuration(admin: str, backend: str, **balancer: Any) -> dict[str, Any]:
    return {
        "balancer": {"admin": admin, "secret": "00" * 16, "workers": 1, **balancer},
        "listeners": [{"name": "public", "bind": "127.0.0.1:0", "pool": "chat"}],
        "pools": {"chat": {"backends": [{"name": SCRIPT, "address": backend}]}},
    }


@pytest.fixture
def backend() -> Iterator[Server]:
    with echo_server() as running:
        yield running


@pytest.fixture
async def local(tmp_path: Path, backend: Server) -> AsyncIterator[Balancer]:
    async with Balancer(configuration(f"unix:{tmp_path}/a.sock", backend.address), admin=True) as balancer:
        yield balancer


@pytest.fixture
async def remote(backend: Server) -> AsyncIterator[Balancer]:
    given = configuration(
        "127.0.0.1:0", backend.address, admin_token=TOKEN, admin_origins=["https://ops.example.com"]
    )
    async with Balancer(given, admin=True) as balancer:
        yield balancer


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    balancer: Balancer,
    target: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """One request with exactly these headers, and Host unless it is given."""
    assert balancer.admin is not None
    connection = Client(balancer.admin)._connection()

    def exchange() -> Answer:
        try:
            connection.putrequest(method, target, skip_host="Host" in (headers or {}))
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    return await trio.to_thread.run_sync(exchange)


async def in_thread(ask_it: Callable[..., Any], *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(ask_it, *arguments)


WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}


async def test_every_page_answers_and_says_what_it_is(local: Balancer) -> None:
    for target in ("/livez", "/readyz", "/status", "/explain?source=192.0.2.1:1234"):
        answer = await ask(local, target)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert isinstance(answer.json, dict)
    metrics = await ask(local, "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert list(text_string_to_metric_families(metrics.body.decode()))


async def test_no_answer_names_the_server_or_may_be_sniffed_or_kept(local: Balancer) -> None:
    for target in ("/status", "/metrics", "/nowhere"):
        headers = (await ask(local, target)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert not any(name.lower().startswith("access-control-") for name in headers)


async def test_status_counts_what_clients_do(local: Balancer) -> None:
    host, _, port = local.bound["public"].rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as client:
        await client.send_all(b"hello")
        assert await client.receive_some(16) == b"hello"
        status = (await ask(local, "/status")).json
    assert status["listeners"][0]["active"] == status["pools"][0]["backends"][0]["active"] == 1


async def test_explain_names_the_backend_and_refuses_nonsense(local: Balancer) -> None:
    assert (await ask(local, "/explain?source=192.0.2.1:1234")).json["backend"] == SCRIPT
    for query in ("", "?source=", "?source=nonsense", "?source=192.0.2.1:1&pool=nowhere"):
        answer = await ask(local, f"/explain{query}")
        assert answer.status == 400
        assert answer.json["error"]


async def test_methods_and_paths_that_are_not_there(local: Balancer) -> None:
    assert (await ask(local, "/nowhere")).status == 404
    assert (await ask(local, "/reload")).status == 405
    assert (await ask(local, "/status", "POST")).status == 405
    head = await ask(local, "/livez", "HEAD")
    assert (head.status, head.body) == (200, b"")


async def test_reload_reads_the_file_again(tmp_path: Path, backend: Server) -> None:
    file = tmp_path / "pybalancer.toml"
    text = f"""
balancer = {{ admin = "unix:{tmp_path}/a.sock", secret = "{"00" * 16}", workers = 1 }}
listeners = [{{ name = "public", bind = "127.0.0.1:0", pool = "chat" }}]
[pools.chat]
backends = [{{ name = "app-1", address = "{backend.address}" }}]
"""
    file.write_text(text)
    async with Balancer(file, admin=True) as balancer:
        assert balancer.admin is not None
        client = Client(balancer.admin)
        file.write_text(text.replace("app-1", "app-2"))
        result = await in_thread(client.post, "/reload")
        assert result["generation"] == 2
        assert (await ask(balancer, "/status")).json["pools"][0]["backends"][0]["name"] == "app-2"

        file.write_text(text.replace("address", "adress"))
        with pytest.raises(Refused) as refused:
            await in_thread(client.post, "/reload")
        assert refused.value.status == 422
        assert {problem["line"] for problem in refused.value.content["problems"]} == {5}
        assert any("adress" in problem["key"] for problem in refused.value.content["problems"])
        assert (await ask(balancer, "/status")).json["pools"][0]["backends"][0]["name"] == "app-2"


async def test_110_a_cross_origin_post_without_token_is_forbidden(remote: Balancer) -> None:
    assert (await ask(remote, "/reload", "POST", {"Origin": "https://evil.example"})).status == 403
    # The token does not make a foreign page trustworthy: a browser may have been told it.
    answer = await ask(remote, "/reload", "POST", {"Origin": "https://evil.example", **WITH_TOKEN})
    assert answer.status == 403
    assert (await ask(remote, "/reload", "POST", {"Origin": "null", **WITH_TOKEN})).status == 403
    assert (await ask(remote, "/status", headers=WITH_TOKEN)).json["generation"] == 1


async def test_110_a_cross_origin_post_to_the_unix_socket_is_forbidden(local: Balancer) -> None:
    assert (await ask(local, "/reload", "POST", {"Origin": "http://localhost"})).status == 403


async def test_110_an_origin_that_is_allowed_may_post(remote: Balancer) -> None:
    headers = {"Origin": "https://ops.example.com", **WITH_TOKEN}
    assert (await ask(remote, "/reload", "POST", headers)).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil", "", "[::1", "localhost@evil"],
)
async def test_111_a_foreign_host_is_forbidden(remote: Balancer, local: Balancer, host: str) -> None:
    for balancer in (remote, local):
        answer = await ask(balancer, "/status", headers={"Host": host, **WITH_TOKEN})
        assert answer.status == 403
        assert b"generation" not in answer.body


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8", "[::1]:9", "pybalancer"]
)
async def test_111_hosts_that_are_ours(remote: Balancer, host: str) -> None:
    assert (await ask(remote, "/status", headers={"Host": host, **WITH_TOKEN})).status == 200


async def test_111_two_hosts_or_none_are_forbidden_or_bad(remote: Balancer) -> None:
    assert remote.admin is not None
    host, _, port = remote.admin.rpartition(":")
    for hosts in (b"", b"Host: localhost\r\nHost: evil\r\n"):
        async with await trio.open_tcp_stream(host, int(port)) as client:
            token = TOKEN.encode()
            await client.send_all(
                b"GET /status HTTP/1.1\r\n" + hosts + b"Authorization: Bearer " + token + b"\r\n\r\n"
            )
            assert (await client.receive_some(65536)).split(b" ")[1] in (b"400", b"403")


async def test_112_a_script_as_name_is_never_markup(local: Balancer) -> None:
    answer = await ask(local, "/status")
    assert b"<" not in answer.body
    assert answer.json["pools"][0]["backends"][0]["name"] == SCRIPT
    assert answer.headers["content-security-policy"] == "default-src 'none'"
    explained = await ask(local, f"/explain?source=192.0.2.1:1&pool={'%3Cscript%3E'}")
    assert explained.status == 400
    assert b"<" not in explained.body


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer é"],
)
async def test_tcp_wants_the_token(remote: Balancer, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for target in ("/livez", "/status", "/metrics", "/nowhere"):
        answer = await ask(remote, target, headers=headers)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_client_sends_the_token_and_says_when_it_is_wrong(remote: Balancer) -> None:
    assert remote.admin is not None
    assert (await in_thread(Client(remote.admin, token=TOKEN).get, "/livez"))["live"]
    with pytest.raises(Refused, match="PYBALANCER_ADMIN_TOKEN"):
        await in_thread(Client(remote.admin, token="wrong").get, "/livez")


async def test_tcp_without_a_token_is_refused(local: Balancer) -> None:
    with pytest.raises(AdminError, match="admin_token"):
        await server.serve(local, "127.0.0.1:0")


async def test_a_second_balancer_at_the_socket_is_refused(local: Balancer, backend: Server) -> None:
    assert local.admin is not None
    with pytest.RaisesGroup(
        pytest.RaisesExc(StartError, match="already running"), flatten_subgroups=True, allow_unwrapped=True
    ):
        async with Balancer(configuration(local.admin, backend.address), admin=True):
            pass
    assert (await ask(local, "/livez")).status == 200


async def test_a_body_that_is_too_large_is_refused(local: Balancer) -> None:
    assert (await ask(local, "/reload", "POST", body=b"x" * (admin_app.BODY_LIMIT + 1))).status == 413
    assert (await ask(local, "/livez")).status == 200


async def test_a_body_that_does_not_come_is_given_up(
    local: Balancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_app, "BODY_SECONDS", 0.05)
    assert local.admin is not None
    async with await trio.open_unix_socket(local.admin.removeprefix("unix:")) as client:
        await client.send_all(b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc")
        assert (await client.receive_some(65536)).startswith(b"HTTP/1.1 408")


async def test_a_head_that_does_not_come_is_given_up(
    tmp_path: Path, local: Balancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.05)
    async with trio.open_nursery() as nursery:
        path = tmp_path / "quick.sock"
        await nursery.start(lambda task_status: server.serve(local, f"unix:{path}", task_status=task_status))
        async with await trio.open_unix_socket(str(path)) as client:
            await client.send_all(b"GET /status HTTP/1.1\r\nHost: loc")
            assert await client.receive_some(65536) == b""
        nursery.cancel_scope.cancel()


async def test_a_websocket_handshake_is_refused(local: Balancer) -> None:
    answer = await ask(
        local,
        "/status",
        headers={
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        },
    )
    assert answer.status == 403


async def test_what_goes_wrong_inside_stays_inside(
    local: Balancer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> str:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(local, "metrics", fail)
    answer = await ask(local, "/metrics")
    assert answer.status == 500
    assert b"inside" not in answer.body
    assert "a secret of the inside" in caplog.text
    assert (await ask(local, "/livez")).status == 200


async def test_it_ends_with_the_balancer_though_a_client_stays(tmp_path: Path, backend: Server) -> None:
    path = tmp_path / "a.sock"
    async with Balancer(configuration(f"unix:{path}", backend.address), admin=True):
        assert path.stat().st_mode & 0o777 == 0o600
        client = await trio.open_unix_socket(str(path))
    assert not path.exists()
    with trio.fail_after(30):
        assert await client.receive_some(1) == b""
    await client.aclose()


async def test_the_socket_is_not_inherited_by_children(local: Balancer) -> None:
    for name in os.listdir("/proc/self/fd"):
        try:
            kind = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if kind.startswith("socket:"):
            assert not os.get_inheritable(int(name))


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="is it running"):
        Client(f"unix:{tmp_path}/none.sock").get("/livez")


def test_somebody_else_at_the_socket() -> None:
    def say_nonsense(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"220 smtp.example ESMTP\r\n")

    with echo_server(say_nonsense) as other, pytest.raises(AdminError, match="is no pybalancer"):
        Client(other.address).get("/livez")
