"""Directory: which backend a client is told to connect to, and what it is told besides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from .messages import Answer, chunked, handshake, request
from .site import Client, Site
from .site import site as running

NAMES = ["app-1", "app-2", "app-3", "app-4"]
ORIGIN = "https://www.example.com"
CONFIG = f"""
[balancer]
admin = "none"
secret = "00112233445566778899aabbccddeeff"
[log]
format = "json"
[[listeners]]
name = "main"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "chat"
[[listeners.routes]]
path = "/connect"
pool = "chat"
action = "directory"
target = "/chat"
[[listeners.routes]]
path = "/where/*"
pool = "chat"
action = "directory"
strip_prefix = "/where"
key = "path"
[[listeners.routes]]
path = "/rooms/*"
pool = "chat"
key = "path"
[[listeners.routes]]
path = "/listed"
pool = "chat"
action = "directory"
origins = ["{ORIGIN}", "http://localhost:3000"]
[[listeners.routes]]
path = "/sticky"
pool = "chat"
key = "sticky"
action = "directory"
[[listeners.routes]]
path = "/nobody/listed"
pool = "nobody"
action = "directory"
origins = ["{ORIGIN}"]
[[listeners.routes]]
path = "/nobody"
pool = "nobody"
action = "directory"
[[listeners]]
name = "told"
bind = "127.0.0.1:0"
mode = "directory"
pool = "chat"
[[listeners.routes]]
path = "/listed"
pool = "chat"
origins = ["{ORIGIN}"]
[[listeners.routes]]
path = "/sticky"
pool = "chat"
key = "sticky"
[[listeners]]
name = "paced"
bind = "127.0.0.1:0"
mode = "directory"
pool = "chat"
handshakes = "1/h"
handshakes_burst = 3
[[listeners.routes]]
path = "/go"
pool = "chat"
action = "redirect"
[pools.chat]
key = "query:user"
[pools.chat.direct]
fallback = "wss://www.example.com"
alternatives = 2
[pools.nobody]
[[pools.nobody.backends]]
name = "off"
address = "127.0.0.1:1"
weight = 0
public_url = "wss://off.example.com"
"""
CONFIG += "".join(
    f'[[pools.chat.backends]]\nname = "{name}"\naddress = "@{name}@"\npublic_url = "wss://{name}.example.com"\n'
    for name in NAMES
)
RETRY = {
    "min_ms": 0,
    "max_ms": 30000,
    "base_ms": 500,
    "stable_ms": 10000,
    "window_ms": 5000,
    "fallback": "wss://www.example.com/chat?user=5",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("directory"), CONFIG, *NAMES) as site:
        yield site


def ask(site: Site, target: str, *fields: str, method: str = "GET", listener: str = "main") -> Answer:
    with site.client(request(*fields, line=f"{method} {target} HTTP/1.1"), listener) as client:
        return client.answer(method)


def said(answer: Answer) -> dict[str, Any]:
    assert answer.head.get("content-type") == "application/json"
    assert answer.head.get("cache-control") == "no-store"
    assert answer.head.get("etag") is None
    found: dict[str, Any] = json.loads(answer.body)
    return found


def test_a_client_is_told_where_to_connect(told: Site) -> None:
    answer = ask(told, "/connect?user=5")
    assert answer.status == 200
    content = said(answer)
    backend, alternatives = content.pop("backend"), content.pop("alternatives")
    assert backend in NAMES
    assert content == {
        "url": f"wss://{backend}.example.com/chat?user=5",
        "expires_in": 30,
        "retry": RETRY,
    }
    others = [urlsplit(url) for url in alternatives]
    hosts = {f"{backend}.example.com", *(url.netloc for url in others)}
    assert len(hosts) == 3
    assert {(url.scheme, url.path, url.query) for url in others} == {("wss", "/chat", "user=5")}
    assert answer.head.get("access-control-allow-origin") is None


def test_the_directory_and_the_balancer_pick_the_same_backend_for_10000_keys(told: Site) -> None:
    """Over real sockets, each of the two over one connection that is kept."""
    seen = dict.fromkeys(NAMES, 0)
    with told.client() as directory, told.client() as relayed:
        for number in range(10_000):
            where = said(directory.ask(request(line=f"GET /connect?user={number} HTTP/1.1")))
            served = relayed.ask(request(line=f"HEAD /chat?user={number} HTTP/1.1"), to="HEAD")
            assert where["backend"] == served.head.get("x-backend"), number
            seen[where["backend"]] += 1
    assert min(seen.values()) > 2000, seen


def test_the_key_is_that_of_the_request_at_the_backend(told: Site) -> None:
    found = set()
    for number in range(50):
        where = said(ask(told, f"/where/rooms/{number}?a=b"))
        assert urlsplit(where["url"]).path == f"/rooms/{number}"
        assert urlsplit(where["url"]).query == "a=b"
        assert where["backend"] == ask(told, f"/rooms/{number}").told()["backend"]
        found.add(where["backend"])
    assert len(found) == 4
    assert said(ask(told, "/where"))["url"].endswith(".example.com/")
    assert said(ask(told, "/where?x"))["url"].endswith(".example.com/?x")


@pytest.mark.parametrize("target", ["/", "/x/y?z", "/connect"])
def test_a_listener_of_its_own_relays_nothing(told: Site, target: str) -> None:
    for recorder in told.recorders.values():
        recorder.forget()
    assert said(ask(told, target, listener="told"))["url"].endswith(f".example.com{target}")
    assert ask(told, target, method="POST", listener="told").status == 405
    with told.client(handshake(line=f"GET {target} HTTP/1.1"), "told") as client:
        assert client.answer().status == 307
    assert not any(recorder.talks for recorder in told.recorders.values())


def test_head_is_answered_like_get_and_sends_nobody(told: Site) -> None:
    get, head = (ask(told, "/connect?user=7", method=method) for method in ("GET", "HEAD"))
    assert get.head.fields == head.head.fields
    assert (bool(get.body), head.body) == (True, b"")
    # There are three places, and whoever only looks takes none.
    for _ in range(9):
        assert ask(told, "/", method="HEAD", listener="paced").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "BREW"])
def test_other_methods_are_not_allowed(told: Site, method: str) -> None:
    body = b"x" * 10
    data = request(f"Content-Length: {len(body)}", line=f"{method} /connect HTTP/1.1", body=body)
    with told.client(data) as client:
        answer = client.answer()
        assert (answer.status, answer.head.get("allow")) == (405, "GET, HEAD, OPTIONS")
        assert client.rest() == b""


class TestOrigins:
    """CORS (https://fetch.spec.whatwg.org), by a list."""

    def test_a_listed_page_may_read_the_answer(self, told: Site) -> None:
        for origin in (ORIGIN, "http://localhost:3000"):
            answer = ask(told, "/listed?user=1", f"Origin: {origin}")
            assert said(answer)["backend"]
            assert answer.head.get("access-control-allow-origin") == origin
            assert answer.head.get("access-control-allow-credentials") == "true"
            assert answer.head.get("access-control-expose-headers") == "Retry-After"
            assert answer.head.get("vary") == "Origin"

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "null", f"{ORIGIN}.evil.example", f"{ORIGIN}:8443", "*", ""]
    )
    def test_others_are_refused(self, told: Site, origin: str) -> None:
        for method in ("GET", "OPTIONS"):
            answer = ask(told, "/listed", f"Origin: {origin}", method=method)
            assert answer.status == 403
            assert answer.head.get("access-control-allow-origin") is None
        both = ask(told, "/listed", f"Origin: {ORIGIN}", f"Origin: {origin}")
        assert both.status == 403

    def test_who_is_no_page_may_ask(self, told: Site) -> None:
        answer = ask(told, "/listed")
        assert (answer.status, answer.head.get("vary")) == (200, "Origin")
        assert answer.head.get("access-control-allow-origin") is None

    def test_without_a_list_only_pages_of_its_own_can_read_it(self, told: Site) -> None:
        answer = ask(told, "/connect", "Origin: https://anybody.example")
        assert answer.status == 200
        assert not [name for name in answer.head.names if name.startswith("access-control-")]

    def test_a_browser_may_ask_whether_it_may_ask(self, told: Site) -> None:
        wishes = ("Access-Control-Request-Method: GET", "Access-Control-Request-Headers: x-user, X-Room")
        answer = ask(told, "/listed", f"Origin: {ORIGIN}", *wishes, method="OPTIONS")
        assert (answer.status, answer.body) == (204, b"")
        assert answer.head.get("content-length") is None
        assert answer.head.get("access-control-allow-origin") == ORIGIN
        assert answer.head.get("access-control-allow-methods") == "GET, HEAD"
        assert answer.head.get("access-control-allow-headers") == "x-user, X-Room"
        for bad in ("x-user\t", "x;y", "x" * 1025):
            refused = ask(
                told,
                "/listed",
                f"Origin: {ORIGIN}",
                f"Access-Control-Request-Headers: {bad}",
                method="OPTIONS",
            )
            allowed = refused.head.get("access-control-allow-headers")
            assert allowed is None or allowed == bad.strip(), bad

    def test_of_a_directory_without_a_list_it_learns_the_methods(self, told: Site) -> None:
        answer = ask(told, "/connect", f"Origin: {ORIGIN}", method="OPTIONS")
        assert (answer.status, answer.head.get("allow")) == (204, "GET, HEAD, OPTIONS")
        assert answer.head.get("access-control-allow-origin") is None
        assert ask(told, "*", method="OPTIONS", listener="told").status == 204


