"""``ping``: a quiet client is asked whether it is there; one that answers lives on, another is given up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ..net import until
from ..serving import Serve
from .ends import Ends, Held, WebProxy, tunnel, web_proxy
from .frames import BINARY, CLOSE, PING, PONG, TEXT, close, frame, read_frame

PACE = {"ping": 0.05, "ping_timeout": 0.4}
ROUND = sum(PACE.values())
"""Seconds after which a client is given up that says nothing."""


def answers(ends: Ends) -> None:
    """A ping comes; say that we are here."""
    ping = read_frame(ends.client)
    assert (ping.opcode, ping.fin, ping.masked) == (PING, True, False), ping
    ends.client.send(frame(PONG, ping.payload, masked=True))


def given_up(balancer: WebProxy, ends: Ends) -> None:
    """Both sides see an abort, and the record says why."""
    for stream in (ends.client, ends.backend):
        with pytest.raises(ConnectionResetError):
            stream.rest()
    assert balancer.record(ends.name)["reason"] == "ping-timeout"


def test_a_quiet_client_that_answers_lives_on_and_one_that_does_not_is_given_up() -> None:
    with (
        Held() as backend,
        web_proxy([backend], route=PACE) as balancer,
        tunnel(balancer, backend) as answering,
        tunnel(balancer, backend) as silent,
    ):
        began = time.monotonic()
        while time.monotonic() - began < 2 * ROUND:
            answers(answering)
            # What it says goes on to the backend: an unsolicited Pong asks for nothing (section 5.5.3).
            assert read_frame(answering.backend).opcode == PONG
        assert read_frame(silent.client).opcode == PING
        given_up(balancer, silent)
        answering.client.send(frame(TEXT, b"here", masked=True))
        assert read_frame(answering.backend).payload == b"here"
        assert balancer.counted.pings >= 4


def test_a_client_that_talks_is_not_pinged() -> None:
    with Held() as backend, web_proxy([backend], route={"ping": 0.3}) as balancer:
        with tunnel(balancer, backend) as ends:
            began = time.monotonic()
            while time.monotonic() - began < 1.0:
                ends.client.send(frame(TEXT, b"x", masked=True))
                assert read_frame(ends.backend).payload == b"x"
                time.sleep(0.01)
            # On a machine that is busy with something else one may have come.
            assert balancer.counted.pings <= 1


def test_a_ping_does_not_come_within_a_frame() -> None:
    sent = frame(BINARY, bytes(1000), masked=False)
    with Held() as backend, web_proxy([backend], route=PACE) as balancer:
        with tunnel(balancer, backend) as ends:
            for cut in (1, 500):
                ends.backend.socket.sendall(sent[:cut])
                assert b"".join(ends.client.length(cut)) == sent[:cut]
                time.sleep(1.2 * ROUND)
                assert ends.client.buffer == b""
                ends.client.socket.setblocking(False)
                with pytest.raises(BlockingIOError):
                    ends.client.more()
                ends.client.socket.settimeout(10)
                ends.backend.socket.sendall(sent[cut:])
                assert b"".join(ends.client.length(len(sent) - cut)) == sent[cut:]
                # Now it may, and the tunnel still stands: who is in the middle of a message need not speak.
                answers(ends)
                assert read_frame(ends.backend).opcode == PONG


def test_a_ping_comes_between_fragments() -> None:
    with Held() as backend, web_proxy([backend], route=PACE) as balancer:
        with tunnel(balancer, backend) as ends:
            ends.backend.socket.sendall(frame(TEXT, b"begins", fin=False, masked=False))
            assert read_frame(ends.client).payload == b"begins"
            answers(ends)
            ends.backend.socket.sendall(frame(0, b"ends", masked=False))
            while (found := read_frame(ends.client)).opcode == PING:
                pass
            assert found.payload == b"ends"


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_ping_before_a_header_that_waits_for_its_rest_takes_nothing_of_it(cut: int) -> None:
    """With a ``max_message`` the beginning of a header waits until it is known whether it may pass."""
    sent = frame(BINARY, bytes(1000), masked=False)
    with Held() as backend, web_proxy([backend], route={**PACE, "max_message": 5000}) as balancer:
        with tunnel(balancer, backend) as ends:
            ends.backend.socket.sendall(sent[:cut])
            for _ in range(3):
                answers(ends)
            ends.backend.socket.sendall(sent[cut:])
            while (found := read_frame(ends.client)).opcode == PING:
                pass
            assert (found.opcode, found.payload) == (BINARY, bytes(1000))
            answers(ends)


def test_a_client_whose_backend_does_not_read_is_not_given_up() -> None:
    """Its pongs are stuck behind what the backend does not take: nobody hears them, but it is there."""
    with Held() as backend, web_proxy([backend], route=PACE) as balancer:
        with tunnel(balancer, backend) as ends:
            ends.client.socket.setblocking(False)
            chunk = frame(BINARY, bytes(60_000), masked=True)
            sent, full_since = 0, time.monotonic()
            while time.monotonic() - full_since < 1.2 * ROUND:
                try:
                    sent += ends.client.socket.send(chunk[sent % len(chunk) :])
                    full_since = time.monotonic()
                except BlockingIOError:
                    time.sleep(0.01)
            assert balancer.engine.active() == 1
            rest = -sent % len(chunk)
            ends.client.socket.settimeout(10)
            count = 0
            while count < sent:
                assert ends.backend.more()
                count += len(ends.backend.buffer)
                ends.backend.buffer.clear()
            ends.client.send(chunk[len(chunk) - rest :] if rest else b"")
            assert len(b"".join(ends.backend.length(rest))) == rest
            answers(ends)


def test_a_client_that_reads_a_long_message_slowly_is_not_given_up() -> None:
    with Held() as backend, web_proxy([backend], route=PACE) as balancer:
        with tunnel(balancer, backend) as ends:
            part, count = bytes(50_000), 40
            ends.backend.socket.sendall(
                frame(BINARY, bytes(len(part) * count), masked=False)[: -len(part) * count]
            )
            for _ in range(count):
                ends.backend.socket.sendall(part)
                time.sleep(1.3 * ROUND / count)
            assert len(read_frame(ends.client).payload) == len(part) * count
            answers(ends)


def test_nothing_comes_after_a_close() -> None:
    """Section 5.5.1. A client that does not answer it either is given up like any other."""
    with Held() as backend, web_proxy([backend], route=PACE) as balancer:
        with tunnel(balancer, backend) as ends:
            ends.backend.socket.sendall(close(1000, masked=False))
            assert read_frame(ends.client).opcode == CLOSE
            with pytest.raises(ConnectionResetError):
                ends.client.rest()
            assert ends.client.buffer == b""
            assert balancer.record(ends.name)["reason"] == "ping-timeout"
            assert balancer.counted.pings == 0


def test_without_ping_nobody_is_asked_and_nobody_given_up() -> None:
    with Held() as backend, web_proxy([backend], route={"ping": 0.0, "ping_timeout": 0.01}) as balancer:
        with tunnel(balancer, backend) as quiet, tunnel(balancer, backend):
            time.sleep(0.2)
            quiet.client.send(frame(TEXT, b"x", masked=True))
            assert read_frame(quiet.backend).payload == b"x"
            until(lambda: balancer.engine.active() == 2)
            assert balancer.counted.pings == 0


def test_a_file_sets_it_for_a_listener_and_for_a_route(serve: Serve, tmp_path: Path) -> None:
    with Held() as backend:
        file = tmp_path / "pybalancer.toml"
        file.write_text(f"""
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "chat"
ping = "50ms"
ping_timeout = "400ms"
[[listeners.routes]]
path = "/never"
pool = "chat"
ping = "0s"
[[pools.chat.backends]]
name = "app-1"
address = "{backend.address}"
""")
        serving = serve(file)
        address = serving.address
        with Ends(address, backend) as asked, Ends(address, backend, "/never") as quiet:
            assert read_frame(asked.client).opcode == PING
            with pytest.raises(ConnectionResetError):
                asked.client.rest()
            serving.line("ping-timeout")
            quiet.backend.socket.sendall(frame(TEXT, b"first", masked=False))
            assert read_frame(quiet.client).payload == b"first"
