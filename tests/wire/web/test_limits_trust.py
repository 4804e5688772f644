"""Bounds, and who is believed (bad-input section C)."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest

from ..net import connect, read_all, reset, until
from .messages import handshake, lines, request
from .site import Client, Site
from .site import site as running
from .smuggling import SECRET

KIB = 1024
LONG = {
    "60-target": (request(line=f"GET /{'x' * 64 * KIB} HTTP/1.1"), 414),
    "60-target-just-too-long": (request(line=f"GET /{'x' * 8 * KIB} HTTP/1.1"), 414),
    "60-no-line-end": (b"GET /" + b"x" * 64 * KIB, 414),
    "60-header": (request(f"X: {'x' * 64 * KIB}"), 431),
    "60-header-name": (request(f"{'x' * 64 * KIB}: 1"), 431),
    "60-header-without-end": (request("X: " + "x" * 64 * KIB)[:-4], 431),
    "60-2000-headers": (request(*["a:b"] * 2000), 431),
    "60-101-headers": (request(*["a:b"] * 100), 431),
    "60-2000-empty-values": (request(*["a:"] * 2000), 431),
    "60-many-middling": (request(*[f"X-{n}: {'x' * 200}" for n in range(90)]), 431),
    "60-cookies": (request(*[f"Cookie: c{n}={'x' * 4000}" for n in range(10)]), 431),
    "60-handshake": (handshake(f"X: {'x' * 64 * KIB}"), 431),
    "60-method": (request(line=f"{'M' * 40} / HTTP/1.1"), 501),
    "60-long-method": (request(line=f"{'M' * 64 * KIB} / HTTP/1.1"), 414),
    "60-version": (request(line=f"GET / HTTP/1.{'1' * 64 * KIB}"), 414),
}


@pytest.mark.parametrize(("data", "status"), LONG.values(), ids=LONG.keys())
def test_60_too_long(site: Site, data: bytes, status: int) -> None:
    site.refuses(data, status)
    site.untouched()


def test_60_just_not_too_long(site: Site) -> None:
    with site.client(request(line=f"GET /{'x' * (8 * KIB - 1)} HTTP/1.1")) as client:
        assert len(client.answer().told()["line"]) == 8 * KIB + 13
    with site.client(request(*["a:b"] * 99)) as client:
        assert len([name for name, _ in client.answer().told()["fields"] if name == "a"]) == 99
    plain = len(request("X: "))
    with site.client(request("X: " + "x" * (16 * KIB - plain))) as client:
        assert client.answer().status == 200
    site.refuses(request("X: " + "x" * (16 * KIB - plain + 1)), 431)


def resident(process: int) -> int:
    """Bytes of memory in use."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * KIB


def test_60_memory_is_bounded(site: Site) -> None:
    """Hundreds of heads that never end are held up to the limit and not beyond."""
    process = site.serving.process.pid
    site.beat()
    before = resident(process)
    held = [site.client(request("X: " + "x" * 15 * KIB)[:-4]) for _ in range(400)]
    site.beat()
    assert resident(process) - before < 400 * 40 * KIB
    for client in held:
        with client:
            client.send(b"x" * 8 * KIB)
            assert client.answer().status == 431
    held = [site.client(b"GET / HTTP/1.1\r\nX: " + b"x" * 256 * KIB) for _ in range(50)]
    for client in held:
        with client:
            assert client.answer().status == 431
    assert resident(process) - before < 400 * 40 * KIB
    site.untouched()


