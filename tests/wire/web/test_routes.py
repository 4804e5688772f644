"""Routes: which pool a request goes to, and what a route does to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .messages import handshake, request
from .recorder import replies, response
from .site import Site
from .site import site as running

CONFIG = """
[balancer]
admin = "none"
[log]
connections = false
[[listeners]]
name = "main"
bind = "127.0.0.1:0"
mode = "websocket"
trusted = ["127.0.0.9"]
[[listeners.routes]]
path = "/rooms/{id}/admin"
pool = "admin"
[[listeners.routes]]
path = "/rooms/*"
pool = "rooms"
[[listeners.routes]]
path = "/only"
pool = "only"
[[listeners.routes]]
path = "/a/*/c"
pool = "middle"
[[listeners.routes]]
host = "*.wild.test"
pool = "wild"
[[listeners.routes]]
host = "exact.test"
pool = "exact"
[[listeners.routes]]
host = "port.test:8080"
pool = "port"
[[listeners.routes]]
header = { "X-Beta" = true, "X-Level" = "7" }
pool = "beta"
[[listeners.routes]]
cookie = { "tier" = "gold" }
pool = "gold"
[[listeners.routes]]
query = { "v" = "2", "debug" = true }
pool = "query"
[[listeners.routes]]
path = "/both/*"
host = "both.test"
header = { "X-Both" = true }
pool = "both"
[[listeners.routes]]
path = "/strip/*"
strip_prefix = "/strip"
pool = "strip"
[[listeners.routes]]
path = "/edits/*"
pool = "edits"
[listeners.routes.request_headers]
set = { "X-Tier" = "gold", "User-Agent" = "ours", "X-Request-Id" = "fixed" }
remove = ["Cookie", "x-secret", "X-Forwarded-Host"]
[listeners.routes.response_headers]
set = { "Server" = "ours", "X-Frame-Options" = "DENY" }
remove = ["X-Powered-By", "Set-Cookie"]
[[listeners.routes]]
path = "/guarded/*"
pool = "guarded"
origins = ["https://a.test", "https://b.test:8443"]
[[listeners]]
name = "whole"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "rest"
[[listeners.routes]]
path = "/fresh"
pool = "rooms"
"""
POOLS = [
    "admin",
    "rooms",
    "only",
    "middle",
    "wild",
    "exact",
    "port",
    "beta",
    "gold",
    "query",
    "both",
    "strip",
    "edits",
    "guarded",
    "rest",
]
CONFIG += "".join(
    f'[pools.{name}]\n[[pools.{name}.backends]]\nname = "{name}-1"\naddress = "@{name}@"\n' for name in POOLS
)


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("routes"), CONFIG, *POOLS) as site:
        yield site


def got(
    site: Site, target: str, *fields: str, host: str = "a.test", listener: str = "main"
) -> dict[str, object]:
    with site.client(request(*fields, line=f"GET {target} HTTP/1.1", host=host), listener) as client:
        return client.answer().told()


PATHS = {
    "/rooms/7": "rooms",
    "/rooms/": "rooms",
    "/rooms": "rooms",
    "/rooms?x=/only": "rooms",
    "/rooms/7/x/y": "rooms",
    "/%72ooms/7": "rooms",
    "/rooms/7/admin": "admin",
    "/rooms/7/admin?x": "admin",
    "/rooms//admin": "rooms",
    "/rooms/7/admin/": "rooms",
    "/rooms/7/%61dmin": "admin",
    "/only": "only",
    "/only?a": "only",
    "/a/b/c": "middle",
    "/a//c": "middle",
}
NOWHERE = [
    "/",
    "/roomsx",
    "/Rooms/7",
    "/only/",
    "/onl",
    "/a/c",
    "/a/b/c/d",
    "//rooms/7",
    "/x/rooms/7",
    "/rooms/../only/x",
]
NOWHERE += ["/rooms/%2e%2e/x", "/x?/rooms/7", "/rooms%2f7", "/only/../only"]


@pytest.mark.parametrize(("target", "pool"), PATHS.items())
def test_paths(routed: Site, target: str, pool: str) -> None:
    told = got(routed, target)
    assert told["backend"] == pool
    # Matching changes nothing.
    assert told["line"] == f"GET {target} HTTP/1.1"


@pytest.mark.parametrize("target", NOWHERE)
def test_paths_that_lead_nowhere(routed: Site, target: str) -> None:
    for recorder in routed.recorders.values():
        recorder.forget()
    for data in (request(line=f"GET {target} HTTP/1.1"), handshake(line=f"GET {target} HTTP/1.1")):
        with routed.client(data + data) as client:
            answer = client.answer()
            assert answer.status == 404
            assert "close" in answer.head.options()
            assert client.rest() == b""
    assert got(routed, "/rooms/1")["backend"] == "rooms"
    assert [len(recorder.talks) for recorder in routed.recorders.values()].count(0) == len(POOLS) - 1


@pytest.mark.parametrize(
    ("host", "pool"),
    [
        ("x.wild.test", "wild"),
        ("x.y.WILD.test:99", "wild"),
        ("x.wild.test.", "wild"),
        ("exact.test", "exact"),
        ("EXACT.test:1", "exact"),
        ("port.test:8080", "port"),
        ("wild.test", None),
        ("xwild.test", None),
        ("x.exact.test", None),
        ("exact.test.evil.test", None),
        ("port.test", None),
        ("port.test:8081", None),
    ],
)
def test_hosts(routed: Site, host: str, pool: str | None) -> None:
    if pool:
        assert got(routed, "/", host=host)["backend"] == pool
    else:
        with routed.client(request(host=host)) as client:
            assert client.answer().status == 404


@pytest.mark.parametrize(
    ("target", "fields", "pool"),
    [
        ("/", ["x-beta: ", "X-LEVEL: 7"], "beta"),
        ("/", ["X-Beta: yes", "X-Level: 7", "X-Level: 8"], "beta"),
        ("/", ["X-Beta: yes", "X-Level: 8", "X-Level: 7"], None),
        ("/", ["X-Beta: yes"], None),
        ("/", ["X-Level: 7"], None),
        ("/", ["X_Beta: yes", "X-Level: 7"], None),
        ("/", ["X-Beta: yes", "X-Level: 77"], None),
        ("/", ["Cookie: a=b; tier=gold"], "gold"),
        ("/", ["Cookie: a=b", "cookie:tier=gold;c"], "gold"),
        ("/", ["Cookie: tier=silver; tier=gold"], None),
        ("/", ["Cookie: Tier=gold"], None),
        ("/", ["Cookie: xtier=gold"], None),
        ("/?v=2&debug", [], "query"),
        ("/?debug=1&v=%32", [], "query"),
        ("/?debug=1&v=1&v=2", [], None),
        ("/?v=2", [], None),
        ("/?xv=2&debug", [], None),
        ("/v=2&debug", [], None),
    ],
)
def test_fields_cookies_and_parameters(
    routed: Site, target: str, fields: list[str], pool: str | None
) -> None:
    if pool:
        assert got(routed, target, *fields)["backend"] == pool
    else:
        with routed.client(request(*fields, line=f"GET {target} HTTP/1.1")) as client:
            assert client.answer().status == 404


def test_everything_that_is_given_must_match(routed: Site) -> None:
    assert got(routed, "/both/x", "X-Both: 1", host="both.test")["backend"] == "both"
    for target, field, host in (
        ("/other", "X-Both: 1", "both.test"),
        ("/both/x", "X-None: 1", "both.test"),
        ("/both/x", "X-Both: 1", "c.test"),
    ):
        with routed.client(request(field, line=f"GET {target} HTTP/1.1", host=host)) as client:
            assert client.answer().status == 404


def test_the_first_match_wins(routed: Site) -> None:
    assert got(routed, "/rooms/1", "Cookie: tier=gold", host="exact.test")["backend"] == "rooms"
    assert got(routed, "/?v=2&debug", "Cookie: tier=gold", host="exact.test")["backend"] == "exact"
    assert got(routed, "/?v=2&debug", "Cookie: tier=gold")["backend"] == "gold"


def test_the_rest_goes_to_the_listeners_own_pool(routed: Site) -> None:
    assert got(routed, "/fresh", listener="whole")["backend"] == "rooms"
    assert got(routed, "/else", listener="whole")["backend"] == "rest"
    with routed.client(request(line="OPTIONS * HTTP/1.1"), "whole") as client:
        told = client.answer().told()
        assert (told["backend"], told["line"]) == ("rest", "OPTIONS * HTTP/1.1")


def test_one_connection_to_several_pools(routed: Site) -> None:
    """In the order of the requests, each on a backend connection to its own pool."""
    targets = ["/rooms/1", "/only", "/rooms/2", "/rooms/3", "/rooms/4/admin"]
    with routed.client(b"".join(request(line=f"GET {target} HTTP/1.1") for target in targets)) as client:
        told = [client.answer().told() for _ in targets]
    assert [one["backend"] for one in told] == ["rooms", "only", "rooms", "rooms", "admin"]
    assert [one["request"] for one in told] == [1, 1, 1, 2, 1]


@pytest.mark.parametrize(
    ("target", "left"),
    [
        ("/strip/x/y?z", "/x/y?z"),
        ("/strip", "/"),
        ("/strip/", "/"),
        ("/strip?q=/strip", "/?q=/strip"),
        ("/strip//x", "//x"),
        ("/strip/strip/x", "/strip/x"),
        ("/%73trip/x", "/x"),
        ("/s%74r%69p?y", "/?y"),
    ],
)
def test_strip_prefix(routed: Site, target: str, left: str) -> None:
    told = got(routed, target)
    assert (told["backend"], told["line"]) == ("strip", f"GET {left} HTTP/1.1")
    with routed.client(handshake(line=f"GET {target} HTTP/1.1")) as client:
        assert client.answer().status == 101
    assert routed.recorders["strip"].ended()[-1].heads[0].line == f"GET {left} HTTP/1.1"


@pytest.mark.parametrize("make", [request, handshake], ids=["request", "handshake"])
def test_edits_of_requests(routed: Site, make: type) -> None:
    recorder = routed.recorders["edits"]
    recorder.forget()
    sent = [
        "user-agent: theirs",
        "User-Agent: again",
        "Cookie: a=1",
        "COOKIE: b=2",
        "X-Secret: 1",
        "X-Tier: none",
        "X-Kept: 1",
    ]
    with routed.client(make(*sent, line="GET /edits/x HTTP/1.1")) as client:
        assert client.answer().status in (101, 200)
    [talk] = recorder.ended()
    head = talk.heads[0]
    assert head.get("user-agent") == "ours"
    assert head.get("x-tier") == "gold"
    assert head.get("x-request-id") == "fixed"
    assert head.get("x-kept") == "1"
    assert head.get("x-forwarded-for") == "127.0.0.1"
    assert not {"cookie", "x-secret", "x-forwarded-host"} & set(head.names)


def test_edits_of_responses(routed: Site) -> None:
    fields = [
        "Server: theirs",
        "server: again",
        "X-Powered-By: x",
        "set-cookie: a=1",
        "Set-Cookie: b=2",
        "X-Kept: 1",
    ]
    with routed.recorders["edits"].behaving(replies(response(b"hi", *fields))):
        with routed.client(request(line="GET /edits/x HTTP/1.1")) as client:
            answer = client.answer()
    assert answer.body == b"hi"
    assert answer.head.get("server") == "ours"
    assert answer.head.get("x-frame-options") == "DENY"
    assert answer.head.get("x-kept") == "1"
    assert not {"x-powered-by", "set-cookie"} & set(answer.head.names)
    with routed.client(handshake(line="GET /edits/x HTTP/1.1")) as client:
        assert client.answer().head.get("server") == "ours"


@pytest.mark.parametrize("origin", ["https://a.test", "HTTPS://A.TEST", "https://b.test:8443", None])
def test_allowed_origins(routed: Site, origin: str | None) -> None:
    fields = [] if origin is None else [f"Origin: {origin}"]
    with routed.client(handshake(*fields, line="GET /guarded/x HTTP/1.1")) as client:
        assert client.answer().status == 101


def test_origins_that_are_not_allowed(routed: Site) -> None:
    recorder = routed.recorders["guarded"]
    recorder.forget()
    for origin in (
        "https://c.test",
        "http://a.test",
        "https://a.test:8443",
        "https://b.test",
        "null",
        "",
        "https://a.test/",
    ):
        with routed.client(handshake(f"Origin: {origin}", line="GET /guarded/x HTTP/1.1")) as client:
            assert client.answer().status == 403, origin
            assert client.rest() == b""
    assert recorder.talks == []
    # A page may ask, and the backend says whether it may read: that is CORS.
    assert got(routed, "/guarded/x", "Origin: https://c.test")["backend"] == "guarded"
