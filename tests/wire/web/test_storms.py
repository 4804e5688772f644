"""More clients than there is room for: who waits, who is told to come again, and who notices nothing."""

from __future__ import annotations

import select
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..namespace import Namespace, namespace, needs_namespaces
from ..net import PATIENCE, connect, reserved, reset, until
from ..serving import Serve
from .ends import Held, WebProxy, tunnel, web_proxy
from .frames import TEXT, frame, read_frame
from .messages import Answer, Stream, handshake, request
from .recorder import Recorder, switch
from .site import Client

RETRY = range(1, 6)
"""Seconds after which those who found no room are to come again."""


@pytest.fixture
def backend() -> Iterator[Held]:
    with Held() as held:
        yield held


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    running = Recorder()
    yield running
    running.close()


def knock(balancer: WebProxy, number: int = 0, source: str | None = None) -> Client:
    return Client(balancer.address, handshake(line=f"GET /{number} HTTP/1.1"), source)


def turned_away(client: Stream) -> int:
    """Told in HTTP, and after how many seconds to come again; the connection has an orderly end."""
    answer: Answer = client.answer()
    assert answer.status == 503, answer
    assert answer.body
    assert "close" in answer.head.options()
    assert client.rest() == b""
    client.socket.close()
    seconds = int(answer.head.get("retry-after") or "")
    assert seconds in RETRY
    return seconds


def entered(client: Stream) -> bool:
    head = client.head()
    assert head is not None
    assert head.status == 101, head
    return True


def talks(client: Client, message: bytes = b"hello") -> bool:
    """Whether a WebSocket that is echoed stands."""
    sent = frame(TEXT, message, masked=True)
    client.send(sent)
    return b"".join(client.length(len(sent))) == sent


def test_what_does_not_fit_waits_in_order_and_the_rest_is_told_to_come_again(backend: Held) -> None:
    web = {"handshakes": 10.0, "handshakes_burst": 3, "handshakes_queue": 5, "handshakes_wait": 20.0}
    with (
        web_proxy([backend], web=web) as balancer,
        ExitStack() as stack,
    ):
        clients = []
        for number in range(60):
            clients.append(stack.enter_context(knock(balancer, number)))
            until(lambda number=number: balancer.counted.handshakes == number + 1)
        took = 3 + balancer.counted.queued
        # As time goes by some that wait are let in, and others take their place.
        assert 8 <= took < 30
        came: list[int] = []
        while len(came) < took:
            stream, head = backend.asked()
            came.append(int(head.target.removeprefix("/")))
            stream.socket.sendall(switch(head.get("sec-websocket-key") or "").encode())
            assert entered(clients[came[-1]])
            # Whoever is in is not slowed by those who want to be.
            clients[came[0]].send(frame(TEXT, b"x", masked=True))
            assert read_frame(backend.taken[0]).payload == b"x"
        assert came == sorted(came)
        assert came[:8] == list(range(8))
        away = [turned_away(client) for number, client in enumerate(clients) if number not in came]
        # Not all at the same time.
        assert len(set(away)) == len(RETRY), Counter(away)
        until(lambda: balancer.counted.refused_rate == len(away))
        assert balancer.reasons().count("handshake-limited") == len(away)


def test_the_rate_is_kept(recorder: Recorder) -> None:
    web = {"handshakes": 50.0, "handshakes_burst": 5, "handshakes_queue": 100, "handshakes_wait": 30.0}
    with web_proxy([recorder], web=web) as balancer, ExitStack() as stack:
        began = time.monotonic()
        clients = [stack.enter_context(knock(balancer, number)) for number in range(45)]
        assert all(entered(client) for client in clients)
        # 40 of them had to wait; never faster than that. How much slower is the machine's business.
        assert time.monotonic() - began >= 40 / 50.0 - 0.05
        assert balancer.counted.refused_rate == 0
        assert all(talks(client) for client in clients)