FOREIGN = [
    "X-Forwarded-For: 6.6.6.6",
    "x-forwarded-for: 6.6.6.6",
    "X_Forwarded_For: 6.6.6.6",
    "X-Forwarded_For: 6.6.6.6",
    "X_FORWARDED-FOR: 6.6.6.6",
    "X.Forwarded.For: 6.6.6.6",
    "X-Forwarded-Proto: 6.6.6.6",
    "X_Forwarded_Proto: 6.6.6.6",
    "X-Forwarded-Host: 6.6.6.6",
    "X-Forwarded-Port: 6.6.6.6",
    "X_Forwarded_Port: 6.6.6.6",
    "X-Forwarded-Server: 6.6.6.6",
    "X-Forwarded-Anything: 6.6.6.6",
    "Forwarded: for=6.6.6.6",
    "FORWARDED: for=6.6.6.6",
    "X-Real-IP: 6.6.6.6",
    "X_Real_IP: 6.6.6.6",
    "X-Request-Id: 6.6.6.6",
    "X_Request_Id: 6.6.6.6",
]


@pytest.mark.parametrize("make", [request, handshake], ids=["request", "handshake"])
def test_62_what_untrusted_peers_say_of_others(site: Site, make: type) -> None:
    for fields in [[field] for field in FOREIGN] + [FOREIGN, FOREIGN * 2, FOREIGN[::-1]]:
        data = make(*fields) + make(*fields, "Connection: X-Forwarded-For, Forwarded")
        with site.client(make(*fields)) as client:
            assert client.answer().status in (101, 200), data
        head = site.recorder.ended()[-1].heads[0]
        assert b"6.6.6.6" not in head.raw
        assert head.get("x-forwarded-for") == "127.0.0.1"
        assert head.get("x-forwarded-proto") == "http"
        assert head.get("x-forwarded-host") == "a.test"
        assert head.get("forwarded") == "for=127.0.0.1;host=a.test;proto=http"
        assert len(head.get("x-request-id") or "") == 32
        site.recorder.forget()


def test_62_trusted_peers_are_believed(site: Site) -> None:
    said = [
        "X-Forwarded-For: 192.0.2.1, 192.0.2.2",
        "x-forwarded-for: 192.0.2.3",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: shop.test",
        "X-Forwarded-Port: 443",
        'Forwarded: for="[2001:db8::1]";proto=https',
        "X-Real-IP: 192.0.2.1",
        "X-Request-Id: abc-123",
    ]
    with site.client(request(*said), "trusting") as client:
        fields = {name.lower(): value for name, value in client.answer().told()["fields"]}
    assert fields["x-forwarded-for"] == "192.0.2.1, 192.0.2.2, 192.0.2.3, 127.0.0.1"
    assert fields["x-forwarded-proto"] == "https"
    assert fields["x-forwarded-host"] == "shop.test"
    assert fields["x-forwarded-port"] == "443"
    assert fields["forwarded"] == 'for="[2001:db8::1]";proto=https, for=127.0.0.1;host=a.test;proto=http'
    assert fields["x-real-ip"] == "192.0.2.1"
    assert fields["x-request-id"] == "abc-123"


def test_62_but_not_in_other_spellings(site: Site) -> None:
    """A trusted peer may have passed on what it did not recognise."""
    said = [field for field in FOREIGN if "_" in field or "." in field.split(":")[0]]
    assert len(said) >= 8
    with site.client(request(*said), "trusting") as client:
        fields = client.answer().told()["fields"]
    assert "6.6.6.6" not in str(fields)


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, "a\xe9b", "a\tb"])
def test_62_unusable_request_ids_are_replaced(site: Site, value: str) -> None:
    with site.client(request(f"X-Request-Id: {value}"), "trusting") as client:
        ids = [value for name, value in client.answer().told()["fields"] if name == "X-Request-Id"]
    assert len(ids) == 1
    assert len(ids[0]) == 32
    assert ids[0] != value


def test_62_two_request_ids_of_a_trusted_peer(site: Site) -> None:
    with site.client(request("X-Request-Id: one", "X-Request-Id: two"), "trusting") as client:
        ids = [value for name, value in client.answer().told()["fields"] if name == "X-Request-Id"]
    assert len(ids) == 1
    assert ids[0] not in ("one", "two")


LOGGED = """
[balancer]
admin = "none"
[log]
format = "@format@"
[[listeners]]
name = "main"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "main"
trusted = ["127.0.0.1"]
[pools.main]
[[pools.main.backends]]
name = "main-1"
address = "@main@"
"""


