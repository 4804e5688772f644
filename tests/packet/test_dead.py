from __future__ import annotations

import pytest

from tests.wire.namespace import needs_namespaces

from .conftest import Start
from .test_site import CHECK, open_both

pytestmark = needs_namespaces


@pytest.mark.parametrize("removed", [False, True])
def test_dead(start: Start, removed: bool) -> None:
    site, fleet, talking = start(backends=5, present=3, health=CHECK)
    open_both(talking, 300)
    for name in ("b4", "b5"):
        machine = next(one for one in site.backends if one.name == name)
        fleet.plan.backends = [*fleet.plan.backends, machine]
        fleet.start_agent(machine, fleet.plan).ready()
        fleet.apply(fleet.plan)
    assert talking.lost(talking.conversations) == []
    if removed:
        fleet.plan.weights = {"b4": 0}
        fleet.apply(fleet.plan)
        fleet.plan.backends = [one for one in fleet.plan.backends if one.name != "b4"]
        fleet.apply(fleet.plan)
    victim = fleet.agents.pop("b4")
    victim.machine.off()
    victim.process.kill()
    victim.close()
    if not removed:
        for serving in fleet.directors.values():
            serving.line("chat/b4 is down")
    others = [one for one in talking.conversations if one.server != "b4"]
    lost = talking.lost(others, 30)
    print("LOST", len(lost), [one.server for one in lost], "hits", len(others))
    assert lost == []