def test_who_waits_too_long_is_told_so(recorder: Recorder) -> None:
    web = {"handshakes": 0.01, "handshakes_burst": 1, "handshakes_queue": 10, "handshakes_wait": 0.2}
    with web_proxy([recorder], web=web) as balancer, ExitStack() as stack:
        inside = stack.enter_context(knock(balancer))
        assert entered(inside)
        began = time.monotonic()
        waiting = [stack.enter_context(knock(balancer)) for _ in range(10)]
        for client in waiting:
            turned_away(client)
        assert time.monotonic() - began >= 0.2
        assert talks(inside)
        assert len(recorder.talks) == 1


def test_a_place_in_the_queue_is_free_again_when_its_client_leaves(recorder: Recorder) -> None:
    web = {"handshakes": 0.01, "handshakes_burst": 1, "handshakes_queue": 1, "handshakes_wait": 20.0}
    with web_proxy([recorder], web=web) as balancer, ExitStack() as stack:
        assert entered(stack.enter_context(knock(balancer)))
        for round_ in range(1, 4):
            waiting = knock(balancer)
            until(lambda round_=round_: balancer.counted.queued == round_)
            turned_away(knock(balancer))
            reset(waiting.socket)
            until(lambda: balancer.connections == 1, "its end")
        # Then the limit is lifted: at once for those who wait, too.
        last = stack.enter_context(knock(balancer))
        until(lambda: balancer.counted.queued == 4)
        balancer.web = {}
        balancer.apply()
        assert entered(last)
        assert entered(stack.enter_context(knock(balancer)))


def test_requests_that_are_no_handshakes_are_not_held_back(recorder: Recorder) -> None:
    web = {"handshakes": 0.01, "handshakes_burst": 1, "handshakes_queue": 0}
    with web_proxy([recorder], web=web) as balancer, ExitStack() as stack:
        assert entered(stack.enter_context(knock(balancer)))
        client = stack.enter_context(Client(balancer.address))
        for _ in range(20):
            assert client.ask(request()).status == 200
        turned_away(knock(balancer))
        # The same connection may ask for one too, and is told the same.
        client.send(handshake())
        turned_away(client)


def test_a_full_listener_says_so_and_serves_again_when_there_is_room(recorder: Recorder) -> None:
    with web_proxy([recorder], listener={"max_connections": 3}) as balancer, ExitStack() as stack:
        inside = [stack.enter_context(knock(balancer)) for _ in range(3)]
        assert all(entered(client) for client in inside)
        away = [turned_away(knock(balancer)) for _ in range(40)]
        assert len(set(away)) == len(RETRY), Counter(away)
        # One that has not said a word, and one that is not for a WebSocket.
        turned_away(Client(balancer.address))
        turned_away(Client(balancer.address, request()))
        until(lambda: balancer.counted.refused_full == 42)
        assert set(balancer.reasons()) == {"listener-full"}
        assert all(talks(client) for client in inside)
        inside.pop().socket.close()
        until(lambda: balancer.engine.active() == 2)
        assert entered(stack.enter_context(knock(balancer)))
        assert len(recorder.talks) == 4


def test_those_who_were_turned_away_take_no_place(recorder: Recorder) -> None:
    """They read what they are told, and then stay as long as they may."""
    with web_proxy([recorder], listener={"max_connections": 2}) as balancer, ExitStack() as stack:
        inside = [stack.enter_context(knock(balancer)) for _ in range(2)]
        assert all(entered(client) for client in inside)
        for _ in range(10):
            assert stack.enter_context(knock(balancer)).answer().status == 503
        inside.pop().socket.close()
        until(lambda: recorder.talks[1].ended)
        assert entered(stack.enter_context(knock(balancer)))


def test_a_source_with_too_many_is_told_so_and_others_are_served(recorder: Recorder) -> None:
    listener = {"max_connections_per_source": 2}
    with web_proxy([recorder], listener=listener) as balancer, ExitStack() as stack:
        inside = [stack.enter_context(knock(balancer)) for _ in range(2)]
        assert all(entered(client) for client in inside)
        for _ in range(5):
            turned_away(knock(balancer))
        assert entered(stack.enter_context(knock(balancer, source="127.0.0.9")))
        until(lambda: balancer.counted.refused_source == 5)
        inside.pop().socket.close()
        until(lambda: balancer.engine.active() == 2)
        assert entered(stack.enter_context(knock(balancer)))


