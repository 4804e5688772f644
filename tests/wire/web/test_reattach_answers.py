"""Re-attach: answers to the repeated handshake, and what the client hears if there is no place for it."""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Iterator, Sequence

import pytest

from ..net import reserved, reset, until
from .ends import Held, WebProxy, web_proxy
from .frames import BINARY, PING, PONG, TEXT, close, frame, read_frame
from .messages import Stream, lines
from .movers import REPLAY, Mover, balanced, two

NO_TAKEOVER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def answers(mover: Mover, status: str, *fields: str, body: bytes = b"") -> None:
    """The repeated handshake is refused, and the connection ended."""
    backend = mover.backend.socket
    backend.sendall(lines(f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields) + body)
    backend.close()


def is_told(mover: Mover, failed: int = 1) -> None:
    """The next that the client gets, and its last, is Close 1012: no byte of HTTP."""
    assert mover.reads().code == 1012
    mover.client.send(close(1012, masked=True))
    assert mover.client.rest() == b""
    mover.client.socket.close()
    assert mover.record["reason"] == "reattach-failed"
    balanced(mover.balancer, 0, failed)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((), ("Sec-WebSocket-Protocol: chat",)),
        (("Sec-WebSocket-Protocol: chat",), ()),
        (("Sec-WebSocket-Protocol: chat",), ("Sec-WebSocket-Protocol: superchat",)),
        ((), (f"Sec-WebSocket-Extensions: {NO_TAKEOVER}",)),
        ((f"Sec-WebSocket-Extensions: {NO_TAKEOVER}",), ()),
        (
            (f"Sec-WebSocket-Extensions: {NO_TAKEOVER}",),
            (f"Sec-WebSocket-Extensions: {NO_TAKEOVER}; server_max_window_bits=10",),
        ),
    ],
)
def test_an_answer_that_disagrees_ends_it(first: Sequence[str], second: Sequence[str]) -> None:
    asked = ("Sec-WebSocket-Protocol: chat, superchat", "Sec-WebSocket-Extensions: permessage-deflate")
    with two() as (balancer, backends), Mover(balancer, backends, *asked, answer=first) as mover:
        mover.backend.socket.close()
        mover.moves(*second)
        is_told(mover)


def test_an_answer_that_agrees_in_other_words_is_one() -> None:
    asked = ("Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Extensions: permessage-deflate")
    first = ("Sec-WebSocket-Protocol: chat", f"Sec-WebSocket-Extensions: {NO_TAKEOVER}")
    second = (
        "sec-websocket-extensions: Permessage-Deflate;client_no_context_takeover ;server_no_context_takeover",
        "sec-websocket-protocol: chat",
        "X-Server: another",
    )
    with two() as (balancer, backends), Mover(balancer, backends, *asked, answer=first) as mover:
        mover.backend.socket.close()
        mover.moves(*second)
        mover.works()


def test_deflate_is_asked_for_so_that_each_message_stands_alone() -> None:
    with two() as (balancer, backends):
        asked = "Sec-WebSocket-Extensions: x-other, permessage-deflate; client_max_window_bits"
        with Mover(balancer, backends, asked) as mover:
            offer = mover.first.get("sec-websocket-extensions")
            end = "; server_no_context_takeover; client_no_context_takeover"
            assert offer == f"x-other, permessage-deflate; client_max_window_bits{end}"
    with Held() as held, web_proxy([held]) as balancer, Mover(balancer, [held], asked) as mover:
        assert mover.first.get("sec-websocket-extensions") == asked.partition(": ")[2]


