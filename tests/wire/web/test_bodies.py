"""Bodies, both ways: every byte arrives, whatever its framing, size and pace."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator

import pytest

from ..net import PATIENCE, connect
from .messages import Head, Stream, lines, request
from .recorder import Script, Talk, replies, response
from .site import Client, Site

KIB, MIB = 1 << 10, 1 << 20
SIZES = [0, 1, 4095, 16 * KIB, 64 * KIB + 1, MIB, 64 * MIB]
BLOCK = random.Random(7).randbytes(MIB)


def content(size: int) -> Iterator[bytes]:
    """So many bytes that do not repeat within a block."""
    for _ in range(size // MIB):
        yield BLOCK
    yield BLOCK[: size % MIB]


def sha(size: int) -> str:
    hasher = hashlib.sha256()
    for part in content(size):
        hasher.update(part)
    return hasher.hexdigest()


def pieces(data: bytes, seed: int) -> Iterator[bytes]:
    """Cut at random."""
    cuts = random.Random(seed)
    at = 0
    while at < len(data):
        size = cuts.choice([1, 7, 100, 4096, 65536, 1 << 18])
        yield data[at : at + size]
        at += size


def framed(size: int, framing: str, seed: int = 0) -> Iterator[bytes]:
    for part in content(size):
        if framing == "length":
            yield part
        else:
            for piece in pieces(part, seed) if framing == "chunks" else filter(None, [part]):
                yield b"%x\r\n%b\r\n" % (len(piece), piece)
    if framing != "length":
        yield b"0\r\n\r\n"


FRAMINGS = ["length", "chunks", "big-chunks"]


def head(size: int, framing: str, first: str) -> bytes:
    field = f"Content-Length: {size}" if framing == "length" else "Transfer-Encoding: chunked"
    return lines(first, "Host: a.test", field)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_body_to_the_backend(site: Site, size: int, framing: str) -> None:
    with site.client(head(size, framing, "POST / HTTP/1.1")) as client:
        for part in framed(size, framing):
            client.send(part)
        told = client.answer().told()
        assert (told["size"], told["sha"]) == (size, sha(size))
        # What follows is the next request.
        assert client.ask(request()).told()["request"] == 2


def serving(size: int, framing: str) -> Script:
    def script(talk: Talk) -> None:
        while talk.head() is not None:
            first = "HTTP/1.1 200 OK"
            if framing == "end":
                talk.send(f"{first}\r\n\r\n", *content(size))
                return talk.close()
            talk.send(head(size, framing, first))
            for part in framed(size, framing):
                talk.send(part)
        return None

    return script


def digest(stream: Stream, found: Head) -> tuple[int, str]:
    size, hasher = 0, hashlib.sha256()
    for part in stream.parts(found):
        size += len(part)
        hasher.update(part)
    return size, hasher.hexdigest()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("framing", [*FRAMINGS, "end"])
def test_a_body_to_the_client(site: Site, size: int, framing: str) -> None:
    with site.recorder.behaving(serving(size, framing)), site.client() as client:
        for _ in range(1 if framing == "end" or size > MIB else 3):
            client.send(request())
            found = client.head()
            assert found is not None
            assert digest(client, found) == (size, sha(size))


@pytest.mark.parametrize("framing", FRAMINGS)
def test_both_ways_at_once(site: Site, framing: str) -> None:
    """The backend answers while it reads: neither direction waits for the other."""
    size = 16 * MIB

    def script(talk: Talk) -> None:
        got = talk.head()
        assert got is not None
        talk.send(head(size, framing, "HTTP/1.1 200 OK"))
        for part in talk.parts(got):
            talk.send(part if framing == "length" else b"%x\r\n%b\r\n" % (len(part), part))
        talk.send(b"" if framing == "length" else b"0\r\n\r\n")

    with site.recorder.behaving(script), site.client() as client:

        def send() -> None:
            client.send(head(size, framing, "POST / HTTP/1.1"))
            for part in framed(size, framing):
                client.send(part)

        sender = threading.Thread(target=send)
        sender.start()
        found = client.head()
        assert found is not None
        assert digest(client, found) == (size, sha(size))
        sender.join()


@pytest.mark.parametrize("framing", FRAMINGS)
def test_byte_by_byte(site: Site, framing: str) -> None:
    """As slow as it gets, in both directions."""
    size = 300
    text = head(size, framing, "POST / HTTP/1.1") + b"".join(framed(size, framing, seed=3))
    answer = head(size, framing, "HTTP/1.1 200 OK") + b"".join(framed(size, framing, seed=4))

    def script(talk: Talk) -> None:
        got = talk.head()
        assert got is not None
        talk.send(f"HTTP/1.1 103 Early Hints\r\nX: {talk.digest(got)[1]}\r\n\r\n")
        for byte in answer:
            talk.send(bytes([byte]))

    with site.recorder.behaving(script), site.client() as client:
        for byte in text:
            client.send(bytes([byte]))
        got = client.answer()
    assert got.interim[0].get("x") == sha(size)
    assert got.body == b"".join(content(size))


class Slow(Client):
    """Reads little at a time, from a small receive buffer."""

    def __init__(self, address: str) -> None:
        Stream.__init__(self, connect(address, receive_buffer=4096))

    def more(self) -> bool:
        data = self.socket.recv(2000)
        self.buffer += data
        return bool(data)


@pytest.mark.parametrize("framing", [*FRAMINGS, "end"])
def test_a_slow_reader(site: Site, framing: str) -> None:
    """What it does not take waits at the backend, not here; and all of it arrives."""
    size = 3 * MIB
    with site.recorder.behaving(serving(size, framing)):
        with Slow(site.address()) as client:
            client.send(request())
            found = client.head()
            assert found is not None
            assert digest(client, found) == (size, sha(size))


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_slow_backend(site: Site, framing: str) -> None:
    """More than all buffers on the way hold, taken in small pieces."""
    size = 16 * MIB

    def script(talk: Talk) -> None:
        got = talk.head()
        assert got is not None

        def little() -> bool:
            data = talk.socket.recv(8192)
            talk.buffer += data
            return bool(data)

        talk.more = little  # type: ignore[method-assign]
        talk.send(response(talk.digest(got)[1].encode()))

    with site.recorder.behaving(script), site.client(head(size, framing, "PUT / HTTP/1.1")) as client:
        for part in framed(size, framing):
            client.send(part)
        assert client.answer().body == sha(size).encode()


def test_a_body_of_many_small_chunks(site: Site) -> None:
    data = b"".join(b"1\r\n%c\r\n" % (number % 256) for number in range(200_000)) + b"0\r\n\r\n"
    with site.client(head(0, "chunks", "POST / HTTP/1.1")) as client:
        client.send(data)
        told = client.answer().told()
    whole = bytes(number % 256 for number in range(200_000))
    assert (told["size"], told["sha"]) == (200_000, hashlib.sha256(whole).hexdigest())


def test_a_body_that_stops(site: Site) -> None:
    """Nobody waits for ever: neither for a client's body nor for a backend's."""
    data = request("Content-Length: 10", line="POST / HTTP/1.1", host="late.test", body=b"hello")
    with site.client(data) as client:
        assert client.answer().status == 408
        assert client.rest() == b""
    [talk] = site.recorder.ended()
    assert talk.ended == "reset"
    half = response(b"hello", "Content-Length: 10", length=False)
    with site.recorder.behaving(replies(half)):
        with site.client(request(host="late.test")) as client:
            with pytest.raises(ConnectionResetError):
                client.answer()
    site.fresh()


def test_a_backend_that_reads_nothing(site: Site) -> None:
    """It is the one that is late, though the client's body has not gone."""
    release = threading.Event()

    def script(_: Talk) -> None:
        release.wait()

    with site.recorder.behaving(script):
        with site.client(
            request(f"Content-Length: {64 * MIB}", line="POST / HTTP/1.1", host="late.test")
        ) as client:
            client.socket.setblocking(False)
            full = 0
            while full < 3:
                # Full for good, and not only until the worker has had its turn.
                try:
                    client.socket.send(BLOCK)
                    full = 0
                except BlockingIOError:
                    full += 1
                    site.beat()
            client.socket.settimeout(PATIENCE)
            assert client.answer().status == 504
        release.set()
    site.fresh()
