"""What a reload would change: ``diff.difference`` on configurations, with no balancer running."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pybalancer.config.compile import compile_plan
from pybalancer.config.load import load_mapping
from pybalancer.config.model import Config
from pybalancer.diff import BackendDiff, Diff, ListenerDiff, PoolDiff, difference
from pybalancer.errors import ConfigError
from pybalancer.policy.draining import Draining

SECRET = bytes(range(16))
BEFORE: dict[str, Any] = {
    "listeners": [
        {"name": "public", "bind": "127.0.0.1:8080", "mode": "websocket", "pool": "chat", "routes": []},
        {"name": "edge", "bind": "127.0.0.1:8081", "pool": "rooms"},
    ],
    "pools": {
        "chat": {
            "on_remove": "drain",
            "backends": [
                {"name": f"app-{number}", "address": f"10.0.0.{number}:1"} for number in range(1, 5)
            ],
        },
        "rooms": {
            "policy": "least-connections",
            "backends": [
                {"name": "room-1", "address": "10.0.1.1:1"},
                {"name": "room-2", "address": "10.0.1.2:1"},
            ],
        },
    },
}
ACTIVE = {
    **{("chat", f"app-{number}"): 10 * number for number in range(1, 5)},
    ("rooms", "room-1"): 5,
    ("rooms", "room-2"): 6,
    ("", "public"): 100,
    ("", "edge"): 11,
}


def literal(config: Config) -> dict[tuple[str, str], str]:
    return {
        (name, backend.name): backend.address
        for name, pool in config.pools.items()
        for backend in pool.backends
    }


def compared(
    after: dict[str, Any],
    *,
    before: dict[str, Any] = BEFORE,
    resolved: dict[tuple[str, str], str] | None = None,
    secret: bytes = SECRET,
    draining: Draining = Draining(),  # noqa: B008 - frozen
) -> Diff:
    old, new = load_mapping(before), load_mapping(after)
    return difference(
        old,
        new,
        literal(old),
        {**literal(new), **(resolved or {})},
        plan=compile_plan(old, literal(old), {}, SECRET),
        secret=secret,
        same_secret=secret == SECRET,
        health={},
        draining=draining,
        active=ACTIVE,
    )


@pytest.fixture
def after() -> dict[str, Any]:
    """The same, to be changed."""
    return copy.deepcopy(BEFORE)


def test_the_same_file_changes_nothing(after: dict[str, Any]) -> None:
    diff = compared(after)
    assert diff.nothing
    assert (diff.changes, diff.ignored, diff.listeners, diff.pools) == ([], [], [], [])
    assert diff.tunnels == {"kept": 0, "drained": 0, "closed": 0}
    assert diff.to_dict()["nothing"] is True


def test_a_backend_more_moves_about_its_share_and_no_tunnel(after: dict[str, Any]) -> None:
    after["pools"]["chat"]["backends"].append({"name": "app-5", "address": "10.0.0.5:1"})
    diff = compared(after)
    assert not diff.nothing
    (pool,) = diff.pools
    assert (pool.name, pool.change, pool.tunnels) == ("chat", "changed", 100)
    assert pool.backends == [BackendDiff("app-5", "added", [], 0, "kept")]
    assert pool.moved is not None
    # A fifth goes to the new one; Maglev moves a few more between the others.
    assert 0.2 <= pool.moved <= 0.3
    assert diff.tunnels == {"kept": 0, "drained": 0, "closed": 0}


@pytest.mark.parametrize(("on_remove", "fate"), [("drain", "drained"), ("keep", "kept"), ("close", "closed")])
def test_what_becomes_of_the_tunnels_of_one_that_goes(
    after: dict[str, Any], on_remove: str, fate: str
) -> None:
    after["pools"]["chat"]["on_remove"] = on_remove
    del after["pools"]["chat"]["backends"][3]
    diff = compared(after)
    (pool,) = diff.pools
    assert pool.backends == [BackendDiff("app-4", "removed", [], 40, fate)]  # type: ignore[arg-type]
    assert diff.tunnels == {**dict.fromkeys(("kept", "drained", "closed"), 0), fate: 40}
    assert pool.moved is not None
    assert 0.25 <= pool.moved <= 0.35


def test_another_address_is_another_server_of_the_same_keys(after: dict[str, Any]) -> None:
    after["pools"]["chat"]["backends"][1]["address"] = "10.0.9.2:1"
    diff = compared(after)
    (pool,) = diff.pools
    assert pool.moved == 0.0
    assert pool.backends == [BackendDiff("app-2", "changed", ["address"], 20, "drained")]
    assert diff.changes == ["pool chat changed", "backend chat/app-2 changed"], "each thing once"
    assert diff.tunnels["drained"] == 20


def test_a_name_that_resolves_to_another_address_is_one_too(after: dict[str, Any]) -> None:
    """The files are equal, and still the reload moves it."""
    diff = compared(after, resolved={("chat", "app-3"): "10.0.9.3:1"})
    assert not diff.nothing
    assert diff.changes == ["backend chat/app-3 has another address: 10.0.9.3:1"]
    (pool,) = diff.pools
    assert pool.backends == [BackendDiff("app-3", "changed", ["address"], 30, "drained")]
    assert diff.tunnels["drained"] == 30


def test_a_weight_moves_keys_and_keeps_tunnels(after: dict[str, Any]) -> None:
    after["pools"]["chat"]["backends"][0]["weight"] = 3
    diff = compared(after)
    (pool,) = diff.pools
    assert pool.backends == [BackendDiff("app-1", "changed", ["weight"], 10, "kept")]
    assert pool.moved is not None
    # From a quarter to a half.
    assert 0.25 <= pool.moved <= 0.4
    assert sum(diff.tunnels.values()) == 0


def test_a_pool_that_does_not_hash_moves_no_keys(after: dict[str, Any]) -> None:
    del after["pools"]["rooms"]["backends"][0]
    (pool,) = compared(after).pools
    assert (pool.name, pool.moved) == ("rooms", None)


def test_pools_come_and_go(after: dict[str, Any]) -> None:
    after["pools"]["halls"] = after["pools"].pop("rooms")
    after["listeners"][1]["pool"] = "halls"
    diff = compared(after)
    halls, rooms = diff.pools
    assert (halls.name, halls.change, halls.moved, halls.tunnels) == ("halls", "added", None, 0)
    assert (rooms.name, rooms.change, rooms.moved, rooms.tunnels) == ("rooms", "removed", None, 11)
    # Of one that is gone its own last word counts, which is to keep them.
    assert [(each.name, each.fate) for each in rooms.backends] == [("room-1", "kept"), ("room-2", "kept")]
    assert diff.tunnels == {"kept": 11, "drained": 0, "closed": 0}
    assert diff.listeners == [ListenerDiff("edge", "changed", ["pool"], 11)]
    assert "pool halls added" in diff.changes
    assert "pool rooms removed" in diff.changes


def test_listeners_come_go_and_change(after: dict[str, Any]) -> None:
    after["listeners"][0]["handshakes"] = "100/s"
    after["listeners"][1] = {"name": "inner", "bind": "127.0.0.1:8082", "pool": "rooms"}
    assert compared(after).listeners == [
        ListenerDiff("public", "changed", ["handshakes"], 100),
        ListenerDiff("inner", "added", [], 0),
        ListenerDiff("edge", "removed", [], 11),
    ]


def test_other_settings_of_a_pool_are_a_change_of_it(after: dict[str, Any]) -> None:
    after["pools"]["chat"]["idle_timeout"] = "1h"
    assert compared(after).pools == [PoolDiff("chat", "changed", 0.0, 100, [])]


def test_another_secret_moves_most_keys_and_says_so(after: dict[str, Any]) -> None:
    diff = compared(after, secret=bytes(16))
    assert diff.changes == ["secret changed: clients go to other backends than before"]
    (pool,) = diff.pools
    assert pool.name == "chat", "rooms is not hashed"
    assert pool.moved is not None
    assert 0.6 <= pool.moved <= 0.9


def test_what_needs_a_restart_is_told_apart(after: dict[str, Any]) -> None:
    after["balancer"] = {"workers": 3}
    diff = compared(after)
    assert (diff.changes, diff.ignored, diff.nothing) == ([], ["balancer.workers"], False)


def test_a_drained_backend_makes_no_difference(after: dict[str, Any]) -> None:
    assert compared(after, draining=Draining(frozenset({("chat", "app-1")}))).nothing


def test_doubts_come_along(after: dict[str, Any]) -> None:
    for backend in after["pools"]["rooms"]["backends"]:
        backend["weight"] = 0
    diff = compared(after)
    assert len(diff.warnings) == len(load_mapping(after).warnings) > 0


def test_what_the_core_refuses_is_an_error_of_the_configuration(
    after: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pybalancer import _core, diff

    def refuse(*_arguments: Any) -> Any:
        raise _core.PlanError("no room for so many")

    monkeypatch.setattr(diff, "compile_plan", refuse)
    old = load_mapping(BEFORE)
    with pytest.raises(ConfigError, match="no room for so many"):
        difference(
            old,
            load_mapping(after),
            literal(old),
            literal(old),
            plan=compile_plan(old, literal(old), {}, SECRET),
            secret=SECRET,
            same_secret=True,
            health={},
            draining=Draining(),
            active={},
        )