@pytest.mark.parametrize("form", ["human", "json"])
def test_63_one_line_for_each_request(tmp_path: Path, form: str) -> None:
    with running(tmp_path, LOGGED.replace("@format@", form), "main") as site:
        good = [
            request('X-Request-Id: a"b\\n', line="GET /%0d%0a%1b[31m'?\\n HTTP/1.1"),
            request(line="X' / HTTP/1.1"),
            request("User-Agent: \xff\xfe", "Referer: \x85\xa0"),
        ]
        bad = [
            request(line="GET /\x1b[31m HTTP/1.1"),
            request(line="GET /\r\nfake HTTP/1.1"),
            request(line="GET /\nfake HTTP/1.1"),
            request("X-Request-Id: a\x1b[31m"),
            request("X-Request-Id: a\rb"),
            request(host="a\x1b.test"),
            lines("G\x1bET / HTTP/1.1", "Host: a"),
        ]
        for data in good:
            with site.client(data) as client:
                assert client.answer().status == 200
        for data in bad:
            site.refuses(data)
        mark = {"human": " -> ", "json": '"event":"connection"'}[form]

        def told() -> list[str]:
            found = [line for line in site.serving.lines if mark in line]
            return found if len(found) >= len(good) + len(bad) else []

        records = until(told, "a record of each")
        assert len(records) == len(good) + len(bad)
        assert all(line.isprintable() and line.isascii() for line in site.serving.lines if line in records)
        if form == "json":
            assert {json.loads(line)["reason"] for line in records} <= {
                "finished",
                "bad-request",
                "client-gone",
            }


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    ],
)
def test_64_a_proxy_header_nobody_expects(site: Site, header: bytes) -> None:
    site.refuses(header + SECRET)
    site.untouched()


V2 = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, body: bytes) -> bytes:
    return V2 + bytes([command, family]) + struct.pack("!H", len(body)) + body


ADDRESSES = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 4711, 80)


def test_65_local_without_address_and_lying_lengths(site: Site) -> None:
    for header in (
        v2(0x20, 0, b""),
        v2(0x21, 0x11, bytes(12) + b"\x04\xff\xff\0"),
        v2(0x21, 0x11, bytes(3)),
        v2(0x21, 0x77, bytes(12)),
        V2 + b"\x21\x11\xff\xff" + bytes(5000),
        b"PROXY TCP4 1.2.3.4\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        b"",
    ):
        with connect(site.address("announced")) as client:
            client.sendall(header + SECRET)
            with contextlib.suppress(ConnectionResetError):
                assert read_all(client) == b""
    site.untouched()
    assert site.serving.process.poll() is None


@pytest.mark.parametrize(
    "header", [v2(0x21, 0x11, ADDRESSES), b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n"], ids=["v2", "v1"]
)
def test_65_an_announced_client(site: Site, header: bytes) -> None:
    """What the header says is who the client is. What that client says of others is its own word: a proxy
    that announces its clients passes their bytes on as they are."""
    with site.client(listener="announced") as client:
        for byte in header:
            client.send(bytes([byte]))
        fields = dict(client.ask(request("X-Forwarded-For: 203.0.113.9")).told()["fields"])
        assert fields["X-Forwarded-For"] == "192.0.2.7"
        assert fields["Forwarded"] == "for=192.0.2.7;host=a.test;proto=http"
    # A second one is none.
    with site.client(header + header + SECRET, "announced") as client:
        assert client.answer().status == 400
        assert client.rest() == b""


def test_refusals_leave_nothing_behind(site: Site) -> None:
    """A thousand clients that break the rules and go without reading: nobody else notices."""
    for number in range(1000):
        client = Client(site.address(), request("X: \0" if number % 2 else f"X: {'x' * 20_000}"))
        if number % 3:
            reset(client.socket)
        else:
            client.socket.close()
    site.untouched()