class TestConnections:
    """What becomes of the connection."""

    def test_it_goes_on(self, told: Site) -> None:
        with told.client() as client:
            for number in range(5):
                answer = client.ask(request(line=f"GET /connect?user={number} HTTP/1.1"))
                assert (answer.status, answer.head.options()) == (200, set())
            # Also to a backend, and back.
            assert client.ask(request(line="GET /rooms/1 HTTP/1.1")).status == 200
            assert client.ask(request(line="GET /connect HTTP/1.1")).status == 200
            assert client.ask(request("Connection: close", line="GET /connect HTTP/1.1")).status == 200
            assert client.rest() == b""

    def test_http_1_0(self, told: Site) -> None:
        with told.client() as client:
            kept = client.ask(request("Connection: keep-alive", line="GET /connect HTTP/1.0"))
            assert kept.head.options() == {"keep-alive"}
            assert client.ask(request(line="GET /connect HTTP/1.0")).head.options() == {"close"}
            assert client.rest() == b""

    def test_requests_that_are_sent_ahead_get_no_turn(self, told: Site) -> None:
        one = request(line="GET /connect HTTP/1.1")
        with told.client(one * 400) as client:
            answer = client.answer()
            assert (answer.status, answer.head.options()) == (200, {"close"})
            assert client.rest() == b""

    @pytest.mark.parametrize("body", [b"x" * 5, b""], ids=len)
    def test_a_body_is_no_request(self, told: Site, body: bytes) -> None:
        smuggled = request(line="GET /connect?user=evil HTTP/1.1")
        head = request(f"Content-Length: {len(smuggled)}", line="GET /connect HTTP/1.1")
        with told.client(head) as client:
            answer = client.answer()
            assert answer.head.options() == {"close"}
            client.send(smuggled)
            assert client.rest() == b""
        with told.client(
            request("Transfer-Encoding: chunked", line="GET /connect HTTP/1.1") + chunked(b"abc")
        ) as client:
            assert client.answer().status == 200
            assert client.rest() == b""
        with told.client(
            request("Transfer-Encoding: chunked", line="GET /connect HTTP/1.1") + b"zz\r\n"
        ) as client:
            assert client.answer().status == 400


