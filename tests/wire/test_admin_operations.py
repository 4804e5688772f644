"""Drain, undrain, shed, recheck and diff over the admin interface of a real balancer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from pybalancer import Balancer
from pybalancer.admin.app import CONFIG_LIMIT
from pybalancer.admin.client import Client, Refused
from pybalancer.config.secret import secret_digest

from .balancing import Open, Tunnel, backends_of, configuration, until
from .net import refused
from .test_admin import TOKEN, WITH_TOKEN, ask

LONG = {"over": 100.0, "deadline": 200.0}
ACTIONS = [
    "/drain?name=app-1",
    "/undrain?name=app-1",
    "/shed?pool=chat&to_skew=1.05",
    "/recheck?pool=chat&backend=app-1",
    "/diff",
]


@pytest.fixture
async def balancer(tmp_path: Path, three: dict[str, str]) -> AsyncIterator[Balancer]:
    given = configuration(three, policy="least-connections", balancer={"admin": f"unix:{tmp_path}/a.sock"})
    async with Balancer(given, admin=True) as running:
        yield running


async def post(balancer: Balancer, path: str, body: Any = None, **query: Any) -> dict[str, Any]:
    assert balancer.admin is not None
    return await trio.to_thread.run_sync(partial(Client(balancer.admin).post, path, body, **query))


async def refusal(balancer: Balancer, path: str, body: Any = None, **query: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        await post(balancer, path, body, **query)
    return caught.value.status, str(caught.value)


async def drains(balancer: Balancer) -> list[dict[str, Any]]:
    found = (await ask(balancer, "/drains")).json
    assert (found["pid"], found["started"]) == (balancer.status().pid, balancer.status().started)
    return found["drains"]  # type: ignore[no-any-return]


def of(tunnels: list[Tunnel], backend: str) -> list[Tunnel]:
    return [tunnel for tunnel in tunnels if tunnel.backend == backend]


async def test_drain_answers_at_once_and_its_progress_is_there_to_see(
    balancer: Balancer, tunnels: Open
) -> None:
    opened = tunnels(balancer)
    begun = await post(balancer, "/drain", name="app-1", **LONG, rate=50.0, code=4000)
    (drain,) = begun["drains"]
    assert (begun["what"], drain["state"], drain["total"]) == ("chat/app-1", "running", 8)
    assert (drain["over_seconds"], drain["deadline_seconds"]) == (100, 200)
    assert (drain["rate"], drain["code"]) == (50, 4000)
    assert begun["pid"] == balancer.status().pid
    assert [each["id"] for each in await drains(balancer)] == [drain["id"]]
    assert backends_of(balancer)["app-1"].draining
    assert {tunnel.backend for tunnel in tunnels(balancer)} == {"app-2", "app-3"}

    stopped = await post(balancer, "/undrain", pool="chat", backend="app-1")
    assert [each["id"] for each in stopped["drains"]] == [drain["id"]]
    assert [each["state"] for each in await drains(balancer)] == ["cancelled"]
    assert not backends_of(balancer)["app-1"].draining
    assert all(tunnel.stands() for tunnel in of(opened, "app-2") + of(opened, "app-3"))


async def test_drain_ends_what_is_there(balancer: Balancer, tunnels: Open) -> None:
    opened = tunnels(balancer)
    await post(balancer, "/drain", name="app-1", over=0.0, deadline=0.0)
    for tunnel in of(opened, "app-1"):
        await tunnel.was_reset()
    await until(lambda: not backends_of(balancer)["app-1"].active)
    (drain,) = await drains(balancer)
    assert drain["closed"] + drain["cut"] == 8


async def test_of_a_listener_and_of_everything(balancer: Balancer) -> None:
    assert (await post(balancer, "/drain", listener="public"))["what"] == "listener public"
    assert refused(balancer.bound["public"])
    assert (await post(balancer, "/undrain", listener="public"))["what"] == "listener public"
    assert (await post(balancer, "/drain", all=True))["what"] == "everything"
    assert (await post(balancer, "/undrain", all=True))["what"] == "everything"
    assert not refused(balancer.bound["public"], b"hello\n")


async def test_the_last_backend_needs_force(balancer: Balancer) -> None:
    for name in ("app-1", "app-2"):
        await post(balancer, "/drain", name=name)
    status, why = await refusal(balancer, "/drain", name="app-3")
    assert (status, "clients get 503" in why) == (409, True)
    assert not backends_of(balancer)["app-3"].draining
    assert (await post(balancer, "/drain", name="app-3", force=True))["warnings"]


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/drain", 400, "say one thing"),
        ("/drain?name=app-1&all=1", 400, "say one thing"),
        ("/drain?nme=app-1", 400, "there is no parameter 'nme'"),
        ("/drain?name=app-9", 404, "there is no backend, pool or listener 'app-9'"),
        ("/drain?pool=chat&backend=app-9", 404, "there is no backend 'app-9'"),
        ("/drain?name=app-1&over=-1", 400, "over is a number"),
        ("/drain?name=app-1&over=60&deadline=5", 400, "comes after the time that it takes"),
        ("/drain?name=app-1&code=1006", 400, "1006 may not be sent"),
        ("/drain?name=app-1&force=yes", 400, "force is 1 or 0"),
        ("/drain?name=app-1&wait=1", 400, "there is no parameter 'wait'"),
        ("/undrain?name=app-9", 404, "app-9"),
        ("/undrain?name=app-1&over=1", 400, "there is no parameter 'over'"),
        ("/shed?to_skew=1.1", 400, "give ?pool=NAME"),
        ("/shed?pool=chat", 400, "give ?to_skew=1.05"),
        ("/shed?pool=chat&to_skew=0.5", 400, "a skew is a number from 1"),
        ("/shed?pool=rooms&to_skew=2", 404, "there is no pool 'rooms'"),
        ("/recheck?pool=chat", 400, "give ?backend=NAME"),
        ("/recheck?pool=chat&backend=app-9", 404, "app-9"),
        ("/diff?pool=chat", 400, "there is none"),
    ],
)
async def test_questions_that_make_no_sense_change_nothing(
    balancer: Balancer, path: str, status: int, says: str
) -> None:
    answer = await ask(balancer, path, "POST")
    assert (answer.status, says in answer.json["error"]) == (status, True), answer.json
    assert balancer.status().generation == 1
    assert await drains(balancer) == []


@pytest.mark.parametrize("path", ACTIONS)
async def test_they_are_asked_for_by_post_only(balancer: Balancer, path: str) -> None:
    assert (await ask(balancer, path)).status == 405


@pytest.mark.parametrize("path", ACTIONS)
async def test_110_111_strangers_change_nothing(three: dict[str, str], path: str) -> None:
    given = configuration(three, balancer={"admin": "127.0.0.1:0", "admin_token": TOKEN})
    async with Balancer(given, admin=True) as remote:
        strangers: list[tuple[int, Mapping[str, str]]] = [
            (401, {}),
            (403, {"Origin": "https://evil.example", **WITH_TOKEN}),
            (403, {"Host": "evil.example", **WITH_TOKEN}),
        ]
        for status, headers in strangers:
            assert (await ask(remote, path, "POST", headers)).status == status
        assert remote.status().generation == 1
        assert (await ask(remote, "/drains")).status == 401


def closed(balancer: Balancer, number: int) -> int:
    return next(drain.closed for drain in balancer.status().drains if drain.id == number)


async def test_shed_counts_or_closes_the_surplus(balancer: Balancer, tunnels: Open) -> None:
    await post(balancer, "/drain", name="app-1", over=0.0, deadline=0.0)
    opened = tunnels(balancer)
    await post(balancer, "/undrain", name="app-1")
    counted = await post(balancer, "/shed", pool="chat", to_skew=1.0, dry_run=True)
    assert (counted["skew"], counted["surplus"]) == (1.5, {"app-2": 3, "app-3": 3})
    assert counted["drain"]["total"] == 6
    assert all(tunnel.stands() for tunnel in opened)

    begun = await post(balancer, "/shed", pool="chat", to_skew=1.0, rate=1000.0)
    assert begun["surplus"] == {"app-2": 3, "app-3": 3}
    number = begun["drain"]["id"]

    await until(lambda: closed(balancer, number) == 6)
    (drain,) = (each for each in await drains(balancer) if each["id"] == number)
    assert (drain["kind"], drain["closed"]) == ("shed", 6)
    assert (await post(balancer, "/shed", pool="chat", to_skew=9.0))["drain"] is None


async def test_recheck_asks_anew(three: dict[str, str], tmp_path: Path) -> None:
    admin = {"admin": f"unix:{tmp_path}/a.sock"}
    given = configuration(three, balancer=admin, health={"interval": "1h", "timeout": "1s"})
    async with Balancer(given, admin=True) as balancer:
        await post(balancer, "/recheck", pool="chat", backend="app-2")
        found = backends_of(balancer)
        assert [found[name].state for name in three] == ["up", "down", "up"]
        # Its first probe may have been faster than we are.
        assert "restarted" in found["app-2"].reason or "1 of 2" in found["app-2"].reason


def stripped(given: dict[str, Any]) -> dict[str, Any]:
    section = {**given["balancer"], "secret": "0" * 32}
    return {**given, "balancer": section}


async def test_diff_says_what_a_reload_would_change(
    balancer: Balancer, three: dict[str, str], tunnels: Open
) -> None:
    opened = tunnels(balancer)
    fewer = {name: address for name, address in three.items() if name != "app-2"}
    wanted = stripped(
        configuration(
            fewer,
            policy="least-connections",
            on_remove="drain",
            balancer={"admin": balancer.admin, "workers": 2},
        )
    )
    digest = secret_digest(bytes.fromhex(configuration({})["balancer"]["secret"]))
    answer = await post(balancer, "/diff", {"config": wanted, "secret": digest})
    assert "backend chat/app-2 removed" in answer["changes"]
    assert answer["ignored"] == ["balancer.workers"]
    assert answer["tunnels"] == {"kept": 0, "drained": 8, "closed": 0}
    other = await post(balancer, "/diff", {"config": wanted, "secret": secret_digest(b"another")})
    assert any("secret changed" in change for change in other["changes"])
    assert not any("secret changed" in change for change in answer["changes"])
    assert balancer.status().generation == 1
    assert all(tunnel.stands() for tunnel in opened)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"config": {}}',
        b'{"config": [], "secret": null}',
        b'{"config": {}, "secret": 7}',
        b'{"config": {}, "secret": "\xc3\xa4"}',
        b'{"config": {}, "secret": null, "more": 1}',
        b'{"config": ' + b"[" * 20_000 + b"]" * 20_000 + b', "secret": null}',
    ],
)
async def test_102_a_body_that_is_no_question_is_refused(balancer: Balancer, body: bytes) -> None:
    answer = await ask(balancer, "/diff", "POST", body=body)
    assert (answer.status, bool(answer.json["error"])) == (400, True)


async def test_102_a_configuration_that_is_wrong_is_told_whole(
    balancer: Balancer, three: dict[str, str]
) -> None:
    wrong = stripped(configuration(three, polcy="maglev", max_skew=-1))
    body = json.dumps({"config": wrong, "secret": None}).encode()
    answer = await ask(balancer, "/diff", "POST", body=body)
    assert answer.status == 422
    assert {problem["key"] for problem in answer.json["problems"]} == {
        "pools.chat.polcy",
        "pools.chat.max_skew",
    }
    for nested in ({"pools": {"chat": {"backends": [[[[[]]]]]}}}, {"listeners": 1e300}, {"": {"": None}}):
        body = json.dumps({"config": nested, "secret": None}).encode()
        assert (await ask(balancer, "/diff", "POST", body=body)).status == 422


async def test_102_bodies_are_read_up_to_a_limit(balancer: Balancer) -> None:
    assert (await ask(balancer, "/diff", "POST", body=b" " * (CONFIG_LIMIT + 1))).status == 413
    assert (await ask(balancer, "/drain?name=app-1", "POST", body=b" " * 70_000)).status == 413
    assert balancer.status().generation == 1
