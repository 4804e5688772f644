"""Where a request ends: whatever is not certain is refused (bad-input section B)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from .messages import chunked, handshake, request
from .recorder import Talk, proper, response
from .replay import understood
from .site import Site
from .smuggling import ALL, BODY, CL, SECRET, STATUS, TE, mutations, post

EACH = pytest.mark.parametrize("case", ALL)


@EACH
def test_bad_framing(site: Site, case: str) -> None:
    site.refuses(ALL[case] + SECRET, STATUS.get(case, 400))
    site.untouched()


@EACH
def test_bad_framing_behind_a_good_request(site: Site, case: str) -> None:
    """The good one is answered, the bad one refused, and no byte of it follows the good one."""
    good = post(f"{CL}: 5", body=b"hello")
    with site.client(good + ALL[case] + SECRET) as client:
        assert client.answer().told()["line"] == "POST /upload HTTP/1.1"
        answer = client.answer()
        # A leading empty line is allowed between requests also.
        assert answer.status == STATUS.get(case, 400), answer
        assert client.rest() == b""
    talk, *others = site.recorder.ended(but=site.fresh())
    assert bytes(talk.seen) == talk.heads[0].raw + b"hello"
    assert not any(other.seen for other in others)


@EACH
def test_bad_framing_in_two_pieces(site: Site, case: str) -> None:
    """Cut anywhere in the head, it is refused all the same; cut in the body, the backend may have had its
    beginning, but never a whole request."""
    data = ALL[case]
    head = data.find(b"\r\n\r\n") + 4 or len(data)
    places = {1, 2, 10, head // 2, head - 3, head - 2, head - 1, head, head + 1, head + 3, len(data) - 1}
    for at in sorted(place for place in places if 0 < place < len(data)):
        with site.client(data[:at]) as client:
            site.beat()
            try:
                client.send(data[at:] + SECRET)
                assert client.answer().status == STATUS.get(case, 400), at
                assert client.rest() == b"", at
            except ConnectionError:
                pytest.fail(f"aborted when cut at {at}")
        if at < head:
            site.untouched()
        for talk in site.recorder.ended(but=site.fresh()):
            assert whole(talk) == [], at
        site.recorder.forget()


def whole(talk: Talk) -> list[str]:
    """The requests that a backend would have understood."""
    return [line for line in understood(bytes(talk.seen)) if line.split(" ")[1] not in ("/fresh",)]


@pytest.mark.parametrize("length", [False, True], ids=["alone", "with-length"])
def test_30_all_mutations(site: Site, length: bool) -> None:
    site.refuses_all([(data + SECRET, 400) for data in mutations(length)])


def test_30_what_is_no_mutation_is_served(site: Site) -> None:
    for field in (f"{TE}: chunked", f"{TE.upper()}:CHUNKED", f"{TE.lower()}:\t Chunked \t"):
        with site.client(post(field)) as client:
            told = client.answer().told()
            assert (told["size"], told["line"]) == (5, "POST /upload HTTP/1.1")
            assert [value for name, value in told["fields"] if name.lower() == TE.lower()] == ["chunked"]
    # Another field is another field.
    for name in (f"X-{TE}", f"{TE}-X", "TransferEncoding", "Transfer--Encoding"):
        with site.client(post(f"{name}: chunked", f"{CL}: 5", body=b"hello")) as client:
            told = client.answer().told()
            assert told["size"] == 5
            assert TE.lower() not in {name.lower() for name, _ in told["fields"]}
    for names in ("TE: chunked, trailers", "Content-Encoding: chunked"):
        with site.client(post(names, f"{CL}: 5", body=b"hello") + request()) as client:
            assert client.answer().told()["size"] == 5
            assert client.answer().told()["line"] == "GET / HTTP/1.1"


def processor_time(process: int) -> float:
    """CPU seconds of a process, all threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_32_no_spin(site: Site) -> None:
    """A negative length costs no processor time afterwards."""
    site.refuses(post(f"{CL}: -48"))
    site.beat()
    before = processor_time(site.serving.process.pid)
    for _ in range(20):
        site.beat()
    assert processor_time(site.serving.process.pid) - before < 1.0