@pytest.mark.parametrize(
    "extension",
    ["permessage-deflate", f"{NO_TAKEOVER}, x-other", "permessage-deflate; server_no_context_takeover"],
)
def test_messages_that_refer_to_others_are_not_carried_over(extension: str) -> None:
    """Such a tunnel is as without re-attach."""
    asked = "Sec-WebSocket-Extensions: permessage-deflate, x-other"
    with two() as (balancer, backends):
        answer = (f"Sec-WebSocket-Extensions: {extension}",)
        with Mover(balancer, backends, asked, answer=answer) as mover:
            mover.backend.socket.sendall(close(1012, masked=False))
            assert mover.reads().code == 1012
            mover.client.send(close(1012, masked=True))
            assert read_frame(mover.backend).code == 1012
            mover.backend.socket.close()
            assert mover.client.rest() == b""
            mover.client.socket.close()
            assert mover.record["reason"] == "finished"
            balanced(balancer, 0)


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found", "400 Bad Request"])
def test_a_refusal_is_the_last_word(status: str) -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        answers(mover, status, body=b"<html>no</html>")
        is_told(mover)


def test_who_has_no_room_now_is_asked_again_and_tries_are_counted() -> None:
    refusals = ["503 Service Unavailable", "429 Too Many Requests", "500 Oh", "200 OK"]
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        old = mover.at
        mover.backend.socket.close()
        for number, status in enumerate(refusals):
            assert mover.asked_again()[1:] == (f"b{old}", number + 1)
            answers(mover, status, body=b"later")
        assert mover.moves()[1:] == (f"b{old}", 5)
        mover.works()
        mover.client.socket.close()
        mover.backend.socket.close()
        balanced(balancer, 1)


@pytest.mark.parametrize("how", ["refuses", "ends", "resets", "lies", "no HTTP"])
def test_after_so_many_tries_the_client_is_told(how: str) -> None:
    with two(route={"reattach_tries": 3}) as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        for number in range(3):
            assert mover.asked_again()[2] == number + 1
            match how:
                case "refuses":
                    answers(mover, "503 Service Unavailable", "Retry-After: 1")
                case "ends":
                    mover.backend.socket.close()
                case "resets":
                    reset(mover.backend.socket)
                case "lies":
                    fields = [
                        "Upgrade: websocket",
                        "Connection: Upgrade",
                        "Sec-WebSocket-Accept: " + 28 * "x",
                    ]
                    mover.backend.socket.sendall(lines("HTTP/1.1 101 Switching Protocols", *fields))
                case _:
                    mover.backend.socket.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")
        is_told(mover)


def test_a_backend_that_does_not_answer_is_given_up() -> None:
    pool = {"response_timeout": 0.1}
    with two(pool=pool) as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        mover.backend.socket.sendall(b"HTTP/1.1 101 Switch")
        assert mover.moves()[2] == 2
        mover.works()


def test_interim_answers_and_pieces_are_nothing_to_the_client() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        hints = lines("HTTP/1.1 103 Early Hints", "Link: </a.css>; rel=preload")
        for byte in hints + hints:
            mover.backend.socket.sendall(bytes([byte]))
        mover.accept("X-Other: field")
        mover.works()


def nobody(mover: Mover, backends: Sequence[Held]) -> None:
    """Every backend is gone, the one that it had too."""
    for held in backends:
        held.socket.close()
    mover.backend.socket.close()


def test_without_any_backend_the_client_is_told_in_time() -> None:
    with two(route={"reattach_timeout": 0.3}) as (balancer, backends), Mover(balancer, backends) as mover:
        nobody(mover, backends)
        is_told(mover)


def test_one_whose_handshake_is_under_way_is_told_in_time() -> None:
    with two(route={"reattach_timeout": 0.3}) as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        is_told(mover)
        with pytest.raises(ConnectionResetError):
            mover.backend.rest()


