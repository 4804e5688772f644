"""What breaks off is never taken for something whole; and whoever is refused can read why."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ..net import payload, reset, until
from ..test_exhaustion import readable
from ..test_relay import ROOT
from .bodies import REQUESTS, RESPONSES, answered, posted, writing
from .ends import Held, WebProxy, tunnel, web_proxy
from .frames import BINARY, frame
from .messages import Stream, handshake, request
from .recorder import Recorder, Talk, response, switch
from .site import Client

MB = 1 << 20
DATA = payload(MB)
BEFORE = (0, 1, 1000, 70_000, MB - 1)
"""Bytes after which it breaks."""


@pytest.fixture(scope="module")
def backend() -> Iterator[Held]:
    with Held() as held:
        yield held


@pytest.fixture(scope="module")
def balancer(backend: Held) -> Iterator[WebProxy]:
    with web_proxy([backend]) as running:
        yield running


@pytest.fixture
def asked(balancer: WebProxy, backend: Held) -> Iterator[Callable[[bytes], tuple[Client, Stream]]]:
    with contextlib.ExitStack() as stack:

        def ask(data: bytes) -> tuple[Client, Stream]:
            client = stack.enter_context(Client(balancer.address))
            thread = writing(client, data)
            stream, _ = backend.asked()
            stack.callback(stream.socket.close)
            stack.callback(thread.join)
            return client, stream

        yield ask


def half_close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("after", BEFORE)
def test_93_a_websocket_that_its_backend_resets(balancer: WebProxy, backend: Held, after: int) -> None:
    with tunnel(balancer, backend) as ends:
        sent = frame(BINARY, DATA, masked=False)[:after]
        ends.backend.socket.sendall(sent)
        assert b"".join(ends.client.length(after)) == sent
        reset(ends.backend.socket)
        with pytest.raises(ConnectionResetError):
            ends.client.rest()
        assert balancer.record(ends.name)["reason"] == "backend-reset"


@pytest.mark.parametrize("after", BEFORE)
def test_93_a_websocket_that_its_client_resets(balancer: WebProxy, backend: Held, after: int) -> None:
    with tunnel(balancer, backend) as ends:
        sent = frame(BINARY, DATA, masked=True)[:after]
        ends.client.send(sent)
        assert b"".join(ends.backend.length(after)) == sent
        reset(ends.client.socket)
        with pytest.raises(ConnectionResetError):
            ends.backend.rest()
        assert balancer.record(ends.name)["reason"] == "client-reset"


@pytest.mark.parametrize(
    ("breaks", "framing"),
    [
        *((reset, framing) for framing in RESPONSES),
        # The third kind of body ends so.
        *((half_close, framing) for framing in REQUESTS),
    ],
)
def test_93_a_response_that_breaks_off(
    asked: Callable[[bytes], tuple[Client, Stream]], breaks: Callable[[socket.socket], None], framing: str
) -> None:
    """Its client sees an abort: also where a body ends with its connection, which this is not."""
    whole = answered(DATA, framing)
    head = whole.index(b"\r\n\r\n") + 4
    for after in (head, head + 1, head + 1000, head + 70_000, len(whole) - 1):
        client, stream = asked(request())
        stream.socket.sendall(whole[:after])
        answer = client.head()
        assert answer is not None
        assert answer.status == 200
        # All that was sent of it arrives; then it breaks.
        parts = client.parts(answer)
        until(lambda client=client, after=after: client_has(client, after - head))
        breaks(stream.socket)
        with pytest.raises(ConnectionResetError):
            for _ in parts:
                pass


def client_has(client: Client, count: int) -> bool:
    """Whether so much of a body has come, as far as that can be told before it is framed anew."""
    return len(client.buffer) >= count // 2 or client.more()


@pytest.mark.parametrize("breaks", [reset, half_close])
def test_93_a_response_that_breaks_off_within_its_head_is_a_bad_gateway(
    asked: Callable[[bytes], tuple[Client, Stream]], breaks: Callable[[socket.socket], None]
) -> None:
    for asks in (request(), handshake(), posted(DATA[:1000], "length", "/")):
        for sent in (b"", b"HTTP/1.1", response(b"body")[:-5], switch("x").encode()[:40]):
            client, stream = asked(asks)
            stream.socket.sendall(sent)
            breaks(stream.socket)
            answer = client.answer()
            assert answer.status == 502, (asks, sent)
            assert client.rest() == b""


@pytest.mark.parametrize("framing", REQUESTS)
@pytest.mark.parametrize("breaks", [reset, half_close])
def test_93_a_request_that_breaks_off(
    asked: Callable[[bytes], tuple[Client, Stream]], breaks: Callable[[socket.socket], None], framing: str
) -> None:
    """Its backend must not take it for a whole one, nor the client an answer for one to all of it."""
    whole = posted(DATA, framing, "/")
    head = whole.index(b"\r\n\r\n") + 4
    for after in (head, head + 1, head + 1000, head + 70_000, len(whole) - 1):
        client, stream = asked(whole[:after])
        breaks(client.socket)
        with pytest.raises(ConnectionResetError):
            stream.rest()
        if breaks is half_close:
            with pytest.raises(ConnectionResetError):
                client.rest()


@pytest.mark.parametrize("framing", RESPONSES)
def test_93_a_client_that_resets_within_a_response(
    asked: Callable[[bytes], tuple[Client, Stream]], framing: str
) -> None:
    for size in (1000, 70_000, 500_000):
        client, stream = asked(request())
        stream.socket.sendall(answered(DATA, framing)[:size])
        assert client.head() is not None
        reset(client.socket)
        with pytest.raises(ConnectionResetError):
            stream.rest()


def test_93_a_body_that_ends_with_its_connection_while_the_requests_does_not_get_on(
    asked: Callable[[bytes], tuple[Client, Stream]],
) -> None:
    """The error of a reset is told once: to whoever sends, if he comes first; a read then says "end"."""
    client, stream = asked(request("Content-Length: 100000000", line="POST / HTTP/1.1"))
    client.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.socket.send(bytes(MB))
    client.socket.settimeout(10)
    stream.socket.sendall(answered(DATA, "close")[:1000])
    assert client.head() is not None
    reset(stream.socket)
    with pytest.raises(ConnectionResetError):
        client.rest()


def read_while_sending(client: Client, data: bytes, status: int) -> None:
    """Send all of it, whether anybody reads it or not, and only then look for an answer."""
    with contextlib.suppress(ConnectionError):
        client.send(data)
    answer = client.answer()
    assert answer.status == status
    assert answer.body
    assert "close" in answer.head.options()


SIZES = [100_000, 900_000, 20 * MB]
"""Of what comes after the mistake: the last is more than anybody reads of it."""


@pytest.mark.parametrize("size", SIZES)
def test_94_a_client_that_still_sends_its_body_reads_the_400(
    balancer: WebProxy, backend: Held, asked: Callable[[bytes], tuple[Client, Stream]], size: int
) -> None:
    with Client(balancer.address) as client:
        bad = request("Content-Length: 1", f"Content-Length: {size}", line="POST / HTTP/1.1")
        read_while_sending(client, bad + bytes(size), 400)
    # One that is seen late: the backend has a part of it, and must not take that for all.
    client, stream = asked(
        request("Transfer-Encoding: chunked", line="POST / HTTP/1.1", body=b"3\r\nabc\r\n")
    )
    read_while_sending(client, b"5 \r\n" + bytes(size), 400)
    with pytest.raises(ConnectionResetError):
        stream.rest()


@pytest.mark.parametrize("size", SIZES)
def test_94_a_client_that_still_sends_its_body_reads_the_503(size: int) -> None:
    with web_proxy(["127.0.0.1:1"]) as balancer, Client(balancer.address) as client:
        read_while_sending(client, posted(bytes(size), "length", "/"), 503)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ending", ["stays", "closes"])
def test_94_a_client_that_still_sends_its_body_reads_the_backends_413(
    asked: Callable[[bytes], tuple[Client, Stream]], size: int, ending: str
) -> None:
    told = response(b"that is too much\n" * 100, status="413 Content Too Large")
    client, stream = asked(request(f"Content-Length: {size}", line="POST / HTTP/1.1"))
    stream.socket.sendall(told)
    if ending == "closes":
        # With bytes of the request unread, this is a reset.
        stream.socket.close()
    until(lambda: readable([client.socket]), "the answer")
    read_while_sending(client, bytes(size), 413)


def test_94_a_client_that_reads_and_goes_on_is_not_reset(balancer: WebProxy) -> None:
    """A reset would make other systems than this one throw away what they have not read."""
    with Client(balancer.address) as client:
        client.send(b"GET  / HTTP/1.1\r\nHost: a.test\r\n\r\n" + bytes(100_000))
        assert client.answer().status == 400
        assert client.rest() == b""
        for _ in range(10):
            client.send(bytes(10_000))
        assert client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


SIGPIPE = """
import signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from tests.wire.web.ends import web_proxy
with web_proxy([sys.argv[1]]) as balancer:
    print(balancer.address, flush=True)
    sys.stdin.read()
    print("alive")
