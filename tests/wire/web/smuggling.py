"""Requests that two programs could understand differently: each is to be refused (bad-input section B).

Keys begin with the number of the case. Nothing here says how it is refused: that is the oracle's.
"""

from __future__ import annotations

from collections.abc import Iterator

from .messages import chunked, lines, request

CL, TE = "Content-Length", "Transfer-Encoding"
POST = "POST /upload HTTP/1.1"
BODY = chunked(b"hello")
SECRET = request(line="GET /secret HTTP/1.1")

Cases = dict[str, bytes]


def post(*fields: str | bytes, body: bytes = BODY, line: str = POST) -> bytes:
    return request(*fields, line=line, body=body)


LENGTHS: Cases = {
    "27-length-then-chunked": post(f"{CL}: {len(BODY)}", f"{TE}: chunked"),
    "27-chunked-then-length": post(f"{TE}: chunked", f"{CL}: {len(BODY)}"),
    "27-cl.te": post(f"{CL}: 6", f"{TE}: chunked", body=b"0\r\n\r\nG"),
    "27-te.cl": post(f"{CL}: 4", f"{TE}: chunked", body=b"12\r\n" + SECRET + b"\r\n0\r\n\r\n"),
    "27-te.0": post(f"{TE}: chunked", f"{CL}: 0", line="OPTIONS / HTTP/1.1"),
    "27-length-around": post(f"{CL}: 5", f"{TE}: chunked", f"{CL}: 5"),
    "27-in-a-get": post(f"{CL}: 5", f"{TE}: chunked", line="GET / HTTP/1.1"),
    "27-http-1.0": post(f"{CL}: 5", f"{TE}: chunked", line="POST / HTTP/1.0"),
    "27-other-spelling": post(f"{CL.upper()}: 5", f"{TE.lower()}: CHUNKED"),
    "27-with-identity": post(f"{CL}: 5", f"{TE}: identity", body=b"hello"),
    "27-with-empty": post(f"{CL}: 5", f"{TE}:", body=b"hello"),
    "27-far-apart": post(f"{CL}: 5", *[f"X-{n}: {n}" for n in range(60)], f"{TE}: chunked"),
    "27-length-named-by-connection": post(f"{CL}: 5", f"{TE}: chunked", f"Connection: {CL}"),
    "28-two-lines": post(f"{TE}: chunked", f"{TE}: chunked"),
    "28-two-lines-identity": post(f"{TE}: chunked", f"{TE}: identity"),
    "28-two-lines-other-spelling": post(f"{TE}: chunked", f"{TE.lower()}: x"),
    "28-chunked-chunked": post(f"{TE}: chunked, chunked"),
    "28-chunked-gzip": post(f"{TE}: chunked, gzip"),
    "28-gzip": post(f"{TE}: gzip"),
    "28-gzip-chunked": post(f"{TE}: gzip, chunked"),
    "28-identity": post(f"{TE}: identity"),
    "28-identity-chunked": post(f"{TE}: identity, chunked"),
    "28-nothing": post(f"{TE}:"),
    "28-parameter": post(f"{TE}: chunked;q=1"),
    "28-quoted": post(f'{TE}: "chunked"'),
    "28-trailing-comma": post(f"{TE}: chunked,"),
    "28-cow": post(f"{TE}: cow"),
    "29-http-1.0": post(f"{TE}: chunked", line="POST / HTTP/1.0"),
    "29-http-1.0-get": post(f"{TE}: chunked", line="GET / HTTP/1.0"),
    "29-http-1.0-keep-alive": post(f"{TE}: chunked", "Connection: keep-alive", line="POST / HTTP/1.0"),
    "29-until-close": post(line="POST / HTTP/1.0", body=b"hello"),
    "29-until-close-put": post("Connection: close", line="PUT / HTTP/1.0", body=b"hello"),
    "32-negative": post(f"{CL}: -48"),
    "32-minus-zero": post(f"{CL}: -0", body=b""),
    "33-hexadecimal": post(f"{CL}: 0x10"),
    "33-underscore": post(f"{CL}: 1_0"),
    "33-letter": post(f"{CL}: 1Z"),
    "33-2^64": post(f"{CL}: {2**64}"),
    "33-2^64+5": post(f"{CL}: {2**64 + 5}"),
    "33-2^63": post(f"{CL}: {2**63}"),
    "33-very-long": post(f"{CL}: {'9' * 300}"),
    "33-plus": post(f"{CL}: +5"),
    "33-fraction": post(f"{CL}: 5.0"),
    "33-exponent": post(f"{CL}: 5e0"),
    "33-space-within": post(f"{CL}: 1 0"),
    "33-tab-within": post(f"{CL}: 1\t0"),
    "33-quoted": post(f'{CL}: "5"'),
    "33-semicolon": post(f"{CL}: 5;"),
    "33-no-break-space": post(f"{CL}: \xa05"),
    "33-arabic-digit": post(f"{CL}: ".encode() + "\u0665".encode()),
    "33-full-width-digit": post(f"{CL}: ".encode() + "\uff15".encode()),
    "33-empty": post(f"{CL}:"),
    "33-nothing-but-spaces": post(f"{CL}: \t "),
    "34-octal": post(f"{CL}: 010"),
    "34-zeros": post(f"{CL}: 000"),
    "34-padded": post(f"{CL}: 0000005"),
    "36-two-different": post(f"{CL}: 5", f"{CL}: 6"),
    "36-two-equal": post(f"{CL}: 5", f"{CL}: 5"),
    "36-list": post(f"{CL}: 5, 6"),
    "36-list-of-equals": post(f"{CL}: 5, 5"),
    "36-one-empty": post(f"{CL}: 5", f"{CL}:"),
    "36-other-spelling": post(f"{CL}: 5", "content-LENGTH: 6"),
    "36-misspelled": post(f"{CL}: 5", "Content_Length: 6"),
    "36-misspelled-alone": post("Content_Length: 6"),
    "36-named-by-connection": post(f"{CL}: 5", f"Connection: close, {CL}"),
    "0.cl-get-with-length-twice": post(f"{CL}: 0", f"{CL}: 30", line="GET / HTTP/1.1", body=b""),
}

