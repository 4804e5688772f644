"""Every byte, through WebSockets and plain HTTP: what one side sends arrives, whoever is slow or ends."""

from __future__ import annotations

import hashlib
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from ..net import payload, processor_time, sha
from .bodies import REQUESTS, RESPONSES, answered, finish, framed, giver, mirror, posted, wanted, writing
from .ends import Held, tunnel, web_proxy
from .frames import BINARY, TEXT, close, frame, read_frame
from .messages import Head, Stream, handshake, request
from .recorder import Recorder, Talk, switch
from .site import Client

MB = 1 << 20


@pytest.fixture
def backend() -> Iterator[Held]:
    with Held() as held:
        yield held


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    running = Recorder()
    yield running
    running.close()


def slow_client(address: str, data: bytes, buffer: int = 4096) -> Client:
    """One whose receive buffer is small, so that all that is on the way waits in the balancer."""
    client = Client.__new__(Client)
    Stream.__init__(client, socket.socket())
    client.socket.settimeout(30)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    host, _, port = address.rpartition(":")
    client.socket.connect((host, int(port)))
    client.send(data)
    return client


@pytest.mark.parametrize("going", REQUESTS)
@pytest.mark.parametrize("coming", RESPONSES)
def test_bodies_of_every_framing_both_ways(recorder: Recorder, going: str, coming: str) -> None:
    recorder.script = giver
    with web_proxy([recorder]) as balancer, ExitStack() as stack:
        client = None
        sizes = [0, 1, 100, 4096, 65_535, 65_536, 65_537, MB, 5 * MB]
        for seed, size in enumerate(sizes):
            sent = payload(size, seed + 50)
            if client is None or coming == "close":
                client = stack.enter_context(Client(balancer.address))
            writer = writing(client, posted(sent, going, wanted(coming, size, seed)))
            answer = client.answer()
            finish(writer)
            assert answer.head.get("x-sha") == sha(sent), size
            assert sha(answer.body) == sha(payload(size, seed)), size
            if coming == "close":
                assert client.rest() == b""
        # The backend's connection is kept as well, for the same client.
        assert len(recorder.talks) == (len(sizes) if coming == "close" else 1)


def parted(data: bytes) -> bytes:
    """As messages of many sizes."""
    rng = random.Random(len(data))
    frames, at = [], 0
    while at < len(data):
        size = rng.choice((1, 125, 126, 4000, 65_536, 500_000))
        frames.append(frame(BINARY, data[at : at + size], masked=False))
        at += size
    return b"".join(frames)


def messages(raw: bytes) -> bytes:
    """The payload of all frames."""
    stream = Stream(socket.socket())
    stream.buffer += raw
    parts = []
    while stream.buffer:
        parts.append(read_frame(stream).payload)
    stream.socket.close()
    return b"".join(parts)


def test_87_a_websocket_client_half_closes_then_the_backend_sends_10_mb(backend: Held) -> None:
    answer = payload(10 * MB)
    with web_proxy([backend]) as balancer, tunnel(balancer, backend) as ends:
        ends.client.send(frame(TEXT, b"the question", masked=True))
        ends.client.socket.shutdown(socket.SHUT_WR)
        assert read_frame(ends.backend).payload == b"the question"
        assert ends.backend.rest() == b""
        sent = parted(answer)
        writer = writing(
            ends.backend, sent, lambda sent: (ends.backend.socket.sendall(sent), end(ends.backend))
        )
        assert sha(messages(ends.client.rest())) == sha(answer)
        finish(writer)
        assert balancer.record(ends.name)["reason"] == "finished"


def end(stream: Stream) -> None:
    stream.socket.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("coming", RESPONSES)
def test_87_an_http_client_half_closes_then_the_backend_sends_10_mb(recorder: Recorder, coming: str) -> None:
    recorder.script = giver
    with web_proxy([recorder]) as balancer, Client(balancer.address) as client:
        client.send(posted(b"the question", "chunked", wanted(coming, 10 * MB)))
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.answer()
        assert answer.head.get("x-sha") == sha(b"the question")
        assert sha(answer.body) == sha(payload(10 * MB))
        # There will be no next request.
        assert client.rest() == b""
        assert "close" in answer.head.options()


@pytest.mark.parametrize("kind", ["websocket", *RESPONSES])
def test_88_the_backend_writes_and_closes_for_a_slow_client(backend: Held, kind: str) -> None:
    data = payload(4 * MB)
    with web_proxy([backend]) as balancer:
        asked = handshake() if kind == "websocket" else request()
        client = slow_client(balancer.address, asked)
        stream, head = backend.asked()
        sent = parted(data) if kind == "websocket" else answered(data, kind)
        if kind == "websocket":
            stream.socket.sendall(switch(head.get("sec-websocket-key") or "").encode())
        writer = writing(stream, sent, lambda sent: (stream.socket.sendall(sent), stream.socket.close()))
        if kind == "websocket":
            assert client.head() is not None
            parts = []
            while client.more():
                parts.append(client.take(len(client.buffer)))
                time.sleep(0.0005)
            assert sha(messages(b"".join(parts))) == sha(data)
        else:
            answer = client.head()
            assert answer is not None
            body = hashlib.sha256()
            for part in client.parts(answer):
                body.update(part)
                time.sleep(0.0005)
            assert body.hexdigest() == sha(data)
            assert client.rest() == b"" if kind == "close" else True
        finish(writer)
        client.socket.close()


