"""Handshakes: which are correct, and what becomes of the others (bad-input section A)."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from ..net import connect, read_exactly, reset, until
from .messages import KEY, handshake, request
from .recorder import Talk, switch
from .site import Client, Site
from .smuggling import SECRET as EXTRA


def opens(client: Client) -> None:
    """The tunnel stands: bytes pass both ways. (They are a frame of a client's.)"""
    assert client.answer().status == 101
    client.send(FRAME)
    assert read_exactly(client.socket, len(FRAME)) == FRAME


FRAME = b"\x82\x85abcd" + bytes(a ^ b for a, b in zip(b"hello", b"abcda", strict=True))


def test_a_correct_handshake_opens_a_tunnel(site: Site) -> None:
    with site.client(handshake()) as client:
        opens(client)
    [talk] = site.recorder.ended()
    head = talk.heads[0]
    assert head.line == "GET /ws HTTP/1.1"
    assert head.get("connection") == "Upgrade"
    assert head.get("upgrade") == "websocket"
    assert head.get("sec-websocket-key") == KEY
    assert head.get("sec-websocket-version") == "13"
    assert bytes(talk.seen) == head.raw + FRAME


@pytest.mark.parametrize(
    "data",
    [
        handshake("CONNECTION: keep-alive, uPGRADE", "UPGRADE: WebSocket", without="Connection").replace(
            b"Upgrade: websocket\r\n", b""
        ),
        handshake("Connection: keep-alive", "Connection: , Upgrade ,"),
        handshake("Content-Length: 0"),
        handshake("Sec-WebSocket-Protocol: chat, superchat", "Sec-WebSocket-Extensions: permessage-deflate"),
        b"\r\n" + handshake(),
        handshake(line="GET http://a.test/ws HTTP/1.1"),
    ],
    ids=["spelling", "connection-twice", "empty-body", "offers", "line-before", "absolute-form"],
)
def test_other_correct_handshakes(site: Site, data: bytes) -> None:
    with site.client(data) as client:
        opens(client)


def test_a_handshake_split_at_every_byte(site: Site) -> None:
    data = handshake()
    for at in range(1, len(data)):
        with site.client(data[:at]) as client:
            site.beat()
            client.send(data[at:])
            assert client.answer().status == 101, at
    talks = site.recorder.ended()
    assert len(talks) == len(data) - 1
    # Nothing but the request's id tells them apart.
    heads = {re.sub(rb"(?<=Request-Id: )[0-9a-f]{32}", b"", bytes(talk.seen)) for talk in talks}
    assert len(heads) == 1


VERSIONS = {
    "9-version-99": (handshake("Sec-WebSocket-Version: 99", without="Sec-WebSocket-V"), 426),
    "9-version-7": (handshake("Sec-WebSocket-Version: 7", without="Sec-WebSocket-V"), 426),
    "9-version-013": (handshake("Sec-WebSocket-Version: 013", without="Sec-WebSocket-V"), 426),
    "9-version-list": (handshake("Sec-WebSocket-Version: 13, 8", without="Sec-WebSocket-V"), 426),
    "9-version-empty": (handshake("Sec-WebSocket-Version:", without="Sec-WebSocket-V"), 426),
    "9-absent": (handshake(without="Sec-WebSocket-V"), 426),
    "9-twice": (handshake("Sec-WebSocket-Version: 13"), 400),
    "9-two": (handshake("Sec-WebSocket-Version: 8"), 400),
    "9-misspelled": (handshake("Sec_WebSocket_Version: 13"), 400),
}


@pytest.mark.parametrize(("data", "status"), VERSIONS.values(), ids=VERSIONS.keys())
def test_9_other_versions(site: Site, data: bytes, status: int) -> None:
    answer = site.refuses(data + EXTRA, status)
    if status == 426:
        assert answer.head.get("sec-websocket-version") == "13"
        assert answer.head.get("upgrade") == "websocket"
    site.untouched()


KEYS = [
    "",
    "AAAA",
    "dGhlIHNhbXBsZSBub25jZQ",
    "dGhlIHNhbXBsZSBub25jZQ=",
    "dGhlIHNhbXBsZSBub25jZQ===",
    "=" * 24,
]
KEYS += [
    "dGhlIHNhbXBsZSBub25jZR==",
    "dGhlIHNhbXBsZSBub25j==ZQ",
    "dGhlIHNhbXBsZSBub25jZ-==",
    "dGhlIHNhbXBs ZSBub25jZQ==",
]
KEYS += [
    KEY * 2,
    f"{KEY}, {KEY}",
    f'"{KEY}"',
    "dGhlIHNhbXBsZSBub25jZQAA",
    "dGhlIHNhbXBsZSBub25jZQ==\xa0",
    "x" * 9000,
]
BAD_WS = {
    **{
        f"13-key-{key[:24]!a}": handshake(f"Sec-WebSocket-Key: {key}", without="Sec-WebSocket-K")
        for key in KEYS
    },
    "13-no-key": handshake(without="Sec-WebSocket-K"),
    "13-twice": handshake(f"Sec-WebSocket-Key: {KEY}"),
    "13-two": handshake("Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA=="),
    "13-misspelled": handshake(f"Sec-WebSocket_Key: {KEY}"),
    "13-named-by-connection": handshake("Connection: Sec-WebSocket-Key"),
    "17-length": handshake("Content-Length: 5", body=b"hello"),
    "17-length-to-come": handshake("Content-Length: 5"),
    "17-chunked": handshake("Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "17-both": handshake("Transfer-Encoding: chunked", "Content-Length: 0", body=b"0\r\n\r\n"),
    "18-fragment": handshake(line="GET /ws#frag HTTP/1.1"),
    "18-fragment-alone": handshake(line="GET # HTTP/1.1"),
    "18-fragment-in-query": handshake(line="GET /ws?a#b HTTP/1.1"),
}


@pytest.mark.parametrize("data", BAD_WS.values(), ids=BAD_WS.keys())
def test_13_17_18_bad_handshakes(site: Site, data: bytes) -> None:
    site.refuses(data + EXTRA)
    site.untouched()


def test_13_a_bad_handshake_split_at_every_byte(site: Site) -> None:
    data = handshake(f"Sec-WebSocket-Key: {KEY}")
    for at in range(1, len(data)):
        with site.client(data[:at]) as client:
            site.beat()
            client.send(data[at:])
            assert client.answer().status == 400, at
            assert client.rest() == b""
    site.untouched()


def descriptors(process: int) -> int:
    """Open files of all threads: each worker has a table of its own."""
    return sum(len(os.listdir(task / "fd")) for task in Path(f"/proc/{process}/task").iterdir())


def test_20_clients_that_reset_before_the_101(site: Site) -> None:
    process = site.serving.process.pid
    site.beat()
    before = descriptors(process)
    data = handshake()
    address = site.address()
    with site.recorder.behaving(lambda talk: talk.drain()):
        for number in range(10_000):
            with connect(address) as client:
                # Each tenth goes within its head.
                client.sendall(data if number % 10 else data[: number // 10 % len(data)])
                reset(client)
    site.fresh()
    until(lambda: descriptors(process) <= before, f"{before} descriptors as before")
    assert site.serving.process.poll() is None


def test_22_foreign_origins(site: Site) -> None:
    for origin in ("https://evil.test", "null", "HTTPS://Good.Test:443"):
        with site.client(handshake(f"Origin: {origin}")) as client:
            opens(client)
        assert site.recorder.talks[-1].heads[0].get("origin") == origin
    with site.client(handshake("Origin: https://good.test", host="origins.test")) as client:
        opens(client)
    with site.client(handshake(host="origins.test")) as client:
        opens(client)


FOREIGN = ["https://evil.test", "http://good.test", "https://good.test:8443", "https://good.test.evil.test"]
FOREIGN += ["null", "", "https://evil.test/https://good.test", "https://good.test https://evil.test"]
FOREIGN += ["https://good.testx", "https://xgood.test", "good.test", "https://good.test/"]


@pytest.mark.parametrize("origin", FOREIGN)
def test_22_an_allow_list_of_origins(site: Site, origin: str) -> None:
    site.refuses(handshake(f"Origin: {origin}", host="origins.test") + EXTRA, 403)
    site.untouched()


def test_22_two_origins_where_one_is_allowed(site: Site) -> None:
    origins = ["Origin: https://good.test", "Origin: https://evil.test"]
    for pair in (origins, origins[::-1]):
        site.refuses(handshake(*pair, host="origins.test") + EXTRA, 403)
    site.untouched()


def test_24_a_dribbled_101(site: Site) -> None:
    over = threading.Event()

    def dribble(talk: Talk) -> None:
        talk.head()
        for byte in switch(KEY)[:-4].encode():
            talk.send(bytes([byte]))
            if over.wait(0.02):
                return

    with site.recorder.behaving(dribble):
        answer = site.refuses(handshake(host="late.test") + EXTRA, 504)
        assert answer.head.get("content-type") == "text/plain; charset=utf-8"
        over.set()
    site.fresh()


def test_24_nothing_at_all(site: Site) -> None:
    with site.recorder.behaving(lambda talk: talk.drain()):
        site.refuses(handshake(host="late.test"), 504)
        site.refuses(request(host="late.test"), 504)
        site.refuses(request("Content-Length: 2", line="POST / HTTP/1.1", host="late.test", body=b"ab"), 504)
    site.fresh()


@pytest.mark.parametrize(
    "data",
    [
        request(line="CONNECT a.test:443 HTTP/1.1", host="a.test:443"),
        request(line="CONNECT / HTTP/1.1"),
        request(line="CONNECT http://a.test/ HTTP/1.1"),
        handshake(line="CONNECT /ws HTTP/1.1"),
        request(":protocol: websocket", line="CONNECT a.test:443 HTTP/1.0"),
        request(line="TRACE / HTTP/1.1"),
    ],
)
def test_26_connect(site: Site, data: bytes) -> None:
    answer = site.refuses(data + EXTRA, 405)
    assert "GET" in (answer.head.get("allow") or "")
    site.untouched()


def test_no_backend(site: Site) -> None:
    answer = site.refuses(handshake(host="dead.test") + EXTRA, 503)
    assert int(answer.head.get("retry-after") or "") in range(1, 6)
    site.untouched()
