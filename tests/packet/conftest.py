"""Hosts of packet mode in network namespaces of their own."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from pybalancer import _core
from tests.wire.namespace import Namespace, namespace


@functools.cache
def _lacking() -> str:
    return "; ".join(_core.packet_support())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where the kernel refuses packet mode there is nothing to test; with what reason it says itself."""
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
