"""Connections that carry several requests: in order, on one backend connection, closed when it is time."""

from __future__ import annotations

import contextlib
import socket

import pytest

from .messages import chunked, request
from .recorder import Talk, proper, replies, response
from .site import Site


def lines_of(site: Site) -> list[list[str]]:
    """The requests on each connection to the recorder."""
    return [[head.line for head in talk.heads] for talk in site.recorder.ended()]


def test_requests_one_after_the_other(site: Site) -> None:
    with site.client() as client:
        for number in range(10):
            told = client.ask(request(line=f"GET /{number} HTTP/1.1")).told()
            assert told["line"] == f"GET /{number} HTTP/1.1"
            assert told["request"] == number + 1
    assert len(lines_of(site)) == 1


@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 20])
def test_ten_at_once_are_answered_in_order(site: Site, piece: int) -> None:
    def one(number: int) -> bytes:
        line = f"{('GET', 'POST', 'PUT')[number % 3]} /{number} HTTP/1.1"
        body = b"x" * number * 100
        match number % 3:
            case 0:
                return request(line=line)
            case 1:
                return request(f"Content-Length: {len(body)}", line=line, body=body)
        return request(
            "Transfer-Encoding: chunked", line=line, body=chunked(body[:50] or b"y", body[50:] or b"z")
        )

    data = b"".join(map(one, range(10)))
    with site.client() as client:
        for at in range(0, len(data), piece):
            client.send(data[at : at + piece])
        for number in range(10):
            told = client.answer().told()
            assert told["line"].split(" ")[1] == f"/{number}"
            assert told["size"] == (0 if number % 3 == 0 else number * 100)
    assert [len(lines) for lines in lines_of(site)] == [10]


def test_requests_split_at_every_byte(site: Site) -> None:
    data = request("Transfer-Encoding: chunked", line="POST /1 HTTP/1.1", body=chunked(b"hello", b"world"))
    data += request("Content-Length: 3", line="POST /2 HTTP/1.1", body=b"abc") + request(
        line="GET /3 HTTP/1.1"
    )
    for at in range(1, len(data)):
        with site.client(data[:at]) as client:
            site.beat()
            client.send(data[at:])
            told = [client.answer().told() for _ in range(3)]
            assert [(one["line"][-10:-9], one["size"]) for one in told] == [("1", 10), ("2", 3), ("3", 0)], at


def test_an_empty_line_between_requests(site: Site) -> None:
    """Old clients send one behind a body (RFC 9112 section 2.2)."""
    with site.client() as client:
        for _ in range(3):
            client.send(request("Content-Length: 2", line="POST / HTTP/1.1", body=b"ab") + b"\r\n")
            assert client.answer().told()["size"] == 2
    assert [len(lines) for lines in lines_of(site)] == [3]


@pytest.mark.parametrize("fields", [["Connection: close"], ["Connection: keep-alive, Close"]])
def test_a_client_that_wants_to_close(site: Site, fields: list[str]) -> None:
    with site.client(request(*fields) + request(line="GET /no HTTP/1.1")) as client:
        answer = client.answer()
        assert answer.status == 200
        assert "close" in answer.head.options()
        assert client.rest() == b""
    assert lines_of(site) == [["GET / HTTP/1.1"]]


def test_http_1_0_closes(site: Site) -> None:
    with site.client(request(line="GET / HTTP/1.0") + request(line="GET /no HTTP/1.0")) as client:
        answer = client.answer()
        assert answer.told()["line"] == "GET / HTTP/1.0"
        assert answer.head.line == "HTTP/1.1 200 OK"
        assert "close" in answer.head.options()
        assert client.rest() == b""
    assert lines_of(site) == [["GET / HTTP/1.0"]]


def test_http_1_0_that_keeps_alive(site: Site) -> None:
    with site.client() as client:
        for number in range(3):
            answer = client.ask(request("Connection: Keep-Alive", line=f"GET /{number} HTTP/1.0"))
            assert answer.head.options() == {"keep-alive"}
        body = request("Connection: keep-alive", "Content-Length: 5", line="POST / HTTP/1.0", body=b"hello")
        assert client.ask(body).told()["size"] == 5


def test_http_1_0_and_a_body_until_the_end(site: Site) -> None:
    whole = response(b"hello " * 1000, length=False)
    with site.recorder.behaving(replies(whole, then="close")):
        for line in ("GET / HTTP/1.0", "GET / HTTP/1.1"):
            with site.client(request("Connection: keep-alive", line=line)) as client:
                answer = client.answer()
                assert answer.body == b"hello " * 1000
                assert "close" in answer.head.options()
                assert answer.head.get("transfer-encoding") is None


def test_a_body_until_the_end_that_is_reset_is_aborted(site: Site) -> None:
    with site.recorder.behaving(replies(response(b"hello", length=False), then="reset")):
        with site.client(request()) as client, pytest.raises(ConnectionResetError):
            client.answer()
    site.fresh()


def test_a_backend_that_closes_after_each_response(site: Site) -> None:
    """That is between it and us: the client's connection stays."""
    with (
        site.recorder.behaving(replies(response(b"bye", "Connection: close"), then="close")),
        site.client() as client,
    ):
        for _ in range(3):
            answer = client.ask(request())
            assert answer.body == b"bye"
            assert answer.head.options() == set()
    assert len(lines_of(site)) == 3


