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

from .directories import Answer, answer, directory
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


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 O", b"K"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", b" "),
        (b"HTTP/1.1 503 No\r\nContent-Length: 10000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"a"),
    ],
    ids=["silence", "status", "field", "body", "error", "chunk"],
)
def test_silence_and_dribbling_have_an_end(head: bytes, piece: bytes) -> None:
    """Without the deadline it would go on for as long as the server likes."""
    left = threading.Event()

    def dribble(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(head)
        try:
            while not left.wait(0.01):
                connection.sendall(piece)
        except OSError:
            left.set()

    with server(dribble) as running:
        done = []
        asker = threading.Thread(
            target=lambda: done.append(asked(f"http://{running.address}/", timeout=0.2)), daemon=True
        )
        asker.start()
        asker.join(PATIENCE)
        in_time = list(done)
        left.set()
    assert in_time == [Reply(0)]


def test_redirects_share_the_time() -> None:
    """Each is in time for itself; were each given all of it, the last would be reached."""
    over = threading.Event()

    def slow() -> Answer:
        over.wait(0.15)
        return answer(302, None, Location=f"/connect?{len(running.asked)}")

    with directory(slow) as running:
        assert asked(running.url, timeout=0.4) == Reply(0)
    assert len(running.asked) < 5


def test_a_redirect_to_elsewhere_takes_no_secrets_along() -> None:
    with directory(lambda: answer(200, 7)) as there:
        with directory(lambda: answer(307, None, Location=there.url)) as here:
            assert look(here.url, PATIENCE, {"Authorization": "Bearer 1", "Cookie": "a=b"}, None).text == "7"
    assert here.asked[0][1]["authorization"] == "Bearer 1"
    ((_, fields),) = there.asked
    assert not {"authorization", "cookie"} & set(fields)
    assert fields["accept"] == "application/json"


def test_a_redirect_within_the_directory_keeps_them() -> None:
    answers = [answer(200, 7), answer(307, None, Location="/other")]
    with directory(answers.pop) as running:
        assert asked(running.url) == Reply(200, "7")
    assert [fields["x-token"] for _, fields in running.asked] == ["1", "1"]
