"""What the kernel refused once is tried again: packets must not go on to a backend that is down."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from pybalancer import Balancer, StartError

from ..wire.balancing import configuration, until
from ..wire.net import server


async def test_a_change_of_health_that_packets_did_not_follow_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with server() as stays:
        with server() as goes:
            backends = {"app-1": stays.address, "app-2": goes.address}
            health = {"kind": "tcp", "interval": "50ms", "timeout": "1s", "rise": 1, "fall": 1}
            balancer = Balancer(configuration(backends, health=health), admin=False)
            await balancer.__aenter__()
        asked: list[set[str]] = []

        async def apply(
            _config: Any, _addresses: Any, takers: Collection[tuple[str, str]], _secret: bytes
        ) -> None:
            asked.append({name for _, name in takers})
            if len(asked) == 1:
                raise StartError("no buffer space available")

        try:
            monkeypatch.setattr(balancer._packet, "apply", apply)
            balancer._packets_wanted = True
            await until(lambda: asked[1:], "a second try")
            assert asked[:2] == [{"app-1"}, {"app-1"}]
        finally:
            balancer._packets_wanted = False
            await balancer.__aexit__(None, None, None)
