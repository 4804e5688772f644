"""``[packet]``: a part of the one definition, ``pybalancer/config/model.py``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pybalancer.config.section import Section
from pybalancer.config.values import Interface, Name, Network, Truth, Whole


class PacketConfig(Section):
    """How this machine takes part in mode `packet`, for all listeners of that mode. See packet.md."""

    role: Literal["director", "backend"] = Field(
        "director",
        description="`director`: spread the packets over the backends. `backend`: this machine is one of "
        "them; take packets out of their IPIP, and pass on those of connections that a former owner has. So "
        "one file serves a whole fleet, with `PYBALANCER_PACKET_ROLE` on the backends.",
    )
    interfaces: tuple[Interface, ...] = Field(
        (),
        description="Network interfaces on which the packets arrive, and those that lead to backends. "
        "Needed where a listener is of mode `packet`.",
        examples=[["eth0"]],
    )
    forward: Literal["l2", "ipip"] = Field(
        "l2",
        description="How packets get to a backend. `l2`: with its hardware address, so it must be on the "
        "same link (IPVS: gatewaying, direct routing). `ipip`: in an outer IP packet, so it may be anywhere "
        "(IPVS: tunneling; Katran).",
    )
    engine: Literal["xdp", "nftables"] = Field(
        "xdp",
        description="What forwards: a BPF program, or rules for `nft` where BPF is not allowed. These hash "
        "in another way, only forward by `l2`, and know no former owners.",
    )
    xdp: Literal["auto", "native", "generic"] = Field(
        "auto",
        description="Where the program runs: in the driver (`native`), or after it (`generic`), which every "
        "driver can do, slower. `auto`: native where that is possible. Taken when an interface is attached.",
    )
    mtu: Annotated[Whole, Field(ge=576, le=65535)] = Field(
        1500,
        description="Bytes of a packet that fit between directors and backends, with `ipip` the outer header "
        "among them. Larger ones are counted and dropped.",
    )
    source: Network | None = Field(
        None,
        description="With `ipip`: source address of the outer packets, or a network from which it varies "
        "with the flow, so that routers and network cards spread them. Routers must let these pass. "
        "Default: this machine's address on the way; for packets that a backend passes on, the address that "
        "the file has for it.",
        examples=["172.16.0.0/16"],
    )
    directors: Annotated[tuple[Network, ...], Field(max_length=1000)] = Field(
        (),
        description="With `ipip`: addresses or networks that the outer packets of directors come from. A "
        "backend takes packets out of these alone, and out of those of the other backends and of `source`, "
        "where that is set; of others they are dropped and counted. A network that new backends will be in "
        "may be named, too. Default: out of anybody's.",
        examples=[["10.0.0.1", "10.0.1.0/28"]],
    )
    backend: Name | None = Field(
        None,
        description='With `role = "backend"`: which one this is, where its address does not tell.',
    )
    manage_vip: Truth = Field(
        True,
        description='With `role = "backend"`: add the addresses of the listeners to `lo` and see that nobody '
        "else hears of them (`arp_ignore`, `arp_announce`).",
    )
