"""What strangers may send to a directory: nothing breaks, and no backend hears of it."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator

import pytest

from ..net import until
from .messages import handshake, parse, request
from .site import Site
from .site import site as running
from .test_directory import CONFIG, NAMES, ORIGIN, ask

STATUSES = {200, 204, 307, 400, 403, 405, 408, 413, 414, 417, 426, 431, 501, 503, 505}
PIECES = [
    b"GET",
    b"HEAD",
    b"OPTIONS",
    b"POST",
    b"CONNECT",
    b" ",
    b"\t",
    b"/",
    b"//",
    b"?",
    b"&",
    b"=",
    b"%",
    b"%2f",
    b"%00",
    b"*",
    b"..",
    b"@",
    b":",
    b"\\",
    b"#",
    b"connect",
    b"listed",
    b"where/",
    b"ticket=",
    b"user=5",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b"\xc3\xa9",
    b"Host: a",
    b"Origin: ",
    ORIGIN.encode(),
    b"Access-Control-Request-Headers: ",
    b"Access-Control-Request-Method: GET",
    b"If-None-Match: *",
    b"Cookie: a=b",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Content-Length: 3",
    b"Transfer-Encoding: chunked",
    b"x" * 200,
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("hostile"), CONFIG, *NAMES) as site:
        yield site


def bent(dice: random.Random) -> bytes:
    """A request of which some pieces are others."""
    target = dice.choice(
        ["/connect?user=5", "/listed", "/where/a/b", "/sticky", "/", "/.pybalancer/client.js"]
    )
    made = dice.choice([request, handshake])(
        f"Origin: {ORIGIN}", line=f"{dice.choice(['GET', 'HEAD', 'OPTIONS'])} {target} HTTP/1.1"
    )
    data = bytearray(made)
    for _ in range(dice.randrange(1, 5)):
        at = dice.randrange(len(data))
        match dice.randrange(3):
            case 0:
                data[at : at + dice.randrange(4)] = dice.choice(PIECES)
            case 1:
                data[at] = dice.randrange(256)
            case _:
                del data[at : at + dice.randrange(1, 9)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_sent_is_answered_or_refused(told: Site, seed: int) -> None:
    """Replay with the seed. The end of the client's sending makes an incomplete request one that is over."""
    for recorder in told.recorders.values():
        recorder.forget()
    dice = random.Random(seed)
    for _ in range(250):
        data = bent(dice)
        with told.client(data, "told") as client:
            client.socket.shutdown(socket.SHUT_WR)
            answers = client.rest()
        if not answers:
            continue
        head = parse(answers.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        assert head.status in STATUSES, (data, answers)
        for name in ("location", "access-control-allow-origin", "access-control-allow-headers"):
            assert len(head.all(name)) <= 1, (data, answers)
    assert not any(recorder.talks for recorder in told.recorders.values())
    assert told.errors() == []
    assert ask(told, "/connect").status == 200


def test_a_target_as_long_as_allowed_comes_back_whole(told: Site) -> None:
    longest = "/" + "a" * 8000 + "?" + "b" * 190
    answer = ask(told, longest, listener="told")
    assert answer.told()["url"].endswith(longest)
    assert ask(told, longest + "c" * 10, listener="told").status == 414


def test_connections_are_given_back(told: Site) -> None:
    for number in range(200):
        assert ask(told, f"/connect?user={number}").status == 200

    def gone() -> bool:
        pid, sockets = told.serving.process.pid, 0
        # Every worker has a table of descriptors of its own.
        for task in os.listdir(f"/proc/{pid}/task"):
            for name in os.listdir(f"/proc/{pid}/task/{task}/fd"):
                try:
                    sockets += os.readlink(f"/proc/{pid}/task/{task}/fd/{name}").startswith("socket:")
                except OSError:
                    continue
        return sockets < 60

    until(gone, "the end of all connections")
