"""Re-attach as the way out of a backend that is drained, shed, removed or down: its clients see nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import pytest

from pybalancer._core import Drain

from ..net import until
from .ends import Held, WebProxy, web_proxy
from .frames import BINARY, CLOSE, CONTINUATION, TEXT, close, frame, header, read_frame
from .movers import REPLAY, Mover, balanced, two

LONG = 1000.0
"""Seconds that no test waits for."""


def order(balancer: WebProxy, id: int) -> Drain:
    (found,) = (drain for drain in balancer.engine.drains() if drain.id == id)
    return found


def done(balancer: WebProxy, id: int) -> Drain:
    found: Drain = until(lambda: order(balancer, id).state == "done" and order(balancer, id), "its end")
    return found


def drain(balancer: WebProxy, mover: Mover, **terms: Any) -> int:
    """That mover's backend; the worker has heard of it."""
    balancer.apply(**{f"b{mover.at}": "draining"})
    backends = [f"b{mover.at}"]
    id = balancer.engine.drain(pool="pool", backends=backends, **{"over": 0.0, "deadline": LONG, **terms})
    # It takes its orders one after the other, and this one is waited for.
    balancer.apply(**{f"b{mover.at}": "draining"})
    return id


def goes(mover: Mover, code: int = 1001) -> None:
    """The backend is asked to go, and does."""
    found = read_frame(mover.backend)
    assert (found.opcode, found.code, found.masked) == (CLOSE, 1001, True)
    mover.backend.socket.sendall(close(code, masked=False))
    assert mover.backend.rest() == b""


def test_a_drain_moves_the_client_and_tells_it_nothing() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.works()
        old = mover.at
        id = drain(balancer, mover)
        goes(mover)
        assert mover.moves()[1:] == (f"b{old}", 1)
        assert mover.at != old
        mover.works()
        told = done(balancer, id)
        assert (told.total, told.left, told.closed, told.cut, told.moved) == (1, 0, 0, 0, 1)
        assert told.parts == [(f"b{old}", 1, 0)]
        mover.client.socket.close()
        mover.backend.socket.close()
        balanced(balancer, 1)


def test_a_backend_that_answers_with_a_code_of_its_own_has_ended_it() -> None:
    """Its client has had that Close, so no other backend may follow."""
    with two(route={"close_timeout": 1.0}) as (balancer, backends), Mover(balancer, backends) as mover:
        mover.works()
        id = drain(balancer, mover)
        assert read_frame(mover.backend).code == 1001
        mover.backend.socket.sendall(close(4000, masked=False))
        mover.backend.socket.close()
        assert mover.reads().code == 4000
        assert mover.client.rest() == b""
        mover.client.send(close(4000, masked=True))
        mover.client.socket.close()
        assert mover.record["reason"] == "finished"
        told = done(balancer, id)
        assert (told.total, told.closed, told.cut, told.moved) == (1, 1, 0, 0)
        balanced(balancer, 0)


def test_what_both_say_around_the_move_arrives_once_and_in_order() -> None:
    """The client's stream ends at a boundary, the backend's with its Close; nothing of either is missing."""
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.client.send(frame(TEXT, b"one ", fin=False, masked=True))
        assert read_frame(mover.backend).payload == b"one "
        mover.backend.socket.sendall(frame(BINARY, b"begun ", fin=False, masked=False))
        assert mover.reads().payload == b"begun "
        id = drain(balancer, mover)
        assert order(balancer, id).state == "running"
        mover.client.send(frame(CONTINUATION, b"end", masked=True) + frame(TEXT, b"two", masked=True))
        assert read_frame(mover.backend).payload == b"end"
        mover.backend.socket.sendall(frame(CONTINUATION, b"ended", masked=False))
        assert mover.reads().payload == b"ended"
        assert read_frame(mover.backend).code == 1001
        # It says still more, before it answers.
        mover.backend.socket.sendall(frame(TEXT, b"last words", masked=False) + close(1000, masked=False))
        assert mover.reads().payload == b"last words"
        mover.moves()
        assert mover.hears() == b"two"
        mover.works()
        assert done(balancer, id).moved == 1


