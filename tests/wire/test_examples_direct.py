"""examples/direct: the page in a real browser and the Python clients, while a node restarts."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from .net import PATIENCE, server, until
from .web.test_browser import CHROMIUM, QUIET

ROOT = Path(__file__).parents[2]
FOLDER = "examples/direct"


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYBALANCER_")}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**kept, "PYTHONPATH": path, "PYBALANCER_SECRET": "00112233445566778899aabbccddeeff"}


class Example:
    """serve.py, on ports of the system's choice. ``lines`` is what it printed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, f"{FOLDER}/serve.py", "0"],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(map(str.strip, self.process.stdout))

    @property
    def page(self) -> str:
        return str(until(lambda: self.lines, "the address of the page")[0])

    @property
    def directory(self) -> str:
        return self.page.replace("/?", "/connect?")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def example() -> Iterator[Example]:
    running = Example()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def page(example: Example) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(example.page)
        yield page
        browser.close()


def said(page: Page, text: str) -> str:
    """Wait until this was said in the room; by which node."""
    page.wait_for_function(
        "(text) => document.getElementById('log').innerText.includes(text)", arg=f": {text}"
    )
    found = re.search(rf"^(app-\d): {text}$", page.locator("#log").inner_text(), re.MULTILINE)
    assert found
    return found[1]


def test_the_page_goes_on_when_its_node_restarts(example: Example, page: Page) -> None:
    page.wait_for_function("() => document.getElementById('node').textContent.startsWith('app-')")
    page.fill("#text", "one")
    page.click("#say button")
    first = said(page, "one")
    assert page.locator("#node").inner_text() == first
    page.click("#restart")
    page.wait_for_function("() => document.getElementById('log').innerText.includes('lost it (1012)')")
    page.fill("#text", "two")
    page.click("#say button")
    assert said(page, "two") != first
    until(lambda: f"{first} is back" in example.lines, "the end of the restart")
    assert f"{first} restarts, 1 clients have to go" in example.lines


@pytest.mark.parametrize("program", ["client.py", "with_websockets.py"])
def test_the_python_clients(example: Example, program: str) -> None:
    done = subprocess.run(
        [sys.executable, f"{FOLDER}/{program}", example.directory],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"app-\d.*: hello from (Python|asyncio)", lines[0])
    assert re.search(r"message (9|10)$", lines[-1])


@pytest.mark.parametrize("program", ["client.py", "with_websockets.py"])
def test_they_come_back_to_who_hangs_up(program: str) -> None:
    """As a node does that is killed in the middle of a handshake."""

    def hang_up(connection: socket.socket) -> None:
        connection.recv(1 << 16)

    with server(hang_up) as node:
        client = subprocess.Popen(
            [sys.executable, f"{FOLDER}/{program}", f"ws://{node.address}/"],
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until(lambda: node.served >= 3 or client.poll() is not None, "the third attempt")
        finally:
            client.kill()
            _, errors = client.communicate(timeout=PATIENCE)
    assert (node.served >= 3, errors) == (True, "")