LINES: Cases = {
    "37-folded": post("X: a", " b", body=b""),
    "37-folded-with-tab": post("X: a", "\tb", body=b""),
    "37-folded-length": post(f"{CL}:", " 5"),
    "37-folded-coding": post(f"{TE}:", " chunked"),
    "37-folded-into-coding": post("X: y", f" {TE}: chunked"),
    "37-folded-behind-coding": post(f"{TE}: chunked", " , identity"),
    "37-folded-nothing": post("X: a", " ", body=b""),
    "37-folded-first-line": lines("GET / HTTP/1.1", " ", "Host: a.test"),
    "38-lf-everywhere": lines("GET / HTTP/1.1", "Host: a.test", "X: 1", end="\n"),
    "38-lf-behind-line": b"GET / HTTP/1.1\nHost: a.test\r\n\r\n",
    "38-lf-behind-field": b"GET / HTTP/1.1\r\nHost: a.test\nX: 1\r\n\r\n",
    "38-lf-at-the-end": b"GET / HTTP/1.1\r\nHost: a.test\r\n\n",
    "38-lf-lf": b"GET / HTTP/1.1\r\nHost: a.test\n\n",
    "38-lf-hides-coding": post(f"X: y\n{TE}: chunked"),
    "38-lf-cr-lf": b"\n\r\n" + SECRET,
    "38-lf-first": b"\n" + SECRET,
    "38-many-empty-lines": b"\r\n" * 3 + SECRET,
    "38-cr-cr-lf": b"GET / HTTP/1.1\r\r\nHost: a.test\r\n\r\n",
    "38-lf-cr": b"GET / HTTP/1.1\n\rHost: a.test\n\r\n\r",
    "38-cr-only": lines("GET / HTTP/1.1", "Host: a.test", end="\r") + SECRET,
    "39-cr-in-value": post("X: a\rb", body=b""),
    "39-cr-in-name": post("X\rY: a", body=b""),
    "39-cr-hides-coding": post(f"X: y\r{TE}: chunked"),
    "39-cr-before-colon": post(f"{TE}\r: chunked"),
    "39-cr-in-target": request(line="GET /a\rb HTTP/1.1"),
    "39-cr-first": b"\r" + SECRET,
    "40-nul-in-value": post("X: a\0b", body=b""),
    "40-nul-in-name": post("X\0: a", body=b""),
    "40-nul-in-length": post(f"{CL}: 5\0"),
    "40-nul-in-host": request(host="a.test\0.evil.test"),
    "40-nul-in-target": request(line="GET /\0 HTTP/1.1"),
    "40-nul-in-method": request(line="GE\0T / HTTP/1.1"),
    "40-nul-in-version": request(line="GET / HTTP/1.1\0"),
    "40-nul-first": b"\0" + SECRET,
    "42-no-colon": post("X", body=b""),
    "42-no-colon-but-coding": post(f"{TE} chunked"),
    "42-no-name": post(": a", body=b""),
    "42-space-before-first": lines("GET / HTTP/1.1", " Host: a.test"),
    "42-space-before-coding": lines(POST, f" {TE}: chunked", "Host: a.test") + BODY,
    "42-space-in-name": post(f"{CL} x: 5"),
    "42-space-before-colon": post(f"{CL} : 5"),
    "42-tab-before-colon": post(f"{CL}\t: 5"),
    "42-second-request-line": post("GET /secret HTTP/1.1", body=b""),
    "42-high-byte-in-name": post("X\xe9: 1", body=b""),
    "42-colon-in-name": post(f"{TE}:chunked: x"),
    "42-del-in-value": post("X: \x7f", body=b""),
    "42-escape-in-value": post("X: \x1b[31m", body=b""),
}

