"""Who is named: by health, drains, load and tickets, of a ``Balancer`` in the test."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from pybalancer import Balancer, tickets
from pybalancer.config import compile
from pybalancer.tickets import TicketError

from ..answers import request_of
from ..balancing import SECRET, Run, backends_of, until
from ..net import PATIENCE, Server, connect

NAMES = ("app-1", "app-2", "app-3", "app-4")
CHECK = {"kind": "http", "interval": "50ms", "timeout": "10s", "rise": 1, "fall": 1}


class Node(Server):
    """An HTTP server that says how busy it is."""

    def __init__(self, status: int = 200, load: str | None = None) -> None:
        self.status, self.load, self.asked = status, load, 0
        super().__init__(self._answer, "127.0.0.1:0")

    def _answer(self, connection: socket.socket) -> None:
        request_of(connection)
        self.asked += 1
        load = "" if self.load is None else f"Pybalancer-Load: {self.load}\r\n"
        connection.sendall(f"HTTP/1.1 {self.status} X\r\n{load}Content-Length: 0\r\n\r\n".encode())


def configuration(nodes: Mapping[str, Node], **pool: Any) -> dict[str, Any]:
    backends = [
        {"name": name, "address": node.address, "public_url": f"wss://{name}.example.com"}
        for name, node in nodes.items()
    ]
    return {
        "balancer": {"workers": 2, "secret": SECRET},
        "listeners": [{"name": "told", "bind": "127.0.0.1:0", "mode": "directory", "pool": "chat"}],
        "pools": {"chat": {"backends": backends, "health": CHECK, "key": "query:user", **pool}},
    }


class Asking:
    """A client over one connection that is kept."""

    def __init__(self, balancer: Balancer, source: str = "127.0.0.1") -> None:
        self.connection = http.client.HTTPConnection("a.test", timeout=PATIENCE)
        self.connection.sock = connect(balancer.bound["told"], source)

    def get(self, target: str) -> tuple[int, dict[str, Any]]:
        self.connection.request("GET", target)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())

    def backend(self, user: object) -> str:
        status, content = self.get(f"/?user={user}")
        assert status == 200, content
        return str(content["backend"])

    def spread(self, count: int = 400) -> dict[str, int]:
        found = dict.fromkeys(NAMES, 0)
        for user in range(count):
            found[self.backend(user)] += 1
        return found


@pytest.fixture
def nodes(run: Run) -> dict[str, Node]:
    return {name: run(Node()) for name in NAMES}


def runs(balancer: Balancer) -> dict[str, str]:
    """State of each node in the plan that the workers run; the status is ahead of it by up to 0.1 s."""
    choices = balancer.explain("192.0.2.1:1", "chat")["choices"]
    return {choice["backend"]: choice["state"] for choice in choices}


async def thread(call: Any, *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(call, *arguments)


async def test_who_is_down_or_drained_is_not_named_at_once(nodes: dict[str, Node]) -> None:
    async with Balancer(configuration(nodes)) as balancer:
        client = Asking(balancer)
        before = {user: await thread(client.backend, user) for user in range(200)}
        nodes["app-1"].status = 503
        await until(lambda: runs(balancer)["app-1"] == "down")
        await balancer.drain(pool="chat", backend="app-2", over=0, wait=False)
        after = {user: await thread(client.backend, user) for user in range(200)}
        assert set(after.values()) == {"app-3", "app-4"}
        stayed = [user for user in before if before[user] in ("app-3", "app-4")]
        assert all(after[user] == before[user] for user in stayed)
        for user in range(50):
            _, content = await thread(client.get, f"/?user={user}")
            named = [content["url"], *content["alternatives"]]
            assert not [url for url in named if "app-1" in url or "app-2" in url]
        nodes["app-1"].status = 200
        await until(lambda: runs(balancer)["app-1"] == "up")
        await balancer.undrain(pool="chat", backend="app-2")
        assert {user: await thread(client.backend, user) for user in range(200)} == before


async def test_a_listener_that_drains_names_nobody(nodes: dict[str, Node]) -> None:
    async with Balancer(configuration(nodes)) as balancer:
        await balancer.drain(listener="told", over=0, wait=False)
        status, content = await thread(Asking(balancer).get, "/")
        assert (status, content["error"]) == (503, "draining")
        await balancer.undrain(listener="told")
        assert (await thread(Asking(balancer).get, "/"))[0] == 200


async def test_with_nobody_up_clients_are_put_off(nodes: dict[str, Node]) -> None:
    async with Balancer(configuration(nodes)) as balancer:
        client = Asking(balancer)
        for node in nodes.values():
            node.status = 500
        await until(lambda: set(runs(balancer).values()) == {"down"})
        status, content = await thread(client.get, "/")
        assert (status, content["error"]) == (503, "no backend is up")
        (listener,) = balancer.status().listeners
        assert (listener.directed, listener.redirected, listener.put_off) == (0, 0, 1)
        assert listener.refused["no_backend"] == 1


async def test_busy_backends_get_less(nodes: dict[str, Node]) -> None:
    """By their own account, where the policy looks at loads: a node three quarters busy gets a quarter."""
    nodes["app-1"].load = "0.75"
    nodes["app-2"].load = "1.0"
    nodes["app-3"].load = "nonsense"
    config = configuration(nodes, policy="least-connections")
    async with Balancer(config) as balancer:

        def told() -> bool:
            loads = {name: one.load for name, one in backends_of(balancer).items()}
            return loads == {"app-1": 0.75, "app-2": 1.0, "app-3": None, "app-4": None}

        await until(told, "what the nodes say of themselves")
        client = Asking(balancer)
        found = await thread(client.spread)
        free = {"app-1": 1 / 4, "app-2": 1 / 64, "app-3": 1.0, "app-4": 1.0}
        for name, share in free.items():
            assert found[name] == pytest.approx(400 * share / sum(free.values()), abs=4), found
        # What it said counts until it says something else, or nothing.
        for node in nodes.values():
            node.load = None
        await until(lambda: all(one.load is None for one in backends_of(balancer).values()))


async def test_answers_count_as_load_so_that_they_spread(nodes: dict[str, Node]) -> None:
    """No tunnel tells the balancer of clients that it has sent away."""
    async with Balancer(configuration(nodes, policy="least-connections")) as balancer:
        found = await thread(Asking(balancer).spread, 40)
        assert found == dict.fromkeys(NAMES, 10)
        sent = {name: one.sent for name, one in backends_of(balancer).items()}
        assert sent == found
        assert 'pybalancer_backend_clients_sent_total{backend="app-1",pool="chat"} 10.0' in balancer.metrics()


async def test_weights_count(nodes: dict[str, Node]) -> None:
    config = configuration(nodes)
    for backend, weight in zip(config["pools"]["chat"]["backends"], (0, 1, 2, 5), strict=True):
        backend["weight"] = weight
    async with Balancer(config) as balancer:
        found = await thread(Asking(balancer).spread, 800)
    for name, weight in zip(NAMES, (0, 1, 2, 5), strict=True):
        assert found[name] == pytest.approx(100 * weight, abs=50), found


async def test_a_ticket_is_for_who_asked_and_for_the_node_that_was_named(nodes: dict[str, Node]) -> None:
    key = tickets.derive_key(bytes.fromhex(SECRET), "chat")
    config = configuration(nodes, direct={"ticket": True, "expires_in": "20s"})
    async with Balancer(config) as balancer:
        client = Asking(balancer, "127.0.0.2")
        _, content = await thread(client.get, "/x?user=5&ticket=forged&%74icket=forged")
        seen = tickets.Seen()
        for url in (content["url"], *content["alternatives"]):
            parts = urlsplit(url)
            query = parse_qs(parts.query)
            assert (parts.path, query.pop("user")) == ("/x", ["5"])
            (text,) = query.pop("ticket")
            assert query == {}
            node = str(parts.netloc).removesuffix(".example.com")

            def verify(address: str, backend: str, text: str = text, **more: Any) -> tickets.Ticket:
                return tickets.verify(text, address, key=key, pool="chat", backend=backend, **more)

            good = verify("127.0.0.2", node, seen=seen)
            assert good.bound
            for address, backend in (("127.0.0.1", node), ("127.0.0.2", "app-9")):
                with pytest.raises(TicketError, match="forged"):
                    verify(address, backend)
            with pytest.raises(TicketError, match="used"):
                verify("127.0.0.2", node, seen=seen)
            with pytest.raises(TicketError, match="expired"):
                verify("127.0.0.2", node, now=good.expiry)
        assert len(seen) == 3
        _, again = await thread(client.get, "/x?user=5")
        assert again["url"] != content["url"]
        assert again["backend"] == content["backend"]


async def test_tickets_may_have_a_secret_of_their_own(nodes: dict[str, Node], tmp_path: Path) -> None:
    file = tmp_path / "tickets"
    file.write_text("ab" * 32)
    file.chmod(0o600)
    direct: dict[str, Any] = {"ticket": True, "ticket_secret_file": str(file), "ticket_address": False}
    async with Balancer(configuration(nodes, direct=direct)) as balancer:

        def verified() -> bool:
            _, content = Asking(balancer).get("/")
            (text,) = parse_qs(urlsplit(content["url"]).query)["ticket"]
            found = tickets.verify(
                text, "203.0.113.9", key=tickets.read_key(file), pool="chat", backend=content["backend"]
            )
            return not found.bound

        assert await thread(verified)
        # Health makes a new plan, which has the secret too; so has the next reload, with another one.
        nodes["app-1"].status = 500
        await until(lambda: runs(balancer)["app-1"] == "down")
        assert await thread(verified)
        file.write_text("cd" * 32)
        await balancer.reload(configuration(nodes, direct=direct))
        assert await thread(verified)


async def test_explain_says_what_the_directory_would_answer(nodes: dict[str, Node]) -> None:
    config = configuration(nodes, direct={"ticket": True})
    config["listeners"][0]["routes"] = [
        {"path": "/go", "pool": "chat", "action": "redirect", "target": "/chat"},
        {"path": "/listed", "pool": "chat", "origins": ["https://www.example.com"]},
    ]
    page = [("Connection", "close")]
    async with Balancer(config) as balancer:
        client = Asking(balancer)
        for user in range(20):
            told = balancer.explain("127.0.0.1:5", path=f"/?user={user}", headers=page)
            _, content = await thread(client.get, f"/?user={user}")
            urls = [url.partition("&ticket=")[0] for url in (content["url"], *content["alternatives"])]
            assert told["action"] == "directory"
            assert (told["backend"], told["urls"]) == (content["backend"], urls)
        told = balancer.explain("127.0.0.1:5", path="/go?user=3", headers=page)
        assert (told["action"], told["urls"]) == (
            "redirect",
            [f"https://{told['backend']}.example.com/chat?user=3"],
        )
        # A handshake is sent on, whatever the route tells others.
        for path in ("/go?user=3", "/?user=3"):
            told = balancer.explain("127.0.0.1:5", path=path)
            assert told["action"] == "redirect"
            assert told["urls"][0].startswith(f"wss://{told['backend']}.example.com/")
        evil = [*page, ("Origin", "https://evil.example")]
        told = balancer.explain("127.0.0.1:5", path="/listed", headers=evil)
        assert (told["refused"]["status"], told["urls"]) == (403, [])


async def test_the_commands_show_it(nodes: dict[str, Node], tmp_path: Path) -> None:
    nodes["app-1"].load = "0.5"
    config = configuration(nodes)
    config["balancer"]["admin"] = f"unix:{tmp_path}/admin.sock"
    async with Balancer(config, admin=True) as balancer:
        await until(lambda: backends_of(balancer)["app-1"].load == 0.5)
        _, content = await thread(Asking(balancer).get, "/x?user=5")
        assert balancer.admin is not None

        def shown(*command: str) -> str:
            given = [
                sys.executable,
                "-m",
                "pybalancer",
                command[0],
                "--admin",
                str(balancer.admin),
                *command[1:],
            ]
            environment = {**os.environ, "COLUMNS": "200"}
            return subprocess.run(given, capture_output=True, text=True, check=True, env=environment).stdout

        page = ("--header", "Connection: close", "--path", "/x?user=5", "192.0.2.1")
        lines = (await thread(shown, "explain", *page)).splitlines()
        assert f"→ directory: {content['url']}" in lines
        assert [f"  or {url}" for url in content["alternatives"]] == [
            line for line in lines if line.startswith("  or ")
        ]
        status = await thread(shown, "status")
        words = [line.replace("│", " ").split() for line in status.splitlines()]
        assert ["told", "1", "0", "0"] in words
        (row,) = (line for line in words if line[:1] == ["app-1"])
        assert row[-2:] == [str(int(content["backend"] == "app-1")), "0.5"]


async def test_the_script_is_served_where_a_directory_is(
    nodes: dict[str, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = compile.Script(b"export {};\n" * 2000, '"0123abc"')
    monkeypatch.setattr(compile, "client_script", lambda: script)
    config = configuration(nodes)
    config["listeners"] += [
        {**config["listeners"][0], "name": "silent", "client_js": False},
        {"name": "relays", "bind": "127.0.0.1:0", "mode": "websocket", "pool": "chat"},
    ]
    path = "/.pybalancer/client.js"
    async with Balancer(config) as balancer:

        def get(listener: str, method: str = "GET", **fields: str) -> tuple[http.client.HTTPResponse, bytes]:
            connection = http.client.HTTPConnection("a.test", timeout=PATIENCE)
            connection.sock = connect(balancer.bound[listener])
            connection.request(
                method, path, headers={name.replace("_", "-"): v for name, v in fields.items()}
            )
            response = connection.getresponse()
            return response, response.read()

        response, body = await thread(get, "told")
        assert (response.status, body) == (200, script.body)
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["cache-control"] == "public, max-age=3600"
        tag = response.headers["etag"]

        def known() -> None:
            for value, status in ((tag, 304), (f'"x", W/{tag}', 304), ("*", 304), ('"x"', 200)):
                answer, body = get("told", If_None_Match=value)
                assert (answer.status, answer.headers["etag"]) == (status, tag)
                assert body == (b"" if status == 304 else script.body)
            answer, body = get("told", "HEAD")
            assert (answer.headers["content-length"], body) == (str(len(script.body)), b"")
            assert get("told", "POST")[0].status == 405

        await thread(known)
        # Elsewhere the path is one like any other.
        assert json.loads((await thread(get, "silent"))[1])["url"].endswith(path)
        before = sum(node.asked for node in nodes.values())
        assert (await thread(get, "relays"))[0].headers["etag"] is None
        assert sum(node.asked for node in nodes.values()) > before
