"""Hosts of packet mode in network namespaces: one alone, and sites with fleets for each way of forwarding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pybalancer import _core
from tests.wire.namespace import Namespace, namespace

from .fleet import Fleet, Plan, fleet
from .talks import Talks, talks
from .topology import Site, site


@functools.cache
def _lacking() -> str:
    return "; ".join(_core.packet_support())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where the kernel refuses packet mode there is nothing to test; it says itself why."""
    for item in items:
        if "tests/packet/" in item.nodeid and item.get_closest_marker("pure") is None and _lacking():
            item.add_marker(pytest.mark.skip(reason=f"no packet mode here: {_lacking()}"))


@pytest.fixture
def place() -> Iterator[Namespace]:
    """A namespace with the interfaces ``here`` and ``there``, whose MACs are those of the vectors' host."""
    with namespace() as one, namespace() as other:
        for name, mac in (("here", "02:00:00:00:00:01"), ("there", "02:00:00:00:00:02")):
            one.join(other, name, f"to-{name}")
            one.ip(f"link set {name} address {mac}")
        yield one


Start = Callable[..., tuple[Site, Fleet, Talks]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(
            forward: str = "l2", *, present: int = 4, directors: int = 3, backends: int = 4, **options: Any
        ) -> tuple[Site, Fleet, Talks]:
            """A site, its fleet with the first ``present`` backends, and their servers."""
            secrets = options.pop("secrets", ())
            made = stack.enter_context(site(directors, backends, apart=forward == "ipip"))
            talking = stack.enter_context(talks(made.client))
            for machine in made.backends:
                talking.serve(machine)
            if forward == "ipip":
                # What has an outer header does not fit otherwise.
                made.client.ip(
                    "route replace default via 10.9.0.1 mtu 1400",
                    "-6 route replace default via fd00:9::1 mtu 1400",
                )
            plan = Plan(forward, made.backends[:present], **options)
            return made, stack.enter_context(fleet(made, tmp_path, plan, secrets=secrets)), talking

        yield started