WINDOW = 1.0
"""Seconds over which processor time is measured: a loop would use all of it."""


def test_89_peers_that_have_half_closed_make_no_busy_loop(backend: Held) -> None:
    """Every state in which one has ended and the other goes on, at the same time."""
    with web_proxy([backend]) as balancer, ExitStack() as stack:

        def asked(data: bytes) -> tuple[Client, Stream, Head]:
            client = stack.enter_context(Client(balancer.address, data))
            return client, *backend.asked()

        # A client that waits for its answer, and one that is in the middle of it.
        waiting, thinking, _ = asked(request())
        waiting.socket.shutdown(socket.SHUT_WR)
        reading, telling, _ = asked(request())
        reading.socket.shutdown(socket.SHUT_WR)
        telling.socket.sendall(answered(bytes(1000), "length")[:-500])
        # The same where the client takes nothing.
        full = slow_client(balancer.address, request())
        stack.callback(full.socket.close)
        pouring, _ = backend.asked()
        full.socket.shutdown(socket.SHUT_WR)
        pouring.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            pouring.socket.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(64 * MB))
        # A body that is still open, with its backend in the middle of things.
        uploading, taking, _ = asked(request("Content-Length: 1000", line="POST / HTTP/1.1", body=b"x"))
        taking.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        # WebSockets, from either side.
        one = stack.enter_context(tunnel(balancer, backend))
        one.client.socket.shutdown(socket.SHUT_WR)
        assert one.backend.rest() == b""
        other = stack.enter_context(tunnel(balancer, backend))
        end(other.backend)
        assert other.client.rest() == b""
        before = processor_time()
        time.sleep(WINDOW)
        assert processor_time() - before < 0.3 * WINDOW
        # All of them go on.
        thinking.socket.sendall(answered(b"late", "length"))
        assert waiting.answer().body == b"late"
        telling.socket.sendall(bytes(500))
        assert reading.answer().body == bytes(1000)
        uploading.send(bytes(999))
        assert len(b"".join(taking.length(1000))) == 1000
        taking.socket.sendall(answered(b"thanks", "length"))
        assert uploading.answer().body == b"thanks"
        one.backend.socket.sendall(frame(TEXT, b"x", masked=False))
        assert read_frame(one.client).payload == b"x"
        other.client.send(close(1000, masked=True))
        assert read_frame(other.backend).code == 1000


def test_91_both_directions_of_a_websocket_full(backend: Held) -> None:
    up, down = (
        frame(BINARY, payload(16 * MB, 1), masked=True),
        frame(BINARY, payload(16 * MB, 2), masked=False),
    )
    with web_proxy([backend]) as balancer, tunnel(balancer, backend) as ends:
        received: list[bytes] = []
        threads = [
            writing(ends.client, up),
            writing(ends.backend, down),
            writing(ends.backend, b"", lambda _: received.append(b"".join(ends.backend.length(len(up))))),
        ]
        assert sha(b"".join(ends.client.length(len(down)))) == sha(down)
        finish(*threads)
        assert sha(received[0]) == sha(up)


@pytest.mark.parametrize("going", REQUESTS)
def test_91_both_directions_of_an_exchange_full(recorder: Recorder, going: str) -> None:
    """An answer that begins before its request has ended."""
    recorder.script = mirror
    data = payload(12 * MB)
    with web_proxy([recorder]) as balancer, Client(balancer.address) as client:
        writer = writing(client, posted(data, going, "/"))
        assert sha(client.answer().body) == sha(data)
        finish(writer)


def narrow(stream: Stream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


@pytest.mark.parametrize("seed", range(3))
def test_92_small_buffers_and_random_sizes(recorder: Recorder, seed: int) -> None:
    rng = random.Random(seed)

    def write(data: bytes, to: Stream, rng: random.Random) -> None:
        view = memoryview(data)
        while view:
            view = view[to.socket.send(view[: rng.randint(1, 100_000)]) :]

    def echo(talk: Talk) -> None:
        narrow(talk)
        head = talk.head()
        if head is None:
            return
        if head.get("upgrade"):
            talk.send(switch(head.get("sec-websocket-key") or ""))
            while talk.buffer or talk.more():
                talk.send(talk.take(len(talk.buffer)))
        else:
            size, digest = talk.digest(head)
            data = payload(size, seed)
            fields, body = framed(data, rng.choice(RESPONSES))
            write(
                "\r\n".join(["HTTP/1.1 200 OK", f"X-Sha: {digest}", *fields, "", ""]).encode() + body,
                talk,
                rng,
            )
            end(talk)

    recorder.script = echo
    size = rng.randint(1, 2 * MB)
    data = payload(size, seed)
    with web_proxy([recorder]) as balancer:
        client = slow_client(balancer.address, handshake())
        narrow(client)
        assert client.head() is not None
        sent = frame(BINARY, data, rsv=seed, masked=True) * 2
        writer = writing(client, sent, partial(write, to=client, rng=random.Random(seed)))
        assert sha(b"".join(client.length(len(sent)))) == sha(sent)
        finish(writer)
        client.socket.close()
        for going in REQUESTS:
            other = slow_client(balancer.address, b"")
            narrow(other)
            writer = writing(
                other, posted(data, going, "/"), partial(write, to=other, rng=random.Random(seed))
            )
            answer = other.answer()
            finish(writer)
            assert answer.head.get("x-sha") == sha(data)
            assert sha(answer.body) == sha(data)
            other.socket.close()
