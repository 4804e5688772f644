"""What a handshake is answered with: only a 101 that is right in every part opens a tunnel (section A)."""

from __future__ import annotations

import threading

import pytest

from ..net import read_exactly
from .messages import KEY, accept_of, handshake, request
from .recorder import Script, Talk, replies, response, switch
from .site import Site
from .smuggling import SECRET as EXTRA
from .test_handshake import FRAME

ANSWERS = {
    "200": response(b"no"),
    "200-chunked": response(b"2\r\nno\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=False),
    "204": response(status="204 No Content", length=False),
    "302": response(b"", "Location: /", status="302 Found"),
    "403": response(b"no", status="403 Forbidden"),
    "426": response(b"", "Upgrade: websocket", status="426 Upgrade Required"),
    "500": response(b"no", status="500 Oops"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("together", [True, False], ids=["same-write", "later"])
def test_1_a_request_behind_a_refused_handshake(site: Site, answer: bytes, together: bool) -> None:
    """CVE-2026-2833: never does the second one reach a backend, whatever it answers but 101."""
    with site.recorder.behaving(replies(answer)):
        with site.client(handshake() + EXTRA if together else handshake()) as client:
            if not together:
                site.beat()
                client.send(EXTRA)
            got = client.answer()
            assert got.status == int(answer.split(b" ")[1])
            assert "close" in got.head.options()
            assert client.rest() == b""
        [talk] = site.recorder.ended()
        assert bytes(talk.seen) == talk.heads[0].raw
    site.fresh()


def test_1_nor_does_it_when_the_backend_closes(site: Site) -> None:
    for then in ("close", "reset"):
        with site.recorder.behaving(replies(then=then)):
            site.refuses(handshake() + EXTRA, 502)
            assert all(bytes(talk.seen) == talk.heads[0].raw for talk in site.recorder.ended())
    site.fresh()


def test_2_bytes_behind_a_handshake_wait_for_the_101(site: Site) -> None:
    told, checked = threading.Event(), threading.Event()
    silent: list[bool] = []

    def script(talk: Talk) -> None:
        head = talk.head()
        assert head is not None
        # When the client has this, the worker had long had what it sent with its handshake.
        talk.send("HTTP/1.1 103 Early Hints\r\n\r\n")
        told.wait()
        silent.append(talk.silent())
        checked.set()
        talk.send(switch(head.get("sec-websocket-key") or ""))

    with site.recorder.behaving(script), site.client(handshake() + FRAME * 3) as client:
        assert (hints := client.head()) is not None
        assert hints.status == 103
        site.beat()
        told.set()
        assert checked.wait(30)
        assert client.answer().status == 101
        client.send(FRAME)
        client.socket.shutdown(1)
        [talk] = site.recorder.ended()
        assert silent == [True]
        assert bytes(talk.seen) == talk.heads[0].raw + FRAME * 4


def test_2_more_than_is_held_comes_also(site: Site) -> None:
    frame = b"\x82\xfe\x40\x00abcd" + bytes(0x4000)
    with site.client(handshake() + frame * 4) as client:
        assert client.answer().status == 101
        assert client.buffer + read_exactly(client.socket, 4 * len(frame) - len(client.buffer)) == frame * 4


def test_2_a_backend_may_speak_with_its_101(site: Site) -> None:
    with site.recorder.behaving(replies(switch(KEY), b"\x81\x02hi")), site.client(handshake()) as client:
        assert client.answer().status == 101
        assert client.buffer + read_exactly(client.socket, 4 - len(client.buffer)) == b"\x81\x02hi"


def method(data: bytes) -> str:
    return data.split(b" ")[0].decode()


def no_tunnel(site: Site, script: Script, data: bytes, status: int) -> None:
    """The client gets this status and the end; what it sends behind its request reaches nobody."""
    with site.recorder.behaving(script):
        with site.client(data) as client:
            answer = client.answer(method(data))
            assert answer.status == status, answer
            # Perhaps it has been closed already.
            client.send(FRAME)
            assert client.rest() == b""
            assert "upgrade" not in answer.head.names or status == 426
        for talk in site.recorder.ended():
            assert bytes(talk.seen) == talk.heads[0].raw
    site.fresh()


def test_3_a_426_is_relayed(site: Site) -> None:
    fields = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13, 8")
    answer = response(b"other version", *fields, status="426 Upgrade Required")
    with site.recorder.behaving(replies(answer)), site.client(handshake()) as client:
        got = client.answer()
        assert (got.status, got.body) == (426, b"other version")
        assert got.head.get("sec-websocket-version") == "13, 8"
        assert got.head.get("upgrade") == "websocket"
        assert "close" in got.head.options()
        assert client.rest() == b""
    no_tunnel(site, replies(answer), handshake(), 426)


def test_4_a_200_that_says_it_upgrades(site: Site) -> None:
    """CVE-2024-23326."""
    fields = switch(KEY).split("\r\n")[1:-2]
    no_tunnel(site, replies(response(b"", *fields)), handshake(), 200)
    no_tunnel(site, replies(response(b"", *fields, length=False), then="close"), handshake(), 200)
    for status in ("100 Continue", "102 Processing", "199 Eh"):
        interim = switch(KEY).replace("101 Switching Protocols", status)
        with site.recorder.behaving(replies(interim, response(b"no"))), site.client(handshake()) as client:
            head = client.head()
            assert head is not None
            assert not {"upgrade", "connection"} & set(head.names)
            assert client.answer().body == b"no"
            assert client.rest() == b""


GOOD = f"Sec-WebSocket-Accept: {accept_of(KEY)}"
UP = ("Upgrade: websocket", "Connection: Upgrade")


def answer_101(*fields: str, line: str = "HTTP/1.1 101 Switching Protocols") -> str:
    return "".join(f"{text}\r\n" for text in (line, *fields, ""))


BAD_101 = {
    "5-no-accept": answer_101(*UP),
    "6-wrong-accept": answer_101(*UP, f"Sec-WebSocket-Accept: {accept_of(KEY[::-1])}"),
    "6-the-key-itself": answer_101(*UP, f"Sec-WebSocket-Accept: {KEY}"),
    "6-accept-twice": answer_101(*UP, GOOD, GOOD),
    "6-accept-in-other-case": answer_101(*UP, f"Sec-WebSocket-Accept: {accept_of(KEY).swapcase()}"),
    "6-accept-and-more": answer_101(*UP, f"{GOOD}="),
    "6-accept-cut": answer_101(*UP, GOOD[:-1]),
    "6-empty-accept": answer_101(*UP, "Sec-WebSocket-Accept:"),
    "6-accept-misspelled": answer_101(*UP, GOOD.replace("-A", "_A")),
    "7-h2c": answer_101("Upgrade: h2c", "Connection: Upgrade", GOOD),
    "7-h2c-beside": answer_101("Upgrade: websocket, h2c", "Connection: Upgrade", GOOD),
    "7-upgrade-twice": answer_101(*UP, "Upgrade: h2c", GOOD),
    "7-no-upgrade": answer_101("Connection: Upgrade", GOOD),
    "7-no-connection": answer_101("Upgrade: websocket", GOOD),
    "7-other-connection": answer_101("Upgrade: websocket", "Connection: keep-alive", GOOD),
    "7-connection-names-accept": answer_101(*UP, "Connection: Sec-WebSocket-Accept", GOOD),
    "7-version-of-token": answer_101("Upgrade: websocket/13", "Connection: Upgrade", GOOD),
    "with-a-length": answer_101(*UP, GOOD, "Content-Length: 2"),
    "with-chunks": answer_101(*UP, GOOD, "Transfer-Encoding: chunked"),
    "bare-lf": answer_101(*UP, GOOD).replace("\r\n", "\n"),
    "folded": answer_101("Upgrade: websocket", "Connection:\r\n Upgrade", GOOD),
    "http-1.2": answer_101(*UP, GOOD, line="HTTP/1.2 101 Switching Protocols"),
    "status-0101": answer_101(*UP, GOOD, line="HTTP/1.1 0101 Switching Protocols"),
    "status-1": answer_101(*UP, GOOD, line="HTTP/1.1 1 Switching Protocols"),
    "nul": answer_101(*UP, GOOD, "X: \0"),
    "space-before-colon": answer_101("Upgrade: websocket", "Connection : Upgrade", GOOD),
    "too-long": answer_101(*UP, GOOD, f"X: {'x' * 20000}"),
    "frames-at-once": "\x81\x02hi",
}


@pytest.mark.parametrize("answer", BAD_101.values(), ids=BAD_101.keys())
def test_5_6_7_a_101_that_is_not_right(site: Site, answer: str) -> None:
    no_tunnel(site, replies(answer, b"\x81\x02hi"), handshake(), 502)


@pytest.mark.parametrize(
    "answer",
    [
        answer_101(*UP, GOOD, line="HTTP/1.1 101"),
        answer_101(*UP, GOOD, line="HTTP/1.1 101 "),
        answer_101(
            "UPGRADE:WebSocket", "connection: keep-alive , uPGRADE", GOOD.lower().split(":")[0] + GOOD[20:]
        ),
        "HTTP/1.1 100 Continue\r\n\r\n" + answer_101(*UP, GOOD),
    ],
    ids=["no-reason", "empty-reason", "spelling", "after-100"],
)
def test_other_correct_101s(site: Site, answer: str) -> None:
    with site.recorder.behaving(replies(answer)), site.client(handshake()) as client:
        assert client.answer().status == 101
        client.send(FRAME)
        client.socket.shutdown(1)
        [talk] = site.recorder.ended()
        assert bytes(talk.seen).endswith(b"\r\n\r\n" + FRAME)


NOT_ASKED = {
    "8-post": handshake(line="POST /ws HTTP/1.1"),
    "10-put": handshake(line="PUT /ws HTTP/1.1"),
    "10-head": handshake(line="HEAD /ws HTTP/1.1"),
    "10-options": handshake(line="OPTIONS * HTTP/1.1"),
    "10-lower-case": handshake(line="get /ws HTTP/1.1"),
    "11-http-1.0": handshake(line="GET /ws HTTP/1.0"),
    "12-no-connection": handshake(without="Connection"),
    "12-keep-alive-only": handshake("Connection: keep-alive", without="Connection"),
    "12-not-the-token": handshake("Connection: upgrade2", without="Connection"),
    "12-in-proxy-connection": handshake("Proxy-Connection: Upgrade", without="Connection"),
    "15-h2c": handshake("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__", without="Upgrade"),
    "16-unknown": handshake("Upgrade: tcp", without="Upgrade"),
    "16-websocket-twice": handshake("Upgrade: websocket"),
    "16-websocket-and-h2c": handshake("Upgrade: websocket, h2c", without="Upgrade"),
    "16-h2c-and-websocket": handshake("Upgrade: h2c", "Upgrade: websocket", without="Upgrade"),
    "16-websocket-with-version": handshake("Upgrade: websocket/13", without="Upgrade"),
    "16-websockets": handshake("Upgrade: websockets", without="Upgrade"),
    "16-quoted": handshake('Upgrade: "websocket"', without="Upgrade"),
    "16-empty": handshake("Upgrade:", without="Upgrade"),
}


@pytest.mark.parametrize("data", NOT_ASKED.values(), ids=NOT_ASKED.keys())
def test_8_10_11_12_15_16_a_101_nobody_asked_for(site: Site, data: bytes) -> None:
    # Whatever the backend believes it was asked for: no tunnel.
    for answer in (switch(KEY), answer_101(*UP)):
        no_tunnel(site, replies(answer), data, 502)
    # A proper one is not even told that there was something to upgrade to.
    with site.client(data) as client:
        answer = client.answer(method(data))
        assert answer.status == 200
    assert not {"upgrade", "connection", "http2-settings", "proxy-connection"} & set(
        site.recorder.talks[-1].heads[0].names
    )


def test_15_h2c_beside_plain_fields(site: Site) -> None:
    data = request(
        "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__", "X: 1"
    )
    with site.client(data) as client:
        fields = client.answer().told()["fields"]
    names = {name.lower() for name, _ in fields}
    assert "x" in names
    assert not {"connection", "upgrade", "http2-settings"} & names
