"""Requests by chance: valid ones in every way in which a request may be written, and what becomes of them
when some bytes are wrong. The same seed makes the same requests.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from .messages import KEY

LIE = "203.0.113"
"""What all forged addresses begin with."""
TCHAR = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
PATH = string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/%[]^|{}`"
VALUE = "".join(map(chr, range(0x21, 0x7F))) + "".join(map(chr, range(0x80, 0x100)))
METHODS = [
    "GET",
    "GET",
    "GET",
    "POST",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "HEAD",
    "PROPFIND",
    "M-SEARCH",
]
HOSTS = [
    "a.test",
    "A.Test",
    "a.test:8080",
    "127.0.0.1",
    "127.0.0.1:80",
    "[::1]",
    "[2001:db8::7]:443",
    "x_y.test",
]
KNOWN = [
    ("Accept", "*/*;q=0.5, text/html"),
    ("Accept-Encoding", "gzip, br"),
    ("Authorization", "Basic dXNlcjpwYXNz"),
    ("Cookie", 'a=b; c="d e"'),
    ("Cookie", "session=1"),
    ("If-None-Match", 'W/"x", "y"'),
    ("Origin", "https://a.test"),
    ("Range", "bytes=0-99,-5"),
    ("Referer", "https://a.test/x?y"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) \xe9"),
    ("Via", "1.1 elsewhere"),
    ("X-Empty", ""),
]
FORGED = [
    ("X-Forwarded-For", f"{LIE}.1"),
    ("x-forwarded-for", f"{LIE}.2, {LIE}.3"),
    ("X_Forwarded_For", f"{LIE}.4"),
    ("X-Forwarded-Host", f"evil{LIE}.test"),
    ("X-Forwarded-Proto", f"https{LIE}"),
    ("Forwarded", f"for={LIE}.5;host=evil.test"),
]
HOPS = [
    ("Connection", "keep-alive"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers"),
    ("Upgrade", "h2c"),
    ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"),
]


@dataclass(frozen=True)
class Piece:
    """A request. After the last one of a connection nothing comes that would be one too."""

    data: bytes
    last: bool


class Generator:
    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def text(self, alphabet: str, least: int, most: int) -> str:
        return "".join(self.random.choices(alphabet, k=self.random.randint(least, most)))

    def cased(self, text: str) -> str:
        """Names do not depend on case."""
        return self.random.choice([text, text, text.lower(), text.upper(), text.swapcase()])

    def value(self) -> str:
        words = [self.text(VALUE, 1, 12) for _ in range(self.random.randint(1, 4))]
        return "".join(word + self.random.choice([" ", "  ", "\t"]) for word in words[:-1]) + words[-1]

    def line(self, name: str, value: str) -> str:
        before = self.random.choice([" ", " ", " ", "", "\t", "  "])
        return f"{self.cased(name)}:{before}{value}{self.random.choice(['', '', '', ' ', chr(9)])}"

    def target(self, method: str, host: str) -> str:
        if method == "OPTIONS" and self.chance(0.3):
            return "*"
        path = "/" + self.text(PATH, 0, 30)
        if self.chance(0.3):
            path += "?" + self.text(PATH + "?\\", 0, 30)
        if self.chance(0.1):
            scheme = self.random.choice(["http", "https", "HTTP", "ws"])
            return f"{scheme}://{self.random.choice([host, host.lower()])}{path}"
        return path

    def body(self) -> bytes:
        size = self.random.choice([0, 1, 5, 5, 100, 100, 1000, 5000])
        # What looks like a request is the interesting one.
        return self.random.choice(
            [self.random.randbytes(size), (b"GET /hidden HTTP/1.1\r\nHost: a.test\r\n\r\n" * 200)[:size]]
        )

    def chunks(self, body: bytes) -> bytes:
        parts = []
        while body:
            size = self.random.randint(1, max(1, len(body) // self.random.randint(1, 4)))
            digits = self.random.choice([f"{size:x}", f"{size:X}", f"{size:04x}"])
            extension = self.random.choice(["", "", "", ";a", ";a=b", ';a="b;c"', ";a=1;b"])
            parts.append(f"{digits}{extension}\r\n".encode() + body[:size] + b"\r\n")
            body = body[size:]
        trailers = "".join(
            f"X-Trailer-{n}: {self.text(VALUE, 1, 9)}\r\n" for n in range(self.random.choice([0, 0, 0, 1, 2]))
        )
        return b"".join(parts) + f"0\r\n{trailers}\r\n".encode("latin-1")

    def fields(self) -> list[tuple[str, str]]:
        """Any but those that say where the body ends, whom it is for, or what comes after."""
        found = [(self.text(TCHAR, 1, 20), self.value()) for _ in range(self.random.randint(0, 4))]
        # No name by chance may be one that means something here.
        found = [("Y" + name, value) for name, value in found]
        found += self.random.sample(KNOWN, self.random.randint(0, 5))
        if self.chance(0.3):
            found += self.random.sample(FORGED, self.random.randint(1, 3))
        if self.chance(0.2):
            found += self.random.sample(HOPS, self.random.randint(1, 3))
        if self.chance(0.1):
            found += [
                ("Connection", "X-Mine, close-not , x-mine-too"),
                ("X-Mine", "1"),
                ("X-Kept", "1"),
                ("x-MINE-too", ""),
            ]
        return found

    def valid(self, *, last: bool = False) -> Piece:
        """One that is to be passed on; ``last`` may be one that ends its connection."""
        method = self.random.choice(METHODS) if self.chance(0.95) else self.text(TCHAR, 1, 20)
        host, version = self.random.choice(HOSTS), "1.1"
        if last and self.chance(0.3):
            return self.handshake(host)
        fields = [*self.fields(), ("Host", host)]
        body, framed = b"", False
        if method not in ("GET", "HEAD", "DELETE", "OPTIONS") or self.chance(0.1):
            body = self.body()
            framed = True
            if self.chance(0.5):
                fields.append(("Content-Length", str(len(body))))
                if body and self.chance(0.1):
                    fields.append(("Expect", "100-continue"))
            else:
                fields.append(("Transfer-Encoding", self.random.choice(["chunked", "Chunked"])))
                body = self.chunks(body)
        if last and self.chance(0.3):
            fields.append(("Connection", self.random.choice(["close", "Close", "keep-alive, close"])))
        elif last and self.chance(0.3) and not framed:
            version = "1.0"
        self.random.shuffle(fields)
        return Piece(self.write(method, host, version, fields) + body, last)

    def handshake(self, host: str) -> Piece:
        fields = [
            *(pair for pair in self.fields() if pair not in HOPS),
            ("Host", host),
            ("Connection", self.random.choice(["Upgrade", "upgrade", "keep-alive, Upgrade"])),
            ("Upgrade", self.random.choice(["websocket", "WebSocket"])),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY),
        ]
        if self.chance(0.5):
            fields.append(("Sec-WebSocket-Protocol", "chat, superchat"))
        if self.chance(0.5):
            fields.append(("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"))
        self.random.shuffle(fields)
        return Piece(self.write("GET", host, "1.1", fields), True)

    def write(self, method: str, host: str, version: str, fields: list[tuple[str, str]]) -> bytes:
        lines = [f"{method} {self.target(method, host)} HTTP/{version}"]
        lines += [self.line(name, value) for name, value in fields]
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")

    def mutated(self) -> bytes:
        """One or two requests, with something wrong. It may still be valid by chance."""
        data = b"".join(self.valid(last=self.chance(0.2)).data for _ in range(self.random.choice([1, 1, 2])))
        for _ in range(self.random.choice([1, 1, 1, 2, 3])):
            data = self.random.choice(
                [
                    self.wrong_byte,
                    self.wrong_byte,
                    self.wrong_line,
                    self.wrong_line,
                    self.wrong_number,
                    self.wrong_end,
                ]
            )(data)
        return data

    def place(self, data: bytes) -> int:
        """Rather in the head, where what is wrong matters."""
        head = data.find(b"\r\n\r\n") + 4
        return self.random.randrange(max(1, len(data) if self.chance(0.2) else min(len(data), head + 8)))

    def wrong_byte(self, data: bytes) -> bytes:
        at = self.place(data)
        byte = self.random.choice(
            [
                b"\r",
                b"\n",
                b"\0",
                b" ",
                b"\t",
                b":",
                b",",
                b";",
                b"\x0b",
                b"\x7f",
                b"\x85",
                b"\xa0",
                b"_",
                b"#",
                b"\\",
                b"\r\n",
                b"0",
                b"x",
            ]
        )
        return data[:at] + byte + data[at + self.random.randint(0, 1) :]

    def wrong_line(self, data: bytes) -> bytes:
        head, separator, body = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        at = self.random.randrange(len(lines))
        match self.random.randrange(6):
            case 0:
                lines.insert(at, lines[self.random.randrange(len(lines))])
            case 1:
                del lines[at]
            case 2:
                lines[at] = self.random.choice([b" ", b"\t"]) + lines[at]
            case 3:
                lines[at] = lines[at].replace(b":", self.random.choice([b" :", b"", b"\x00:", b":\r\n "]), 1)
            case 4:
                lines.insert(at + 1, self.random.choice(INSERTED))
            case _:
                return self.random.choice([b"\n", b"\r", b"\r\r\n", b"\n\r"]).join(lines) + separator + body
        return b"\r\n".join(lines) + separator + body

    def wrong_number(self, data: bytes) -> bytes:
        """Of a length, a chunk, a version: whatever is digits."""
        places = [at for at, byte in enumerate(data) if chr(byte) in string.hexdigits]
        if not places:
            return data
        at = self.random.choice(places)
        wrong = self.random.choice(
            [b"+", b"-", b"0x", b" ", b"_", b"f", b"g", b"99999999999999999999", b"", b"1", b",", b";"]
        )
        return data[:at] + wrong + data[at + self.random.randint(0, 1) :]

    def wrong_end(self, data: bytes) -> bytes:
        return self.random.choice(
            [data[: self.place(data)], data + b"\r\n", data + b"0\r\n\r\n", data + b"\0", data * 2]
        )


INSERTED = [
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer_Encoding: chunked",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: 5, 5",
    b"Content_Length: 5",
    b"Content-Length: +5",
    b"Host: b.test",
    b"Host:",
    b"Host: a.test, b.test",
    b"Connection: close, Content-Length",
    b"Connection: Host",
    b"Connection: Transfer-Encoding",
    b"Expect: 100-continue",
    b"Expect: 200-ok",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: " + KEY.encode(),
    b"Trailer: Content-Length",
    b"X" * 20000 + b": y",
    b": no name",
    b"no colon",
    b"",
]