def test_a_backend_that_answers_late_is_heard_before_it_is_asked_to_go() -> None:
    """Many servers answer a Close at once, whatever they still had to do."""
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.client.send(frame(TEXT, b"question", masked=True))
        assert mover.hears() == b"question"
        id = drain(balancer, mover)
        assert order(balancer, id).state == "running"
        mover.backend.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            # The Close comes when nothing has passed for a while.
            mover.backend.socket.recv(1, socket.MSG_PEEK)
        mover.backend.socket.settimeout(10)
        mover.tells(b"answer")
        goes(mover)
        mover.moves()
        mover.works()


def test_a_backend_that_never_answers_is_left_after_a_while() -> None:
    with two(route={"close_timeout": 1.0}) as (balancer, backends), Mover(balancer, backends) as mover:
        mover.works()
        drain(balancer, mover)
        assert read_frame(mover.backend).code == 1001
        mover.moves()
        mover.works()


def test_a_backend_in_the_middle_of_its_message_is_waited_for() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        whole = frame(BINARY, bytes(5000), masked=False)
        mover.backend.socket.sendall(whole[:4500])
        assert b"".join(mover.client.length(4500)) == whole[:4500]
        id = drain(balancer, mover)
        assert order(balancer, id).state == "running"
        mover.backend.socket.sendall(whole[4500:])
        assert b"".join(mover.client.length(len(whole) - 4500)) == whole[4500:]
        goes(mover)
        mover.moves()
        mover.works()


def test_at_the_deadline_the_client_of_a_cut_message_gets_1012() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.client.send(frame(TEXT, b"begun", fin=False, masked=True))
        assert read_frame(mover.backend).payload == b"begun"
        id = drain(balancer, mover, deadline=0.2)
        assert mover.reads().code == 1012
        assert mover.client.rest() == b""
        mover.client.socket.close()
        assert mover.record["reason"] == "reattach-failed"
        told = done(balancer, id)
        assert (told.moved, told.closed + told.cut) == (0, 1)
        balanced(balancer, 0, 1)


def test_at_the_deadline_who_was_not_asked_yet_moves_too() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.works()
        id = drain(balancer, mover, over=LONG, deadline=0.2)
        goes(mover)
        mover.moves()
        mover.works()
        assert until(lambda: order(balancer, id).moved) == 1
        assert order(balancer, id).cut == 0


def test_a_frame_that_is_cut_at_the_deadline_ends_in_an_abort() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        part = header(BINARY, 50_000, masked=False) + bytes(10)
        mover.backend.socket.sendall(part)
        assert b"".join(mover.client.length(len(part))) == part
        id = drain(balancer, mover, deadline=0.2)
        with pytest.raises(ConnectionResetError):
            mover.client.rest()
        assert (done(balancer, id).moved, order(balancer, id).cut) == (0, 1)
        balanced(balancer, 0, 1)


@pytest.mark.parametrize("scope", [{}, {"listener": "front"}])
def test_where_the_whole_listener_drains_clients_are_closed(scope: dict[str, str]) -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover, Mover(balancer, backends) as away:
        away.backend.socket.close()
        away.asked_again()
        id = balancer.engine.drain(over=0.0, deadline=LONG, **scope)
        for one in (mover, away):
            assert one.reads().code == 1012
            one.client.send(close(1012, masked=True))
            one.backend.socket.close()
            assert one.client.rest() == b""
            one.client.socket.close()
        told = done(balancer, id)
        assert (told.closed, told.moved, told.cut) == (2, 0, 0)
        assert balancer.counted.reattached == 0


def test_the_deadline_of_a_listener_cuts_who_is_on_the_way() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        id = balancer.engine.drain(listener="front", over=LONG, deadline=0.1)
        assert mover.reads().code == 1012
        assert mover.client.rest() == b""
        mover.client.socket.close()
        assert (done(balancer, id).cut, mover.record["reason"]) == (1, "drain-deadline")


def test_who_comes_to_a_backend_that_is_being_drained_goes_on() -> None:
    """The drain began when its handshake was on the way there."""
    with Held() as third, two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        balancer.backends = mover.backends = [*backends, third]
        first = mover.at
        id = drain(balancer, mover)
        mover.accept()
        goes(mover)
        mover.moves()
        assert mover.at != first
        mover.works()
        assert done(balancer, id).moved == 1


