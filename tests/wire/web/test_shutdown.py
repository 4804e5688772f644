"""TERM: everybody is told to go during the grace, in the WebSocket's own language."""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ..net import sha, until
from ..serving import Serve, Serving
from ..test_past_64k import metrics
from .ends import Ends, Held
from .frames import BINARY, CLOSE, CONTINUATION, TEXT, close, frame, read_frame

SERVICE_RESTART = 1012
GOING_AWAY = 1001
BIG = random.Random(8).randbytes(8 << 20)


@pytest.fixture
def backend() -> Iterator[Held]:
    with Held() as held:
        yield held


Start = Callable[..., Serving]


@pytest.fixture
def start(serve: Serve, tmp_path: Path, backend: Held) -> Start:
    def start(**balancer: str) -> Serving:
        file = tmp_path / "pybalancer.toml"
        settings = "\n".join(f'{key} = "{value}"' for key, value in balancer.items())
        file.write_text(f"""
[balancer]
{settings}
[log]
format = "json"
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "chat"
[[pools.chat.backends]]
name = "app-1"
address = "{backend.address}"
""")
        return serve(file)

    return start


def address(serving: Serving) -> str:
    return serving.line(r"listening on ([^\s\"]+)")[1]


def records(serving: Serving) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in list(serving.lines) if '"event":"connection"' in line]
    return {line["client"]: line for line in lines}


def told(ends: Ends, code: int = SERVICE_RESTART) -> None:
    """The client gets a Close next, answers, and both have an orderly end."""
    found = read_frame(ends.client)
    assert (found.opcode, found.code, found.masked) == (CLOSE, code, False)
    answer = close(code, masked=True)
    ends.client.send(answer)
    assert b"".join(ends.backend.length(len(answer))) == answer
    ends.backend.socket.sendall(close(code, masked=False))
    assert ends.backend.rest() == b""
    ends.backend.socket.close()
    assert ends.client.rest() == b"", "nothing comes after Close"
    ends.client.socket.close()


class Resting:
    """Nothing is under way."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends

    def end(self) -> None:
        told(self.ends)


class Downloading(Resting):
    """A large message fills all buffers on the way to the client."""

    def __init__(self, ends: Ends) -> None:
        super().__init__(ends)
        self.left = memoryview(frame(BINARY, BIG, masked=False))
        ends.backend.socket.setblocking(False)
        self._push()

    def _push(self) -> None:
        try:
            while self.left:
                self.left = self.left[self.ends.backend.socket.send(self.left) :]
        except BlockingIOError:
            assert self.left

    def end(self) -> None:
        client, count = self.ends.client, len(frame(BINARY, BIG, masked=False))
        received = bytearray()
        while len(received) < count:
            self._push()
            received += b"".join(client.length(min(count - len(received), 1 << 18)))
        assert sha(bytes(received)) == sha(frame(BINARY, BIG, masked=False))
        self.ends.backend.socket.settimeout(10)
        # What comes behind it is too late.
        self.ends.backend.socket.sendall(frame(TEXT, b"one more", masked=False))
        told(self.ends)


class Waiting(Resting):
    """The client has a part of a frame, and the rest of it does not come yet."""

    def __init__(self, ends: Ends) -> None:
        super().__init__(ends)
        self.sent = frame(BINARY, BIG[:100_000], masked=False)
        ends.backend.socket.sendall(self.sent[:60_000])
        assert b"".join(ends.client.length(60_000)) == self.sent[:60_000]

    def end(self) -> None:
        self.ends.backend.socket.sendall(self.sent[60_000:])
        assert b"".join(self.ends.client.length(40_000 + 10)) == self.sent[60_000:]
        told(self.ends)


class Uploading(Resting):
    """The client is in the middle of a message: it may say it to its end, and then answer."""

    def __init__(self, ends: Ends) -> None:
        super().__init__(ends)
        self.sent = frame(BINARY, BIG[:100_000], masked=True)
        ends.client.send(self.sent[:60_000])
        assert b"".join(ends.backend.length(60_000)) == self.sent[:60_000]

    def end(self) -> None:
        self.ends.client.send(self.sent[60_000:])
        assert b"".join(self.ends.backend.length(len(self.sent) - 60_000)) == self.sent[60_000:]
        told(self.ends)


class Fragmented(Resting):
    """A message of the backend's is open, but no frame: Close may stand between fragments."""

    def __init__(self, ends: Ends) -> None:
        super().__init__(ends)
        ends.backend.socket.sendall(frame(TEXT, b"begins", fin=False, masked=False))
        assert read_frame(ends.client).payload == b"begins"

    def end(self) -> None:
        self.ends.backend.socket.sendall(frame(CONTINUATION, b"ends too late", masked=False))
        told(self.ends)


