"""``explain`` is right: it names the backend that clients then get, by every way to ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trio

from pybalancer.admin.client import Client as Admin
from pybalancer.admin.client import Refused
from pybalancer.balancer import Balancer

from ..net import text_of
from .messages import Answer, request
from .recorder import Recorder
from .site import Client

ROUTES: list[dict[str, Any]] = [
    {"path": "/rooms/*", "pool": "spread", "key": "path"},
    {"path": "/users", "pool": "spread", "key": "header:X-User"},
    {"path": "/carts", "pool": "spread", "key": "cookie:cart"},
    {"path": "/search", "pool": "spread", "key": "query:q"},
    {"path": "/old/*", "host": "old.test", "pool": "old", "strip_prefix": "/old"},
]


@pytest.fixture
async def balancer(tmp_path: Path) -> AsyncIterator[Balancer]:
    recorders = {name: Recorder(name) for name in ("a", "b", "c", "old")}
    backends = [{"name": name, "address": recorder.address} for name, recorder in recorders.items()]
    config = {
        "balancer": {"admin": f"unix:{tmp_path}/admin.sock", "secret": "00" * 16, "workers": 1},
        "listeners": [
            {
                "name": "web",
                "bind": "127.0.0.1:0",
                "mode": "websocket",
                "pool": "spread",
                "routes": ROUTES,
            }
        ],
        "pools": {
            "spread": {"key": "source", "backends": backends[:3]},
            "old": {"backends": backends[3:]},
        },
    }
    try:
        async with Balancer(config, admin=True) as running:
            yield running
    finally:
        for recorder in recorders.values():
            recorder.close()


CASES: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("a.test", "/", []),
    ("a.test", "/rooms/7?x=1", []),
    ("a.test", "/rooms/%37", []),
    ("a.test", "/users", [("X-User", "5")]),
    ("a.test", "/users", [("x-user", "6"), ("X-User", "5")]),
    ("a.test", "/users", []),
    ("a.test", "/carts", [("Cookie", "a=1; cart=17; cart=18")]),
    ("a.test", "/search?q=a%20b&q=c", []),
    ("a.test", "/search?q=a+b", []),
    ("a.test", "/search?p=a", []),
    ("old.test:81", "/old/x", []),
    ("OLD.test", "/old", []),
    ("new.test", "/old/x", []),
]


async def test_it_names_the_backend_that_answers(balancer: Balancer) -> None:
    picked = set()
    for host, path, headers in CASES:

        def exchange(host: str = host, path: str = path, headers: Any = headers) -> tuple[str, Answer]:
            with Client(balancer.bound["web"]) as client:
                fields = [f"{name}: {value}" for name, value in headers]
                answer = client.ask(request(*fields, line=f"GET {path} HTTP/1.1", host=host))
                return text_of(client.socket.getsockname()), answer

        source, answer = await trio.to_thread.run_sync(exchange)
        told = balancer.explain(source, host=host, path=path, headers=headers)
        assert told["backend"] == answer.told()["backend"], (host, path, headers, told)
        picked.add(told["backend"])
    assert len(picked) > 2, "these cases would not show a wrong answer"


async def ask(balancer: Balancer, query: str) -> dict[str, Any]:
    assert balancer.admin is not None
    admin = Admin(balancer.admin)
    return await trio.to_thread.run_sync(lambda: admin._ask("GET", f"/explain?{query}"))


async def test_the_admin_interface_says_the_same(balancer: Balancer) -> None:
    assert balancer.admin is not None
    client = Admin(balancer.admin)
    for host, path, headers in CASES:
        told = balancer.explain("192.0.2.1:7", listener="web", host=host, path=path, headers=headers)
        lines = [f"{name}: {value}" for name, value in headers]

        def get(host: str = host, path: str = path, lines: list[str] = lines) -> dict[str, Any]:
            return client.get(
                "/explain", source="192.0.2.1:7", listener="web", host=host, path=path, header=lines
            )

        assert await trio.to_thread.run_sync(get) == json.loads(json.dumps(told))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ([("source", "192.0.2.1"), ("path", "/"), ("pool", "old")], "either a pool or a request"),
        ([("source", "192.0.2.1"), ("listener", "wep")], "there is no listener 'wep'"),
        ([("source", "192.0.2.1"), ("header", "X-User 5")], "is no header such as"),
        ([("source", "192.0.2.1"), ("header", "X: 1\r\nY: 2")], "control characters"),
        ([("source", "192.0.2.1"), ("header", "X Y: 1")], "is not the name of a header"),
        ([("source", "192.0.2.1"), ("path", "/a\r\nb")], "control characters"),
        ([("source", "192.0.2.1"), ("path", "/a"), ("path", "/b")], "'path' is given more than once"),
        ([("source", "192.0.2.1"), ("paht", "/a")], "there is no parameter 'paht'"),
        ([("source", "192.0.2.1"), ("path", 17000 * "/")], "at most 16384 bytes"),
        ([("path", "/a")], "give ?source=IP:PORT"),
    ],
)
async def test_what_is_no_question_is_refused(
    balancer: Balancer, asked: list[tuple[str, str]], says: str
) -> None:
    with pytest.raises(Refused) as caught:
        await ask(balancer, urlencode(asked))
    assert caught.value.status == 400
    assert says in str(caught.value)
    # And the next one is answered.
    assert (await ask(balancer, "source=192.0.2.1&path=/"))["route"] == "default"


async def command(balancer: Balancer, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert balancer.admin is not None
    given = [sys.executable, "-m", "pybalancer", "explain", "--admin", balancer.admin, *arguments]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYBALANCER_")}
    return await trio.to_thread.run_sync(
        lambda: subprocess.run(given, capture_output=True, text=True, env=kept, check=False)
    )


async def test_the_command_tells_route_pool_and_backend_and_what_is_next(balancer: Balancer) -> None:
    headers = [("X-User", "5"), ("Cookie", "cart=17; a=1")]
    told = balancer.explain("192.0.2.1:7", host="a.test", path="/carts?x=1", headers=headers)
    arguments = ("--listener", "web", "--host", "a.test", "--path", "/carts?x=1", "--header", "X-User: 5")
    arguments = (*arguments, "--cookie", "cart=17", "--cookie", "a=1", "192.0.2.1:7")
    as_json = await command(balancer, *arguments, "--json")
    assert json.loads(as_json.stdout) == json.loads(json.dumps(told))
    as_text = await command(balancer, *arguments)
    assert (as_text.returncode, as_text.stderr) == (0, "")
    lines = as_text.stdout.splitlines()
    assert lines[:3] == [
        "192.0.2.1:7 asks listener web for a WebSocket at a.test/carts?x=1",
        "→ route /carts (path /carts)",
        f"→ pool spread (maglev by cookie:cart) → {told['backend']}",
    ]
    cells = [[cell.strip() for cell in line.split("│")] for line in lines if line.startswith("│")]
    assert [row[2] for row in cells] == [choice["backend"] for choice in told["choices"]]
    assert [row[5] for row in cells] == [
        "a connection from there goes here now",
        *["would be tried next, if the ones before it refused"] * 2,
    ]


async def test_the_command_tells_what_would_be_refused_and_what_was_not_asked(balancer: Balancer) -> None:
    refused = await command(balancer, "--path", "/a b", "192.0.2.1:7")
    assert refused.returncode == 0
    assert "→ refused with 400: " in refused.stdout
    # Of a pool as before, also where that says less than there is to know.
    pool = await command(balancer, "--pool", "spread", "192.0.2.1:7")
    assert pool.stdout.startswith("192.0.2.1:7 in pool spread (maglev by source) → ")
    for argument, says in (("--header", "X-User: 5"), ("--cookie", "user=5")):
        usage = await command(balancer, argument, "nothing", "192.0.2.1:7")
        assert usage.returncode == 2
        assert says in usage.stderr


async def test_status_shows_what_listeners_of_this_mode_have(balancer: Balancer) -> None:
    def exchange() -> None:
        with Client(balancer.bound["web"]) as client:
            assert client.ask(request(line="GET /rooms/1 HTTP/1.1")).status == 200
            assert client.ask(request(line="GET / HTTP/1.1")).status == 200

    await trio.to_thread.run_sync(exchange)
    (listener,) = balancer.status().to_dict()["listeners"]
    assert (listener["pool"], listener["requests"], listener["handshakes"]) == ("spread", 2, 0)
    assert listener["routes"] == [
        *({"name": route["path"], "pool": route["pool"], "action": "proxy"} for route in ROUTES),
        {"name": "default", "pool": "spread", "action": "proxy"},
    ]
    assert balancer.admin is not None
    given = [sys.executable, "-m", "pybalancer", "status", "--admin", balancer.admin]
    shown = await trio.to_thread.run_sync(
        lambda: subprocess.run(given, capture_output=True, text=True, check=True).stdout
    )
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    (first, second) = (row for row in cells if row[0] == "web")
    assert first[2] == "spread, old"
    assert second == ["web", "2", "0", "0", "0", "0", "0"]
