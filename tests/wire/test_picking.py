"""Which backend takes a client when the first choice does not, and how long one is looked for."""

from __future__ import annotations

import contextlib

import pytest

from pybalancer._core import BackendSpec, Engine, ListenerSpec, Plan, PoolSpec
from pybalancer.stats.reader import Stats

from .net import SECRET, connect, echoes, proxy, refused, reserved, server, text_of, until


def test_a_backend_too_light_for_a_slot_serves_when_no_other_does() -> None:
    """Beside weights this great its share of the table is less than one slot of 65537."""
    with reserved() as nobody, server() as backend, contextlib.closing(Engine(workers=1)) as engine:
        backends = [
            BackendSpec(name="heavy-1", address=nobody, weight=65535, state="down"),
            BackendSpec(name="heavy-2", address=nobody, weight=65535, state="down"),
            BackendSpec(name="light", address=backend.address),
        ]
        plan = Plan(
            listeners=[ListenerSpec(name="front", bind="127.0.0.1:0", pool="pool")],
            pools=[PoolSpec(name="pool", backends=backends)],
            secret=SECRET,
        )
        assert plan.shares("pool")["light"] == 0.0
        engine.apply(plan)
        for _ in range(10):
            with connect(engine.bound()["front"]) as client:
                # Before a tunnel counts, so that both say the same.
                source = text_of(client.getsockname())
                assert echoes(client)
                for choices in (plan.explain("pool", source), engine.explain("pool", source)):
                    verdicts = {choice.backend: choice.verdict for choice in choices}
                    assert verdicts == {"heavy-1": "down", "heavy-2": "down", "light": "picked"}
                    assert len(choices) == 3


@pytest.mark.parametrize("policy", ["maglev", "least-connections", "round-robin", "random-two"])
def test_without_a_usable_source_a_client_costs_no_walk_through_a_large_pool(policy: str) -> None:
    backends, tries = 100, 2
    pool = {"policy": policy, "sources": ["192.0.2.1"], "tries": tries}
    with (
        reserved() as nobody,
        proxy([nobody] * backends, pool=pool) as balancer,
        Stats(fd=balancer.engine.stats_fd) as stats,
    ):
        for clients in range(1, 4):
            assert refused(balancer.address)
            until(lambda clients=clients: len(balancer.log()) == clients)  # type: ignore[misc]
            asked = sum(stats.backend("pool", f"b{index}").connects for index in range(backends))
            assert clients <= asked <= clients * 4 * tries
        assert "192.0.2.1: " in (until(lambda: balancer.events("source-failed"))[0].message or "")
