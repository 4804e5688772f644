"""What a backend gets of an ordinary request, and a client of its response."""

from __future__ import annotations

import pytest

from .messages import handshake, request
from .recorder import Talk, replies, response
from .site import Site

OURS = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "x-request-id"]


def test_a_request_goes_on_as_it_is(site: Site) -> None:
    """Fields that are for all recipients keep their order and spelling, and repeated ones their lines."""
    sent = [
        "User-Agent: \xe4gent/1.0 (x; y)",
        "ACCEPT: */*",
        "accept: text/html;q=0.5",
        "Cookie: a=1; b=2",
        "Cookie: c=3",
        "Origin: https://a.test",
        "X-Empty:",
        "Sec-Fetch-Mode: navigate",
        "Cache-Control:no-cache",
        'If-None-Match: "x"',
        "Authorization: Basic \t eDp5",
        "Content-Type: a/b",
        "Via: 1.0 fred",
    ]
    with site.client(request(*sent, line="GET /a/b;c=1/%7e?x=%20&y HTTP/1.1")) as client:
        told = client.answer().told()
    assert told["line"] == "GET /a/b;c=1/%7e?x=%20&y HTTP/1.1"
    names = [name.lower() for name, _ in told["fields"]]
    assert names[-len(OURS) :] == OURS
    expected = [
        ["Host", "a.test"],
        *[[name, value.strip()] for name, value in (field.split(":", 1) for field in sent)],
    ]
    assert told["fields"][: -len(OURS)] == expected


def test_whom_it_came_from(site: Site) -> None:
    with site.client(request(host="Shop.Test:8080"), source="127.0.0.77") as client:
        fields = dict(client.answer().told()["fields"])
    assert fields["X-Forwarded-For"] == "127.0.0.77"
    assert fields["X-Forwarded-Host"] == "Shop.Test:8080"
    assert fields["X-Forwarded-Proto"] == "http"
    assert fields["Forwarded"] == 'for=127.0.0.77;host="Shop.Test:8080";proto=http'


def test_every_request_has_an_id_of_its_own(site: Site) -> None:
    ids = set()
    with site.client() as client:
        for _ in range(20):
            ids.add(dict(client.ask(request()).told()["fields"])["X-Request-Id"])
    assert len(ids) == 20
    assert all(len(one) == 32 and int(one, 16) for one in ids)


HOP = [
    "Keep-Alive: timeout=5",
    "Proxy-Connection: keep-alive",
    "TE: trailers",
    "Trailer: X",
    "Upgrade: foo/2",
    "HTTP2-Settings: x",
]


@pytest.mark.parametrize("make", [request, handshake], ids=["request", "handshake"])
def test_hop_by_hop_fields_end_here(site: Site, make: type) -> None:
    hop = [field for field in HOP if make is request or not field.startswith("Upgrade")]
    data = make(*hop, "Connection: X-Private, x-Other ,,", "X-PRIVATE: 1", "X-Other: 2", "X-Kept: 3")
    with site.client(data) as client:
        assert client.answer().status in (101, 200)
    [talk] = site.recorder.ended()
    kept = {name for name in talk.heads[0].names if name not in OURS}
    own = (
        {"sec-websocket-key", "sec-websocket-version", "connection", "upgrade"}
        if make is handshake
        else set()
    )
    assert kept == {"host", "x-kept", *own}


def test_a_handshake_keeps_what_it_negotiates(site: Site) -> None:
    fields = [
        "Sec-WebSocket-Protocol: chat, v2",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    ]
    fields += ["Origin: https://a.test", "Cookie: session=1", "Authorization: Bearer x"]
    with site.client(handshake(*fields)) as client:
        assert client.answer().status == 101
    [talk] = site.recorder.ended()
    for field in fields:
        name, value = field.split(": ", 1)
        assert talk.heads[0].get(name) == value


def test_a_response_comes_as_it_is(site: Site) -> None:
    fields = [
        "Server: x/1",
        "Set-Cookie: a=1; Path=/",
        "Set-Cookie: b=2",
        'ETag: "\xe4"',
        "X-Empty:",
        "date: now",
        "Vary: a, b",
    ]
    with site.recorder.behaving(replies(response(b"body", *fields, status="203 Quite  Fine"))):
        with site.client(request()) as client:
            answer = client.answer()
    assert answer.head.line == "HTTP/1.1 203 Quite  Fine"
    sent = [
        ("Content-Length", "4"),
        *[(name, value.strip()) for name, value in (f.split(":", 1) for f in fields)],
    ]
    assert answer.head.fields == sent
    assert answer.body == b"body"


def test_hop_by_hop_fields_of_a_response_end_here(site: Site) -> None:
    fields = [
        "Connection: keep-alive, X-Private",
        "X-Private: 1",
        "Keep-Alive: timeout=5",
        "Upgrade: h2c",
        "Trailer: X",
    ]
    fields += ["Proxy-Connection: close", "X-Kept: 1"]
    with site.recorder.behaving(replies(response(b"", *fields))), site.client(request()) as client:
        assert client.answer().head.names == ["content-length", "x-kept"]


