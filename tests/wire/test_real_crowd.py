"""Thousands of WebSockets at once, of three kinds of clients, spread over three kinds of servers."""

from __future__ import annotations

import json
import math
import resource
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from .backends import backends
from .crowd import AsyncioCrowd, Crowd, RawCrowd, TrioCrowd
from .front import ALL, Front, configuration
from .net import until
from .serving import Serve

EACH = 1100
"""Members of each crowd."""
ROUNDS = 3
"""Messages of each member."""
SIGMAS = 5
"""How far a backend's number may be off what it expects: by chance once in a million runs."""


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many as are allowed, for this process and the servers that it starts."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 8 * EACH
    if before[1] != resource.RLIM_INFINITY and before[1] < needed:
        pytest.skip(f"needs {needed} file descriptors, {before[1]} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def in_step(steps: list[Callable[[], Awaitable[None]]]) -> None:
    async with trio.open_nursery() as nursery:
        for step in steps:
            nursery.start_soon(step)


@pytest.mark.usefixtures("descriptors")
async def test_thousands_at_once_are_spread_as_the_table_says(serve: Serve, tmp_path: Path) -> None:
    with backends("websockets", "autobahn", "uvicorn") as servers:
        file = tmp_path / "pybalancer.toml"
        file.write_text(configuration(servers))
        front = Front(serve(file), servers)
        with AsyncioCrowd(front.address, EACH) as on_asyncio:
            async with trio.open_nursery() as nursery:
                crowds: list[Crowd] = [
                    on_asyncio,
                    RawCrowd(front.address, EACH),
                    TrioCrowd(front.address, EACH, nursery),
                ]
                everybody = [member for crowd in crowds for member in crowd.members]
                await in_step([crowd.open for crowd in crowds])
                for _ in range(ROUNDS):
                    await in_step([crowd.talk for crowd in crowds])
                assert front.status()["active"] == len(everybody) == 3 * EACH
                then = front.backends()
                await in_step([crowd.close for crowd in crowds])

        # Each was where it belongs, for itself and all together.
        table = json.loads(front.serving.ask("table", "--json").stdout)[ALL]
        assert front.plan.digest(ALL) == table["digest"]
        for member in everybody:
            assert front.order(member.local)[0] == member.server
        explained = json.loads(front.serving.ask("explain", everybody[0].local, "--json").stdout)
        assert explained["backend"] == everybody[0].server
        spread = Counter(member.server for member in everybody)
        for name, share in table["shares"].items():
            assert then[name]["active"] == spread[name]
            expected = len(everybody) * share
            assert abs(spread[name] - expected) < SIGMAS * math.sqrt(expected * (1 - share)), spread

        # Each ended as it should, for itself, for its server and for the balancer.
        assert Counter(member.code for member in everybody) == {1000: len(everybody)}
        until(
            lambda: sum(len(server.ended) for server in servers) == len(everybody), "the ends at the servers"
        )
        for server in servers:
            assert Counter(code for code, _ in server.ended) == {1000: spread[server.name]}
        records = until(
            lambda: len(found := front.records()) == len(everybody) and found, "the records of all"
        )
        for member in everybody:
            record = records[member.local]
            assert (record["reason"], record["backend"]) == ("finished", member.server)
        assert front.status()["active"] == 0
