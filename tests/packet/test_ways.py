"""The ways of checks, as the kernel has them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pyroute2
import pytest

from pybalancer.packet.marks import GUARD, Way, Ways
from tests.wire.namespace import Namespace, needs_namespaces

from .test_lifecycle import shown

VIPS = ("203.0.113.10", "2001:db8:1::10")
MACHINES = range(1, 21)
FULL_LISTS = ("get_routes", "get_neighbours", "flush_routes")

pytestmark = needs_namespaces


@pytest.fixture
def inside(place: Namespace) -> Iterator[Namespace]:
    place.own("here", "10.0.0.1/24", "fd00::1/64")
    with place.inside():
        yield place


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked for whole."""
    asked: list[str] = []

    class Asked(pyroute2.IPRoute):  # type: ignore[misc]
        pass

    def noted(name: str) -> Any:
        before = getattr(pyroute2.IPRoute, name, None)

        def ask(self: Any, *arguments: Any, **named: Any) -> Any:
            asked.append(name)
            if before is not None:
                return before(self, *arguments, **named)
            return pyroute2.IPRoute.__getattr__(self, name)(*arguments, **named)

        return ask

    for name in FULL_LISTS:
        setattr(Asked, name, noted(name))
    monkeypatch.setattr(pyroute2, "IPRoute", Asked)
    return asked


def ways() -> set[Way]:
    index = socket.if_nametoindex("here")
    return {
        Way(number, vip, "here", index, f"10.0.0.{10 + number}", f"02:00:00:00:01:{number:02x}")
        for number in MACHINES
        for vip in VIPS
    }


def there(space: Namespace) -> tuple[int, int, int]:
    """Rules, routes and neighbours of ours."""
    commands = [f"ip {family} {what}" for what in ("rule", "route show table all") for family in ("-4", "-6")]
    text = [shown(space, command).splitlines() for command in (*commands, "ip -6 neigh show nud permanent")]
    rules = [line for line in text[0] + text[1] if "fwmark 0x7062" in line]
    routes = [line for line in text[2] + text[3] if "table 18854" in line]
    return len(rules), len(routes), len([line for line in text[4] if "fe80::7062:" in line])


def test_many_machines_cost_no_long_lists(inside: Namespace, lists: list[str]) -> None:
    """Each takes as long as there are machines, or routes: that often, starts and looks took minutes."""
    made, wanted, count = Ways(), ways(), len(MACHINES)
    made.set(wanted)
    made.set(wanted, look=True)
    assert made.problems == {}
    assert there(inside) == (2 * count, 2 * count, count)
    inside.ip("-6 neigh flush nud permanent", "-4 rule flush", "-4 rule add pref 32766 lookup main")
    made.set(wanted, look=True)
    assert there(inside) == (2 * count, 2 * count, count)
    made.set({way for way in wanted if way.number > 5})
    assert there(inside) == (2 * count - 10, 2 * count - 10, count - 5)
    made.set(())
    assert there(inside) == (0, 0, 0)
    assert lists == []


def test_what_another_process_has_left_is_removed_by_one_look(inside: Namespace, lists: list[str]) -> None:
    Ways().set(ways())
    Ways.guard()
    assert there(inside)[1:] == (2 * len(MACHINES), len(MACHINES))
    Ways.clean()
    assert there(inside) == (0, 0, 0)
    assert len(lists) == len(VIPS)


WITHOUT_RULES = 9
"""AF_X25: to ask for its rules is answered as on a kernel that was started with ``ipv6.disable=1``."""


def test_a_kernel_without_ipv6_has_ways_all_the_same(
    inside: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pybalancer.packet.marks.FAMILIES", (socket.AF_INET, WITHOUT_RULES))
    with pyroute2.IPRoute() as kernel, pytest.raises(pyroute2.NetlinkError) as refused:
        kernel.rule("add", family=WITHOUT_RULES, **GUARD)
    assert refused.value.code == errno.EAFNOSUPPORT
    Ways.guard()
    Ways().set(way for way in ways() if way.vip == VIPS[0])
    assert there(inside)[0] == len(MACHINES) + 1
    Ways.clean()
    assert there(inside) == (0, 0, 0)


def test_a_way_that_was_refused_is_set_up_later_and_leaves_nothing(inside: Namespace) -> None:
    made, wanted = Ways(), {way for way in ways() if way.number == 1}
    inside.ip("link set here down")
    made.set(wanted)
    assert made.problems.keys() == {"10.0.0.11"}
    inside.ip("link set here up")
    inside.own("here", "fd00::1/64")
    made.set(wanted)
    assert made.problems == {}
    assert there(inside) == (2, 2, 1)
    made.set(())
    assert there(inside) == (0, 0, 0)
