"""The browser's client in a real browser, in a world whose time, chance and network are the tests'."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from playwright.sync_api import Page

from ..unit.uniform import distance_from_uniform, least_distance
from .conftest import FILES, ROOT

CASES = re.findall(r"^export async function (\w+)", FILES["/cases.js"], re.MULTILINE)
VECTORS: dict[str, Any] = json.loads((ROOT / "tests/vectors/reconnect.json").read_text())

STORY = """
async ({target, retry, steps}) => {
    const {Comeback} = await import("/client.js");
    const comeback = new Comeback(target, retry);
    return steps.map(({answer, opened, wait, sooner}) => {
        if (answer) {
            const text = "text" in answer ? answer.text : JSON.stringify(answer.body);
            return comeback.answer(answer.status, text, answer.after ?? null, 0);
        }
        if (wait) return comeback.wait(wait.now, wait.chance, wait, wait.hidden);
        if (sooner) return comeback.sooner(sooner.now, sooner.chance, sooner.at);
        return comeback.opened(opened) ?? null;
    });
}
"""

KILLED = """
async (chances) => {
    const {ReconnectingSocket} = await import("/client.js");
    const {World} = await import("/world.js");
    const world = new World({chances});
    const pages = Array.from({length: 50}, () => new ReconnectingSocket("ws://node.test/", [], {world}));
    const first = [...world.sockets];
    for (const socket of first) socket.open();
    await world.pass(60000);
    for (const socket of first) socket.end();
    await world.pass(1000);
    return world.sockets.slice(50).map(({at}) => at - 60000);
}
"""
"""Fifty pages of one node, and when each is back after it was killed."""


@pytest.mark.parametrize("name", CASES)
def test_case(page: Page, name: str) -> None:
    page.evaluate("async (name) => { await (await import('/cases.js'))[name](); }", name)


def test_in_a_worker(page: Page) -> None:
    """With the real world: the directory refuses nobody and knows nothing, and the fallback is not there."""
    script = """
        () => new Promise((resolve, reject) => {
            const worker = new Worker("/worker.js", {type: "module"});
            worker.onmessage = ({data}) => resolve(data);
            worker.onerror = ({message}) => reject(message);
        })
    """
    assert page.evaluate(script) == [3, 1006, "ws://nobody.test/", 3]


def test_the_cases_can_fail(page: Page) -> None:
    with pytest.raises(Exception, match="1 is not 2"):
        page.evaluate("async () => (await import('/world.js')).equal(1, 2)")


@pytest.mark.parametrize("story", VECTORS["stories"], ids=lambda story: story["name"])
def test_stories(page: Page, story: dict[str, Any]) -> None:
    told = page.evaluate(STORY, story)
    for number, (step, found) in enumerate(zip(story["steps"], told, strict=True)):
        assert found == step.get("is"), f"step {number}: {step}"


def test_final_codes_and_retry_after(page: Page) -> None:
    codes = [code for code, _ in VECTORS["final"]]
    told = page.evaluate("async (codes) => codes.map((await import('/client.js')).isFinal)", codes)
    assert [[code, final] for code, final in zip(codes, told, strict=True)] == VECTORS["final"]
    fields = VECTORS["retry_after"]
    script = """
        async (fields) => {
            const {retryAfter} = await import("/client.js");
            return fields.map(({text, wall}) => retryAfter(text, wall));
        }
    """
    assert page.evaluate(script, fields) == [one["is"] for one in fields]


def test_waits_are_uniform(page: Page) -> None:
    dice = random.Random(6)
    chances = [dice.random() for _ in range(2000)]
    script = """
        async (chances) => {
            const {Comeback} = await import("/client.js");
            return chances.map((chance) => new Comeback("ws://node.test/").wait(0, chance, {code: 1006}));
        }
    """
    waits = page.evaluate(script, chances)
    assert distance_from_uniform(waits, 500) < least_distance(len(waits))
    assert distance_from_uniform([wait * 0.9 for wait in waits], 500) > least_distance(len(waits))


@pytest.mark.parametrize("seed", range(20))
def test_pages_of_a_killed_node_come_back_spread(page: Page, seed: int) -> None:
    dice = random.Random(seed)
    times = page.evaluate(KILLED, [dice.random() for _ in range(100)])
    assert len(times) == 50
    assert distance_from_uniform(times, 500) < least_distance(50)
