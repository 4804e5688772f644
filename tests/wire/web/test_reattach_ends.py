"""Re-attach where something else ends in the same moment: nothing is lost unseen, nobody waits."""

from __future__ import annotations

import select
import socket
import threading
import time

import pytest

from ..net import until
from .ends import name_of
from .frames import BINARY, CLOSE, TEXT, close, frame, read_frame
from .messages import Stream
from .movers import Mover, balanced, two
from .test_reattach_moves import drain, order


# 1000 would be how a backend answers that was told.
@pytest.mark.parametrize(("code", "told"), [(1000, False), (4000, False), (4000, True)])
def test_a_backend_that_ends_it_while_it_is_drained_has_ended_it(code: int, told: bool) -> None:
    """Its Close is for the client: nobody else is asked, and nobody waits for patience to end."""
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.client.send(frame(TEXT, b"question", masked=True))
        assert mover.hears() == b"question"
        id = drain(balancer, mover)
        if told:
            assert read_frame(mover.backend).code == 1001
        else:
            until(lambda: order(balancer, id).state == "running")
        mover.backend.socket.sendall(close(code, masked=False))
        assert mover.reads().code == code
        mover.client.send(close(code, masked=True))
        if not told:
            # The client's own answer, not one in its place.
            assert read_frame(mover.backend).code == code
        mover.backend.socket.close()
        assert mover.client.rest() == b""
        mover.client.socket.close()
        record = mover.record
        assert (record["reason"], record["backend_close"]) == ("finished", code)
        assert not select.select([held.socket for held in backends], [], [], 0)[0], "another was asked"
        balanced(balancer, 0)


def test_a_client_that_is_slow_loses_nothing_unseen_when_patience_ends() -> None:
    """What the old backend has said and the client has not taken: it comes, or the client is told."""
    with two(route={"close_timeout": 1.0}) as (balancer, backends):
        mover = Mover(balancer, backends)
        count, size = 8000, 4000
        old = mover.backend

        def speak() -> None:
            try:
                for number in range(count):
                    old.socket.sendall(frame(TEXT, b"%06d" % number + bytes(size), masked=False))
            except OSError:
                pass  # It was left.

        talker = threading.Thread(target=speak)
        talker.start()
        drain(balancer, mover)
        other = backends[1 - mover.at]
        # Either it is left, or its client is told; the client reads only then.
        select.select([other.socket], [], [], 3.0)
        if select.select([other.socket], [], [], 0)[0]:
            mover.moves()
            mover.backend.socket.sendall(
                frame(TEXT, b"%06d" % count, masked=False) + close(1000, masked=False)
            )
        expected = 0
        try:
            while (found := read_frame(mover.client)).opcode != CLOSE:
                number = int(found.payload[:6])
                assert number == expected, f"{number} instead of {expected}"
                expected += 1
            assert found.code == (1000 if expected == count + 1 else 1012)
        except ConnectionResetError:
            assert expected < count  # It was too slow for that, too.
        mover.client.socket.close()
        talker.join()


def test_a_ping_leaves_a_connect_alone() -> None:
    """A client is pinged while the next backend's queue is full: the connect is noticed when it stands."""
    route, pool = {"ping": 0.2, "ping_timeout": 5.0}, {"connect_timeout": 8.0}
    with two(route=route, pool=pool) as (balancer, backends):
        with Mover(balancer, backends) as mover, socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            address = name_of(full)
            filler = socket.create_connection(full.getsockname())
            balancer.backends = [address, address]
            balancer.apply()
            mover.backend.socket.close()
            assert read_frame(mover.client).opcode == 9
            # Room again: the kernel asks once more by itself.
            taken, _ = full.accept()
            full.settimeout(10)
            connection, _ = full.accept()
            connection.settimeout(2.5)
            head = Stream(connection).head()
            assert head is not None, "it was left again"
            for one in (filler, taken, connection):
                one.close()


def test_the_last_word_of_a_client_arrives_before_its_close_is_answered() -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        mover.client.send(frame(TEXT, b"last word", masked=True) + close(1000, masked=True) + b"noise")
        mover.accept()
        assert mover.hears() == b"last word"
        assert read_frame(mover.backend).code == 1000
        mover.backend.socket.sendall(close(1000, masked=False))
        assert mover.reads().code == 1000
        mover.backend.socket.close()
        assert mover.client.rest() == b""
        mover.client.socket.close()
        assert (mover.record["reason"], mover.record["client_close"]) == ("finished", 1000)
        balanced(balancer, 1)


def test_a_client_whose_last_word_finds_nobody_is_told() -> None:
    with two(route={"reattach_tries": 1}) as (balancer, backends), Mover(balancer, backends) as mover:
        mover.backend.socket.close()
        mover.asked_again()
        mover.client.send(frame(TEXT, b"last word", masked=True) + close(1000, masked=True))
        mover.backend.socket.close()
        assert mover.reads().code == 1012
        mover.client.socket.close()
        balanced(balancer, 0, 1)


def test_a_client_that_takes_the_old_backends_words_late_is_found_by_the_new_one() -> None:
    """They are in a pipe meanwhile, and the answer to the repeated handshake waits until they are gone."""
    with two(route={"close_timeout": 0.5}) as (balancer, backends), Mover(balancer, backends) as mover:
        piece, sent = frame(BINARY, bytes(100_000), masked=False), balancer.counted.bytes_out
        count = 0

        def taken() -> bool:
            return bool(balancer.counted.bytes_out - sent == count * len(piece))

        # Until there is one that the client's socket does not take: the pipe has room for it.
        while taken():
            mover.backend.socket.sendall(piece)
            count += 1
            late = time.monotonic() + 1.0
            until(lambda: taken() or time.monotonic() > late)  # noqa: B023
        drain(balancer, mover)
        mover.moves()
        assert b"".join(mover.client.length(count * len(piece))) == count * piece
        mover.works()
