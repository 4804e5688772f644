"""The host that the packets of tests/vectors/packet.json come to, as the file tells it."""

from __future__ import annotations

from typing import Any

from tests.model.packet import Host, Way, rows


def host(world: dict[str, Any], role: str) -> Host:
    """A director or an agent of this world."""
    secret, size = bytes.fromhex(world["secret"]), world["size"]
    ways = {}
    for way in world["backends"]:
        ways[way["id"]] = Way(
            address=way["address"],
            mac=bytes.fromhex(way["mac"]) if way["mac"] else None,
            from_mac=bytes.fromhex(world["macs"][way["interface"]]),
            same_interface=way["interface"] == "here",
            source=way["source"],
        )
    services = {}
    for service in world["services"]:
        generations = [[(name, weight, id) for name, weight, id in one] for one in service["generations"]]
        key = (service["address"], service["port"], {"tcp": 6, "udp": 17}[service["protocol"]])
        services[key] = rows(secret, generations, size)
    mac = bytes.fromhex(world["macs"]["here"])
    trusted = tuple(world["trusted"]) if world.get("trusted") is not None else None
    return Host(role, secret, size, mac, ways, services, world["mtu"], world["me"], trusted)
