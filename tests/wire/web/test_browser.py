"""A browser: headless Chromium loads a page through pybalancer, and the page opens its WebSockets there too.

The browser takes the balancer for the host ``chat.test`` and, as a stranger, for ``evil.test``; it can reach
nothing else.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from ..backends import Backend, backends
from ..net import PATIENCE, until
from .behind import Behind, behind

CHROMIUM = "/usr/bin/chromium"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-features=HttpsUpgrades",
]
HOME = "http://chat.test"
TABS = 4

OPEN = """
() => {
    const socket = new WebSocket("ws://chat.test/ws");
    socket.binaryType = "arraybuffer";
    const waiting = [], come = [];
    const give = (thing) => waiting.length ? waiting.shift()(thing) : come.push(thing);
    socket.onmessage = (event) => give(event.data);
    const closed = new Promise((resolve) => {
        socket.onclose = ({code, reason, wasClean}) => {
            resolve({code, reason, wasClean});
            give("closed");
        };
    });
    const next = () => come.length ? come.shift() : new Promise((resolve) => waiting.push(resolve));
    const number = (window.conversations ??= []).push({socket, next, closed}) - 1;
    return new Promise((resolve) => {
        socket.onopen = () => resolve(number);
        socket.onerror = () => resolve(null);
    });
}
"""
"""Open a WebSocket from the page; its number, or null if it could not be opened."""

ECHO = """
async ([number, size]) => {
    const {socket, next} = window.conversations[number];
    const bytes = Uint8Array.from({length: size}, (_, at) => (at * 7 + (at >> 8)) & 255);
    const text = Array.from({length: size / 4}, (_, at) => "abé€"[at % 4]).join("");
    socket.send(bytes);
    socket.send(text);
    const back = new Uint8Array(await next());
    const alike = back.length === size && back.every((byte, at) => byte === bytes[at]);
    return alike && await next() === text;
}
"""
"""Whether bytes and text of this size come back as they were sent."""


def started(front: Behind) -> list[str]:
    """How the browser is started: both names are the balancer, every other host is nowhere."""
    rules = ", ".join(f"MAP {name}:80 {front.bound['page']}" for name in ("chat.test", "evil.test"))
    return [*QUIET, f"--host-resolver-rules={rules}, MAP * ~NOTFOUND"]


def opened(page: Page) -> int:
    number = page.evaluate(OPEN)
    assert number is not None, "no WebSocket"
    told = page.evaluate("async (number) => JSON.parse(await window.conversations[number].next())", number)
    fields = dict(told["fields"])
    assert (told["url"], fields["origin"], fields["host"]) == ("ws://chat.test/ws", HOME, "chat.test")
    return int(number)


def closed(page: Page, number: int) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate("(number) => window.conversations[number].closed", number)
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Backend]:
    with backends("starlette") as (running,):
        yield running


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, server: Backend) -> Iterator[Behind]:
    routes = {"page": f'path = "/ws"\norigins = ["{HOME}"]'}
    with behind(tmp_path_factory.mktemp("front"), {"page": [server]}, routes=routes) as running:
        yield running


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@contextmanager
def chromium(playwright: Playwright, front: Behind) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=started(front))
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="module")
def browser(playwright: Playwright, front: Behind) -> Iterator[Browser]:
    with chromium(playwright, front) as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    response = page.goto(f"{HOME}/")
    assert response is not None
    assert (response.status, page.title()) == (200, "a page")
    yield page
    context.close()


def test_a_page_echoes(page: Page) -> None:
    number = opened(page)
    for size in (4, 124, 128, 65532, 65536, 1 << 20):
        assert page.evaluate(ECHO, [number, size])
    extensions = page.evaluate("(number) => window.conversations[number].socket.extensions", number)
    assert extensions.startswith("permessage-deflate")


def test_a_page_sees_the_code_of_the_server(page: Page) -> None:
    number = opened(page)
    page.evaluate("(number) => window.conversations[number].socket.send('leave')", number)
    assert closed(page, number) == {"code": 4001, "reason": "as you wish", "wasClean": True}


def test_the_server_sees_the_code_of_a_page(page: Page, server: Backend) -> None:
    number = opened(page)
    page.evaluate("(number) => window.conversations[number].socket.close(4005, 'read it all')", number)
    assert closed(page, number) == {"code": 4005, "reason": "read it all", "wasClean": True}
    until(lambda: (4005, "read it all") in server.ended, "the code at the server")
    other = opened(page)
    page.goto("about:blank")
    assert other == 1
    until(lambda: any(code == 1001 for code, _ in server.ended), "what a page says that is left")


def test_several_tabs_at_once(browser: Browser) -> None:
    context = browser.new_context()
    tabs = [context.new_page() for _ in range(TABS)]
    for tab in tabs:
        tab.goto(f"{HOME}/")
    numbers = [[opened(tab) for _ in range(3)] for tab in tabs]
    for size in (128, 100_000):
        for tab, mine in zip(tabs, numbers, strict=True):
            for number in mine:
                assert tab.evaluate(ECHO, [number, size])
    tabs[0].close()
    assert all(tab.evaluate(ECHO, [0, 128]) for tab in tabs[1:])
    context.close()


def test_a_page_fetches_and_uploads_beside_it(page: Page) -> None:
    number = opened(page)
    text = page.evaluate("async () => (await fetch('/count/3000')).text()")
    assert text == "".join(f"line {number}\n" for number in range(3000))
    told = page.evaluate(
        """
        async () => {
            const form = new FormData();
            form.append("file", new Blob([new Uint8Array(5_000_000).fill(7)]), "seven.bin");
            return (await fetch("/upload", {method: "POST", body: form})).json();
        }
        """
    )
    assert (told["name"], told["size"]) == ("seven.bin", 5_000_000)
    assert page.evaluate(ECHO, [number, 128])


def test_the_page_of_a_stranger_gets_no_websocket(page: Page) -> None:
    """Cross-origin: the browser lets it try, and Origin says who tries."""
    page.goto("http://evil.test/")
    assert page.evaluate(OPEN) is None
    assert closed(page, 0) == {"code": 1006, "reason": "", "wasClean": False}
    page.goto(f"{HOME}/")
    opened(page)


def test_a_page_sees_1012_when_the_balancer_ends(
    server: Backend, playwright: Playwright, tmp_path: Path
) -> None:
    with behind(tmp_path, {"page": [server]}, balancer='grace = "1s"') as front:
        with chromium(playwright, front) as browser:
            page = browser.new_page()
            page.goto(f"{HOME}/")
            number = opened(page)
            front.serving.signal(signal.SIGTERM)
            end = closed(page, number)
            assert (end["code"], end["wasClean"]) == (1012, True)
            assert front.serving.wait() == 0