def test_a_kept_connection_that_the_backend_has_closed(site: Site) -> None:
    """It is noticed while nothing is asked, so also a POST goes elsewhere at once."""
    for line, field in (("GET / HTTP/1.1", "X: 1"), ("POST / HTTP/1.1", "Content-Length: 0")):
        for abort in (False, True):
            with site.client() as client:
                assert client.ask(request(line="GET /first HTTP/1.1")).status == 200
                site.recorder.talk().drop(abort)
                site.beat()
                told = client.ask(request(field, line=line)).told()
                assert (told["line"], told["request"]) == (line, 1)
            site.recorder.forget()


class Trap:
    """Serves one request well and on the second does ``how``: the kept connection dies under it."""

    def __init__(self, site: Site, how: str, *said: bytes) -> None:
        self.site, self.how, self.said = site, how, said

    def __call__(self, talk: Talk) -> None:
        self.site.recorder.script = proper
        talk.head()
        talk.send(response(b"first"))
        talk.head()
        talk.send(*self.said)
        getattr(talk, self.how)()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_kept_connection_that_dies_under_a_safe_request(site: Site, method: str, how: str) -> None:
    """Asked again on a new one, unseen by the client."""
    with site.recorder.behaving(Trap(site, how)), site.client() as client:
        assert client.ask(request()).body == b"first"
        answer = client.ask(request(line=f"{method} /second HTTP/1.1"), method)
        assert answer.status == 200
        if method != "HEAD":
            assert answer.told()["line"] == f"{method} /second HTTP/1.1"
        assert client.ask(request()).status == 200
    assert [len(lines) for lines in lines_of(site)] == [2, 2]


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    "data",
    [
        request("Content-Length: 0", line="POST / HTTP/1.1"),
        request("Content-Length: 5", line="POST / HTTP/1.1", body=b"hello"),
        request("Content-Length: 5", line="PUT / HTTP/1.1", body=b"hello"),
        request(line="DELETE / HTTP/1.1"),
        request("Content-Length: 5", body=b"hello"),
    ],
    ids=["post", "post-with-body", "put", "delete", "get-with-body"],
)
def test_a_kept_connection_that_dies_under_another_request(site: Site, data: bytes, how: str) -> None:
    """Nobody knows whether it was done: never twice."""
    with site.recorder.behaving(Trap(site, how)), site.client() as client:
        assert client.ask(request()).body == b"first"
        answer = client.ask(data)
        assert answer.status == 502
        assert client.rest() == b""
    assert [len(lines) for lines in lines_of(site)] == [2]
    site.fresh()


def test_a_kept_connection_that_dies_within_a_response(site: Site) -> None:
    with site.recorder.behaving(Trap(site, "close", b"HTTP/1.1 200 OK\r\n")), site.client() as client:
        assert client.ask(request()).body == b"first"
        assert client.ask(request()).status == 502
    assert [len(lines) for lines in lines_of(site)] == [2]


def test_a_new_connection_that_dies_is_not_tried_again(site: Site) -> None:
    with site.recorder.behaving(replies(then="close")):
        site.refuses(request(), 502)
    assert len(lines_of(site)) == 1


def test_a_client_that_ends_its_sending(site: Site) -> None:
    """As ``printf … | nc`` does: everything that it asked is answered."""
    asked = [request(line=f"GET /{number} HTTP/1.1") for number in range(3)]
    with site.client() as client:
        client.send(b"".join(asked))
        client.socket.shutdown(socket.SHUT_WR)
        assert [client.answer().told()["line"] for _ in asked] == [f"GET /{n} HTTP/1.1" for n in range(3)]
        assert client.rest() == b""
    with site.client() as client:
        client.send(request("Content-Length: 5", line="POST / HTTP/1.1", body=b"hello"))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.answer().told()["size"] == 5
        assert client.rest() == b""


def test_a_client_that_ends_within_its_request(site: Site) -> None:
    """A backend never takes half a request for a whole one, nor is anybody answered who is gone."""
    for data in (
        request("Content-Length: 50", line="POST / HTTP/1.1", body=b"hello"),
        request("Transfer-Encoding: chunked", line="POST / HTTP/1.1", body=b"5\r\nhello\r\n"),
        request("Transfer-Encoding: chunked", line="POST / HTTP/1.1", body=b"5\r\nhello\r\n0\r\n"),
        request()[:-2],
    ):
        with site.client(data) as client:
            client.socket.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert client.rest() == b""
    talks = [talk for talk in site.recorder.ended(but=site.fresh()) if talk.seen]
    assert len(talks) == 3
    assert all(talk.ended == "reset" for talk in talks)


def test_a_client_that_goes_while_it_waits(site: Site) -> None:
    with site.recorder.behaving(lambda talk: talk.drain()):
        with site.client(request()) as client:
            site.recorder.talk()
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        [talk] = site.recorder.ended()
        assert talk.ended == "reset"
    site.fresh()


def test_two_clients_never_share_a_backend_connection(site: Site) -> None:
    with site.client() as one, site.client() as two:
        numbers = {
            (index, client.ask(request()).told()["talk"])
            for _ in range(5)
            for index, client in enumerate((one, two))
        }
    assert len(numbers) == 2
    assert len(lines_of(site)) == 2


def test_clients_that_do_not_come_back_are_not_waited_for(site: Site) -> None:
    """What is kept for a client ends with it."""
    clients = [site.client(request()) for _ in range(50)]
    for client in clients:
        with client:
            assert client.answer().status == 200
    assert len(lines_of(site)) == 50