def test_too_many_connections_a_second_are_told_so(recorder: Recorder) -> None:
    listener = {"accept_rate": 0.01, "accept_burst": 2, "accept_queue": 1, "queue_timeout": 0.3}
    with web_proxy([recorder], listener=listener) as balancer, ExitStack() as stack:
        assert entered(stack.enter_context(knock(balancer)))
        # A connection is what counts, whatever is asked on it.
        client = stack.enter_context(Client(balancer.address))
        assert client.ask(request()).status == 200
        waiting = knock(balancer)
        until(lambda: balancer.counted.queued == 1)
        for _ in range(5):
            turned_away(knock(balancer))
        turned_away(waiting)
        until(lambda: balancer.counted.refused_rate == 6)
        assert client.ask(request()).status == 200


def test_106_after_a_restart_of_the_balancer_its_clients_come_back_no_faster_than_the_cap(
    recorder: Recorder,
) -> None:
    web = {"handshakes": 40.0, "handshakes_burst": 1, "handshakes_queue": 100, "handshakes_wait": 60.0}
    count = 50
    with reserved() as address, ExitStack() as stack:
        with web_proxy([recorder], bind=address, workers=2) as balancer:
            clients = [stack.enter_context(knock(balancer, number)) for number in range(count)]
            assert all(entered(client) for client in clients)
        # Gone, and with it every tunnel.
        with web_proxy([recorder], web=web, bind=address, workers=2) as balancer:
            began = time.monotonic()
            clients = [stack.enter_context(knock(balancer, number)) for number in range(count)]
            came = {client.socket: client for client in clients}
            times = []
            while came:
                ready, _, _ = select.select(list(came), [], [], PATIENCE)
                assert ready
                at = time.monotonic() - began
                times += [at for one in ready if entered(came.pop(one))]
            assert balancer.counted.refused_rate == 0
        # None came in before its turn. How late one is seen to have come in says nothing.
        for place, at in enumerate(times):
            assert at >= place / 40.0 - 0.05, times


def test_103_all_backends_down(recorder: Recorder) -> None:
    with web_proxy([recorder, recorder]) as balancer, ExitStack() as stack:
        inside = stack.enter_context(knock(balancer))
        assert entered(inside)
        balancer.apply(b0="down", b1="down")
        away = [turned_away(knock(balancer)) for _ in range(40)]
        assert len(set(away)) == len(RETRY)
        turned_away(Client(balancer.address, request()))
        until(lambda: balancer.reasons().count("no-backend") == 41)
        assert talks(inside)
        balancer.apply()
        assert entered(stack.enter_context(knock(balancer)))


def test_103_no_backend_can_be_reached(recorder: Recorder) -> None:
    with reserved() as dead, web_proxy([dead, dead]) as balancer:
        for _ in range(5):
            turned_away(knock(balancer))
        head = Client(balancer.address, request(line="HEAD / HTTP/1.1"))
        assert head.answer("HEAD").status == 503
        assert head.rest() == b""
        until(lambda: balancer.reasons() == ["connect-failed"] * 6)
        balancer.backends = [recorder]
        balancer.apply()
        with knock(balancer) as client:
            assert entered(client)


PORTS = 20


@pytest.fixture
def machine() -> Iterator[Namespace]:
    with namespace() as made, made.inside():
        yield made