"""


def pour(talk: Talk) -> None:
    """Answer without end, or leave without a word."""
    head = talk.head()
    if head is None or head.get("x-leave"):
        return talk.reset()
    if head.get("upgrade"):
        talk.send(switch(head.get("sec-websocket-key") or ""))
        piece = frame(BINARY, bytes(MB), masked=False)
    else:
        talk.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        piece = bytes(MB)
    while True:
        talk.send(piece)


def test_96_sigpipe_at_its_default_does_not_kill() -> None:
    """A host may reset SIGPIPE; splice to a dead peer raises it whatever the flags."""
    backend = Recorder()
    backend.script = pour
    command = [sys.executable, "-c", SIGPIPE, backend.address]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdin is not None
        assert host.stdout is not None
        address = host.stdout.readline().strip()
        for number in range(20):
            client = Client(address, handshake() if number % 2 else request())
            while len(client.buffer) < 3 * MB:
                assert client.more()
            reset(client.socket)
        for _ in range(20):
            with Client(address) as client, contextlib.suppress(ConnectionError):
                client.send(request("X-Leave: 1", "Content-Length: 90000000", line="POST / HTTP/1.1"))
                while True:
                    client.send(bytes(MB))
        host.stdin.close()
        assert host.stdout.read().strip() == "alive"
    backend.close()
    assert host.returncode == 0
