"""A browser that connects straight to its node and comes back, with real servers and the real directory.

A page is loaded by redirect from www to a node. It takes the client from www, asks the directory there, and
opens its WebSocket at the node. The browser takes ``www.test``, ``balancer.test`` and ``app-1.test`` … for
what they are here, and can reach nothing else.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from playwright.sync_api import BrowserContext, Page, Playwright, sync_playwright

from pybalancer.thread import ThreadedBalancer, run_in_thread

from ..backends import Backend
from ..balancing import SECRET
from ..net import PATIENCE, until
from .test_browser import CHROMIUM, QUIET

NAMES = ["app-1", "app-2", "app-3", "app-4"]
BASE, MOST, WINDOW = 80, 400, 300
"""Milliseconds: the bound of the first wait, of any, and of one after Close 1012."""
AWAY = [f"while away {number}" for number in range(20)]

START = """
async () => {
    const {ReconnectingSocket} = await import("http://www.test/.pybalancer/client.js");
    const socket = new ReconnectingSocket("http://www.test/connect?room=7", [], {
        queue: true,
        // What the directory says goes before these.
        retry: {window_ms: 60000, base_ms: 60000},
    });
    const seen = window.seen = {socket, servers: [], echoes: [], lost: [], closed: null};
    socket.onmessage = ({data}) => {
        // A server says first who it is, then all that it is told.
        if (data.startsWith("{")) seen.servers.push(JSON.parse(data).server);
        else seen.echoes.push(data);
    };
    socket.onreconnecting = ({detail}) => {
        if (!seen.lost.length) (window.away ?? []).forEach((text) => socket.send(text));
        seen.lost.push(detail);
    };
    socket.onclose = ({code, reason}) => { seen.closed = {code, reason}; };
    await new Promise((resolve) => socket.addEventListener("open", resolve, {once: true}));
    return [socket.backend, socket.url];
}
"""


class Fleet:
    """Four servers, the balancer that names them, and one that relays to them."""

    def __init__(self) -> None:
        self.servers = {name: Backend("starlette", name=name) for name in NAMES}
        self.told: ThreadedBalancer = run_in_thread(self.configuration("directory"))
        self.relay: ThreadedBalancer = run_in_thread(self.configuration("relay"))

    def configuration(self, role: str) -> Mapping[str, Any]:
        routes = [
            {
                "path": "/connect",
                "action": "directory",
                "target": "/ws",
                "pool": "chat",
                "origins": [f"http://{name}.test" for name in NAMES],
            },
            {"path": "/go/*", "action": "redirect", "strip_prefix": "/go", "pool": "chat"},
        ]
        listener = {"name": role, "bind": "127.0.0.1:0", "mode": "websocket", "pool": "chat"}
        return {
            "balancer": {"workers": 1, "secret": SECRET, "admin": "none"},
            "log": {"connections": False},
            "listeners": [{**listener, "routes": routes} if role == "directory" else listener],
            "pools": {
                "chat": {
                    "key": "query:room",
                    "backends": [
                        {"name": name, "address": server.address, "public_url": f"ws://{name}.test"}
                        for name, server in self.servers.items()
                    ],
                    "health": {"kind": "http", "interval": "50ms", "timeout": "5s", "rise": 1, "fall": 1},
                    "direct": {
                        "fallback": "ws://balancer.test",
                        "retry_base": f"{BASE}ms",
                        "retry_max": f"{MOST}ms",
                        "window": f"{WINDOW}ms",
                    },
                }
            },
        }

    @property
    def rules(self) -> str:
        """How the browser finds them."""
        where = {
            "www.test": self.told.bound["directory"],
            "balancer.test": self.relay.bound["relay"],
            **{f"{name}.test": server.address for name, server in self.servers.items()},
        }
        return ", ".join([*(f"MAP {name}:80 {at}" for name, at in where.items()), "MAP * ~NOTFOUND"])

    def drain(self, name: str) -> None:
        drain = functools.partial(self.told._balancer.drain, name, wait=False)
        trio.from_thread.run(drain, trio_token=self.told._token)

    def close(self) -> None:
        for server in self.servers.values():
            server.close()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    running = Fleet()
    try:
        with running.told, running.relay:
            yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@contextmanager
def browsing(playwright: Playwright, fleet: Fleet) -> Iterator[BrowserContext]:
    arguments = [*QUIET, f"--host-resolver-rules={fleet.rules}"]
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    try:
        context = browser.new_context()
        context.set_default_timeout(PATIENCE * 1000)
        yield context
    finally:
        browser.close()


@pytest.fixture
def context(playwright: Playwright, fleet: Fleet) -> Iterator[BrowserContext]:
    with browsing(playwright, fleet) as running:
        yield running


@pytest.fixture
def page(context: BrowserContext) -> Page:
    page = context.new_page()
    response = page.goto("http://www.test/go/?room=7")
    assert response is not None
    assert response.request.redirected_from is not None
    assert (response.status, page.title()) == (200, "a page")
    return page


def started(page: Page) -> str:
    """Open the page's WebSocket at the node from which the page came; its name."""
    backend, url = page.evaluate(START)
    assert url == f"ws://{backend}.test/ws?room=7"
    assert urlsplit(page.url).netloc == f"{backend}.test"
    told(page, "seen.servers.length === 1")
    assert echo(page, "hello") == ["hello"]
    assert page.evaluate("seen.servers") == [backend]
    return str(backend)