def test_a_backend_that_restarts_is_found_again() -> None:
    """The only one, and its port is closed for a while."""
    with reserved() as address, contextlib.ExitStack() as stack:
        held = Held(address)
        balancer = stack.enter_context(web_proxy([held], route=REPLAY))
        mover = stack.enter_context(Mover(balancer, [held]))
        mover.works()
        nobody(mover, [held])
        failures = lambda: balancer.stats.backend("pool", "b0").connect_failures  # noqa: E731
        until(lambda: failures() >= 2, "two connects that fail")
        mover.client.send(frame(PING, b"still there?", masked=True) + frame(TEXT, b"meanwhile", masked=True))
        assert (pong := mover.reads()).opcode == PONG
        assert pong.payload == b"still there?"
        mover.backends = [stack.enter_context(Held(address))]
        assert mover.moves()[1:] == ("b0", 1)
        assert mover.hears() == b"meanwhile"
        mover.works()
        mover.client.socket.close()
        mover.backend.socket.close()
        balanced(balancer, 1)


def test_what_does_not_fit_waits_at_the_client_and_nothing_is_lost() -> None:
    size, count = 64 * 1024, 256
    with two(route={"reattach_buffer": 4096}) as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        pieces = [frame(BINARY, bytes([number]) * size, masked=True) for number in range(count)]
        before = balancer.counted.bytes_in
        writer = threading.Thread(target=lambda: [mover.client.send(piece) for piece in pieces])
        writer.start()
        # The kernel's buffers hold some; when those are full, the client can write no more.
        until(lambda: not select.select([], [mover.client.socket], [], 0)[1], "back-pressure")
        assert writer.is_alive()
        assert balancer.counted.bytes_in == before
        mover.accept()
        for number in range(count):
            assert read_frame(mover.backend).payload == bytes([number]) * size
        writer.join()
        mover.works()


def test_the_gap_is_no_silence_of_the_tunnel() -> None:
    """`idle_timeout` counts from when it goes on."""
    pool = {"idle_timeout": 0.5}
    with two(pool=pool) as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        assert not select.select([mover.client.socket], [], [], 0.7)[0]
        mover.accept()
        mover.works()
        # Then it does.
        with pytest.raises(ConnectionResetError):
            mover.client.rest()
        mover.client.socket.close()
        assert mover.record["reason"] == "idle-timeout"
        balanced(balancer, 1)


def test_a_quiet_client_is_pinged_meanwhile() -> None:
    route = {"ping": 0.1, "ping_timeout": 0.2}
    with two(route=route) as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        for _ in range(2):
            assert mover.reads().opcode == PING
            mover.client.send(frame(PONG, masked=True))
        while (found := read_or_reset(mover.client)) is not None:
            # And given up if it does not answer.
            assert found == PING
        mover.client.socket.close()
        assert mover.record["reason"] == "ping-timeout"
        balanced(balancer, 0)


def read_or_reset(stream: Stream) -> int | None:
    with contextlib.suppress(ConnectionResetError):
        return read_frame(stream).opcode
    return None


@pytest.fixture
def moving() -> Iterator[tuple[WebProxy, Mover]]:
    """One that has been refused once, with its next handshake at a backend."""
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        yield balancer, mover


def test_when_the_balancer_ends_who_is_on_the_way_is_told(moving: tuple[WebProxy, Mover]) -> None:
    balancer, mover = moving
    closing = threading.Thread(target=balancer.engine.close)
    closing.start()
    assert mover.reads().code == 1001
    mover.client.send(close(1001, masked=True))
    assert mover.client.rest() == b""
    mover.client.socket.close()
    closing.join()


def test_a_backend_under_way_that_is_removed_is_none(moving: tuple[WebProxy, Mover]) -> None:
    balancer, mover = moving
    balancer.pool = {"on_down": "close"}
    first = mover.at
    balancer.apply(**{f"b{first}": "down"})
    mover.moves()
    assert mover.at != first
    mover.works()


def test_a_reload_changes_nothing_on_the_way(moving: tuple[WebProxy, Mover]) -> None:
    balancer, mover = moving
    balancer.pool = {"policy": "random-two"}
    balancer.apply()
    mover.accept()
    mover.works()
    mover.client.socket.close()
    mover.backend.socket.close()
    balanced(balancer, 1)