CHUNKED = f"{TE}: chunked"

CHUNKS: Cases = {
    "43-plus": post(CHUNKED, body=b"+5\r\nhello\r\n0\r\n\r\n"),
    "43-minus": post(CHUNKED, body=b"-5\r\nhello\r\n0\r\n\r\n"),
    "43-0x": post(CHUNKED, body=b"0x5\r\nhello\r\n0\r\n\r\n"),
    "43-underscore": post(CHUNKED, body=b"0_2e\r\nhello\r\n0\r\n\r\n"),
    "43-empty": post(CHUNKED, body=b"\r\nhello\r\n0\r\n\r\n"),
    "43-17-digits": post(CHUNKED, body=b"1" * 17 + b"\r\nhello\r\n0\r\n\r\n"),
    "43-17-digits-of-5": post(CHUNKED, body=b"0" * 16 + b"5\r\nhello\r\n0\r\n\r\n"),
    "43-2^64": post(CHUNKED, body=b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "43-negative-in-64-bits": post(CHUNKED, body=b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "43-space-before": post(CHUNKED, body=b" 5\r\nhello\r\n0\r\n\r\n"),
    "43-space-behind": post(CHUNKED, body=b"5 \r\nhello\r\n0\r\n\r\n"),
    "43-tab-behind": post(CHUNKED, body=b"5\t\r\nhello\r\n0\r\n\r\n"),
    "43-no-hexadecimal": post(CHUNKED, body=b"g\r\nhello\r\n0\r\n\r\n"),
    "43-comma": post(CHUNKED, body=b"5,5\r\nhello\r\n0\r\n\r\n"),
    "43-point": post(CHUNKED, body=b"5.\r\nhello\r\n0\r\n\r\n"),
    "43-high-byte": post(CHUNKED, body=b"5\xa0\r\nhello\r\n0\r\n\r\n"),
    "43-full-width": post(CHUNKED, body="\uff15\r\nhello\r\n0\r\n\r\n".encode()),
    "43-nul": post(CHUNKED, body=b"5\0\r\nhello\r\n0\r\n\r\n"),
    "44-lf-in-extension": post(CHUNKED, body=b"5;\nhello\r\n0\r\n\r\n"),
    "44-lf-behind-size": post(CHUNKED, body=b"5\nhello\r\n0\r\n\r\n"),
    "44-cr-cr": post(CHUNKED, body=b"2\r\r;a\r\nhi\r\n0\r\n\r\n"),
    "44-cr-and-no-lf": post(CHUNKED, body=b"5\rhello\r\n0\r\n\r\n"),
    "44-nul-in-extension": post(CHUNKED, body=b"5;\0ext\r\nhello\r\n0\r\n\r\n"),
    "44-cr-in-extension": post(CHUNKED, body=b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "44-escape-in-extension": post(CHUNKED, body=b"5;\x1b\r\nhello\r\n0\r\n\r\n"),
    "44-long-extension": post(CHUNKED, body=b"5;" + b"a" * 4000 + b"\r\nhello\r\n0\r\n\r\n"),
    "44-space-before-extension": post(CHUNKED, body=b"5 ;a\r\nhello\r\n0\r\n\r\n"),
    "44-lf-behind-last-size": post(CHUNKED, body=b"5\r\nhello\r\n0\n\r\n"),
    "44-lf-in-quoted-extension": post(CHUNKED, body=b'5;a="\n"\r\nhello\r\n0\r\n\r\n'),
    "45-spill": post(CHUNKED, body=b"5\r\nhello, world\r\n0\r\n\r\n"),
    "45-spill-by-one": post(CHUNKED, body=b"4\r\nhello\r\n0\r\n\r\n"),
    "45-spill-of-two": post(CHUNKED, body=b"5\r\nhelloXX0\r\n\r\n"),
    "45-lf-behind-data": post(CHUNKED, body=b"5\r\nhello\n0\r\n\r\n"),
    "45-cr-behind-data": post(CHUNKED, body=b"5\r\nhello\r0\r\n\r\n"),
    "45-nothing-behind-data": post(CHUNKED, body=b"5\r\nhello0\r\n\r\n"),
    "45-shorter": post(CHUNKED, body=b"8\r\nhello\r\n0\r\n\r\n"),
    "45-second-chunk": post(CHUNKED, body=b"5\r\nhello\r\n1\r\nhello\r\n0\r\n\r\n"),
    "47-trailer-without-colon": post(CHUNKED, body=b"0\r\nX\r\n\r\n"),
    "47-trailer-folded": post(CHUNKED, body=b"0\r\nX: a\r\n b\r\n\r\n"),
    "47-trailer-with-lf": post(CHUNKED, body=b"0\r\nX: a\n\r\n"),
    "47-trailer-with-cr": post(CHUNKED, body=b"0\r\nX: a\rb\r\n\r\n"),
    "47-trailer-with-nul": post(CHUNKED, body=b"0\r\nX: \0\r\n\r\n"),
    "47-trailer-space-before-colon": post(CHUNKED, body=b"0\r\nX : a\r\n\r\n"),
    "47-trailer-no-name": post(CHUNKED, body=b"0\r\n: a\r\n\r\n"),
    "47-trailer-is-a-request": post(CHUNKED, body=b"0\r\n" + SECRET),
    "47-trailers-too-long": post(CHUNKED, body=b"0\r\n" + b"X: aaaaaaaa\r\n" * 800 + b"\r\n"),
    "47-lf-only": post(CHUNKED, body=b"0\r\n\n"),
    "47-cr-and-more": post(CHUNKED, body=b"0\r\n\rX"),
}

OTHERS: Cases = {
    "50-other-expectation": post("Expect: 200-ok", f"{CL}: 5", body=b"hello"),
    "50-two-expectations": post("Expect: 100-continue", "Expect: 100-continue", f"{CL}: 5", body=b"hello"),
    "50-list": post("Expect: 100-continue, 100-continue", f"{CL}: 5", body=b"hello"),
    "50-obfuscated": post("Expect: y 100-continue", f"{CL}: 5", body=b"hello"),
    "50-parameter": post("Expect: 100-continue;a", f"{CL}: 5", body=b"hello"),
    "50-empty": post("Expect:", f"{CL}: 5", body=b"hello"),
    "connection-names-host": request("Connection: Host"),
    "connection-names-coding": post(CHUNKED, f"Connection: {TE}"),
    "connection-names-cookie": request("Cookie: a=1", "Connection: close, cookie"),
    "connection-names-authorization": request("Authorization: Basic x", "Connection: authorization"),
    "connection-names-expect": post("Expect: 100-continue", "Connection: Expect", f"{CL}: 5", body=b"hello"),
    "connection-misspells-host": request("Connection: Ho_st, X_Y, Content_Length"),
    "connection-no-token": request("Connection: close; a"),
    "connection-too-many": request("Connection: " + ",".join(f"X{n}" for n in range(40))),
    "line-tabs": request(line="GET\t/\tHTTP/1.1"),
    "line-tab-in-target": request(line="GET /\tx HTTP/1.1"),
    "line-two-spaces": request(line="GET  / HTTP/1.1"),
    "line-space-behind": request(line="GET / HTTP/1.1 "),
    "line-space-before": request(line=" GET / HTTP/1.1"),
    "line-space-in-target": request(line="GET /a b HTTP/1.1"),
    "line-vertical-tab": request(line="GET\x0b/ HTTP/1.1"),
    "line-form-feed": request(line="GET /\x0c HTTP/1.1"),
    "line-high-byte": request(line="GET /\xe9 HTTP/1.1"),
    "line-no-break-space": request(line="GET /\xa0HTTP/1.1"),
    "line-no-target": request(line="GET HTTP/1.1"),
    "line-bad-method": request(line="GE(T / HTTP/1.1"),
    "line-no-method": request(line=" / HTTP/1.1"),
    "line-lower-version": request(line="GET / http/1.1"),
}

STATUS = {
    "50-other-expectation": 417,
    "50-two-expectations": 417,
    "50-list": 417,
    "50-obfuscated": 417,
    "50-parameter": 417,
    "50-empty": 417,
}
"""Where it is not 400."""

ALL: Cases = {**LENGTHS, **LINES, **CHUNKS, **OTHERS}

NOT_TOKENS = [
    byte
    for byte in range(256)
    if chr(byte) not in "!#$%&'*+-.^_`|~" and not (byte < 128 and chr(byte).isalnum())
]
PUNCTUATION = "!#$%&'*+.^_`|~"


def mutations(length: bool = False) -> Iterator[bytes]:
    """Everything that somebody might take for ``Transfer-Encoding: chunked``, and somebody not."""
    name, value = TE.encode(), b"chunked"
    known = (f"{CL}: {len(BODY)}",) if length else ()

    def field(text: bytes) -> bytes:
        return post(*known, text)

    for byte in (bytes([one]) for one in NOT_TOKENS):
        for at in range(len(name) + 1):
            # Before, behind and within the name, and instead of a letter; a colon within makes another name.
            if byte != b":" or at in (0, len(name)):
                yield field(name[:at] + byte + name[at:] + b": " + value)
            if byte != b":" and at < len(name):
                yield field(name[:at] + byte + name[at + 1 :] + b": " + value)
    for mark in PUNCTUATION.encode():
        yield field(name.replace(b"-", bytes([mark])) + b": " + value)
    for byte in (bytes([one]) for one in range(256)):
        for at in range(len(value) + 1):
            # Blanks around a value are no part of it.
            if byte not in b" \t" or 0 < at < len(value):
                yield field(name + b": " + value[:at] + byte + value[at:])
    for at in range(len(value)):
        # One letter less, and one wrong.
        yield field(name + b": " + value[:at] + value[at + 1 :])
        yield field(name + b": " + value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :])
    for end in (
        b"\n",
        b"\r",
        b"\r\r\n",
        b"\n\r",
        b"\0",
        b"\x0b",
        b"\x0c",
        b"\x85",
        b"\xe2\x80\xa8",
        b" \r\n",
        b"\r\n ",
    ):
        if end.isascii() and end != b" \r\n":
            # Other bytes may stand in values, and this ends a line: it would be no mutation.
            yield field(b"X: y" + end + name + b": " + value)
        yield field(name + end + b": " + value)
        yield field(name + b":" + end + value)
        yield field(name + b": " + value + end + b"x")
    for extra in (b"identity", b"gzip", b"x", b"", b"chunked", b'"chunked"', b"chunked;a=b", b"deflate;q=0"):
        for glue in (b",", b", ", b" ,", b";", b" ", b"\t", b"\r\n" + name + b": "):
            if extra or glue.strip():
                yield field(name + b": " + value + glue + extra)
                yield field(name + b": " + extra + glue + value)
