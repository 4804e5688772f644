"""Drain and shed of WebSockets, frame by frame, by the engine alone."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pybalancer._core import Drain, PlanError

from ..net import reset, until
from .ends import Ends, Held, WebProxy, is_echoed, tunnel, web_proxy
from .frames import BINARY, TEXT, close, frame, header, read_frame
from .messages import handshake
from .movers import arrives
from .recorder import Recorder, switch
from .site import Client

LONG = 1000.0
"""Seconds that no test waits for."""


@pytest.fixture
def backend() -> Iterator[Held]:
    with Held() as held:
        yield held


def order(balancer: WebProxy, id: int) -> Drain:
    (found,) = (drain for drain in balancer.engine.drains() if drain.id == id)
    return found


def drain(balancer: WebProxy, **terms: Any) -> int:
    return balancer.engine.drain(pool="pool", **{"over": 0.0, "deadline": LONG, **terms})


def answers_close(ends: Ends, code: int = 1012) -> None:
    """The client gets a Close and answers; the backend gets the answer, and both the end."""
    assert read_frame(ends.client).code == code
    ends.client.socket.sendall(close(code, masked=True))
    assert read_frame(ends.backend).code == code
    assert ends.backend.rest() == ends.client.rest() == b""
    ends.close()


def test_a_close_stands_between_two_frames(backend: Held) -> None:
    with web_proxy([backend]) as balancer, tunnel(balancer, backend) as ends:
        payload = bytes(3000)
        whole = frame(BINARY, payload, masked=False)
        ends.backend.socket.sendall(whole[:1000])
        assert b"".join(ends.client.length(1000)) == whole[:1000]
        id = drain(balancer, code=1012)
        until(lambda: order(balancer, id).closed == 1)
        # The client's own words still pass.
        said = frame(TEXT, b"still here", masked=True)
        ends.client.socket.sendall(said)
        assert b"".join(ends.backend.length(len(said))) == said
        ends.backend.socket.sendall(whole[1000:] + frame(TEXT, b"too late", masked=False))
        assert b"".join(ends.client.length(len(whole) - 1000)) == whole[1000:]
        answers_close(ends)
        assert balancer.record(ends.name)["reason"] == "drained"
        done = until(lambda: order(balancer, id).state == "done" and order(balancer, id))
        assert (done.total, done.left, done.closed, done.cut) == (1, 0, 1, 0)
        assert done.parts == [("b0", 1, 0)]


@pytest.mark.parametrize("told", [True, False])
def test_a_backend_that_breaks_off_takes_no_close_from_its_client(backend: Held, told: bool) -> None:
    """A reset towards the client could overtake the Close, and the client would see 1006."""
    with web_proxy([backend]) as balancer, tunnel(balancer, backend) as ends:
        payload = bytes(3000)
        whole = frame(BINARY, payload, masked=False)
        if not told:
            # The Close has to wait for the end of this frame, which comes with the reset.
            ends.backend.socket.sendall(whole[:1000])
            assert b"".join(ends.client.length(1000)) == whole[:1000]
        id = drain(balancer, code=1012)
        until(lambda: order(balancer, id).closed == 1)
        if told:
            assert read_frame(ends.client).code == 1012
        else:
            ends.backend.socket.sendall(whole[1000:])
        reset(ends.backend.socket)
        if not told:
            assert b"".join(ends.client.length(len(whole) - 1000)) == whole[1000:]
            assert read_frame(ends.client).code == 1012
        assert ends.client.rest() == b""
        ends.client.socket.sendall(close(1012, masked=True))
        ends.client.socket.close()
        assert balancer.record(ends.name)["reason"] == "drained"
        until(lambda: balancer.connections == 0)
        assert balancer.stats.active("pool", "b0") == 0


def test_closes_keep_to_the_cap_and_to_the_time(backend: Held) -> None:
    with contextlib.ExitStack() as stack:
        balancer = stack.enter_context(web_proxy([backend], workers=2))
        ends = [stack.enter_context(tunnel(balancer, backend)) for _ in range(30)]
        began = time.monotonic()
        id = drain(balancer, rate=25.0)
        told = []
        left = {one.client.socket: one for one in ends}
        while left:
            ready, _, _ = select.select(list(left), [], [], LONG)
            at = time.monotonic()
            for one in ready:
                answers_close(left.pop(one))
                told.append(at - began)
        # An earlier one would have been too early; how late one is seen says nothing about the balancer.
        for count, at in enumerate(told):
            assert at > count / 25.0 - 0.001, told
        assert order(balancer, id).closed == 30


def test_undrain_stops_at_once(backend: Held) -> None:
    with contextlib.ExitStack() as stack:
        balancer = stack.enter_context(web_proxy([backend]))
        ends = [stack.enter_context(tunnel(balancer, backend)) for _ in range(5)]
        id = drain(balancer, over=LONG)
        assert balancer.engine.cancel_drain(id)
        assert not balancer.engine.cancel_drain(id)
        assert (order(balancer, id).state, order(balancer, id).left) == ("cancelled", 5)
        for one in ends:
            said = frame(TEXT, b"x", masked=True)
            one.client.socket.sendall(said)
            assert b"".join(one.backend.length(len(said))) == said
        # Neither is anybody told who comes now.
        stack.enter_context(tunnel(balancer, backend))
        assert order(balancer, id).closed == 0


@pytest.mark.parametrize("how", ["cancel", "plan"])
def test_an_order_that_found_nobody_ends_nobody_after_it_was_called_off(backend: Held, how: str) -> None:
    with web_proxy([backend]) as balancer:
        if how == "plan":
            balancer.apply(b0="draining")
        id = drain(balancer)
        assert order(balancer, id).state == "done"
        if how == "cancel":
            assert not balancer.engine.cancel_drain(id)
        else:
            balancer.apply()
        with tunnel(balancer, backend) as ends:
            said = frame(TEXT, b"x", masked=True)
            ends.client.socket.sendall(said)
            assert b"".join(ends.backend.length(len(said))) == said
            assert order(balancer, id).closed == 0


def test_of_a_pool_that_drains_one_backend_is_taken_back(backend: Held) -> None:
    with Held() as other, web_proxy([backend, other]) as balancer, contextlib.ExitStack() as stack:
        balancer.apply(b1="down")
        kept = stack.enter_context(tunnel(balancer, backend))
        balancer.apply(b0="draining")
        gone = stack.enter_context(tunnel(balancer, other))
        balancer.apply(b0="draining", b1="draining")
        id = drain(balancer, over=LONG)
        balancer.apply(b1="draining")
        assert (order(balancer, id).state, order(balancer, id).left) == ("running", 1)
        assert balancer.engine.cancel_drain(id)
        id = drain(balancer)
        # Told by name and state: of what the plan says is up, nobody is told a second time.
        answers_close(gone)
        answers_close(kept)
        assert order(balancer, id).closed == 2


def test_the_deadline_cuts_what_is_left(backend: Held) -> None:
    with web_proxy([backend]) as balancer:
        with tunnel(balancer, backend) as idle, tunnel(balancer, backend) as within:
            part = header(BINARY, 5000, masked=False) + bytes(10)
            within.backend.socket.sendall(part)
            assert b"".join(within.client.length(len(part))) == part
            id = drain(balancer, over=LONG, deadline=0.2)
            # A Close where one may stand, an abort within a frame: never an end that lies.
            answers_close(idle)
            with pytest.raises(ConnectionResetError):
                within.client.rest()
            reasons = [balancer.record(ends.name)["reason"] for ends in (idle, within)]
            assert reasons == ["drain-deadline"] * 2
            done = until(lambda: order(balancer, id).state == "done" and order(balancer, id))
            assert (done.closed, done.cut) == (0, 2)


def test_105_a_handshake_in_flight_becomes_a_tunnel_and_is_drained(backend: Held) -> None:
    with web_proxy([backend]) as balancer, Client(balancer.address, handshake()) as client:
        stream, head = backend.asked()
        balancer.apply(b0="draining")
        id = drain(balancer)
        assert order(balancer, id).left == 1
        stream.socket.sendall(switch(head.get("sec-websocket-key") or "").encode())
        answer = client.head()
        assert answer is not None
        assert answer.status == 101
        assert read_frame(client).code == 1012
        with Client(balancer.address, handshake()) as late:
            refused = late.answer()
            assert refused.status == 503
            assert int(refused.head.get("retry-after") or "0") > 0


def test_a_listener_that_drains_takes_no_tunnels(recorder_site: tuple[WebProxy, Recorder]) -> None:
    balancer, _ = recorder_site
    with Client(balancer.address, handshake()) as inside:
        head = inside.head()
        assert head is not None
        assert head.status == 101
        balancer.listener = {"draining": True}
        balancer.apply()
        id = balancer.engine.drain(listener="front", over=0.0, deadline=LONG)
        assert read_frame(inside).code == 1012
        with Client(balancer.address, handshake()) as late:
            assert late.answer().status == 503
        assert "draining" in until(balancer.reasons)
        balancer.listener = {}
        balancer.apply()
        # The plan has the last word.
        assert order(balancer, id).state == "cancelled"
        with Client(balancer.address, handshake()) as again:
            head = again.head()
            assert head is not None
            assert head.status == 101
            assert is_echoed(again)


@pytest.fixture
def recorder_site() -> Iterator[tuple[WebProxy, Recorder]]:
    recorder = Recorder()
    try:
        with web_proxy([recorder]) as balancer:
            yield balancer, recorder
    finally:
        recorder.close()


@pytest.mark.parametrize("state", ["removed", "down"])
def test_tunnels_of_a_backend_that_leaves_are_drained(backend: Held, state: str) -> None:
    pool = {"on_remove": "drain", "on_down": "drain", "drain_over": 0.0, "drain_code": 1001}
    with Held() as other, web_proxy([backend], pool=pool) as balancer, tunnel(balancer, backend) as ends:
        if state == "removed":
            balancer.backends = [other]
            balancer.apply()
        else:
            balancer.apply(b0="down")
        answers_close(ends, 1001)
        assert balancer.record(ends.name)["reason"] == f"backend-{state}"
        (drained,) = balancer.engine.drains()
        assert (drained.kind, drained.closed, drained.code) == (state, 1, 1001)


def test_a_backend_that_is_back_keeps_its_tunnels(backend: Held) -> None:
    pool = {"on_down": "drain", "drain_over": LONG, "drain_deadline": LONG}
    with web_proxy([backend], pool=pool) as balancer, tunnel(balancer, backend) as ends:
        balancer.apply(b0="down")
        (drained,) = balancer.engine.drains()
        assert drained.state == "running"
        balancer.apply()
        (drained,) = balancer.engine.drains()
        assert drained.state == "cancelled"
        balancer.apply(b0="down")
        assert [one.state for one in balancer.engine.drains()] == ["cancelled", "running"]
        said = frame(TEXT, b"x", masked=True)
        ends.client.socket.sendall(said)
        assert b"".join(ends.backend.length(len(said))) == said


def closed_of(ends: list[Ends]) -> int:
    """How many of these have got a Close by now."""
    count = 0
    for one in ends:
        one.client.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            count += one.client.socket.recv(1, socket.MSG_PEEK) == b"\x88"
    return count


def test_shed_takes_the_surplus_and_no_more(backend: Held) -> None:
    with contextlib.ExitStack() as stack:
        pool = {"policy": "least-connections"}
        balancer = stack.enter_context(web_proxy([backend], pool=pool))
        ends = [stack.enter_context(tunnel(balancer, backend)) for _ in range(10)]
        shed = balancer.engine.shed
        counted = shed("pool", [("b0", 4)], rate=1000.0, dry_run=True)
        done = until(lambda: order(balancer, counted).state == "done" and order(balancer, counted))
        assert (done.kind, done.parts, closed_of(ends)) == ("shed", [("b0", 4, 4)], 0)
        id = shed("pool", [("b0", 4)], rate=1000.0)
        until(lambda: order(balancer, id).state == "done")
        until(lambda: closed_of(ends) == 4)
        assert order(balancer, id).closed == 4
        with pytest.raises(PlanError, match='no backend "b9"'):
            shed("pool", [("b9", 4)], rate=1000.0)


def test_shed_of_a_pool_that_hashes_takes_only_those_that_the_table_would_move(backend: Held) -> None:
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(Held())
        balancer = stack.enter_context(web_proxy([backend, other]))
        balancer.apply(b1="down")
        ends = [stack.enter_context(tunnel(balancer, backend)) for _ in range(40)]
        balancer.apply()
        plan = balancer.plan()
        moved = [one for one in ends if plan.explain("pool", one.name)[0].backend == "b1"]
        stays = [one for one in ends if one not in moved]
        assert 0 < len(moved) < 40
        counted = balancer.engine.shed("pool", [("b0", 40)], rate=1000.0, dry_run=True)
        until(lambda: order(balancer, counted).state == "done")
        assert order(balancer, counted).total == len(moved)
        id = balancer.engine.shed("pool", [("b0", 40)], rate=1000.0)
        until(lambda: order(balancer, id).state == "done")
        until(lambda: closed_of(moved) == len(moved))
        assert closed_of(stays) == 0


def test_what_makes_no_sense_is_refused(backend: Held) -> None:
    with web_proxy([backend]) as balancer:
        for wrong in (
            {"pool": "none"},
            {"listener": "none"},
            {"backends": ["b0"]},
            {"pool": "pool", "listener": "front"},
            {"pool": "pool", "code": 1005},
            {"pool": "pool", "code": 5000},
            {"pool": "pool", "rate": float("nan")},
            {"pool": "pool", "over": -1.0},
        ):
            with pytest.raises(PlanError):
                balancer.engine.drain(**{"over": 0.0, "deadline": 1.0, **wrong})
        assert balancer.engine.drains() == []


@pytest.mark.parametrize("how", ["down", "removed", "orders"])
def test_several_backends_of_a_pool_keep_to_its_cap_together(how: str) -> None:
    """Whether a plan drains them or somebody asks: for those who come back it is one pool."""
    pool = {"on_down": "drain", "on_remove": "drain", "drain_over": 0.0, "drain_rate": 25.0}
    with contextlib.ExitStack() as stack:
        backends = [stack.enter_context(Held()) for _ in range(4)]
        balancer = stack.enter_context(web_proxy(backends, workers=2, pool={**pool, "policy": "round-robin"}))
        pairs = []
        for _ in range(40):
            client = stack.enter_context(Client(balancer.address, handshake()))
            at, backend, head = arrives(backends)
            backend.socket.sendall(switch(head.get("sec-websocket-key") or "").encode())
            assert client.head()
            pairs.append((at, client, backend))
        going = {client.socket: client for at, client, _ in pairs if at}
        assert len(going) == 30
        began = time.monotonic()
        if how == "down":
            balancer.apply(b1="down", b2="down", b3="down")
        elif how == "removed":
            balancer.backends = backends[:1]
            balancer.apply()
        else:
            for name in ("b1", "b2", "b3"):
                balancer.engine.drain(pool="pool", backends=[name], over=0.0, deadline=LONG, rate=25.0)
        # A machine that is busy may have told some before it was given the last order.
        early = sum(drain.closed for drain in balancer.engine.drains()) if how == "orders" else 0
        told = []
        while going:
            ready, _, _ = select.select(list(going), [], [], LONG)
            for one in ready:
                told.append(time.monotonic() - began)
                assert read_frame(going.pop(one)).code == 1012
            if len(told) == early + 15:
                # Nobody waits until the others have ended.
                assert all(drain.closed > 1 for drain in balancer.engine.drains())
        # As above; and a worker that woke late may make up for up to 10 ms.
        for count, at in enumerate(told):
            assert at > count / 25.0 - 0.011, told
