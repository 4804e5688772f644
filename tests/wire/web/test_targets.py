"""Targets, hosts and versions: one way to read each, or none (bad-input section C)."""

from __future__ import annotations

import pytest

from .messages import request
from .site import Site
from .smuggling import SECRET

HOSTS = [
    "",
    "a@b",
    "user:pass@a.test",
    "a/b",
    "a.test/",
    "/",
    "a:0",
    "a:99999",
    "a:65536",
    "a:",
    "a:x",
    "a:-1",
    "a:+80",
    "a:080",
]
HOSTS += [
    "a:80:80",
    ":80",
    "a b",
    "a\tb",
    "a,b",
    "a.test, b.test",
    "a#b",
    "a?b",
    "a\\b",
    "a%00b",
    "a%2eb",
    "a;b",
    "a'b",
    'a"b',
]
HOSTS += [
    "[::1",
    "::1",
    "[::1]x",
    "[::g]",
    "[fe80::1%25eth0]",
    "[v1.x]",
    "http://a.test",
    "a\xe9.test",
    "a\x7f",
    "*",
    "a|b",
    "<a>",
]
HOSTS += [
    "[::1]:0",
    "[]",
    "[a.test]",
    "a.test\xa0",
    "a(b)",
    "{a}",
    "a^b",
    "a`b",
    "a=b",
    "a&b",
    "a!b",
    "$a",
    "a+b",
    "a*b",
    "@",
    ":",
]

TARGETS = {
    "57-no-slash": "GET admin HTTP/1.1",
    "57-asterisk": "GET * HTTP/1.1",
    "57-asterisk-post": "POST * HTTP/1.1",
    "57-asterisk-and-path": "OPTIONS */x HTTP/1.1",
    "57-asterisk-query": "OPTIONS *?x HTTP/1.1",
    "57-query-only": "GET ?x HTTP/1.1",
    "57-dot": "GET ./x HTTP/1.1",
    "57-authority": "GET a.test:80 HTTP/1.1",
    "57-backslash": "GET \\x HTTP/1.1",
    "57-backslash-within": "GET /a\\..\\b HTTP/1.1",
    "57-encoded-slash-first": "GET %2fx HTTP/1.1",
    "57-semicolon": "GET ;x HTTP/1.1",
    "58-fragment": "GET /#x HTTP/1.1",
    "58-fragment-first": "GET #/x HTTP/1.1",
    "58-fragment-in-query": "GET /?a#b HTTP/1.1",
    "58-fragment-in-absolute": "GET http://a.test/#x HTTP/1.1",
    "56-other-host": "GET http://b.test/ HTTP/1.1",
    "56-other-port": "GET http://a.test:81/ HTTP/1.1",
    "56-with-user": "GET http://a.test@b.test/ HTTP/1.1",
    "56-user-is-host": "GET http://b.test@a.test/ HTTP/1.1",
    "56-no-host": "GET http:///x HTTP/1.1",
    "56-one-slash": "GET http:/a.test/ HTTP/1.1",
    "56-no-slashes": "GET http:a.test/ HTTP/1.1",
    "56-other-scheme": "GET ftp://a.test/ HTTP/1.1",
    "56-file": "GET file:///etc/passwd HTTP/1.1",
    "56-suffix": "GET http://a.test.evil.test/ HTTP/1.1",
    "56-backslash": "GET http://b.test\\a.test/ HTTP/1.1",
    "56-query-no-path": "GET http://a.test?x HTTP/1.1",
    "56-dot-behind": "GET http://a.test./ HTTP/1.1",
    "56-encoded": "GET http://a%2etest/ HTTP/1.1",
    "56-comma": "GET http://a.test,b.test/ HTTP/1.1",
    "56-scheme-relative": "GET ://a.test/ HTTP/1.1",
    "high-byte": "GET /\xe9 HTTP/1.1",
    "quote": 'GET /"x HTTP/1.1',
    "angle": "GET /<script> HTTP/1.1",
    "del": "GET /\x7f HTTP/1.1",
}

