"""Interfaces whose card hides the tags of VLANs, and how one hears of that and of other trouble."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2.ethtool.ioctl import IoctlEthtool

from pybalancer.packet import tags
from tests.wire.namespace import Namespace, needs_namespaces
from tests.wire.net import until

from .conftest import Start


class Link(dict[str, Any]):
    """As the kernel tells of one."""

    def __init__(self, index: int, name: str, kind: str | None = None, **attributes: int) -> None:
        super().__init__(index=index)
        about = Info(IFLA_INFO_KIND=kind) if kind is not None else None
        self._attributes = Info(IFLA_IFNAME=name, IFLA_LINKINFO=about, **attributes)

    def get_attr(self, name: str) -> Any:
        return self._attributes.get(name)


class Info(dict[str, Any]):
    def get_attr(self, name: str) -> Any:
        return self.get(name)


def test_interfaces_under_vlans_are_found() -> None:
    links = [
        Link(1, "lo"),
        Link(7, "eth1.5", "vlan", IFLA_LINK=3),
        Link(2, "eth0"),
        Link(3, "eth1"),
        Link(4, "eth2", "veth", IFLA_LINK=2),
        Link(5, "eth3"),
        # Their interfaces are in another namespace, where numbers begin anew.
        Link(8, "eth9.5", "vlan", IFLA_LINK=5, IFLA_LINK_NETNSID=0),
        Link(9, "macvlan0", "macvlan", IFLA_LINK=2),
    ]
    assert tags.carriers(links) == {"eth1"}


def turn(interface: str, on: bool) -> None:
    asking = IoctlEthtool(interface)
    asking.set_offload_flag("rx-vlan-offload", int(on))
    asking.close()


@needs_namespaces
def test_it_is_asked_of_the_card(place: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with place.inside():
        assert tags.hidden(["here", "there"]) == {}, "no VLAN is on top"
        # Not every kernel that tests run on has VLANs.
        monkeypatch.setattr(
            tags, "carriers", lambda links: {str(one.get_attr("IFLA_IFNAME")) for one in links}
        )
        turn("there", False)
        said = tags.hidden(["here", "there", "nowhere"])
        assert list(said) == ["here"]
        assert "`ethtool -K here rxvlan off`" in said["here"]
        turn("here", False)
        turn("there", True)
        assert list(tags.hidden(["here", "there"])) == ["there"]
        assert not tags.takes_off("nowhere")


@needs_namespaces
def test_status_tells_what_is_wrong_with_an_interface(start: Start) -> None:
    site, fleet, _ = start(directors=1, backends=1, present=1)
    director = fleet.directors["d1"]
    site.directors[0].space.ip("link add spare type veth peer name spare-end", "link set spare up")
    fleet.plan.interfaces = ("eth0", "spare")
    fleet.apply(fleet.plan, [director])
    assert set(director.packet()["interfaces"]) == {"eth0", "spare"}
    assert director.packet()["problems"] == {}
    site.directors[0].space.ip("link del spare")
    until(lambda: director.packet()["problems"] == {"spare": "there is no such interface"}, "it is told")
    assert "spare: there is no such interface" in director.ask("status").stdout
