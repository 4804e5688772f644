"""Redirect: clients are sent to their backend, for handshakes and for pages."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect as websocket
from websockets.sync.server import ServerConnection, serve

from ..net import PATIENCE, text_of
from .messages import Answer, handshake, request
from .site import Site
from .site import site as running

NAMES = ["app-1", "app-2", "app-3"]
CONFIG = """
[balancer]
admin = "none"
secret = "00112233445566778899aabbccddeeff"
[[listeners]]
name = "main"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "chat"
[[listeners.routes]]
path = "/go/*"
pool = "chat"
action = "redirect"
strip_prefix = "/go"
[[listeners.routes]]
path = "/guarded"
pool = "chat"
action = "redirect"
origins = ["https://www.example.com"]
[[listeners.routes]]
path = "/connect"
pool = "chat"
action = "directory"
target = "/chat"
[[listeners.routes]]
path = "/nobody"
pool = "nobody"
action = "redirect"
[[listeners]]
name = "all"
bind = "127.0.0.1:0"
mode = "websocket"
[[listeners.routes]]
pool = "plain"
action = "redirect"
[pools.chat]
key = "query:user"
[pools.nobody]
[[pools.nobody.backends]]
name = "off"
address = "127.0.0.1:1"
weight = 0
public_url = "wss://off.example.com"
[pools.plain]
[[pools.plain.backends]]
name = "only"
address = "127.0.0.1:1"
public_url = "http://only.example.com:8080"
"""
CONFIG += "".join(
    f'[[pools.chat.backends]]\nname = "{name}"\naddress = "@{name}@"\npublic_url = "wss://{name}.example.com"\n'
    for name in NAMES
)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("redirect"), CONFIG, *NAMES) as site:
        yield site


def ask(site: Site, data: bytes, listener: str = "main", to: str = "GET") -> Answer:
    with site.client(data, listener) as client:
        return client.answer(to)


def location(answer: Answer) -> str:
    assert answer.status == 307
    assert answer.head.get("cache-control") == "no-store"
    return answer.head.get("location") or ""


def test_handshakes_and_pages_go_to_the_backend_that_the_balancer_picks(sent: Site) -> None:
    found = set()
    for user in range(40):
        target = f"/rooms/7?user={user}&x=%2F"
        relayed = ask(sent, request(line=f"GET {target} HTTP/1.1")).told()["backend"]
        page = location(ask(sent, request(line=f"GET /go{target} HTTP/1.1")))
        assert page == f"https://{relayed}.example.com{target}"
        opened = location(ask(sent, handshake(line=f"GET /go{target} HTTP/1.1")))
        assert opened == f"wss://{relayed}.example.com{target}"
        found.add(relayed)
    assert found == set(NAMES)


def test_the_scheme_is_that_of_the_request(sent: Site) -> None:
    """``http`` and ``ws`` are one, ``https`` and ``wss`` the other, however the URL was configured."""
    assert location(ask(sent, request(), "all")) == "http://only.example.com:8080/"
    assert location(ask(sent, handshake(), "all")) == "ws://only.example.com:8080/ws"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_307_keeps_the_method_so_all_are_sent(sent: Site, method: str) -> None:
    data = request("Content-Length: 3", line=f"{method} /go/x HTTP/1.1", body=b"abc")
    with sent.client(data) as client:
        answer = client.answer(method)
        assert urlsplit(location(answer)).path == "/x"
        assert bool(answer.body) == (method != "HEAD")
        # The body goes where the client sends it next; here it would be read as a request.
        assert client.rest() == b""


def test_a_connection_goes_on_after_a_page_was_sent_away(sent: Site) -> None:
    with sent.client() as client:
        for number in range(3):
            assert client.ask(request(line=f"GET /go/{number} HTTP/1.1")).status == 307
        assert client.ask(request(line="GET /here HTTP/1.1")).status == 200


def test_a_handshake_at_a_directory_is_sent_at_once(sent: Site) -> None:
    """Who follows redirects needs no directory."""
    told = ask(sent, request(line="GET /connect?user=3 HTTP/1.1")).told()
    assert location(ask(sent, handshake(line="GET /connect?user=3 HTTP/1.1"))) == told["url"]


def test_pages_of_others_open_nothing(sent: Site) -> None:
    for origin, status in (("https://www.example.com", 307), ("https://evil.example", 403)):
        opened = handshake(f"Origin: {origin}", line="GET /guarded HTTP/1.1")
        assert ask(sent, opened).status == status
    # To follow a link from elsewhere is not to open a WebSocket.
    linked = request("Origin: https://evil.example", line="GET /guarded HTTP/1.1")
    assert ask(sent, linked).status == 307


@pytest.mark.parametrize(
    "origins", [["https://evil.example"], ["null"], ["https://www.example.com", "https://evil.example"], []]
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
def test_pages_of_others_read_nothing(sent: Site, method: str, origins: list[str]) -> None:
    fields = [f"Origin: {origin}" for origin in origins]
    wish = "Access-Control-Request-Headers: x-user"
    answer = ask(sent, request(*fields, wish, line=f"{method} /guarded HTTP/1.1"))
    assert answer.status == (204 if method == "OPTIONS" else 307)
    assert not [name for name in answer.head.names if name.startswith("access-control-")]
    assert answer.head.get("vary") == "Origin"
    listed = ask(sent, request("Origin: https://www.example.com", line=f"{method} /guarded HTTP/1.1"))
    assert listed.head.get("access-control-allow-origin") == "https://www.example.com"


def test_where_nobody_is_nobody_is_sent(sent: Site) -> None:
    for data in (request(line="GET /nobody HTTP/1.1"), handshake(line="GET /nobody HTTP/1.1")):
        answer = ask(sent, data)
        assert (answer.status, answer.head.get("location")) == (503, None)
        assert 1 <= int(answer.head.get("retry-after") or "") <= 5


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example/",
        "/@evil.example",
        "/%0d%0aSet-Cookie:%20a=b",
        "/%0aX: y",
        "/..//evil.example",
        "/:80",
        "/;@evil.example",
        "/?//evil.example",
        "/?a=%0d%0aX-Evil:1",
        "/?\\evil",
        "/\\evil.example",
        "/\t//evil.example",
        "/x\rLocation: https://evil.example",
        "/x\nX-Evil: 1",
        "/x\x00",
        "/\x85",
        "/?x\r\r\n\r\n<html>",
        "/#evil",
    ],
)
def test_no_path_and_no_query_leads_elsewhere(sent: Site, path: str) -> None:
    for data in (request(line=f"GET {path} HTTP/1.1"), handshake(line=f"GET {path} HTTP/1.1")):
        for listener, prefix in (("all", ""), ("main", "/go")):
            moved = data.replace(b"GET ", f"GET {prefix}".encode(), 1)
            with sent.client(moved, listener) as client:
                answer = client.answer()
            if answer.status == 400:
                continue
            if answer.status in (101, 200):
                # To the route it is no path below /go, so it was relayed.
                assert b"/go/.." in moved
                continue
            url = location(answer)
            parts = urlsplit(url)
            host = "only.example.com:8080" if listener == "all" else parts.netloc
            assert parts.netloc == host
            assert listener == "all" or host in {f"{name}.example.com" for name in NAMES}
            assert url.endswith(f"{host}{path}")
            allowed = {"location", "cache-control", "content-type", "content-length", "connection"}
            assert set(answer.head.names) <= allowed, answer.head.raw


def test_an_absolute_target_of_another_host_is_refused(sent: Site) -> None:
    for target in ("http://evil.example/", "https://a.test@evil.example/", "evil.example:80", "*"):
        assert ask(sent, request(line=f"GET {target} HTTP/1.1"), "all").status == 400
    for host in ("evil.example", "a.test, evil.example", "a@evil.example"):
        # Whatever it names: where clients are sent is the configuration's to say.
        answer = ask(sent, request(host=host), "all")
        assert answer.status == 400 or location(answer) == "http://only.example.com:8080/"


def test_websockets_follows_the_redirect(tmp_path: Path) -> None:
    """PyPI's client, and its server, which is asked for the very path and query."""

    def answer(connection: ServerConnection) -> None:
        assert connection.request is not None
        connection.send(connection.request.path)
        for message in connection:
            connection.send(message)

    listening = socket.create_server(("127.0.0.1", 0))
    with serve(answer, sock=listening) as server:
        import threading

        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"ws://{text_of(listening.getsockname())}"
            config = CONFIG.replace("http://only.example.com:8080", url)
            with running(tmp_path, config, *NAMES) as site:
                address = site.address("all")
                with websocket(
                    f"ws://{address}/rooms/7?user=5&x=%20", proxy=None, open_timeout=PATIENCE
                ) as client:
                    assert client.recv(PATIENCE) == "/rooms/7?user=5&x=%20"
                    client.send("hello")
                    assert client.recv(PATIENCE) == "hello"
                    assert client.socket.getpeername() == listening.getsockname()
        finally:
            server.shutdown()
            thread.join()


def test_nothing_broke(sent: Site) -> None:
    assert sent.errors() == []
