"""Whoever says what he has to say too slowly is told so at a deadline that does not begin again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ..net import until
from ..test_exhaustion import readable
from .ends import Held, is_echoed, opened, served, tunnel, web_proxy
from .frames import TEXT, frame, read_frame
from .messages import KEY, handshake, request
from .recorder import Recorder, switch
from .site import Client


@pytest.fixture
def backend() -> Iterator[Held]:
    with Held() as held:
        yield held


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    running = Recorder()
    yield running
    running.close()


DEADLINE = 0.4
PAUSE = 0.02


def dribble(clients: list[Client], data: bytes) -> int:
    """One byte after the other, to each of them, until all are answered; how many that took."""
    left = list(clients)
    for index in range(len(data)):
        time.sleep(PAUSE)
        for client in left:
            with contextlib.suppress(ConnectionError):
                client.send(data[index : index + 1])
        done = readable([client.socket for client in left])
        left = [client for client in left if client.socket not in done]
        if not left:
            return index + 1
    raise AssertionError(f"{len(left)} may go on for ever")


HEAD = request("X-Long: " + "x" * 3000)


def test_78_a_head_that_dribbles_is_ended_by_its_total_deadline(recorder: Recorder) -> None:
    with web_proxy([recorder], web={"request_timeout": DEADLINE}) as balancer, ExitStack() as stack:
        inside = stack.enter_context(opened(balancer.address))
        slow = [stack.enter_context(Client(balancer.address)) for _ in range(300)]
        silent = stack.enter_context(Client(balancer.address))
        began = time.monotonic()
        took = dribble(slow, HEAD)
        assert time.monotonic() - began >= DEADLINE - 0.05
        # A deadline that begins again with each byte would let them all go on to the end.
        assert took < len(HEAD) // 2
        for client in [*slow, silent]:
            answer = client.answer()
            assert answer.status == 408
            assert "close" in answer.head.options()
            assert client.rest() == b""
        assert is_echoed(inside)
        assert served(balancer.address)
        # None of them reached the backend: there was the tunnel, and the one that was served.
        assert len(recorder.talks) == 2
        for client in [*slow, silent]:
            client.socket.close()
        until(lambda: balancer.reasons().count("request-timeout") == 301)


def test_78_many_that_dribble_cost_others_nothing(recorder: Recorder) -> None:
    """While they do it, requests are served and tunnels talk."""
    with web_proxy([recorder], web={"request_timeout": 20.0}) as balancer, ExitStack() as stack:
        slow = [stack.enter_context(Client(balancer.address)) for _ in range(500)]
        inside = stack.enter_context(opened(balancer.address))
        for index in range(40):
            for client in slow:
                client.send(HEAD[index : index + 1])
            assert is_echoed(inside)
            assert served(balancer.address)
        until(lambda: balancer.connections == 501)


def test_78_the_next_request_has_its_own_deadline_from_its_first_byte(recorder: Recorder) -> None:
    web = {"request_timeout": DEADLINE, "keepalive_timeout": 30.0}
    with web_proxy([recorder], web=web) as balancer, Client(balancer.address) as client:
        assert client.ask(request()).status == 200
        time.sleep(2 * DEADLINE)
        assert client.ask(request()).status == 200
        assert dribble([client], HEAD) < len(HEAD) // 2
        assert client.answer().status == 408
        assert client.rest() == b""


def test_24_a_backend_that_dribbles_its_answer_is_late(backend: Held) -> None:
    with web_proxy([backend], pool={"response_timeout": DEADLINE}) as balancer:
        before = until(lambda: balancer.stats.workers()[0].descriptors)
        full = switch(KEY, "X-Long: " + "x" * 3000).encode()
        for sent in (handshake(), request()):
            with Client(balancer.address, sent) as client:
                stream, _ = backend.asked()
                index = 0
                while not readable([client.socket]):
                    stream.socket.sendall(full[index : index + 1])
                    time.sleep(PAUSE)
                    index += 1
                assert index < len(full) // 2
                answer = client.answer()
                assert answer.status == 504
                assert client.rest() == b""
                # It has no use for the rest.
                with pytest.raises(ConnectionResetError):
                    stream.rest()
        # Silence is no different.
        with Client(balancer.address, handshake()) as client:
            backend.asked()
            assert client.answer().status == 504
        until(lambda: balancer.reasons().count("late-answer") == 3)
        until(lambda: balancer.stats.workers()[0].descriptors == before, "all sockets are closed")
        with tunnel(balancer, backend) as ends:
            ends.client.send(frame(TEXT, b"x", masked=True))
            assert read_frame(ends.backend).payload == b"x"
