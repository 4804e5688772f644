"""``max_message``: what is too big stops at its header, and both sides are told so in their own language."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..net import PATIENCE, sha
from ..serving import Serve
from .ends import Ends, Held, WebProxy, carried, tunnel, web_proxy
from .frames import BINARY, CLOSE, CONTINUATION, PING, TEXT, close, frame, header, read_frame
from .messages import KEY, Stream, handshake
from .recorder import switch
from .site import Client

MAX = 100_000
SIDES = ("client", "backend")
CODES = {"client": (1009, 1001), "backend": (1009, 1014)}
"""What the sender of too much is told, and the other one."""


@pytest.fixture(scope="module")
def backend() -> Iterator[Held]:
    with Held() as held:
        yield held


@pytest.fixture(scope="module")
def balancer(backend: Held) -> Iterator[WebProxy]:
    with web_proxy([backend], route={"max_message": MAX}) as running:
        yield running


@pytest.fixture
def ends(balancer: WebProxy, backend: Held) -> Iterator[Ends]:
    with tunnel(balancer, backend) as made:
        yield made


def data(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def told(stream: Stream, code: int, *, masked: bool) -> None:
    """A Close with this code comes next, and then the end."""
    found = read_frame(stream)
    assert (found.opcode, found.code, found.masked) == (CLOSE, code, masked)
    assert stream.rest() == b""


def ended(balancer: WebProxy, ends: Ends, sender: str) -> dict[str, object]:
    """Both sides are told, answer, and have an orderly end; the record."""
    to_sender, to_other = CODES[sender]
    codes = (to_sender, to_other) if sender == "client" else (to_other, to_sender)
    for stream, code, masked in zip((ends.client, ends.backend), codes, (False, True), strict=True):
        told(stream, code, masked=masked)
    ends.client.send(close(codes[0], masked=True))
    ends.backend.socket.sendall(close(codes[1], masked=False))
    # Nothing is reset: the end was agreed on.
    for stream in (ends.client, ends.backend):
        assert stream.rest() == b""
    ends.close()
    record = balancer.record(ends.name)
    assert record["reason"] == "message-too-big"
    return record


def too_big(masked: bool) -> dict[str, tuple[bytes, bytes]]:
    """What may pass, and the frame that may not."""

    def part(opcode: int, size: int, *, fin: bool = False) -> bytes:
        return frame(opcode, data(size), fin=fin, masked=masked)

    one = header(BINARY, MAX + 1, masked=masked)
    return {
        "whole": (b"", one + data(MAX + 1)),
        "behind others": (part(TEXT, MAX, fin=True) + part(BINARY, 5, fin=True), one + b"x"),
        "header alone": (b"", one),
        "2^63 - 1": (b"", header(BINARY, (1 << 63) - 1, masked=masked) + b"x"),
        "by one byte of its last fragment": (part(TEXT, MAX), part(CONTINUATION, 1, fin=True)),
        "by a fragment that is not the last": (part(TEXT, 1) + part(CONTINUATION, MAX - 1), part(0, 1)),
        "by many fragments, with pings between": (
            (part(TEXT, 1000) + part(PING, 125, fin=True))
            + part(CONTINUATION, 999) * 99
            + part(CONTINUATION, 99),
            part(CONTINUATION, 1),
        ),
        "compressed": (part(TEXT, 9, fin=True), frame(BINARY, data(MAX + 1), rsv=4, masked=masked)),
        "a ping": (part(BINARY, 1), frame(PING, data(MAX + 1), masked=masked)),
    }


@pytest.mark.parametrize("case", too_big(True))
@pytest.mark.parametrize("sender", SIDES)
def test_a_message_that_is_too_big_stops_before_its_last_frame(
    balancer: WebProxy, ends: Ends, sender: str, case: str
) -> None:
    source, target = ends.of(sender)
    before, offending = too_big(sender == "client")[case]
    # All at once, and behind it what no longer means anything.
    source.socket.sendall(before + offending + b"garbage")
    assert b"".join(target.length(len(before))) == before
    # Nothing of the offending frame follows: what is next is a Close, which ``ended`` reads.
    ended(balancer, ends, sender)


@pytest.mark.parametrize("sender", SIDES)
def test_messages_that_are_just_not_too_big(balancer: WebProxy, ends: Ends, sender: str) -> None:
    source, target = ends.of(sender)
    masked = sender == "client"
    sent = frame(BINARY, data(MAX), masked=masked) * 3
    sent += frame(BINARY, data(MAX // 2), fin=False, masked=masked)
    sent += frame(CONTINUATION, data(MAX // 2), masked=masked)
    assert sha(carried(source, sent * 2, target)) == sha(sent * 2)


@pytest.mark.parametrize("sender", SIDES)
@pytest.mark.parametrize("size", [MAX + 1, 1 << 40], ids=["32-bit", "64-bit"])
def test_its_header_cut_at_every_byte(balancer: WebProxy, backend: Held, sender: str, size: int) -> None:
    masked = sender == "client"
    before = frame(TEXT, b"before", masked=masked)
    offending = header(BINARY, size, masked=masked)
    with tunnel(balancer, backend) as beat:
        for cut in range(len(offending) + 1):
            with tunnel(balancer, backend) as ends:
                source, target = ends.of(sender)
                source.socket.sendall(before + offending[:cut])
                # When that has come through, so has the worker seen what was sent before it.
                assert carried(beat.client, frame(PING, masked=True), beat.backend)
                source.socket.sendall(offending[cut:] + b"x")
                assert b"".join(target.length(len(before))) == before
                ended(balancer, ends, sender)


@pytest.mark.parametrize("sender", SIDES)
def test_the_other_side_ends_its_frame_before_it_is_told(balancer: WebProxy, ends: Ends, sender: str) -> None:
    """A Close may only stand between two frames (RFC 6455, section 5.4)."""
    source, target = ends.of(sender)
    other = frame(BINARY, data(MAX), masked=sender == "backend")
    target.socket.sendall(other[:70_000])
    assert b"".join(source.length(70_000)) == other[:70_000]
    source.socket.sendall(header(BINARY, MAX + 1, masked=sender == "client") + data(1000))
    # Where nothing stands in the way it is told at once.
    assert read_frame(target).code == CODES[sender][1]
    target.socket.sendall(other[70_000:] + frame(TEXT, b"one more", masked=sender == "backend"))
    assert b"".join(source.length(len(other) - 70_000)) == other[70_000:]
    told(source, CODES[sender][0], masked=sender == "backend")
    assert target.rest() == b""


@pytest.mark.parametrize("sender", SIDES)
def test_who_goes_on_sending_reads_what_it_did_wrong(balancer: WebProxy, ends: Ends, sender: str) -> None:
    source, target = ends.of(sender)
    source.socket.sendall(header(BINARY, 20 << 20, masked=sender == "client") + bytes(20 << 20))
    told(source, CODES[sender][0], masked=sender == "backend")
    told(target, CODES[sender][1], masked=sender == "client")


@pytest.mark.parametrize("sender", SIDES)
def test_the_other_side_gets_all_that_came_before_though_it_is_slow(
    balancer: WebProxy, ends: Ends, sender: str
) -> None:
    source, target = ends.of(sender)
    masked = sender == "client"
    before = frame(BINARY, data(MAX), masked=masked) * 60
    offending = header(BINARY, MAX + 1, masked=masked)
    # The other side reads nothing until its sockets are full and the sender knows of its mistake: nobody
    # is told before his place in the stream has come.
    writer = threading.Thread(target=source.socket.sendall, args=(before + offending,))
    writer.start()
    assert sha(b"".join(target.length(len(before)))) == sha(before)
    writer.join(PATIENCE)
    ended(balancer, ends, sender)


@pytest.mark.parametrize("sender", SIDES)
def test_who_does_not_answer_is_given_up_in_time(backend: Held, sender: str) -> None:
    with (
        web_proxy([backend], route={"max_message": MAX, "close_timeout": 0.2}) as balancer,
        tunnel(balancer, backend) as ends,
    ):
        source, target = ends.of(sender)
        source.socket.sendall(header(BINARY, MAX + 1, masked=sender == "client"))
        told(source, CODES[sender][0], masked=sender == "backend")
        told(target, CODES[sender][1], masked=sender == "client")
        # Nobody answers, nobody ends.
        assert balancer.record(ends.name)["reason"] == "message-too-big"
        assert balancer.engine.active() == 0


@pytest.mark.parametrize("sender", SIDES)
def test_one_in_the_same_segment_as_the_handshake(balancer: WebProxy, backend: Held, sender: str) -> None:
    offending = frame(TEXT, b"fine", masked=sender == "client")
    offending += header(BINARY, MAX + 1, masked=sender == "client") + b"x"
    with Client(balancer.address, handshake() + (offending if sender == "client" else b"")) as client:
        stream, _ = backend.asked()
        answer = switch(KEY).encode()
        stream.socket.sendall(answer + (offending if sender == "backend" else b""))
        assert client.head() is not None
        source, target = (client, stream) if sender == "client" else (stream, client)
        assert read_frame(target).payload == b"fine"
        told(source, CODES[sender][0], masked=sender == "backend")
        told(target, CODES[sender][1], masked=sender == "client")
        stream.socket.close()


@pytest.mark.parametrize("sender", SIDES)
@pytest.mark.parametrize("most", [0, MAX], ids=["any-size", "bounded"])
def test_a_length_that_cannot_be_one_ends_it_too(backend: Held, sender: str, most: int) -> None:
    """The highest bit of 64 must be 0 (RFC 6455, section 5.2): nobody knows where the next frame begins."""
    offending = header(BINARY, 1 << 63, masked=sender == "client")
    route = {"max_message": most, "close_timeout": 0.2}
    with web_proxy([backend], route=route) as balancer:
        with tunnel(balancer, backend) as ends:
            source, target = ends.of(sender)
            source.socket.sendall(frame(TEXT, b"fine", masked=sender == "client") + offending)
            assert read_frame(target).payload == b"fine"
            for stream in (source, target):
                assert read_frame(stream).opcode == CLOSE
                assert stream.rest() == b""
        with tunnel(balancer, backend) as ends, tunnel(balancer, backend) as beat:
            source, target = ends.of(sender)
            source.socket.sendall(offending[:2])
            assert carried(beat.client, frame(PING, masked=True), beat.backend)
            source.socket.sendall(offending[2:])
            assert read_frame(source).opcode == CLOSE
            if most:
                assert read_frame(target).opcode == CLOSE
            else:
                # Its beginning has passed, so no Close can follow, nor an end that looks like one.
                assert b"".join(target.length(2)) == offending[:2]
                with pytest.raises(ConnectionResetError):
                    target.rest()


def test_the_limit_is_the_routes_and_closes_are_counted(backend: Held) -> None:
    with web_proxy([backend], route={"max_message": 10}) as balancer, ExitStack() as stack:
        for _ in range(3):
            ends = stack.enter_context(tunnel(balancer, backend))
            ends.client.send(frame(TEXT, bytes(11), masked=True))
            record = ended(balancer, ends, "client")
            # What the balancer says is its own; what the client answered was not passed on.
            assert "backend_close" not in record
        assert balancer.counted.messages_in == 0


def test_a_file_sets_it_for_a_listener_and_for_a_route(serve: Serve, tmp_path: Path, backend: Held) -> None:
    file = tmp_path / "pybalancer.toml"
    file.write_text(f"""
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "chat"
max_message = 1000
[[listeners.routes]]
path = "/large"
pool = "chat"
max_message = 2000
[[listeners.routes]]
path = "/any"
pool = "chat"
max_message = 0
[[pools.chat.backends]]
name = "app-1"
address = "{backend.address}"
""")
    address = serve(file).address
    for path, most in (("/", 1000), ("/large", 2000), ("/any", None)):
        with Ends(address, backend, path) as ends:
            fits = frame(BINARY, data(most or MAX), masked=True)
            ends.client.send(fits)
            assert b"".join(ends.backend.length(len(fits))) == fits
            if most:
                ends.client.send(frame(BINARY, data(most + 1), masked=True))
                told(ends.client, 1009, masked=False)
                told(ends.backend, 1001, masked=True)
