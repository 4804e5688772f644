"""Costs of single steps, by pytest-benchmark: ``pytest bench/micro`` (part of ``make bench``).

The targets stand beside each; nothing here fails for being slow, since a shared machine may be.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pybalancer._core import BackendSpec, Engine, ListenerSpec, Plan, PoolSpec, probe
from pybalancer.config import load
from pybalancer.config.compile import compile_plan
from pybalancer.stats.reader import Stats

SECRET = bytes(range(16))
LOOKUPS = 1_000_000


def names(count: int) -> list[tuple[str, int]]:
    return [(f"app-{number}", 1) for number in range(count)]


def plan(backends: int, **pool: Any) -> Plan:
    specs = [
        BackendSpec(name=name, address=f"10.0.{i >> 8}.{i & 255}:80")
        for i, (name, _) in enumerate(names(backends))
    ]
    return Plan(
        listeners=[ListenerSpec(name="front", bind="127.0.0.1:0", pool="pool")],
        pools=[PoolSpec(name="pool", backends=specs, **pool)],
        secret=SECRET,
    )


@pytest.mark.parametrize("backends", [10, 100, 1000])
def test_table_of_65537(benchmark: Any, backends: int) -> None:
    """Target: at most 5 ms with 1,000 backends. Includes handing the slots to Python as a list."""
    table = benchmark(probe.maglev_table, SECRET, names(backends), 65537)
    assert len(table) == 65537


@pytest.mark.parametrize("backends", [10, 1000])
def test_plan_with_a_table_of_65537(benchmark: Any, backends: int) -> None:
    """The same as a reload does it, without the list. Target: at most 5 ms with 1,000 backends."""
    assert benchmark(plan, backends).shares("pool")


@pytest.mark.parametrize("backends", [10, 1000])
def test_a_million_lookups(benchmark: Any, backends: int) -> None:
    """Hash of the source and look-up, one after the other. Target: at most 20 ms (20 ns each)."""
    built = plan(backends)
    assert benchmark(probe.lookups, built, "pool", LOOKUPS) > 0


def test_compile_a_configuration_of_1000_backends(benchmark: Any) -> None:
    """From text to plan, everything checked; the tables are shared, as in a reload."""
    text = '[[listeners]]\nname = "front"\nbind = "127.0.0.1:0"\npool = "pool"\n' + "".join(
        f'[[pools.pool.backends]]\nname = "{name}"\naddress = "10.0.{i >> 8}.{i & 255}:80"\n'
        for i, (name, _) in enumerate(names(1000))
    )
    addresses = {("pool", name): f"10.0.{i >> 8}.{i & 255}:80" for i, (name, _) in enumerate(names(1000))}

    def reload() -> Plan:
        return compile_plan(load.load_text(text, "pybalancer.toml", {}), addresses, {}, SECRET, before)

    before = None
    before = reload()
    assert benchmark(reload).shares("pool")


def test_read_the_statistics_of_1000_backends(benchmark: Any) -> None:
    """Every counter of every backend, summed over two workers, while they run."""
    engine = Engine(workers=2)
    engine.apply(plan(1000))
    with Stats(fd=engine.stats_fd) as stats:
        read = benchmark(lambda: [stats.backend_at(e.index) for e in stats.entries() if e.kind == "backend"])
    engine.close()
    assert len(read) == 1000


def test_help(benchmark: Any, tmp_path: Path) -> None:
    """``pybalancer --help`` as a process. Target: at most 150 ms."""
    command = [str(Path(sys.executable).with_name("pybalancer")), "--help"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = benchmark(subprocess.run, command, env=environment, capture_output=True, check=True)
    assert b"serve" in done.stdout
