"""A page in a real browser that has the client and the tests' world; no socket is opened for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = "/usr/bin/chromium"
HERE = Path(__file__).parent
FILES = {
    "/": "<!doctype html><title>tests</title>",
    "/connect": "[]",
    "/client.js": (ROOT / "pybalancer/js/client.js").read_text(),
    **{f"/{path.name}": path.read_text() for path in HERE.glob("*.js")},
}
HOME = "http://tests.test"


def fulfil(route: Route) -> None:
    path = route.request.url.removeprefix(HOME)
    kind = "text/javascript" if path.endswith(".js") else "text/html"
    if path in FILES:
        route.fulfill(status=200, content_type=kind, body=FILES[path])
    else:
        route.fulfill(status=404, body="")


@pytest.fixture(scope="package")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.route("**/*", fulfil)
        page.goto(f"{HOME}/")
        yield page
        browser.close()