BAD = {
    "both": response(b"hello", "Transfer-Encoding: chunked"),
    "two-lengths": response(b"hello", "Content-Length: 6"),
    "two-equal-lengths": response(b"hello", "Content-Length: 5"),
    "bad-length": response(b"hello", "Content-Length: 5x", length=False),
    "gzip-coding": response(b"hello", "Transfer-Encoding: gzip", length=False),
    "misspelled": response(b"hello", "Transfer_Encoding: chunked", length=False),
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "folded": response(b"", "X: a\r\n b"),
    "no-colon": response(b"", "oops"),
    "nul": response(b"", "X: \0"),
    "cr": response(b"", "X: a\rSet-Cookie: x"),
    "space-before-colon": response(b"", "X : a"),
    "http-2": b"HTTP/2 200 OK\r\n\r\n",
    "http-0.9": b"<html>hello</html>\r\n\r\n",
    "status-99": b"HTTP/1.1 099 OK\r\n\r\n",
    "status-600": b"HTTP/1.1 600 OK\r\n\r\n",
    "status-20": b"HTTP/1.1 20 OK\r\n\r\n",
    "too-long": response(b"", f"X: {'x' * 20_000}"),
    "too-many": response(b"", *["a: b"] * 300),
    "chunked-1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "closed": b"",
    "closed-within": b"HTTP/1.1 200 OK\r\nContent-",
}


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("answer", BAD.values(), ids=BAD.keys())
def test_bad_responses_are_502(site: Site, answer: bytes, then: str) -> None:
    """Nothing of them comes through: what is not certain is not passed on in this direction either."""
    with site.recorder.behaving(replies(answer, then=then)):
        site.refuses(request() + request(line="GET /second HTTP/1.1"), 502)
    site.fresh()


CUT = {
    "length": response(b"hello", "Content-Length: 9", length=False),
    "chunk": response(b"9\r\nhello", "Transfer-Encoding: chunked", length=False),
    "last-chunk": response(b"5\r\nhello\r\n", "Transfer-Encoding: chunked", length=False),
    "bad-chunk": response(b"5\r\nhello, world\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=False),
    "bad-size": response(b"5\r\nhello\r\n0x1\r\n", "Transfer-Encoding: chunked", length=False),
}


@pytest.mark.parametrize("answer", CUT.values(), ids=CUT.keys())
def test_a_cut_response_never_looks_whole(site: Site, answer: bytes) -> None:
    """What is wrong in the same breath as the head makes a 502; later it can only be cut."""
    with site.recorder.behaving(replies(answer, then="close")), site.client(request() * 2) as client:
        try:
            assert client.answer().status == 502
        except (ConnectionResetError, AssertionError):
            assert not client.buffer.endswith(b"0\r\n\r\n")
            assert b"HTTP/1.1 502" not in client.buffer
    site.fresh()


@pytest.mark.parametrize("coding", ["Content-Length: 1000", "Transfer-Encoding: chunked", "X: 1"])
def test_head_has_no_body(site: Site, coding: str) -> None:
    """Whatever its head announces; and the next response is the next one's."""
    with site.recorder.behaving(replies(response(b"", coding, length=False))), site.client() as client:
        answer = client.ask(request(line="HEAD / HTTP/1.1"), "HEAD")
        assert answer.status == 200
        assert coding.partition(":")[0].lower() in answer.head.names
        site.recorder.script = replies(response(b"next"))
        # Its script answers once.
        site.recorder.talk().reset()
        assert client.ask(request()).body == b"next"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_204_and_304_have_none(site: Site, status: str) -> None:
    def script(talk: Talk) -> None:
        talk.head()
        fields = ["ETag: x"] + (["Content-Length: 1000"] if status.startswith("304") else [])
        talk.send(response(b"", *fields, status=status, length=False))
        talk.head()
        talk.send(response(b"next"))

    with site.recorder.behaving(script), site.client(request() * 2) as client:
        answer = client.answer()
        assert (answer.status, answer.body) == (int(status[:3]), b"")
        assert answer.head.get("etag") == "x"
        assert client.answer().body == b"next"
    assert len(site.recorder.talks) == 1


def test_a_204_with_a_body_is_one_without(site: Site) -> None:
    """What stands behind it is nobody's: the connection is not used again."""
    bad = response(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON", status="204 No Content")
    with site.recorder.behaving(replies(bad)), site.client(request() * 2) as client:
        answer = client.answer()
        assert answer.head.names == []
        site.recorder.script = replies(response(b"next"))
        assert b"POISON" not in client.answer().body


def test_interim_responses(site: Site) -> None:
    hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: close\r\n\r\n"
    answers = ("HTTP/1.1 100 Continue\r\n\r\n", hints, hints, response(b"done"))
    with site.recorder.behaving(replies(*answers)), site.client(request()) as client:
        answer = client.answer()
    assert [head.status for head in answer.interim] == [100, 103, 103]
    assert answer.interim[1].fields == [("Link", "</a.css>; rel=preload")]
    assert answer.body == b"done"
    # HTTP/1.0 knows none.
    with site.recorder.behaving(replies(*answers)), site.client(request(line="GET / HTTP/1.0")) as client:
        answer = client.answer()
    assert (answer.interim, answer.body) == ((), b"done")


def test_interim_responses_byte_by_byte(site: Site) -> None:
    text = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + response(b"done")
    with site.recorder.behaving(replies(*[bytes([byte]) for byte in text])), site.client(request()) as client:
        answer = client.answer()
    assert ([head.status for head in answer.interim], answer.body) == ([103], b"done")