SENT = {
    "extension": b"5;a=b\r\nhello\r\n0\r\n\r\n",
    "quoted-extension": b'5;a="x;y, z"\r\nhello\r\n0;z\r\n\r\n',
    "extension-that-looks-like-data": b"5;hello\r\nhello\r\n0\r\n\r\n",
    "leading-zeros": b"0005\r\nhello\r\n000\r\n\r\n",
    "upper-case": b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "16-digits": b"0000000000000005\r\nhello\r\n0\r\n\r\n",
    "trailers": b"5\r\nhello\r\n0\r\nX: 1\r\n\r\n",
    "47-content-length": b"5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n",
    "47-transfer-encoding": b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "47-host": b"5\r\nhello\r\n0\r\nHost: evil.test\r\nHost: b\r\n\r\n",
    "47-forwarded": b"5\r\nhello\r\n0\r\nX-Forwarded-For: 1.1.1.1\r\nTrailer: x\r\n\r\n",
    "47-connection": b"5\r\nhello\r\n0\r\nConnection: close\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("body", SENT.values(), ids=SENT.keys())
def test_47_chunks_are_framed_anew(site: Site, body: bytes) -> None:
    """Sizes in one spelling, extensions and trailers gone: also when they come byte by byte."""
    data = post(f"{TE}: chunked", "Trailer: Content-Length", body=body)
    with site.client(data + SECRET) as client:
        assert client.answer().told()["size"] in (5, 15)
        assert client.answer().told()["line"] == "GET /secret HTTP/1.1"
    [talk] = site.recorder.ended()
    first, second = talk.heads
    expected = chunked(b"hello", b"0123456789") if b"0123456789" in body else chunked(b"hello")
    assert bytes(talk.seen) == first.raw + expected + second.raw
    assert "trailer" not in first.names
    site.recorder.forget()
    with site.client() as client:
        for byte in data + SECRET:
            client.send(bytes([byte]))
        assert client.answer().told()["size"] in (5, 15)
        assert client.answer().told()["line"] == "GET /secret HTTP/1.1"


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "QUERY"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_49_a_body_where_none_is_expected(site: Site, method: str, framing: str) -> None:
    """It is the request's, and the next request begins behind it."""
    field, body = (
        (f"{CL}: {len(SECRET)}", SECRET) if framing == "length" else (f"{TE}: chunked", chunked(SECRET))
    )
    with site.client(
        request(field, line=f"{method} /one HTTP/1.1", body=body) + request(line="GET /two HTTP/1.1")
    ) as client:
        answer = client.answer(method)
        if method != "HEAD":
            assert answer.told()["size"] == len(SECRET)
        assert client.answer().told()["line"] == "GET /two HTTP/1.1"
    lines = [head.line for talk in site.recorder.ended() for head in talk.heads]
    assert lines == [f"{method} /one HTTP/1.1", "GET /two HTTP/1.1"]


def test_49_a_backend_that_ignores_such_a_body(site: Site) -> None:
    """It takes the body for a request (0.CL). Its answer to that is nobody's: not the next request's."""

    def script(talk: Talk) -> None:
        # Both heads are there before the first answer is: in one write both answers go.
        site.recorder.script = proper
        talk.head()
        inner = talk.head()
        assert inner is not None
        talk.send(response(b"first") + response(b"POISON"))

    with site.recorder.behaving(script):
        data = request(f"{CL}: {len(SECRET)}", body=SECRET)
        with site.client(data) as client:
            assert client.answer().body == b"first"
            assert client.ask(request(line="GET /next HTTP/1.1")).told()["line"] == "GET /next HTTP/1.1"


def test_49_answers_sent_in_advance(site: Site) -> None:
    """A backend that says more than it was asked for is not asked again, whatever way the answer takes: as
    it comes, or by splice, which sees nothing behind the body."""
    for size in (0, 1, 100, 64 << 10, 1 << 20, 4 << 20):
        first = response(bytes(size))

        def script(talk: Talk, first: bytes = first) -> None:
            site.recorder.script = proper
            talk.head()
            talk.send(first + response(b"POISON") * 3)
            talk.drain()

        with site.recorder.behaving(script), site.client(request() * 2) as client:
            assert len(client.answer().body) == size
            answer = client.answer()
            assert answer.body != b"POISON", size
            assert answer.told()["line"] == "GET / HTTP/1.1"
            talk = site.recorder.talk()
            assert bytes(talk.seen) == talk.heads[0].raw


EXPECT = "Expect: 100-continue"


def test_50_expect_body_and_a_pipelined_request(site: Site) -> None:
    for field, body in ((f"{CL}: 5", b"hello"), (f"{TE}: chunked", BODY)):
        with site.client(post(EXPECT, field, body=body) + SECRET) as client:
            answer = client.answer()
            assert [head.status for head in answer.interim] == [100]
            assert answer.told()["size"] == 5
            assert client.answer().told()["line"] == "GET /secret HTTP/1.1"


@pytest.mark.parametrize("status", ["200 OK", "417 Expectation Failed", "413 Content Too Large", "302 Found"])
def test_50_a_backend_that_does_not_want_the_body(site: Site, status: str) -> None:
    """It answers from the head alone, and might take what follows for a request: so none follows."""

    def script(talk: Talk) -> None:
        site.recorder.script = proper
        talk.head()
        talk.send(response(b"no", status=status))
        while (head := talk.head()) is not None:
            talk.send(response(f"POISON {head.line}".encode()))

    with site.recorder.behaving(script):
        inner = request(line="GET /inner HTTP/1.1")
        with site.client(post(EXPECT, f"{CL}: {len(inner)}", body=inner) + SECRET) as client:
            answer = client.answer()
            assert (answer.status, answer.body) == (int(status[:3]), b"no")
            if "close" not in answer.head.options():
                assert client.answer().told()["line"] == "GET /secret HTTP/1.1"
            assert client.buffer == b""
    site.fresh()


def test_50_a_client_that_waits_gets_its_100(site: Site) -> None:
    with site.client(post(EXPECT, f"{CL}: 5", body=b"")) as client:
        head = client.head()
        assert head is not None
        assert head.line == "HTTP/1.1 100 Continue"
        client.send(b"hello")
        assert client.answer().told()["size"] == 5


def test_50_expect_without_a_body_and_in_http_1_0(site: Site) -> None:
    with site.client(request(EXPECT) + SECRET) as client:
        assert client.answer().told()["size"] == 0
        assert client.answer().told()["line"] == "GET /secret HTTP/1.1"
    with site.client(post(EXPECT, f"{CL}: 5", body=b"hello", line="POST / HTTP/1.0")) as client:
        answer = client.answer()
        assert answer.interim == ()
        assert answer.told()["size"] == 5


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
def test_51_early_answers(site: Site, size: int) -> None:
    """CVE-2025-4366: what is left of the body is dropped, and never the beginning of a next request."""

    def script(talk: Talk) -> None:
        site.recorder.script = proper
        talk.head()
        talk.send(response(b"too large", status="413 Content Too Large"))

    with site.recorder.behaving(script):
        body = SECRET * (size // len(SECRET) + 2)
        with site.client(post(f"{CL}: {len(body)}", body=body[:size])) as client:
            answer = client.answer()
            assert (answer.status, answer.body) == (413, b"too large")
            assert "close" in answer.head.options()
            # More than a megabyte of it is not waited for.
            with contextlib.suppress(ConnectionError) if size > 1 << 20 else contextlib.nullcontext():
                client.send(body[size:] + SECRET)
                assert client.rest() == b""
        site.fresh()
        heads = [head.line for talk in site.recorder.talks for head in talk.heads]
        assert heads == ["POST /upload HTTP/1.1", "GET /fresh HTTP/1.1"]


def test_a_handshake_behind_requests(site: Site) -> None:
    """A tunnel never stands on a connection that has served, nor behind bytes of another request."""
    with site.client(request() + handshake()) as client:
        assert client.answer().status == 200
        assert client.answer().status == 101
    first, second = site.recorder.ended()
    assert [head.line for head in first.heads] == ["GET / HTTP/1.1"]
    assert [head.line for head in second.heads] == ["GET /ws HTTP/1.1"]
