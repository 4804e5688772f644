"""Where to connect and how long to wait, for any library: with a directory and a clock of the tests' own."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping

import pytest

from pybalancer.client import Attempts, Retry, attempts
from pybalancer.client.lookup import Reply

DIRECTORY = "https://www.test/connect"


class Scene:
    """``replies`` are the directory's, one after the other."""

    def __init__(self, *replies: Reply, target: str = DIRECTORY, retry: Retry | None = None) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, float, Mapping[str, str]]] = []
        self.now = 0.0
        self.steps: Attempts = attempts(
            target,
            retry=retry,
            timeout=3.0,
            headers={"X-Token": "1"},
            clock=lambda: self.now,
            chance=lambda: 1.0,
            ask=self.ask,
        )

    def ask(
        self, url: str, timeout: float, headers: Mapping[str, str], context: ssl.SSLContext | None
    ) -> Reply:
        self.asked.append((url, timeout, headers))
        return self.replies.pop(0)


def found(url: str, backend: str | None = None, **more: object) -> Reply:
    return Reply(200, json.dumps({"url": url, "backend": backend, **more}))


def test_it_asks_before_each_connect_and_waits_after_each_loss() -> None:
    scene = Scene(found("wss://n1.test/", "app-1"), found("wss://n2.test/", "app-2"))
    assert next(scene.steps) == ("wss://n1.test/", 0.0)
    assert (scene.steps.backend, scene.asked) == ("app-1", [(DIRECTORY, 3.0, {"X-Token": "1"})])
    assert next(scene.steps) == (None, 0.5)
    assert len(scene.asked) == 1
    assert next(scene.steps) == ("wss://n2.test/", 0.0)
    assert scene.steps.backend == "app-2"


def test_a_connection_that_lasted_makes_waits_short_again() -> None:
    scene = Scene(target="ws://node.test/")
    waits = []
    for lasted in (None, 9.9, None, 10.0, None):
        assert next(scene.steps) == ("ws://node.test/", 0.0)
        if lasted is not None:
            scene.steps.opened()
            scene.now += lasted
        _, delay = next(scene.steps)
        waits.append(delay)
    assert waits == [0.5, 1.0, 2.0, 0.5, 1.0]


def test_an_attempt_of_which_nothing_is_told_was_a_loss() -> None:
    """What was told of the one before does not count for it."""
    scene = Scene(target="ws://node.test/")
    next(scene.steps)
    scene.steps.closed(1012)
    assert next(scene.steps) == (None, 5.0)
    next(scene.steps)
    assert next(scene.steps) == (None, 1.0)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1008, "not you"), (4001, "go")])
def test_it_is_over_when_an_end_is_final(code: int, reason: str) -> None:
    scene = Scene(target="ws://node.test/")
    steps = []
    for step in scene.steps:
        steps.append(step)
        scene.steps.closed(code, reason)
    assert (steps, scene.steps.end) == ([("ws://node.test/", 0.0)], (code, reason))
    assert list(scene.steps) == []


def test_no_close_is_1006() -> None:
    scene = Scene(target="ws://node.test/")
    next(scene.steps)
    scene.steps.closed(None, None)
    assert next(scene.steps) == (None, 0.5)


def test_a_refused_handshake() -> None:
    scene = Scene(target="ws://node.test/")
    next(scene.steps)
    scene.steps.refused(503, "7")
    assert next(scene.steps) == (None, 7.5)
    next(scene.steps)
    scene.steps.refused(403)
    assert list(scene.steps) == []
    assert scene.steps.end == (403, "the handshake is answered with 403")


def test_a_directory_that_has_nowhere_or_refuses() -> None:
    scene = Scene(
        Reply(503, json.dumps({"error": "nothing is up", "retry": {"after_ms": 1500}})), Reply(0), Reply(403)
    )
    assert next(scene.steps) == (None, 2.0)
    assert next(scene.steps) == (None, 1.0)
    assert list(scene.steps) == []
    assert scene.steps.end == (403, "the directory answers 403")


def test_a_directory_that_is_away_is_gone_around() -> None:
    scene = Scene(Reply(0), Reply(500), retry=Retry(fallback="wss://balancer.test/"))
    assert next(scene.steps) == ("wss://balancer.test/", 0.0)
    assert next(scene.steps) == (None, 0.5)
    assert next(scene.steps) == ("wss://balancer.test/", 0.0)
    assert scene.steps.backend is None
