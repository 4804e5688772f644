"""Asking a directory over real HTTP, whatever it answers."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request

import pytest

from pybalancer.client import lookup
from pybalancer.client.lookup import MOST_BYTES, Reply, look

from .directories import answer, directory
from .net import PATIENCE, server


def asked(url: str, timeout: float = PATIENCE) -> Reply:
    return look(url, timeout, {"X-Token": "1"}, None)


def test_an_answer() -> None:
    with directory(lambda: answer(200, {"url": "ws://é.test"}, Retry_After="7")) as running:
        assert asked(running.url) == Reply(200, json.dumps({"url": "ws://é.test"}), "7")
    ((path, fields),) = running.asked
    assert (path, fields["x-token"], fields["accept"]) == ("/connect?room=7", "1", "application/json")


@pytest.mark.parametrize("status", [204, 400, 404, 429, 500, 503])
def test_another_status(status: int) -> None:
    with directory(lambda: answer(status, {"error": "so"}, Retry_After="3")) as running:
        reply = asked(running.url)
    assert (reply.status, reply.retry_after) == (status, "3")


def test_a_redirect_is_followed() -> None:
    with directory(lambda: answer(200, 7)) as there:
        with directory(lambda: answer(307, None, Location=there.url)) as here:
            assert asked(here.url) == Reply(200, "7")


@pytest.mark.parametrize(
    "where", ["ftp://127.0.0.1/", "file:///etc/hosts", "", "http://[", "data:text/plain,7"]
)
def test_a_redirect_to_elsewhere_is_not(where: str) -> None:
    with directory(lambda: answer(302, None, Location=where)) as running:
        assert asked(running.url).status in (0, 302)


def test_redirects_without_end() -> None:
    with directory(lambda: answer(302, None, Location="/connect")) as running:
        assert asked(running.url).status == 302
    assert len(running.asked) < 20


def test_no_redirect_gives_up_encryption() -> None:
    redirects = lookup._Redirects()
    request = urllib.request.Request("https://www.test/connect")
    with pytest.raises(urllib.error.URLError, match="from https: to http:"):
        redirects.redirect_request(request, None, 307, "", {}, "http://www.test/connect")  # type: ignore[arg-type]
    followed = redirects.redirect_request(request, None, 307, "", {}, "https://www2.test/")  # type: ignore[arg-type]
    assert followed is not None
    assert followed.full_url == "https://www2.test/"


def test_an_answer_that_is_too_long_is_none() -> None:
    with directory(lambda: (200, {}, b"1" * (MOST_BYTES + 1))) as running:
        assert asked(running.url) == Reply(0)


def test_bytes_that_are_no_text_are_no_error() -> None:
    with directory(lambda: (200, {}, b"\xff\xfe{")) as running:
        assert asked(running.url) == Reply(200, "\ufffd\ufffd{")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x00\x01\x02",
        b"HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 1000 + b"\r\n",
    ],
)
def test_what_is_no_answer(said: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(said)

    with server(talk) as running:
        assert asked(f"http://{running.address}/") == Reply(0)


def test_nobody_there() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        assert asked(f"http://127.0.0.1:{holder.getsockname()[1]}/") == Reply(0)


def test_silence_and_dribbling_have_an_end() -> None:
    """Without the deadline the second would go on for ever, and this test be stopped."""
    over = threading.Event()

    def dribble(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
        while not over.wait(0.01):
            connection.sendall(b" ")

    def silence(connection: socket.socket) -> None:
        over.wait(PATIENCE)

    for behaviour in (silence, dribble):
        with server(behaviour) as running:
            assert asked(f"http://{running.address}/", timeout=0.2) == Reply(0)
    over.set()
