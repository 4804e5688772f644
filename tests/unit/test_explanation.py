"""What ``explain`` says of requests: the answers of an engine that nobody connects to."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pybalancer import _core
from pybalancer.config.compile import compile_plan
from pybalancer.config.load import load_text
from pybalancer.explanation import Asked, explain_request, parse_header

CONFIG = """
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "rest"
head_limit = 2048
target_limit = 1024
[[listeners.routes]]
path = "/rooms/{room}/*"
pool = "rooms"
key = "path"
[[listeners.routes]]
name = "beta"
host = "*.example.com"
header = { X-Beta = true, X-Tier = "gold" }
cookie = { user = true }
query = { v = "2" }
pool = "rooms"
[[listeners.routes]]
path = "/app"
pool = "rooms"
origins = ["https://example.com"]
[[listeners]]
name = "strict"
bind = "127.0.0.1:0"
mode = "websocket"
[[listeners.routes]]
path = "/only"
pool = "rest"
[[listeners]]
name = "streams"
bind = "127.0.0.1:0"
pool = "rest"
[pools.rest]
[[pools.rest.backends]]
name = "rest-1"
address = "127.0.0.1:1"
[pools.rooms]
key = "header:X-User"
[[pools.rooms.backends]]
name = "room-1"
address = "127.0.0.1:1"
[[pools.rooms.backends]]
name = "room-2"
address = "127.0.0.1:2"
[[pools.rooms.backends]]
name = "room-3"
address = "127.0.0.1:3"
"""

Explain = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def explain() -> Iterator[Explain]:
    config = load_text(CONFIG)
    addresses = {
        (name, backend.name): backend.address
        for name, pool in config.pools.items()
        for backend in pool.backends
    }
    engine = _core.Engine(workers=1)
    engine.apply(compile_plan(config, addresses, {}, bytes(16)))

    def answer(source: str = "192.0.2.1:1234", **asked: Any) -> dict[str, Any]:
        return explain_request(engine, config, source, Asked(**{"listener": "public", **asked}))

    yield answer
    engine.close()


def test_route_pool_and_order_of_backends(explain: Explain) -> None:
    answer = explain(path="/rooms/7/x?y=1", host="chat.example.com")
    assert (answer["route"], answer["pool"], answer["policy"]) == ("/rooms/{room}/*", "rooms", "maglev")
    assert answer["key"] == "path"  # The route's, not the pool's.
    assert answer["conditions"] == {"path": "/rooms/{room}/*"}
    assert (answer["host"], answer["path"]) == ("chat.example.com", "/rooms/7/x?y=1")
    assert answer["refused"] is None
    first, *others = answer["choices"]
    assert (first["backend"], first["verdict"]) == (answer["backend"], "picked")
    assert {choice["verdict"] for choice in others} == {"next"}
    assert {choice["backend"] for choice in answer["choices"]} == {"room-1", "room-2", "room-3"}


def test_the_key_decides_and_nothing_else(explain: Explain) -> None:
    def backends(**many: list[Any]) -> set[str]:
        ((name, values),) = many.items()
        return {explain(**{"path": "/rooms/7", name: value})["backend"] for value in values}

    sources = [f"192.0.2.{n}:{n}" for n in range(1, 40)]
    assert len(backends(source=sources)) == 1
    assert len(backends(host=[f"h{n}" for n in range(40)])) == 1
    assert backends(path=[f"/rooms/{n}" for n in range(40)]) == {"room-1", "room-2", "room-3"}


def test_everything_that_a_route_asks_for_must_be_there(explain: Explain) -> None:
    whole: dict[str, Any] = {
        "host": "a.b.example.com",
        "path": "/x?v=2",
        "headers": [("x-beta", "yes"), ("X-Tier", "gold"), ("Cookie", "a=1; user=5")],
    }
    answer = explain(**whole)
    assert answer["route"] == "beta"
    assert answer["conditions"] == {
        "host": "*.example.com",
        "header": {"X-Beta": True, "X-Tier": "gold"},
        "cookie": {"user": True},
        "query": {"v": "2"},
    }
    for change in ({"host": "example.com"}, {"path": "/x?v=3"}, {"headers": whole["headers"][1:]}):
        assert explain(**{**whole, **change})["route"] == "default"


def test_what_no_route_matches(explain: Explain) -> None:
    answer = explain(path="/elsewhere")
    assert (answer["route"], answer["pool"], answer["backend"]) == ("default", "rest", "rest-1")
    assert answer["conditions"] == {}
    lost = explain(listener="strict", path="/elsewhere")
    assert lost["refused"]["status"] == 404
    assert (lost["route"], lost["pool"], lost["backend"], lost["choices"]) == (None, None, None, [])
    assert explain(listener="strict", path="/only?x")["route"] == "/only"


def test_22_a_foreign_page_may_not_open_a_websocket(explain: Explain) -> None:
    def of(*origins: str, **asked: Any) -> Any:
        headers = [*(("Origin", origin) for origin in origins), *asked.pop("headers", ())]
        return explain(path="/app", headers=headers, **asked)["refused"]

    assert of("https://evil.example")["status"] == 403
    assert of("https://example.com", "https://evil.example")["status"] == 403
    assert of("null")["status"] == 403
    assert of() is of("https://example.com") is of("HTTPS://Example.com") is None
    # Reading a page is no WebSocket.
    assert of("https://evil.example", headers=[("Connection", "close")]) is None
    refused = explain(path="/app", headers=[("Origin", "https://evil.example")])
    assert (refused["route"], refused["pool"], refused["backend"]) == ("/app", "rooms", None)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"path": "/a b"}, 400),
        ({"path": "/a#b"}, 400),
        ({"path": "rooms"}, 400),
        ({"path": "/größe"}, 400),
        ({"path": "*"}, 400),
        ({"path": "/" + 1024 * "a"}, 414),
        ({"headers": [("X-A", 2048 * "a")]}, 431),
        ({"headers": [("X-A", "a")] * 101}, 431),
        ({"headers": [("Host", "a"), ("Host", "b")]}, 400),
        ({"host": "a", "headers": [("Host", "a")]}, 400),
        ({"host": "a/b"}, 400),
        ({"host": ""}, None),
        ({"headers": [("Host", "")]}, 400),
        ({"headers": [("Transfer_Encoding", "chunked")]}, 400),
        ({"headers": [("Content-Length", "5")]}, 400),
        ({"headers": [("Sec-WebSocket-Version", "8")]}, 426),
        ({"headers": [("Sec-WebSocket-Key", "short")]}, 400),
        ({"headers": [("Expect", "something")]}, 417),
        ({"headers": [("X-A", "a\tb"), ("X-B", "")]}, None),
    ],
)
def test_what_http_does_not_allow_is_answered_as_clients_are(
    explain: Explain, asked: dict[str, Any], status: int | None
) -> None:
    refused = explain(**asked)["refused"]
    assert (refused and refused["status"]) == status
    assert refused is None or refused["why"]


@pytest.mark.parametrize(
    "asked",
    [
        {"path": "/a\r\nX-Admin: 1"},
        {"path": "/a\nb"},
        {"host": "a\r\nX-Admin: 1"},
        {"headers": [("X-A", "1\r\nX-Admin: 1")]},
        {"headers": [("X-A", "1\0")]},
        {"headers": [("X-A: 1\r\nX-Admin", "1")]},
        {"headers": [("X-Admin: 1, X-A", "1")]},
        {"headers": [("X A", "1")]},
        {"headers": [("", "1")]},
    ],
)
def test_a_line_stays_one_line(explain: Explain, asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"control characters|is not the name of a header"):
        explain(**asked)


def test_a_request_is_a_handshake_unless_it_says_otherwise() -> None:
    assert Asked(path="/a?b").head() == (
        b"GET /a?b HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    plain = Asked(host="h", headers=[("connection", "close"), ("X-A", "1")])
    assert plain.head() == b"GET / HTTP/1.1\r\nHost: h\r\nconnection: close\r\nX-A: 1\r\n\r\n"
    assert not plain.handshake
    assert Asked(headers=[("host", "h"), ("Upgrade", "h2c")]).head() == (
        b"GET / HTTP/1.1\r\nhost: h\r\nUpgrade: h2c\r\n\r\n"
    )
    version = Asked(headers=[("sec-websocket-version", "12")])
    assert version.handshake
    assert version.head().lower().count(b"sec-websocket-version") == 1


def test_which_listener_is_meant(explain: Explain) -> None:
    with pytest.raises(LookupError, match=r"several listeners that read requests.*: public, strict"):
        explain(listener=None)
    with pytest.raises(LookupError, match=r"no listener 'publik'; there are: public, strict, streams"):
        explain(listener="publik")
    with pytest.raises(LookupError, match=r"'streams' reads no requests: ask for its pool 'rest'"):
        explain(listener="streams")


def test_headers_as_people_write_them() -> None:
    assert parse_header("X-User: 5") == parse_header("X-User:5") == ("X-User", "5")
    assert parse_header("X-Empty:") == ("X-Empty", "")
    assert parse_header("X-Time: 10:30 ") == ("X-Time", "10:30")
    with pytest.raises(ValueError, match="is no header such as"):
        parse_header("X-User")