def told(page: Page, condition: str) -> None:
    """Wait until it is so in the page."""
    page.wait_for_function(f"() => {condition}")


def echo(page: Page, text: str) -> list[str]:
    """Send this and wait for it; all echoes so far."""
    page.evaluate("(text) => seen.socket.send(text)", text)
    page.wait_for_function("(text) => seen.echoes.includes(text)", arg=text)
    found: list[str] = page.evaluate("seen.echoes")
    return found


def lost(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate("seen.lost")
    return found


def say_while_away(page: Page) -> None:
    page.evaluate("(texts) => { window.away = texts; }", AWAY)


def test_a_killed_node(page: Page, fleet: Fleet) -> None:
    """Back on another within the backoff's bounds, and what was queued arrives in order, once."""
    first = started(page)
    say_while_away(page)
    fleet.servers[first].signal(signal.SIGKILL)
    told(page, "seen.servers.length === 2")
    assert echo(page, "the last") == ["hello", *AWAY, "the last"]
    second = page.evaluate("seen.servers")[1]
    assert second != first
    assert page.evaluate("[seen.socket.backend, seen.socket.url]")[1] == f"ws://{second}.test/ws?room=7"
    for number, loss in enumerate(lost(page)):
        assert loss["code"] == 1006
        assert 0 <= loss["delay_ms"] <= min(BASE * 2**number, MOST)


def test_a_drained_node(page: Page, fleet: Fleet) -> None:
    """It says Close 1012: one wait within the window, one connect, and nothing more is seen of it."""
    first = started(page)
    say_while_away(page)
    fleet.drain(first)
    fleet.servers[first].signal(signal.SIGTERM)
    told(page, "seen.servers.length === 2")
    assert echo(page, "the last") == ["hello", *AWAY, "the last"]
    (loss,) = lost(page)
    assert loss["code"] == 1012
    assert 0 <= loss["delay_ms"] <= WINDOW
    assert page.evaluate("seen.servers")[1] != first
    assert page.evaluate("seen.socket.backend") == page.evaluate("seen.servers")[1]


def test_the_directory_is_down(page: Page, fleet: Fleet) -> None:
    """Through the balancer then."""
    first = started(page)
    say_while_away(page)
    fleet.told.close()
    fleet.servers[first].signal(signal.SIGKILL)
    told(page, "seen.servers.length === 2")
    assert echo(page, "the last") == ["hello", *AWAY, "the last"]
    second = page.evaluate("seen.servers")[1]
    assert second != first
    assert page.evaluate("[seen.socket.backend, seen.socket.url]") == [None, "ws://balancer.test/ws?room=7"]

    def named() -> Any:
        return fleet.relay.explain("127.0.0.1:1", listener="relay", path="/ws?room=7")["backend"]

    # Who is relayed goes to the node that the directory would have named. The tunnel may have gone there by
    # its second attempt, before the loss of the first node is known to all.
    until(lambda: named() == second, "that explain names who was chosen")


def test_nobody_is_up(page: Page, fleet: Fleet) -> None:
    """The directory says when to ask again, and is believed: nobody goes through the balancer."""
    started(page)
    for server in fleet.servers.values():
        server.signal(signal.SIGKILL)
    told(page, "seen.lost.some(({code}) => code === 503)")
    assert page.evaluate("[seen.socket.readyState, seen.closed]") == [0, None]
    assert "balancer" not in page.evaluate("seen.socket.url")


def test_offline(page: Page, context: BrowserContext, fleet: Fleet) -> None:
    """No try while the browser is offline; the first soon after it is not."""
    first = started(page)
    context.set_offline(True)
    told(page, "!navigator.onLine")
    fleet.servers[first].signal(signal.SIGKILL)
    told(page, "seen.lost.length === 1")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    # Longer than any wait would be.
    page.wait_for_timeout(2 * MOST)
    assert (asked, len(lost(page))) == ([], 1)
    context.set_offline(False)
    told(page, "seen.servers.length === 2")
    assert asked
    assert page.evaluate("seen.servers")[1] != first


def test_the_end(page: Page, fleet: Fleet) -> None:
    """The application's own code is final; the server sees that of the page."""
    first = started(page)
    page.evaluate("seen.socket.send('leave')")
    told(page, "seen.closed")
    assert page.evaluate("[seen.closed, seen.socket.readyState, seen.lost]") == [
        {"code": 4001, "reason": "as you wish"},
        3,
        [],
    ]
    assert started(page) == first
    page.evaluate("seen.socket.close(4005, 'read it all')")
    told(page, "seen.closed")
    assert page.evaluate("seen.closed") == {"code": 4005, "reason": "read it all"}
    until(lambda: (4005, "read it all") in fleet.servers[first].ended, "what the server saw")
