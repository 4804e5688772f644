"""Re-attach: the backend goes away in every way that there is, and the client goes on at another."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from ..net import reset, until
from .ends import Held, web_proxy
from .frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close, frame, read_frame
from .messages import KEY, Stream
from .movers import REPLAY, Mover, arrives, balanced, resumed, two
from .recorder import switch

SHUT = b""


def says_close(code: int) -> Callable[[Stream], None]:
    def leave(backend: Stream) -> None:
        backend.socket.sendall(close(code, "bye", masked=False))
        # It is answered in the client's place.
        answer = read_frame(backend)
        assert (answer.opcode, answer.masked, answer.code) == (CLOSE, True, 1001)
        assert backend.rest() == SHUT

    return leave


def ends(backend: Stream) -> None:
    backend.socket.close()


def half_ends(backend: Stream) -> None:
    backend.socket.shutdown(socket.SHUT_WR)


def resets(backend: Stream) -> None:
    reset(backend.socket)


def half_a_frame(backend: Stream) -> None:
    """What of a small frame came is nobody's."""
    backend.socket.sendall(frame(BINARY, bytes(4000), masked=False)[:2000])
    backend.socket.close()


WAYS = {
    "1001": says_close(1001),
    "1012": says_close(1012),
    "end": ends,
    "half": half_ends,
    "reset": resets,
    "half a frame": half_a_frame,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_client_goes_on_elsewhere_and_sees_nothing(way: str) -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        assert mover.first.get("pybalancer-resumed") is None
        tunnel = mover.first.get("x-request-id")
        mover.works()
        old = mover.at
        WAYS[way](mover.backend)
        assert mover.moves() == (tunnel, f"b{old}", 1)
        assert mover.at != old
        mover.works()
        # The same handshake, but for what it says of itself.
        assert mover.last.get("sec-websocket-key") == KEY
        again = [field for field in mover.last.fields if field[0] != "Pybalancer-Resumed"]
        assert again == mover.first.fields
        assert mover.last.line == mover.first.line
        # And back again.
        WAYS[way](mover.backend)
        assert mover.moves() == (tunnel, f"b{1 - old}", 1)
        assert mover.at == old
        mover.works()
        mover.client.send(close(1000, masked=True))
        assert read_frame(mover.backend).code == 1000
        mover.backend.socket.sendall(close(1000, masked=False))
        assert mover.reads().code == 1000
        mover.backend.socket.close()
        mover.client.socket.close()
        record = mover.record
        assert (record["reason"], record["reattached"], record["backend"]) == ("finished", 2, f"b{old}")
        assert (record["client_close"], record["backend_close"]) == (1000, 1000)
        assert (record["messages_in"], record["messages_out"]) == (3, 3)
        balanced(balancer, 2)


@pytest.mark.parametrize("code", [1000, 1003, 1011, 1013, 4000, None])
def test_other_codes_are_the_applications_and_pass(code: int | None) -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.works()
        mover.backend.socket.sendall(close(code, masked=False))
        found = mover.reads()
        assert found.opcode == CLOSE
        assert found.payload == (b"" if code is None else code.to_bytes(2))
        mover.client.send(close(code, masked=True))
        assert read_frame(mover.backend).opcode == CLOSE
        mover.backend.socket.close()
        assert mover.client.rest() == SHUT
        mover.client.socket.close()
        assert mover.record["backend_close"] == (code or 1005)
        balanced(balancer, 0)


def test_an_end_right_behind_a_close_is_no_reason_to_go_on() -> None:
    """Both are read at once: behind a long frame no more is read than a header has."""
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        payload = bytes(range(256)) * 16 * 1024
        last = close(1011, "ten bytes.", masked=False)
        assert len(last) == 14
        backend = mover.backend.socket

        def says_all() -> None:
            backend.sendall(frame(BINARY, payload, masked=False))
            # In one segment.
            backend.send(last, socket.MSG_MORE)
            backend.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=says_all)
        sender.start()
        assert mover.reads().payload == payload
        assert mover.reads().code == 1011
        sender.join()
        assert mover.client.rest() == SHUT
        mover.client.send(close(1011, masked=True))
        mover.client.socket.close()
        balanced(balancer, 0)


