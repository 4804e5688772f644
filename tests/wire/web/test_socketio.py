"""Socket.IO's long-polling over two processes of which each knows its own sessions only.

``key = "sticky"`` is what makes that work: PyPI's python-socketio as server and as client, with requests'
cookies as in a browser.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import socketio
from socketio.exceptions import SocketIOError

from ..backends import backends
from ..net import PATIENCE
from .behind import Behind, behind

CLIENTS = 16
"""So that chance would have to be good to each of them."""
MESSAGES = 5


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with backends("socketio", "socketio") as servers:
        pools = {"sticky": servers, "source": servers}
        options = {"sticky": 'key = "sticky"', "source": 'key = "source"'}
        with behind(tmp_path_factory.mktemp("front"), pools, options) as running:
            yield running


def kept() -> requests.Session:
    return requests.Session()


def fresh() -> requests.Session:
    """A connection for each request: no two come from the same port."""
    session = requests.Session()
    session.headers["Connection"] = "close"
    return session


class Failed(Exception):
    """The client could not say all that it had to say."""


def talk(address: str, session: requests.Session, transports: list[str] | None) -> tuple[set[str], set[str]]:
    """A client's life: some messages with answers and events. The servers and transports that it met."""
    client = socketio.Client(http_session=session, reconnection=False)
    heard: queue.Queue[list[Any]] = queue.Queue()
    left = threading.Event()
    client.on("heard", heard.put)
    client.on("disconnect", lambda *_: left.set())
    servers, used = set(), set()
    try:
        with contextlib.ExitStack() as stack:
            client.connect(f"http://{address}", transports=transports, wait_timeout=PATIENCE)
            stack.callback(client.eio.disconnect, abort=True)
            for number in range(1, MESSAGES + 1):
                for what in (f"message {number}", bytes([number]) * 1000):
                    answer = client.call("say", what, timeout=PATIENCE)
                    assert answer[3] == what
                    assert heard.get(timeout=PATIENCE) == answer
                    servers.add(answer[0])
                    used.add(answer[1])
            assert answer[2] == 2 * MESSAGES, "the server forgot some of them"
            assert client.transport() in used
            # Not by the client: to end a long poll takes it half a minute, with or without a balancer.
            client.emit("leave")
            assert left.wait(PATIENCE), "the server's end did not arrive"
    except (SocketIOError, queue.Empty) as error:
        raise Failed(repr(error)) from error
    return servers, used


def crowd(
    address: str, session: Callable[[], requests.Session], transports: list[str] | None = None
) -> list[tuple[set[str], set[str]] | Failed]:
    """What became of each of several clients at once."""

    def one(_: int) -> tuple[set[str], set[str]] | Failed:
        try:
            return talk(address, session(), transports)
        except Failed as failed:
            return failed

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, range(CLIENTS)))


@pytest.mark.parametrize("session", [kept, fresh])
def test_long_polling_stays_with_its_server(front: Behind, session: Callable[[], requests.Session]) -> None:
    lives = crowd(front.bound["sticky"], session, ["polling"])
    assert [life for life in lives if isinstance(life, Failed)] == []
    servers = [life[0] for life in lives if not isinstance(life, Failed)]
    assert all(len(met) == 1 for met in servers)
    assert set().union(*servers) == {"socketio-1", "socketio-2"}, "one of the servers had nothing to do"
    assert all(life[1] == {"polling"} for life in lives if not isinstance(life, Failed))


def opened(address: str) -> list[int]:
    """Sessions opened over a fresh connection and used over another: the statuses that say how that went."""
    poll = f"http://{address}/socket.io/?EIO=4&transport=polling"
    statuses = []
    for _ in range(CLIENTS):
        with fresh() as session:
            answer = session.get(poll, timeout=PATIENCE)
            sid = json.loads(answer.text[1:])["sid"]
            used = session.post(f"{poll}&sid={sid}", data="40", timeout=PATIENCE)
            assert used.status_code == 200 or "Invalid session" in used.text, used.text
            statuses.append(used.status_code)
    return statuses


def test_without_stickiness_it_does_not_work(front: Behind) -> None:
    """The control: each request from another port, so each to another server, which knows no such session."""
    assert set(opened(front.bound["sticky"])) == {200}
    assert 400 in opened(front.bound["source"])


@pytest.mark.parametrize("session", [kept, fresh])
def test_polling_is_upgraded_to_a_websocket(front: Behind, session: Callable[[], requests.Session]) -> None:
    lives = crowd(front.bound["sticky"], session)
    assert [life for life in lives if isinstance(life, Failed)] == []
    assert all(len(life[0]) == 1 for life in lives if not isinstance(life, Failed))
    assert all("websocket" in life[1] for life in lives if not isinstance(life, Failed))


def test_websockets_alone_need_no_stickiness(front: Behind) -> None:
    lives = crowd(front.bound["source"], kept, ["websocket"])
    assert [life for life in lives if isinstance(life, Failed)] == []
    assert all(life[1] == {"websocket"} for life in lives if not isinstance(life, Failed))


def test_the_cookie_is_not_for_scripts_and_cannot_be_forged(front: Behind) -> None:
    """A cookie that another secret signed, or that was tampered with, leads nowhere and is replaced."""
    poll = f"http://{front.bound['sticky']}/socket.io/?EIO=4&transport=polling"
    with requests.Session() as session:
        first = session.get(poll, timeout=PATIENCE)
        (cookie,) = session.cookies
        told = first.headers["Set-Cookie"]
        assert "HttpOnly" in told
        assert "SameSite" in told
        again = session.get(poll, timeout=PATIENCE)
        assert "Set-Cookie" not in again.headers
    for forged in (cookie.value[:-1], f"{cookie.value}x", cookie.value.swapcase(), "socketio-1"):
        answer = requests.get(poll, cookies={cookie.name: forged}, timeout=PATIENCE)
        assert answer.status_code == 200
        assert cookie.name in answer.cookies
        assert answer.cookies[cookie.name] != forged