STATES = (Resting, Downloading, Waiting, Uploading, Fragmented)


def test_everybody_gets_close_1012_at_a_frame_boundary_and_answers(start: Start, backend: Held) -> None:
    serving = start(grace="2s")
    with ExitStack() as stack:
        tunnels = [
            state(stack.enter_context(Ends(address(serving), backend))) for _ in range(2) for state in STATES
        ]
        clients = {tunnel.ends.name for tunnel in tunnels}
        serving.signal(signal.SIGTERM)
        # One after the other is told, over three quarters of that.
        until(lambda: [drain["closed"] for drain in serving.status()["drains"]] == [len(tunnels)])
        for tunnel in tunnels:
            tunnel.end()
        assert serving.wait() == 0
        found = records(serving)
        assert set(found) == clients
        for record in found.values():
            assert record["reason"] == "drained", record
            assert (record["client_close"], record.get("backend_close")) == (SERVICE_RESTART, None)
        assert not any("aborted" in line for line in serving.lines)


def test_who_does_not_answer_is_aborted_and_does_not_hold_up_the_end(start: Start, backend: Held) -> None:
    serving = start(grace="0.1s")
    with Ends(address(serving), backend) as deaf, Ends(address(serving), backend) as stuck:
        stuck.backend.socket.sendall(frame(BINARY, bytes(1000), masked=False)[:500])
        assert len(b"".join(stuck.client.length(500))) == 500
        serving.signal(signal.SIGTERM)
        assert read_frame(deaf.client).code == SERVICE_RESTART
        assert serving.wait() == 0
        # A frame that is not whole is followed by no end that looks like one.
        with pytest.raises(ConnectionResetError):
            stuck.client.rest()
        assert {record["reason"] for record in records(serving).values()} == {"shutdown"}


def test_a_second_signal_ends_the_grace(start: Start, backend: Held) -> None:
    # The one tunnel is told at some time in three quarters of it.
    serving = start(grace="1h")
    with Ends(address(serving), backend) as ends:
        serving.signal(signal.SIGTERM)
        serving.line("1 tunnels have 3600 s to end")
        ends.client.send(frame(TEXT, b"still here", masked=True))
        assert read_frame(ends.backend).payload == b"still here"
        serving.signal(signal.SIGTERM)
        told(ends, GOING_AWAY)
        assert serving.wait() == 0


def test_closes_are_in_the_metrics(start: Start, backend: Held) -> None:
    serving = start(grace="10s")
    admin = serving.line(r"admin interface at (unix:[^\s\"]+)")[1]

    def counted(code: str) -> float:
        pattern = rf'^pybalancer_listener_closes_total{{code="{code}",listener="public"}} (\S+)$'
        found = re.search(pattern, metrics(admin), re.MULTILINE)
        assert found, code
        return float(found[1])

    assert (counted("1000"), counted("4xxx"), counted("none")) == (0, 0, 0)
    for sent in (close(1000, masked=True), close(4001, "own", masked=True), close(1000, masked=True), b""):
        with Ends(address(serving), backend) as ends:
            ends.client.send(sent)
            assert b"".join(ends.backend.length(len(sent))) == sent
    until(lambda: len(records(serving)) == 4)
    assert (counted("1000"), counted("4xxx"), counted("none")) == (2, 1, 1)
