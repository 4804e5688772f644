"""Mode "packet" on a terminal: its part of ``status`` and of ``explain``."""

from typing import TYPE_CHECKING, Any

from pybalancer.cli.sizes import size

if TYPE_CHECKING:
    from rich.console import Console


def show_packets(console: "Console", packet: dict[str, Any]) -> None:
    """Services, machines, and what became of packets."""
    from rich.table import Table
    from rich.text import Text

    where = ", ".join(f"{name} ({how})" for name, how in packet["interfaces"].items())
    me = f", known as {packet['me']}" if packet["me"] else ""
    console.print(f"packet mode · {packet['role']}{me} · {where} · forward by {packet['forward']}")
    for name, problem in packet["problems"].items():
        console.print(Text(f"{name}: {problem}", style="red"))
    table = Table()
    for column in ("name", "address", "pool", "table"):
        table.add_column(column)
    for column in ("packets/s", "packets", "bytes", "flows", "ICMP errors", "generations"):
        table.add_column(column, justify="right")
    for service in packet["services"]:
        table.add_row(
            service["name"],
            f"{service['address']} {service['protocol']}",
            service["pool"],
            service["digest"][:12],
            f"{service['packets_per_second']:.0f}",
            str(service["packets"]),
            size(service["bytes"]),
            str(service["flows"]),
            str(service["errors"]),
            str(service["generations"]),
        )
    console.print(table)
    table = Table()
    for column in ("machine", "backends", "way"):
        table.add_column(column)
    for column in ("packets/s", "packets", "bytes", "flows", "second hops"):
        table.add_column(column, justify="right")
    for machine in packet["machines"]:
        table.add_row(
            machine["address"],
            ", ".join(machine["names"]),
            Text(_way(machine, packet["me"]), style="red" if machine["problem"] else ""),
            f"{machine['packets_per_second']:.0f}",
            str(machine["packets"]),
            size(machine["bytes"]),
            str(machine["flows"]),
            str(machine["second_hops"]),
        )
    console.print(table)
    counts = ", ".join(f"{count} {reason}" for reason, count in packet["reasons"].items())
    console.print(f"packets so far: {counts or 'none'}\n")


def _way(machine: dict[str, Any], me: str | None) -> str:
    if machine["address"] == me:
        return "this machine"
    if machine["problem"]:
        return str(machine["problem"])
    way = f"{machine['interface']} {machine['mac']}"
    return way if machine["takes_new"] else f"{way}, former owner"


def show_row(console: "Console", packet: dict[str, Any]) -> None:
    """Slot and row of a client."""
    owners = [f"{one['backend']} ({one['address']})" for one in packet["row"]]
    console.print(
        f"listener {packet['listener']}, slot {packet['slot']}: {owners[0] if owners else 'nobody'}"
    )
    if owners[1:]:
        console.print(f"former owners, to whom older connections go on: {', '.join(owners[1:])}")