def test_shed_moves_the_surplus_to_where_the_table_has_it() -> None:
    with contextlib.ExitStack() as stack:
        backends = [stack.enter_context(Held()) for _ in range(2)]
        balancer = stack.enter_context(web_proxy(backends, route=REPLAY))
        balancer.apply(b1="down")
        movers = [stack.enter_context(Mover(balancer, backends)) for _ in range(20)]
        balancer.apply()
        plan = balancer.plan()
        misplaced = [one for one in movers if plan.explain("pool", one.name)[0].backend == "b1"]
        assert 0 < len(misplaced) < 20
        id = balancer.engine.shed("pool", [("b0", len(misplaced))], rate=1000.0)
        for one in misplaced:
            goes(one)
            one.backend.socket.close()
        for _ in misplaced:
            misplaced[0].moves()
            assert misplaced[0].at == 1
        told = until(lambda: order(balancer, id).moved == len(misplaced) and order(balancer, id))
        assert (told.closed, told.left) == (0, 0)
        for one in set(movers) - set(misplaced):
            one.works()


@pytest.mark.parametrize("state", ["removed", "down"])
@pytest.mark.parametrize("how", ["close", "drain"])
def test_tunnels_of_a_backend_that_leaves_move(state: str, how: str) -> None:
    pool = {"on_remove": how, "on_down": how, **({"drain_over": 0.0} if how == "drain" else {})}
    with two(pool=pool) as (balancer, backends), Mover(balancer, backends) as mover:
        mover.works()
        old = mover.at
        if state == "removed":
            # The names stay those of the places.
            gone = backends[old]
            other = backends[1 - old]
            balancer.backends = [other, other] if old == 0 else [other]
            balancer.apply(**({"b0": "down"} if old == 0 else {}))
            del gone
        else:
            balancer.apply(**{f"b{old}": "down"})
        goes(mover)
        mover.moves()
        assert mover.at != old
        mover.works()
        mover.client.socket.close()
        mover.backend.socket.close()
        until(lambda: balancer.connections == 0)
        assert balancer.counted.reattached == 1


def test_a_cancelled_drain_moves_nobody_else() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        id = drain(balancer, mover, over=LONG)
        assert balancer.engine.cancel_drain(id)
        mover.works()
        assert order(balancer, id).moved == 0


def test_a_drain_under_load_loses_and_doubles_nothing() -> None:
    """An echo protocol with numbers: a thread on each of the backends' connections, and one for the client,
    with many messages under way all the time, of which some are cut into pieces."""
    count, moves, window = 4000, 6, 32
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        sent, wrong = threading.Semaphore(window), []

        def talk() -> None:
            for number in range(count):
                sent.acquire()
                text = b"%d" % number
                if number % 3:
                    mover.client.send(frame(TEXT, text, masked=True))
                else:
                    mover.client.send(frame(TEXT, text[:1], fin=False, masked=True))
                    mover.client.send(frame(CONTINUATION, text[1:], masked=True))

        def echo(backend: Any) -> None:
            try:
                while (found := read_frame(backend)).opcode != CLOSE:
                    answer = frame(found.opcode, found.payload, fin=found.fin, masked=False)
                    backend.socket.sendall(answer)
                backend.socket.sendall(close(found.code, masked=False))
                assert backend.rest() == b""
            except BaseException as error:
                wrong.append(error)

        echoes = [threading.Thread(target=echo, args=(mover.backend,))]
        talker = threading.Thread(target=talk)
        echoes[0].start()
        talker.start()
        moved = 0
        for number in range(count):
            payload = b""
            while True:
                piece = mover.reads()
                assert piece.opcode in (TEXT, CONTINUATION)
                payload += piece.payload
                if piece.fin:
                    break
            assert payload == b"%d" % number, f"{payload!r} instead of {number}, after {moved} moves"
            sent.release()
            if number % (count // moves) == count // moves // 2:
                drain(balancer, mover)
                mover.moves()
                echoes.append(threading.Thread(target=echo, args=(mover.backend,)))
                echoes[-1].start()
                moved += 1
        talker.join()
        assert moved == moves
        mover.client.send(close(1000, masked=True))
        assert mover.reads().code == 1000
        mover.client.socket.close()
        for one in echoes:
            one.join()
        assert not wrong
        mover.client.socket.close()
        mover.backend.socket.close()
        assert mover.record["messages_in"] == mover.record["messages_out"] == count
        balanced(balancer, moves)
