"""Which backends get new flows."""

from __future__ import annotations

import pytest

from pybalancer.config.load import load_mapping
from pybalancer.packet.part import PacketPart
from pybalancer.policy.draining import Draining
from pybalancer.policy.health import BackendHealth

WEIGHTS = {"a": 1, "b": 2, "c": 1, "d": 0}
CONFIG = load_mapping(
    {
        "listeners": [
            {"name": "vip", "mode": "packet", "bind": "203.0.113.10:443", "pool": "chat"},
            {"name": "public", "bind": ":8080", "pool": "other"},
        ],
        "packet": {"interfaces": ["eth0"]},
        "pools": {
            "chat": {
                "backends": [
                    {"name": name, "address": f"10.0.0.{number}:443", "weight": weight}
                    for number, (name, weight) in enumerate(WEIGHTS.items(), 1)
                ]
            },
            "other": {"backends": [{"name": "a", "address": "10.0.0.1:80"}]},
        },
    }
)


@pytest.mark.parametrize(
    ("up", "drained", "takers"),
    [
        ("abcd", "", "abcd"),
        ("ad", "", "ad"),
        ("abc", "b", "ac"),
        # A check may be wrong.
        ("", "", "abcd"),
        ("d", "", "abcd"),
        ("b", "b", "acd"),
        # And nobody means to be without a service.
        ("abc", "abc", "abcd"),
    ],
)
def test_those_that_are_up_and_not_drained_or_else_the_next_best(up: str, drained: str, takers: str) -> None:
    part = PacketPart()
    part._draining = Draining(backends=frozenset(("chat", name) for name in drained))
    health = {("chat", name): BackendHealth(name in up, 1.0, "", 0.0) for name in WEIGHTS}
    health["other", "a"] = BackendHealth(True, 1.0, "", 0.0)
    assert part._takers(CONFIG, health) == {("chat", name) for name in takers}