class TestSticky:
    """Clients that are bound by the balancer's cookie."""

    def test_a_client_comes_back_to_the_backend_it_was_told(self, told: Site) -> None:
        found = set()
        for _ in range(12):
            first = ask(told, "/sticky")
            cookie = (first.head.get("set-cookie") or "").partition(";")[0]
            backend = said(first)["backend"]
            for _ in range(3):
                again = ask(told, "/sticky", f"Cookie: {cookie}")
                assert (said(again)["backend"], again.head.get("set-cookie")) == (backend, None)
            found.add(backend)
        assert len(found) > 1

    def test_a_cookie_that_is_not_ours_binds_to_nobody(self, told: Site) -> None:
        name = (ask(told, "/sticky").head.get("set-cookie") or "").partition("=")[0]
        for value in ("app-1", "A" * 22, ""):
            answer = ask(told, "/sticky", f"Cookie: {name}={value}")
            assert (answer.status, answer.head.get("set-cookie") is None) == (200, False)


class TestPutOff:
    """Who is to come again."""

    def test_nobody_is_there(self, told: Site) -> None:
        waits = set()
        for _ in range(20):
            answer = ask(told, "/nobody?x")
            content = said(answer)
            assert (answer.status, content["error"]) == (503, "no backend is up")
            wait = content["retry"]["after_ms"]
            assert 1000 <= wait < 5000
            after = int(answer.head.get("retry-after") or "")
            assert (after - 1) * 1000 < wait <= after * 1000
            assert content["retry"]["fallback"] is None
            waits.add(wait)
        assert len(waits) > 10, "all would come back together"

    def test_handshakes_pace_who_is_sent_where(self, told: Site) -> None:
        """There is a new place once an hour, and nobody is told to wait for so long."""
        answers = [ask(told, f"/chat?user={number}", listener="paced") for number in range(12)]
        given = [answer.status for answer in answers].count(200)
        assert [answer.status for answer in answers] == [200] * given + [503] * (12 - given)
        assert given == 3
        for answer in answers[given:]:
            content = said(answer)
            assert "url" not in content
            assert 0 <= content["retry"]["after_ms"] <= 30000
            assert 1 <= int(answer.head.get("retry-after") or "") <= 30
        # Nor are handshakes sent on; a page is no part of such a storm.
        with told.client(handshake(line="GET /go HTTP/1.1"), "paced") as client:
            refused = client.answer()
            assert (refused.status, refused.head.get("location")) == (503, None)
        assert ask(told, "/go", listener="paced").status == 307

    def test_a_listed_page_can_read_how_long(self, told: Site) -> None:
        """The answer that it needs most."""
        for target, method, status in (("/nobody/listed", "GET", 503), ("/listed", "POST", 405)):
            answer = ask(told, target, f"Origin: {ORIGIN}", method=method)
            assert (answer.status, answer.head.get("access-control-allow-origin")) == (status, ORIGIN)