@needs_namespaces
def test_81_no_outgoing_port_left(machine: Namespace, tmp_path: Path) -> None:
    """Refused at once, not after the time that a connect may take; whoever is in stays in."""
    with Held() as backend, ExitStack() as stack:
        taken = int(backend.address.rpartition(":")[2])
        low = 20000 if not 20000 <= taken < 20000 + PORTS else 20000 + PORTS
        machine.set("ipv4/ip_local_port_range", f"{low} {low + PORTS - 1}")
        # A listener that uses up no port itself.
        bind = f"unix:{tmp_path}/front"

        def ask(data: bytes) -> Stream:
            client = Stream(stack.enter_context(connect(bind)))
            client.socket.sendall(data)
            return client

        with web_proxy([backend], bind=bind, pool={"connect_timeout": 60.0}) as balancer:
            inside = []
            for _ in range(PORTS):
                inside.append((ask(handshake()), backend.switched()))
                assert entered(inside[-1][0])
            assert balancer.engine.ports() == {"pool": {"b0": (PORTS, PORTS)}}
            away = [turned_away(ask(handshake())) for _ in range(40)]
            assert len(set(away)) == len(RETRY)
            turned_away(ask(request()))
            until(lambda: balancer.reasons() == ["ports-exhausted"] * 41)
            for client, stream in inside:
                client.socket.sendall(frame(TEXT, b"x", masked=True))
                assert read_frame(stream).payload == b"x"
            balancer.pool = {"sources": ["127.0.0.2"]}
            balancer.apply()
            client = ask(handshake())
            backend.switched()
            assert entered(client)


def test_105_a_backend_is_removed_while_it_thinks_about_a_handshake(recorder: Recorder) -> None:
    for policy in ("close", "keep"):
        with Held() as backend, web_proxy([backend], pool={"on_remove": policy}) as balancer:
            with knock(balancer) as client:
                stream, head = backend.asked()
                balancer.backends = [recorder]
                balancer.apply()
                if policy == "close":
                    # There will be no tunnel: it may not be one of those that are to be closed.
                    turned_away(client)
                    with pytest.raises(ConnectionResetError):
                        stream.rest()
                else:
                    stream.socket.sendall(switch(head.get("sec-websocket-key") or "").encode())
                    assert entered(client)
            with knock(balancer) as client:
                assert entered(client)
                assert talks(client)


def test_105_a_handshake_that_waits_goes_to_the_backend_that_is_there_then(
    backend: Held, recorder: Recorder
) -> None:
    web = {"handshakes": 0.01, "handshakes_burst": 1, "handshakes_queue": 1, "handshakes_wait": 20.0}
    with web_proxy([backend], web=web, pool={"on_remove": "close"}) as balancer:
        with tunnel(balancer, backend) as inside, knock(balancer) as waiting:
            until(lambda: balancer.counted.queued == 1)
            balancer.backends, balancer.web = [recorder], {}
            balancer.apply()
            assert entered(waiting)
            assert talks(waiting)
            # The tunnel that stood is one of the backend that is gone.
            assert read_frame(inside.client).code == 1001


def test_105_reload_and_stop_while_handshakes_are_in_flight(serve: Serve, tmp_path: Path) -> None:
    with Held() as old, Held() as new:
        file = tmp_path / "pybalancer.toml"

        def write(backend: Held, name: str) -> None:
            file.write_text(f"""
[balancer]
grace = "20s"
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "chat"
[pools.chat]
on_remove = "close"
[[pools.chat.backends]]
name = "{name}"
address = "{backend.address}"
""")

        write(old, "app-1")
        serving = serve(file)
        with Client(serving.address, handshake()) as client:
            old.asked()
            write(new, "app-2")
            serving.signal(signal.SIGHUP)
            turned_away(client)
        # In flight when the end is announced: it has the grace like everybody else.
        with Client(serving.address, handshake()) as client:
            stream, head = new.asked()
            serving.signal(signal.SIGTERM)
            serving.line("have 20 s to end|has 20 s to end")
            stream.socket.sendall(switch(head.get("sec-websocket-key") or "").encode())
            assert entered(client)
            client.send(frame(TEXT, b"x", masked=True))
            assert read_frame(stream).payload == b"x"
            stream.socket.close()
            assert client.rest() == b""
        assert serving.wait() == 0
        with pytest.raises(ConnectionRefusedError):
            connect(serving.address)
