"""VLAN tags that a network card takes off before the programs see the packet: ``hidden``.

A packet of a VLAN looks as if it had none then, and would go on into the wrong network. The kernel has the
tag beside the packet, where programs of XDP do not get at it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any


def hidden(interfaces: Collection[str]) -> dict[str, str]:
    """What is to be done, by interface, where it is. Raises OSError if the kernel cannot be asked.

    Only where there are VLANs on top of the interface: else no tags are to be expected.
    """
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        under = carriers(kernel.get_links())
    return {
        name: "packets of VLANs would go on without their tags, which its card takes off: "
        f"`ethtool -K {name} rxvlan off`"
        for name in interfaces
        if name in under and takes_off(name)
    }


def carriers(links: Iterable[Any]) -> set[str]:
    """Interfaces that VLANs of this network namespace are on top of."""
    names, under = {}, set()
    for link in links:
        names[link["index"]] = link.get_attr("IFLA_IFNAME")
        kind = link.get_attr("IFLA_LINKINFO")
        # With IFLA_LINK_NETNSID the number is one of another namespace.
        if kind is not None and kind.get_attr("IFLA_INFO_KIND") == "vlan" and not elsewhere(link):
            under.add(link.get_attr("IFLA_LINK"))
    return {name for number, name in names.items() if number in under}


def elsewhere(link: Any) -> bool:
    return link.get_attr("IFLA_LINK_NETNSID") is not None


def takes_off(interface: str) -> bool:
    """Whether VLAN tags do not get further than the card; not if it does not tell."""
    from pyroute2.ethtool.ioctl import IoctlEthtool, NoSuchDevice, NotSupportedError

    asking = IoctlEthtool(interface)
    try:
        return bool(asking.get_offload_flags()["rx-vlan-offload"])
    except (OSError, NoSuchDevice, NotSupportedError):
        return False
    finally:
        asking.close()