def test_what_was_answered_is_recorded(told: Site) -> None:
    content = said(ask(told, "/connect?user=recorded"))

    def record(target: str) -> dict[str, Any]:
        from ..net import until

        def found() -> list[dict[str, Any]]:
            lines = [
                json.loads(line) for line in list(told.serving.lines) if target in line and line[0] == "{"
            ]
            return [line for line in lines if line.get("target") == target]

        (line,) = until(found, f"a record of {target}")
        return dict(line)

    line = record("/connect?user=recorded")
    assert (line["status"], line["backend"], line["route"]) == (200, content["backend"], "/connect")
    assert (line["reason"], line["pool"]) == ("finished", "chat")
    ask(told, "/nobody?recorded")
    line = record("/nobody?recorded")
    assert (line["status"], line["reason"]) == (503, "no-backend")
    assert "backend" not in line


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example/",
        "///evil.example",
        "/@evil.example",
        "/\t",
        "/%0d%0aX-Evil:1",
        "/.evil.example",
        "/:443",
        "/..//evil.example",
        "/%2f%2fevil.example",
        "/?//evil.example",
        "/?url=https://evil.example",
        "http://evil.example/",
        "wss://evil.example/",
        "/x\\y",
        "\\\\evil.example",
        "/?\\evil",
        "/#@evil.example",
        "/x y",
        '/"',
        "/<script>",
        "/?<script>",
        "evil.example",
        "@evil.example",
        "/\x00",
        "/\x0b",
        "/\xa0",
        "/\xe2\x80\xa8",
        "/?a\rb",
        "/?a\nb",
        "/a\rLocation: x",
    ],
)
def test_no_target_leads_elsewhere(told: Site, target: str) -> None:
    """Open redirects and header injection: by path and by query."""
    with told.client(request(line=f"GET {target} HTTP/1.1"), "told") as client:
        answer = client.answer()
    if answer.status == 400:
        return
    assert answer.status == 200
    content = said(answer)
    for url in (content["url"], *content["alternatives"], content["retry"]["fallback"]):
        parts = urlsplit(url)
        assert parts.scheme == "wss"
        assert parts.netloc in {"www.example.com", *(f"{name}.example.com" for name in NAMES)}
        assert url.endswith(f".example.com{target}")
        assert url.isascii()
        assert url.isprintable()
    assert "x-evil" not in answer.head.names
    assert b"<" not in answer.body


def test_nothing_broke(told: Site) -> None:
    assert told.errors() == []
    assert isinstance(told.client(), Client)
