"""How a client comes back, as the shared vectors say (the browser's client has the same: tests/js), and its
laws."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pybalancer.client import Comeback, Found, Retry, is_final, retry_after

from .uniform import distance_from_uniform, least_distance

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/reconnect.json").read_text())


@pytest.mark.parametrize(("code", "final"), VECTORS["final"])
def test_final_codes(code: int, final: bool) -> None:
    assert is_final(code) is final


@pytest.mark.parametrize("vector", VECTORS["retry_after"], ids=lambda one: str(one["text"]))
def test_retry_after(vector: dict[str, Any]) -> None:
    assert retry_after(vector["text"], vector["wall"]) == vector["is"]


@pytest.mark.parametrize("story", VECTORS["stories"], ids=lambda story: story["name"])
def test_stories(story: dict[str, Any]) -> None:
    comeback = Comeback(story["target"], Retry(**story.get("retry", {})))
    for number, step in enumerate(story["steps"]):
        if "answer" in step:
            given = step["answer"]
            text = given["text"] if "text" in given else json.dumps(given["body"])
            answer = comeback.answer(given["status"], text, given.get("after"), 0.0)
            told: Any = {name: getattr(answer, name) for name in answer.__slots__}
        elif "opened" in step:
            comeback.opened(step["opened"])
            continue
        elif "wait" in step:
            told = comeback.wait(**step["wait"])
        else:
            told = comeback.sooner(**step["sooner"])
        assert told == step["is"], f"step {number}: {step}"


@pytest.mark.parametrize("losses", [0, 3, 12])
def test_waits_are_uniform(losses: int) -> None:
    dice = random.Random(losses)
    waits = []
    for _ in range(2000):
        comeback = Comeback("ws://node.test/")
        comeback.losses = losses
        waits.append(comeback.wait(0.0, dice.random(), 1006))
    top = min(500 * 2**losses, 30_000)
    assert distance_from_uniform(waits, top) < least_distance(len(waits))
    assert distance_from_uniform([wait * 0.9 for wait in waits], top) > least_distance(len(waits))


def test_losses_without_end() -> None:
    comeback = Comeback("ws://node.test/")
    comeback.losses = 100_000
    assert comeback.wait(0.0, 1.0, 1006) == 30_000


def test_an_end_is_final_when_the_caller_says_so() -> None:
    seen: list[tuple[int, str, bool]] = []

    def final(code: int, reason: str, usual: bool) -> bool:
        seen.append((code, reason, usual))
        return code == 1011

    comeback = Comeback("ws://node.test/", final=final)
    assert comeback.wait(0.0, 1.0, 4001, "a new token") == 500
    assert comeback.wait(0.0, 1.0, 1011) is None
    assert seen == [(4001, "a new token", True), (1011, "", False)]


@pytest.mark.parametrize(
    "target", ["", "/connect", "ftp://a.test/", "ws:", "ws://a.test/#b", "http://", "https:///x"]
)
def test_urls_that_cannot_be(target: str) -> None:
    with pytest.raises(ValueError, match="not a URL"):
        Comeback(target)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_ms": -1},
        {"max_ms": float("nan")},
        {"min_ms": "7"},
        {"stable_ms": True},
        {"fallback": "http://a.test"},
    ],
)
def test_times_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Retry(**wrong)


def test_a_fallback_may_not_give_up_encryption() -> None:
    with pytest.raises(ValueError, match="wss:"):
        Comeback("https://www.test/connect", Retry(fallback="ws://balancer.test/"))


def test_names_of_times_are_those_of_the_directory() -> None:
    """One word for one thing: what is a field here is one in the answers, and in the page's options."""
    types = (Path(__file__).parents[2] / "pybalancer/js/client.d.ts").read_text()
    assert all(f"  {name}?: " in types for name in Retry.__slots__)


def test_what_is_malformed_or_too_deep_is_no_answer() -> None:
    comeback = Comeback("http://www.test/")
    for text in ("[" * 100_000, '{"url": NaN}', "1" * 10_000, '{"url": "ws://a.test/"'):
        assert not isinstance(comeback.answer(200, text), Found)
