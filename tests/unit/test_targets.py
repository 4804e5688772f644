"""What is meant by a name: ``targets.choose``."""

from __future__ import annotations

from typing import Any

import pytest

from pybalancer.config.load import load_mapping
from pybalancer.config.model import Config
from pybalancer.errors import TargetError
from pybalancer.targets import MOST_NAMES, Target, choose, said


def config(pools: dict[str, list[str]], *listeners: str) -> Config:
    first = next(iter(pools))
    return load_mapping(
        {
            "listeners": [{"name": name, "bind": "127.0.0.1:0", "pool": first} for name in listeners],
            "pools": {
                pool: {
                    "backends": [
                        {"name": name, "address": f"10.0.0.1:{number}"}
                        for number, name in enumerate(names, 1)
                    ]
                }
                for pool, names in pools.items()
            },
        }
    )


SITE = config(
    {
        "chat": ["app-1", "app-2", "both"],
        "rooms": ["app-3", "both"],
        "public": ["x"],
        "a/b": ["c"],
        "a": ["b/c"],
    },
    "public",
    "edge",
    "app-1",
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "app-2"}, Target("chat", "app-2")),
        ({"name": "chat/app-1"}, Target("chat", "app-1")),
        ({"name": "chat/both"}, Target("chat", "both")),
        ({"name": "chat"}, Target("chat")),
        ({"name": "edge"}, Target(listener="edge")),
        ({"name": "b/c"}, Target("a", "b/c")),
        ({"pool": "chat"}, Target("chat")),
        ({"pool": "rooms", "backend": "both"}, Target("rooms", "both")),
        ({"backend": "app-1"}, Target("chat", "app-1")),
        ({"pool": "public"}, Target("public")),
        ({"listener": "public"}, Target(listener="public")),
        ({"everything": True}, Target()),
    ],
)
def test_what_is_meant(given: dict[str, Any], expected: Target) -> None:
    assert choose(SITE, **given) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": "both"}, "say which: chat/both, rooms/both"),
        ({"name": "public"}, "say which: --listener public, --pool public"),
        ({"name": "app-1"}, "say which: chat/app-1, --listener app-1"),
        ({"name": "a/b/c"}, "say which: --pool a --backend b/c, --pool a/b --backend c"),
        ({"backend": "both"}, "say which: chat/both, rooms/both"),
        ({"name": "app-9"}, "there is no backend, pool or listener 'app-9'; did you mean \""),
        ({"name": "chta"}, 'did you mean "chat"?'),
        ({"name": "rooms/app-1"}, "there is no backend, pool or listener 'rooms/app-1'"),
        ({"name": ""}, "there is no backend, pool or listener ''; there are: chat/app-1, "),
        ({"pool": "chatt"}, "there is no pool 'chatt'; did you mean \"chat\"?"),
        ({"pool": "chatt", "backend": "app-1"}, "there is no pool 'chatt'"),
        ({"pool": "rooms", "backend": "app-2"}, "there is no backend 'app-2'"),
        ({"listener": "chat"}, "there is no listener 'chat'; there are: public, edge, app-1"),
    ],
)
def test_what_is_not_there_or_there_twice_is_said(given: dict[str, Any], says: str) -> None:
    with pytest.raises(TargetError) as caught:
        choose(SITE, **given)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"name": "app-2", "pool": "chat"},
        {"name": "app-2", "everything": True},
        {"pool": "chat", "listener": "edge"},
        {"listener": "edge", "everything": True},
        {"backend": "app-2", "everything": True},
    ],
)
def test_nothing_and_contradictions_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="say one thing"):
        choose(SITE, **given)


def test_of_many_names_some_are_listed() -> None:
    many = config({"chat": [f"node-{number}" for number in range(100)]}, "public")
    with pytest.raises(TargetError) as caught:
        choose(many, "zzz")
    assert "chat/node-0, chat/node-1, " in str(caught.value)
    assert str(caught.value).endswith(f" and {102 - MOST_NAMES} more")


def test_each_target_says_what_it_is_and_whom_it_is_about() -> None:
    names = [listener.name for listener in SITE.listeners]
    for target, text, option, backends, listeners in (
        (Target("chat", "both"), "chat/both", "chat/both", [("chat", "both")], []),
        (Target("rooms"), "pool rooms", "--pool rooms", [("rooms", "app-3"), ("rooms", "both")], []),
        (Target(listener="edge"), "listener edge", "--listener edge", [], ["edge"]),
        (Target(), "everything", "--all", [], names),
    ):
        assert (str(target), said(target)) == (text, option)
        assert target.backends(SITE) == backends
        assert target.listeners(SITE) == listeners
        assert target.everything is (target == Target())
