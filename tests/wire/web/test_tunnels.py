"""Frames pass as they came, whatever they are and however they are cut; what passed is counted."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from pybalancer.stats.collector import render

from ..net import sha
from .ends import Ends, Held, WebProxy, carried, name_of, tunnel, web_proxy
from .frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close, frame, header
from .messages import KEY, Stream, handshake
from .recorder import switch
from .site import Client

MB = 1 << 20
SIDES = ("client", "backend")


@pytest.fixture(scope="module")
def backend() -> Iterator[Held]:
    with Held() as held:
        yield held


@pytest.fixture(scope="module", params=[0, 64 * MB], ids=["any-size", "bounded"])
def balancer(request: pytest.FixtureRequest, backend: Held) -> Iterator[WebProxy]:
    """With a ``max_message`` headers are only passed on whole."""
    with web_proxy([backend], route={"max_message": request.param}) as running:
        yield running


@pytest.fixture
def ends(balancer: WebProxy, backend: Held) -> Iterator[Ends]:
    with tunnel(balancer, backend) as made:
        yield made


def data(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("sender", SIDES)
def test_a_message_of_every_size(balancer: WebProxy, ends: Ends, sender: str) -> None:
    source, target = ends.of(sender)
    sizes = [*range(130), 4096, *range(65530, 65542), 100_000, MB, 5 * MB]
    for size in sizes:
        sent = frame(BINARY, data(size), masked=sender == "client")
        assert sha(carried(source, sent, target)) == sha(sent), size
    count = (len(sizes), 0) if sender == "client" else (0, len(sizes))
    ends.close()
    record = balancer.record(ends.name)
    assert (record["messages_in"], record["messages_out"]) == count


@pytest.mark.parametrize("sender", SIDES)
def test_a_message_in_fragments_with_control_frames_between(
    balancer: WebProxy, ends: Ends, sender: str
) -> None:
    source, target = ends.of(sender)
    masked = sender == "client"
    parts = [
        frame(TEXT, b"begins", fin=False, masked=masked),
        frame(PING, b"is somebody there?", masked=masked),
        *(frame(CONTINUATION, data(size), fin=False, masked=masked) for size in (0, 125, 126, 65536, MB)),
        frame(PONG, b"", masked=masked),
        frame(PING, bytes(125), masked=masked),
        frame(CONTINUATION, b"ends", masked=masked),
        frame(BINARY, b"another", masked=masked),
    ]
    sent = b"".join(parts)
    assert carried(source, sent, target) == sent
    ends.close()
    record = balancer.record(ends.name)
    assert record["messages_in" if masked else "messages_out"] == 2


@pytest.mark.parametrize("sender", SIDES)
def test_what_only_the_endpoints_can_judge_passes_as_it_is(
    balancer: WebProxy, ends: Ends, sender: str
) -> None:
    """Reserved bits, unknown opcodes, masks where none should be, long lengths, fragments out of order."""
    source, target = ends.of(sender)
    masked = sender == "client"
    parts = [frame(BINARY, b"reserved", rsv=rsv, masked=masked) for rsv in range(8)]
    parts += [frame(opcode, b"opcode", masked=masked) for opcode in range(16) if opcode != CLOSE]
    parts += [frame(TEXT, b"wrong mask", masked=not masked)]
    parts += [frame(TEXT, data(size), width=width, masked=masked) for size in (0, 7) for width in (16, 64)]
    parts += [frame(TEXT, data(300), width=64, masked=masked), frame(PING, data(300), masked=masked)]
    parts += [frame(CONTINUATION, b"of what?", fin=False, masked=masked), frame(TEXT, b"x", masked=masked)]
    parts += [frame(PING, b"a fragment", fin=False, masked=masked), b"\x81\xff" + (1 << 25).to_bytes(8)]
    sent = b"".join(parts) + b"and so on"
    assert carried(source, sent, target) == sent


HEADERS = {
    "short": (BINARY, 5, 7),
    "16-bit": (TEXT, 300, 16),
    "64-bit": (BINARY, 300, 64),
    "control": (PING, 5, 7),
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("sender", SIDES)
def test_a_header_cut_at_every_byte(
    balancer: WebProxy, backend: Held, ends: Ends, sender: str, kind: str
) -> None:
    source, target = ends.of(sender)
    masked = sender == "client"
    opcode, size, width = HEADERS[kind]
    before = frame(TEXT, b"before", masked=masked)
    sent = (
        before + frame(opcode, data(size), width=width, masked=masked) + frame(TEXT, b"after", masked=masked)
    )
    first = len(before)
    most = first + len(header(opcode, size, width=width, masked=masked)) + 2
    with tunnel(balancer, backend) as beat:

        def written(part: bytes) -> None:
            """Return when the worker has read this, and nothing behind it: it serves in order."""
            source.socket.sendall(part)
            beat.client.send(b"\x81\x80\0\0\0\0")
            assert b"".join(beat.backend.length(6))

        for cut in range(first - 1, most):
            written(sent[:cut])
            source.socket.sendall(sent[cut:])
            assert b"".join(target.length(len(sent))) == sent, cut
        # All of the pieces at once: each byte for itself.
        for at in range(len(sent[:most])):
            written(sent[at : at + 1])
        source.socket.sendall(sent[most:])
        assert b"".join(target.length(len(sent))) == sent
    messages = 2 if opcode == PING else 3
    ends.close()
    record = balancer.record(ends.name)
    assert record["messages_in" if masked else "messages_out"] == messages * (most - first + 2)


@pytest.mark.parametrize("seed", range(4))
def test_random_frames_in_random_pieces_both_ways_at_once(ends: Ends, seed: int) -> None:
    rng = random.Random(seed)

    def stream(masked: bool) -> bytes:
        sizes = [rng.choice((0, 1, 125, 126, 4000, 65535, 65536, 200_000)) for _ in range(40)]
        opcodes = (TEXT, BINARY, CONTINUATION)
        return b"".join(
            frame(
                rng.choice(opcodes), data(size), fin=rng.random() < 0.5, rsv=rng.randrange(8), masked=masked
            )
            if size > 125 or rng.random() < 0.7
            else frame(PING, data(size), masked=masked)
            for size in sizes
        )

    def write(to: Stream, sent: bytes, rng: random.Random) -> None:
        while sent:
            count = rng.choice((1, 2, 13, 700, 60_000, MB))
            to.socket.sendall(sent[:count])
            sent = sent[count:]

    up, down = stream(True), stream(False)
    received: list[bytes] = []
    threads = [
        threading.Thread(target=write, args=(ends.client, up, random.Random(seed + 100))),
        threading.Thread(target=write, args=(ends.backend, down, random.Random(seed + 200))),
        threading.Thread(target=lambda: received.append(b"".join(ends.backend.length(len(up))))),
    ]
    for thread in threads:
        thread.start()
    assert sha(b"".join(ends.client.length(len(down)))) == sha(down)
    for thread in threads:
        thread.join()
    assert sha(received[0]) == sha(up)


def test_frames_that_come_with_the_handshake_are_passed_on_once(balancer: WebProxy, backend: Held) -> None:
    """The client's may not go before the 101; the backend's come in the same segment as it."""
    early = b"".join(frame(BINARY, data(size), masked=True) for size in (3, 300, 70_000))
    answer = b"".join(frame(BINARY, data(size), masked=False) for size in (5, 500, 80_000))
    with Client(balancer.address, handshake() + early[:500]) as client:
        stream, _ = backend.asked()
        assert stream.buffer == b""
        client.send(early[500:])
        stream.socket.sendall(switch(KEY).encode() + answer)
        assert b"".join(stream.length(len(early))) == early
        assert client.head() is not None
        assert b"".join(client.length(len(answer))) == answer
        client.send(frame(TEXT, b"x", masked=True))
        assert b"".join(stream.length(7)) == frame(TEXT, b"x", masked=True)
        stream.socket.close()
        assert client.rest() == b""
        name = name_of(client.socket)
    record = balancer.record(name)
    assert (record["messages_in"], record["messages_out"]) == (4, 3)


CODES: list[tuple[bytes, str]] = [
    *((close(code, masked=True), str(code)) for code in range(1000, 1016)),
    (close(masked=True), "1005"),
    (close(3000, "why", masked=True), "3xxx"),
    (close(4999, "r" * 123, masked=True), "4xxx"),
    (close(999, masked=True), "other"),
    (close(5000, masked=True), "other"),
    (b"", "none"),
]


def test_closes_are_counted_by_code(backend: Held) -> None:
    with web_proxy([backend]) as balancer:

        def counted() -> dict[str, int]:
            lines = render(balancer.stats).splitlines()
            name = "pybalancer_listener_closes_total{"
            found = [line for line in lines if line.startswith(name)]
            return {line.split('code="')[1].split('"')[0]: int(float(line.split()[-1])) for line in found}

        expected = dict.fromkeys(counted(), 0)
        for sent, code in CODES:
            with tunnel(balancer, backend) as ends:
                ends.client.send(sent)
                assert b"".join(ends.backend.length(len(sent))) == sent
                ends.close()
                record = balancer.record(ends.name)
            expected[code] += 1
            assert counted() == expected
            if code.isdigit():
                assert record["client_close"] == int(code)
            assert "backend_close" not in record
        # The first one counts, and the backend's where the client has said nothing.
        with tunnel(balancer, backend) as ends:
            ends.backend.socket.sendall(close(1012, masked=False) + close(1000, masked=False))
            assert len(b"".join(ends.client.length(8))) == 8
            ends.close()
            record = balancer.record(ends.name)
        expected["1012"] += 1
        assert counted() == expected
        assert (record.get("client_close"), record["backend_close"]) == (None, 1012)


def test_messages_are_counted_per_direction(backend: Held) -> None:
    with web_proxy([backend]) as balancer:
        with tunnel(balancer, backend) as ends:
            up = frame(TEXT, b"one", masked=True) * 3 + frame(TEXT, b"open", fin=False, masked=True)
            down = frame(BINARY, data(70_000), masked=False) * 5 + frame(PING, masked=False)
            assert carried(ends.client, up, ends.backend) == up
            assert carried(ends.backend, down, ends.client) == down
            assert balancer.counted.messages_in == 0
            ends.close()
            record = balancer.record(ends.name)
        assert (record["messages_in"], record["messages_out"]) == (3, 5)
        assert (balancer.counted.messages_in, balancer.counted.messages_out) == (3, 5)
        heads = record["bytes_to_backend"] - len(up), record["bytes_to_client"] - len(down)
        # What is left are the heads of the handshake.
        assert all(100 < size < 500 for size in heads)
        page = render(balancer.stats)
        assert 'pybalancer_listener_messages_received_total{listener="front"} 3.0' in page
        assert 'pybalancer_listener_messages_sent_total{listener="front"} 5.0' in page
