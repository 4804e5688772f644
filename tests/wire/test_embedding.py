"""A balancer inside a program: ``Balancer`` under trio, ``run_in_thread`` elsewhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pybalancer import Balancer, ConfigError, StartError, run_in_thread

from .hosts import Either, Start, configuration, in_thread, under_trio
from .net import Server, connect, echoes, served, server, text_of

each = pytest.mark.parametrize("start", [under_trio, in_thread])


@pytest.fixture
def one() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture
def two() -> Iterator[Server]:
    with server() as running:
        yield running


@each
def test_it_balances_and_answers_questions(start: Start, one: Server, two: Server) -> None:
    def body(lb: Either) -> None:
        with connect(lb.bound["front"]) as client:
            assert echoes(client)
            status = lb.status()
            assert (status.pid, status.active, status.config_file) == (os.getpid(), 1, None)
            assert [listener.bound for listener in status.listeners] == [lb.bound["front"]]
            (pool,) = status.pools
            assert [backend.address for backend in pool.backends] == [one.address, two.address]
            assert status.to_dict()["pools"][0]["digest"] == pool.digest

            told = lb.explain(text_of(client.getsockname()))
            really = "app-1" if one.live else "app-2"
            assert told["backend"] == really
            assert [choice["verdict"] for choice in told["choices"]] == ["picked", "next"]
            assert [backend.active for backend in pool.backends if backend.name == really] == [1]

            samples = {
                tuple(sample.labels.values()): sample.value
                for family in text_string_to_metric_families(lb.metrics())
                if family.name == "pybalancer_backend_tunnels"
                for sample in family.samples
            }
            assert sum(samples.values()) == 1

    start(configuration(one.address, two.address), body)


@each
def test_questions_that_have_no_answer(start: Start, one: Server) -> None:
    def body(lb: Either) -> None:
        with pytest.raises(ValueError, match="nonsense"):
            lb.explain("nonsense")
        with pytest.raises(LookupError, match="there are: pool"):
            lb.explain("192.0.2.1:1", "another")

    start(configuration(one.address), body)


async def test_reload_by_mapping_and_by_path(one: Server, two: Server, tmp_path: Path) -> None:
    async with Balancer(configuration(one.address)) as lb:
        with connect(lb.bound["front"]) as kept:
            assert echoes(kept)
            result = await lb.reload(configuration(one.address, two.address))
            assert "backend pool/app-2 added" in result.changes
            assert result.generation == lb.status().generation
            file = write(tmp_path / "lb.toml", two.address)
            await lb.reload(file)
            assert lb.status().config_file == str(file)
            write(file, one.address, two.address)
            assert "backend pool/app-2 added" in (await lb.reload()).changes
            assert echoes(kept)


def test_reload_by_mapping_and_by_path_from_another_thread(one: Server, two: Server, tmp_path: Path) -> None:
    with run_in_thread(configuration(one.address)) as lb, connect(lb.bound["front"]) as kept:
        assert echoes(kept)
        assert "backend pool/app-2 added" in lb.reload(configuration(one.address, two.address)).changes
        lb.reload(write(tmp_path / "lb.toml", two.address))
        assert lb.status().config_file == str(tmp_path / "lb.toml")
        assert lb.reload().changes == []
        assert echoes(kept)


def write(file: Path, *backends: str) -> Path:
    lines = ["[balancer]", "workers = 1", f'secret = "{bytes(range(16)).hex()}"']
    lines += ["[[listeners]]", 'name = "front"', 'bind = "127.0.0.1:0"', 'pool = "pool"']
    for number, address in enumerate(backends, 1):
        lines += ["[[pools.pool.backends]]", f'name = "app-{number}"', f'address = "{address}"']
    file.write_text("\n".join(lines))
    return file


def test_a_reload_that_fails_changes_nothing(one: Server, tmp_path: Path) -> None:
    with run_in_thread(configuration(one.address)) as lb, connect(lb.bound["front"]) as kept:
        assert echoes(kept)
        before = lb.status()
        with pytest.raises(ConfigError) as wrong:
            lb.reload({"listeners": [{"name": "front"}], "surplus": 1})
        assert {problem.key for problem in wrong.value.problems} >= {"surplus", "listeners[0].bind"}
        with pytest.raises(StartError) as taken:
            lb.reload(configuration(one.address, bind=one.address))
        assert (taken.value.errno, taken.value.filename) == (errno.EADDRINUSE, one.address)
        with pytest.raises(ConfigError, match="No such file"):
            lb.reload(tmp_path / "missing.toml")
        after = lb.status()
        assert (after.generation, after.listeners[0].bound) == (before.generation, before.listeners[0].bound)
        assert after.last_reload is not None
        assert not after.last_reload.ok
        assert echoes(kept)
        assert served(lb.bound["front"])