BAD_HOSTS = {
    "53-absent": request(host=None),
    "53-absent-http-1.0": request(host=None, line="GET / HTTP/1.0"),
    "53-absent-absolute": request(host=None, line="GET http://a.test/ HTTP/1.1"),
    "53-twice": request("Host: b.test"),
    "53-twice-equal": request("Host: a.test"),
    "53-twice-apart": request("X: 1", "Y: 2", "HOST: a.test"),
    "53-one-empty": request("Host:"),
    "53-underscore": request("Ho-st: b", "Ho_st: b", host=None),
    "53-host-behind-blank": request("Host : a.test", host=None),
    **{f"55-{host[:20]!a}": request(f"Host: {host}", host=None) for host in HOSTS},
    **{name: request(line=line) for name, line in TARGETS.items()},
}

VERSIONS = {
    "59-1.32": (request(line="GET / HTTP/1.32"), 505),
    "59-1.10": (request(line="GET / HTTP/1.10"), 505),
    "59-1.2": (request(line="GET / HTTP/1.2"), 505),
    "59-2.0": (request(line="GET / HTTP/2.0"), 505),
    "59-3.0": (request(line="GET / HTTP/3.0"), 505),
    "59-0.9": (request(line="GET / HTTP/0.9"), 505),
    "59-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "59-2": (request(line="GET / HTTP/2"), 400),
    "59-1": (request(line="GET / HTTP/1"), 400),
    "59-01.1": (request(line="GET / HTTP/01.1"), 400),
    "59-1.1x": (request(line="GET / HTTP/1.1x"), 505),
    "59-1,1": (request(line="GET / HTTP/1,1"), 400),
    "59-lower-case": (request(line="GET / http/1.1"), 400),
    "59-other-protocol": (request(line="GET / ICY/1.1"), 400),
    "59-none": (request(line="GET /"), 400),
    "59-none-no-fields": (b"GET /\r\n", 400),
    "59-lf": (request(line="GET /\nHTTP/1.1"), 400),
    "59-plus": (request(line="GET / HTTP/1.+1"), 505),
    "59-space-in-it": (request(line="GET / HTTP /1.1"), 400),
    "59-tls": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(200), 400),
    "59-ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", 400),
    "59-response": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 400),
}


@pytest.mark.parametrize("data", BAD_HOSTS.values(), ids=BAD_HOSTS.keys())
def test_53_55_56_57_58_targets_and_hosts(site: Site, data: bytes) -> None:
    site.refuses(data + SECRET)
    site.untouched()


@pytest.mark.parametrize(("data", "status"), VERSIONS.values(), ids=VERSIONS.keys())
def test_59_versions(site: Site, data: bytes, status: int) -> None:
    # Some are refused before they are whole, and HTTP/0.9 has no more than a line.
    site.refuses(data + (SECRET if data.endswith(b"\r\n\r\n") else b""), status)
    site.untouched()


@pytest.mark.parametrize(
    "host",
    ["a.test", "A.Test", "a.test:8080", "a", "127.0.0.1", "[::1]:80", "[2001:DB8::1]", "a_b.test", "a.test."],
)
def test_55_hosts_that_are_served(site: Site, host: str) -> None:
    with site.client(request(host=host)) as client:
        told = client.answer().told()
    assert [value for name, value in told["fields"] if name == "Host"] == [host]


@pytest.mark.parametrize(
    ("line", "reduced"),
    [
        ("GET http://a.test/x?y=1 HTTP/1.1", "GET /x?y=1 HTTP/1.1"),
        ("GET HTTP://A.TEST/x HTTP/1.1", "GET /x HTTP/1.1"),
        ("GET https://a.test HTTP/1.1", "GET / HTTP/1.1"),
        ("OPTIONS http://a.test HTTP/1.1", "OPTIONS * HTTP/1.1"),
        ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1"),
        ("GET /http://b.test/ HTTP/1.1", "GET /http://b.test/ HTTP/1.1"),
        ("GET //b.test/ HTTP/1.1", "GET //b.test/ HTTP/1.1"),
        ("GET /?http://b.test/{|}^` HTTP/1.1", "GET /?http://b.test/{|}^` HTTP/1.1"),
        ("GET /../%2e%2E/./x HTTP/1.1", "GET /../%2e%2E/./x HTTP/1.1"),
    ],
)
def test_56_targets_that_are_served(site: Site, line: str, reduced: str) -> None:
    with site.client(request(line=line)) as client:
        assert client.answer().told()["line"] == reduced