def test_an_answer_to_the_clients_own_1001_passes() -> None:
    """Browsers say 1001 when they leave a page, and servers repeat it."""
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.client.send(close(1001, masked=True))
        assert read_frame(mover.backend).code == 1001
        mover.backend.socket.sendall(close(1001, masked=False))
        mover.backend.socket.close()
        assert mover.reads().code == 1001
        assert mover.client.rest() == SHUT
        mover.client.socket.close()
        balanced(balancer, 0)


@pytest.mark.parametrize("cuts", [range(1), range(1, 4), range(1, 10)])
def test_a_close_that_comes_in_pieces_is_held_until_its_code_is_known(cuts: range) -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        data = frame(TEXT, b"last", masked=False) + close(1012, "a reason of some length", masked=False)
        start = 0
        for cut in [*cuts, len(data)]:
            mover.backend.socket.sendall(data[start:cut])
            start = max(start, cut)
        assert mover.reads().payload == b"last"
        mover.moves()
        mover.works()


def test_what_the_backend_said_last_is_delivered_though_the_client_is_slow() -> None:
    size = 4 << 20
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        data = b"".join(frame(BINARY, bytes([n]) * (size // 16), masked=False) for n in range(16))
        mover.backend.socket.setblocking(True)
        writer = threading.Thread(
            target=lambda: (mover.backend.socket.sendall(data), mover.backend.socket.close())
        )
        writer.start()
        for n in range(16):
            assert mover.reads().payload == bytes([n]) * (size // 16)
        writer.join()
        mover.moves()
        mover.works()


def test_a_fragmented_message_of_the_backend_that_is_cut_ends_with_1012() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.sendall(frame(TEXT, b"begins", fin=False, masked=False))
        assert mover.reads().payload == b"begins"
        mover.backend.socket.close()
        assert mover.reads().code == 1012
        mover.client.send(close(1012, masked=True))
        assert mover.client.rest() == SHUT
        mover.client.socket.close()
        record = mover.record
        assert record["reason"] == "reattach-failed"
        assert "client_close" not in record
        assert record["backend"] == f"b{mover.at}"
        balanced(balancer, 0, 1)


def test_a_fragmented_message_of_the_client_that_is_cut_ends_with_1012() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.client.send(frame(TEXT, b"begins", fin=False, masked=True))
        assert read_frame(mover.backend).payload == b"begins"
        mover.backend.socket.close()
        assert mover.reads().code == 1012
        assert mover.client.rest() == SHUT
        mover.client.socket.close()
        assert mover.record["reason"] == "reattach-failed"
        balanced(balancer, 0, 1)


def test_a_frame_of_the_backend_that_is_cut_ends_in_an_abort() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        sent = frame(BINARY, bytes(10_000), masked=False)[:9000]
        mover.backend.socket.sendall(sent)
        assert b"".join(mover.client.length(len(sent))) == sent
        mover.backend.socket.close()
        with pytest.raises(ConnectionResetError):
            mover.client.rest()
        assert mover.record["reason"] == "reattach-failed"
        balanced(balancer, 0, 1)


def test_a_backend_that_says_1012_gets_the_rest_of_the_clients_message_first() -> None:
    """It may still want it; to the next one it would be half a message."""
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.client.send(frame(TEXT, b"begins ", fin=False, masked=True))
        assert read_frame(mover.backend).payload == b"begins "
        mover.backend.socket.sendall(close(1012, masked=False))
        mover.client.send(frame(CONTINUATION, b"ends", masked=True) + frame(TEXT, b"next", masked=True))
        assert read_frame(mover.backend).payload == b"ends"
        assert read_frame(mover.backend).code == 1001
        mover.moves()
        assert mover.hears() == b"next"
        mover.works()


def test_what_the_client_says_meanwhile_waits_and_its_pings_are_answered() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        mover.client.send(
            frame(TEXT, b"one", masked=True)
            + frame(PING, b"are you there?", masked=True)
            + frame(BINARY, b"two ", fin=False, masked=True)
            + frame(PING, b"", masked=True)
            + frame(PONG, b"unasked", masked=True)
            + frame(CONTINUATION, b"and a half", masked=True)[:5]
        )
        for payload in (b"are you there?", b""):
            pong = mover.reads()
            assert (pong.opcode, pong.payload, pong.masked) == (PONG, payload, False)
        mover.client.send(frame(CONTINUATION, b"and a half", masked=True)[5:])
        mover.accept()
        found = [read_frame(mover.backend) for _ in range(3)]
        assert [(one.opcode, one.payload, one.fin) for one in found] == [
            (TEXT, b"one", True),
            (BINARY, b"two ", False),
            (CONTINUATION, b"and a half", True),
        ]
        mover.works()


def test_a_ping_in_pieces_is_answered_once() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        for byte in frame(PING, b"x" * 125, masked=True) + frame(TEXT, b"t", masked=True):
            mover.client.send(bytes([byte]))
        assert mover.reads().payload == b"x" * 125
        mover.accept()
        assert mover.hears() == b"t"
        mover.works()


@pytest.mark.parametrize("code", [1000, 4321, None])
def test_a_client_that_closes_meanwhile_is_answered(code: int | None) -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        at = mover.at
        mover.backend.socket.close()
        mover.asked_again()
        mover.client.send(close(code, masked=True))
        found = mover.reads()
        assert found.opcode == CLOSE
        assert found.payload == (b"" if code is None else code.to_bytes(2))
        assert mover.client.rest() == SHUT
        mover.client.socket.close()
        record = mover.record
        assert (record["reason"], record["client_close"]) == ("finished", code or 1005)
        assert record["backend"] == f"b{at}"
        assert "reattached" not in record
        with pytest.raises(ConnectionResetError):
            mover.backend.rest()
        balanced(balancer, 0)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_client_that_leaves_meanwhile_is_gone(how: str) -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        if how == "end":
            mover.client.socket.close()
        else:
            reset(mover.client.socket)
        assert mover.record["reason"] == {"end": "client-gone", "reset": "client-reset"}[how]
        balanced(balancer, 0)


def test_without_reattach_the_client_hears_of_it() -> None:
    with Held() as a, Held() as b, web_proxy([a, b]) as balancer, Mover(balancer, [a, b]) as mover:
        mover.backend.socket.sendall(close(1012, masked=False))
        assert mover.reads().code == 1012


@pytest.mark.parametrize(
    "name",
    [
        "Pybalancer-Resumed",
        "PYBALANCER-RESUMED",
        "pybalancer_resumed",
        "Pybalancer_Resumed",
        "pybalancer.resumed",
    ],
)
@pytest.mark.parametrize("route", [{}, REPLAY])
def test_a_client_cannot_claim_to_be_resumed(name: str, route: dict[str, str]) -> None:
    value = "0123456789abcdef0123456789abcdef; previous=b1; attempt=1"
    with Held() as held, web_proxy([held], route=route) as balancer:
        with Mover(balancer, [held], f"{name}: {value}") as mover:
            assert "resumed" not in mover.first.raw.decode().lower()


def test_a_new_backend_may_speak_at_once() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        hello = frame(TEXT, b"welcome back", masked=False)
        mover.backend.socket.sendall(switch(KEY).encode() + hello + frame(PING, b"?", masked=False))
        assert mover.reads().payload == b"welcome back"
        assert mover.reads().opcode == PING
        mover.works()


def test_the_only_backend_is_waited_for() -> None:
    """A server that restarts, and no other: the commonest case."""
    with Held() as held, web_proxy([held], route=REPLAY) as balancer, Mover(balancer, [held]) as mover:
        mover.backend.socket.sendall(close(1012, masked=False))
        assert read_frame(mover.backend).code == 1001
        mover.moves()
        mover.works()
        mover.client.socket.close()
        mover.backend.socket.close()
        balanced(balancer, 1)


def test_many_move_at_once() -> None:
    count = 300
    with two() as (balancer, backends):
        movers = [Mover(balancer, backends) for _ in range(count)]
        for mover in movers:
            mover.backend.socket.close()
        # In whatever order they come.
        by_id = {mover.first.get("x-request-id"): mover for mover in movers}
        for _ in range(count):
            at, backend, last = arrives(backends)
            tunnel, _, attempt = resumed(last)
            assert attempt == 1
            mover = by_id.pop(tunnel)
            mover.at, mover.backend, mover.last = at, backend, last
            mover.accept()
        assert not by_id
        for mover in movers:
            mover.works()
        for mover in movers:
            mover.client.socket.close()
            mover.backend.socket.close()
        balanced(balancer, count)
        until(lambda: len(balancer.log()) == count)
