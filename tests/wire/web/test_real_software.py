"""Applications and servers as people run them, in mode "websocket".

None of them is told that there is a balancer, but for the proxy headers that uvicorn and daphne are made to
believe.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from ..backends import KINDS, Backend, backends
from ..clients import CLIENTS, client
from ..net import PATIENCE, payload, sha, text_of, until
from .behind import LARGEST, Behind, behind

MB = 1 << 20
PUBLIC_PORT = 8080
"""Under which clients know autobahn's server. Nothing listens there, and nothing needs to."""
every_server = pytest.mark.parametrize("server", KINDS)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Backend]]:
    with ExitStack() as stack:
        running = stack.enter_context(
            backends(*KINDS, "starlette", "channels", options=("--largest", LARGEST))
        )
        external = Backend("autobahn", "--external-port", PUBLIC_PORT, name="external")
        stack.callback(external.close)
        yield {server.name: server for server in (*running, external)}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, servers: dict[str, Backend]) -> Iterator[Behind]:
    pools = {name: [server] for name, server in servers.items()}
    with behind(tmp_path_factory.mktemp("front"), pools) as running:
        yield running


@every_server
@pytest.mark.parametrize("kind", CLIENTS)
async def test_servers_and_clients_understand_each_other(front: Behind, server: str, kind: str) -> None:
    async with client(kind, front.bound[server], "/") as connection:
        for size in (0, 125, 126, 65535, 65536, MB, 8 * MB):
            for message in (payload(size, size), "é" * (size // 2)):
                await connection.send(message)
                told = json.loads(await connection.receive())
                data = message if isinstance(message, bytes) else message.encode()
                assert (told["server"], told["size"], told["sha256"]) == (server, len(data), sha(data))
                assert await connection.receive() == message
        await connection.ping(b"are you there")
        await connection.close(4000, "enough")
    async with client(kind, front.bound[server], "/leave") as connection:
        await connection.send("goodbye")
        assert await connection.end() == (1001, "going away")


@every_server
def test_codes_of_clients_arrive(front: Behind, servers: dict[str, Backend], server: str) -> None:
    with front.websocket(server) as connection:
        here = text_of(connection.local_address)
        connection.close(4002, "seen enough")
    until(lambda: (4002, "seen enough") in servers[server].ended, "the code at the server")
    record = until(lambda: front.records().get(here), "the record")
    assert (record["backend"], record["client_close"]) == (server, 4002)


@every_server
def test_compression_is_agreed_on_between_the_ends(front: Behind, server: str) -> None:
    message = "the same again, " * (MB // 16)
    with front.websocket(server, compression="deflate") as connection:
        (extension,) = connection.protocol.extensions
        assert extension.name == "permessage-deflate"
        for _ in range(3):
            connection.send(message)
            assert json.loads(connection.recv(PATIENCE))["size"] == MB
            assert connection.recv(PATIENCE) == message


def test_autobahn_sees_the_port_that_its_clients_name(front: Behind) -> None:
    """With ``externalPort`` it compares Host; what pybalancer or autobahn listen on must not be in there."""
    with front.websocket("external", host=f"chat.test:{PUBLIC_PORT}") as connection:
        connection.send("hello")
        assert json.loads(connection.recv(PATIENCE))["server"] == "external"
    with pytest.raises(InvalidStatus) as refused, front.websocket("external"):
        pass
    assert refused.value.response.status_code == 400


def test_uvicorn_sees_the_address_of_the_client(front: Behind) -> None:
    """With --proxy-headers and --forwarded-allow-ips; whatever the client says of itself."""
    lies = {
        "X-Forwarded-For": "203.0.113.9",
        "x-forwarded-for": "203.0.113.10",
        "X-Forwarded-Proto": "https",
        "Forwarded": "for=203.0.113.11;proto=https",
        "X_Forwarded_For": "203.0.113.12",
    }
    for fields in ({}, lies):
        _, body = front.ask("starlette", "/whoami", host="app.test", source="127.3.2.1", fields=fields)
        seen = json.loads(body)
        assert (seen["client"], seen["url"]) == ("127.3.2.1", "http://app.test/whoami")
        with front.websocket(
            "starlette", "/ws", host="app.test", source="127.3.2.2", additional_headers=fields
        ) as connection:
            seen = json.loads(connection.recv(PATIENCE))
            assert (seen["client"], seen["url"]) == ("127.3.2.2", "ws://app.test/ws")
        assert "203.0.113" not in json.dumps(seen["fields"])


def test_a_starlette_application_has_pages_and_sockets_under_one_name(front: Behind) -> None:
    with requests.Session() as session:
        page = session.get(f"http://{front.bound['starlette']}/whoami", timeout=PATIENCE)
        assert page.json()["url"] == f"http://{front.bound['starlette']}/whoami"
        missing = session.get(f"http://{front.bound['starlette']}/nowhere", timeout=PATIENCE)
        assert (missing.status_code, missing.text) == (404, "Not Found")
        head = session.head(f"http://{front.bound['starlette']}/whoami", timeout=PATIENCE)
        assert (head.status_code, head.content) == (200, b"")
        wrong = session.post(f"http://{front.bound['starlette']}/whoami", timeout=PATIENCE)
        assert wrong.status_code == 405
    with front.websocket("starlette", "/ws") as connection:
        connection.recv(PATIENCE)
        for message in ("hello", b"\x00\xff", payload(MB)):
            connection.send(message)
            assert connection.recv(PATIENCE) == message
        connection.send("leave")
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as you wish")
    with pytest.raises(InvalidStatus) as refused, front.websocket("starlette", "/nowhere"):
        pass
    assert refused.value.response.status_code in (403, 404)


def test_a_response_streams_in_chunks(front: Behind) -> None:
    lines = 20_000
    url = f"http://{front.bound['starlette']}/count/{lines}"
    with requests.Session() as session, session.get(url, stream=True, timeout=PATIENCE) as response:
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert list(response.iter_lines()) == [f"line {number}".encode() for number in range(lines)]


def test_what_a_server_sends_is_there_before_the_next(front: Behind) -> None:
    """Server-sent events: the second is made when the client has the first."""
    url = f"http://{front.bound['starlette']}"
    with (
        requests.Session() as session,
        session.get(f"{url}/events", stream=True, timeout=PATIENCE) as response,
    ):
        lines = response.iter_lines(chunk_size=1)
        for number in range(3):
            assert (next(lines), next(lines)) == (f"data: {number}".encode(), b"")
            assert requests.post(f"{url}/event", timeout=PATIENCE).status_code == 204
        assert list(lines) == []


@pytest.mark.parametrize("size", [0, 1, 50 * MB])
def test_a_file_is_uploaded(front: Behind, size: int) -> None:
    """As a form, with Content-Length; and the same in chunks, as who does not know the size sends it."""
    url = f"http://{front.bound['starlette']}/upload"
    data = payload(size, 7)
    want = {"name": "data.bin", "size": size, "sha256": sha(data)}
    with requests.Session() as session:
        prepared = session.prepare_request(
            requests.Request("POST", url, files={"file": ("data.bin", io.BytesIO(data))})
        )
        assert prepared.body is not None
        assert session.send(prepared, timeout=PATIENCE).json() == want
        body = io.BytesIO(prepared.body)  # type: ignore[arg-type]
        parts = iter(lambda: body.read(100_000), b"")
        kind = {"Content-Type": prepared.headers["Content-Type"]}
        assert session.post(url, data=parts, headers=kind, timeout=PATIENCE).json() == want


def test_django_sees_host_and_origin(front: Behind) -> None:
    """AllowedHostsOriginValidator lets in who comes from app.test, and nobody from elsewhere."""
    home = Origin("http://app.test")
    with front.websocket(
        "channels", "/echo", host="app.test", origin=home, subprotocols=[Subprotocol("chat")]
    ) as connection:
        assert connection.subprotocol == "chat"
        for message in ("hello", b"\x00\xff", payload(MB)):
            connection.send(message)
            assert connection.recv(PATIENCE) == message
        connection.send("leave")
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4001
    for origin in (Origin("http://evil.test"), None):
        with pytest.raises(InvalidStatus) as refused, front.websocket("channels", "/echo", origin=origin):
            pass
        assert refused.value.response.status_code == 403


def test_django_serves_pages_beside_it(front: Behind) -> None:
    """Its own checks: of Host, and that a form comes from its own pages (Origin, Host and a cookie)."""
    response, body = front.ask("channels", "/page", host="app.test", source="127.3.2.3")
    told = json.loads(body)
    assert (response.status, told["host"], told["client"]) == (200, "app.test", "127.3.2.3")
    cookie = response.getheader("Set-Cookie")
    assert cookie is not None
    fields = {
        "Cookie": cookie.split(";")[0],
        "Content-Type": "application/x-www-form-urlencoded",
        "Origin": "http://app.test",
    }
    form = f"text=hello&csrfmiddlewaretoken={told['token']}".encode()
    response, body = front.ask("channels", "/page", form, host="app.test", fields=fields)
    assert (response.status, json.loads(body)["posted"]) == (200, "hello")
    foreign = {**fields, "Origin": "http://evil.test"}
    assert front.ask("channels", "/page", form, host="app.test", fields=foreign)[0].status == 403
    assert front.ask("channels", "/page", host="other.test")[0].status == 400
