"""What mode "packet" answers: status, and where a client's packets go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pybalancer.config.values import join
from pybalancer.packet.forwarder import Count
from pybalancer.packet.peers import SILENT
from pybalancer.packet.report import MachineStatus, PacketStatus, ServiceStatus
from pybalancer.packet.running import machine_problems

if TYPE_CHECKING:
    from pybalancer.packet.counting import Counting
    from pybalancer.packet.hops import Hop
    from pybalancer.packet.running import Running
    from pybalancer.packet.services import Service


def row(running: Running, pool: str, listener: str | None, client: str, port: int) -> dict[str, Any] | None:
    """The slot of a client and who is in its row; None if no service of this pool and listener is there.

    Raises ``_core.PacketError`` where the kernel refuses to say, ValueError for a client of another family.
    """
    for service in running.services.values():
        if service.pool != pool or listener not in (None, service.name):
            continue
        if (":" in client) != (":" in service.where[0]):
            if listener is None:
                continue
            raise ValueError(f"no packet for {service.where[0]} (listener {listener}) comes from {client}")
        found = running.forwarder.row(running.numbers[service.name], client, port)
        hosts = {number: host for host, number in running.state.numbers.by_host.items()}
        called = names(running)
        slot, numbers = found if found is not None else (None, ())
        return {
            "listener": service.name,
            "slot": slot,
            "row": [
                {"backend": (called.get(hosts.get(number, "")) or ["?"])[0], "address": hosts.get(number)}
                for number in numbers
                if number
            ],
        }
    return None


def status(running: Running, counting: Counting) -> PacketStatus:
    """A picture, with what was counted last. Asks nobody."""
    section, called = running.section, names(running)
    owners = {member.host for one in running.services.values() for member in one.newest}
    # While a change is under way in its thread, some are not there yet, or not any more.
    there = [
        (number, service)
        for service in running.services.values()
        if (number := running.numbers.get(service.name)) in running.digests.keys() & running.tables.keys()
    ]
    return PacketStatus(
        role=section.role,
        engine=section.engine,
        forward=section.forward,
        interfaces=dict(running.modes),
        problems={name: why for name, why in machine_problems(running).items() if why},
        me=running.me,
        services=[_service(running, number, service, counting) for number, service in there],
        machines=[
            _machine(running, number, hop, called.get(hop.host, []), hop.host in owners, counting)
            for number, hop in sorted(running.set_hops.items())
        ],
        reasons={reason: count for reason, count in counting.counts.reasons.items() if count},
    )


def _service(running: Running, number: int, service: Service, counting: Counting) -> ServiceStatus:
    digests, counted = running.digests[number], counting.counts.services.get(number, Count())
    return ServiceStatus(
        name=service.name,
        address=join(service.where[0], service.where[1]),
        protocol=service.where[2],
        pool=service.pool,
        digest=digests.owners,
        history_digest=digests.rows,
        generations=len(running.tables[number].known.generations),
        moved_slots=digests.moved,
        packets=counted.packets,
        bytes=counted.bytes,
        flows=counted.flows,
        errors=counted.others,
        packets_per_second=counting.speed_of_service(number, service.where),
    )


def _machine(
    running: Running, number: int, hop: Hop, called: list[str], takes_new: bool, counting: Counting
) -> MachineStatus:
    counted = counting.counts.hosts.get(number, Count())
    return MachineStatus(
        address=hop.host,
        number=number,
        names=called,
        takes_new=takes_new,
        interface=hop.interface,
        mac=hop.mac.hex(":") if hop.mac is not None else None,
        problem=_problem(running, hop),
        packets=counted.packets,
        bytes=counted.bytes,
        flows=counted.flows,
        second_hops=counted.others,
        packets_per_second=counting.speed_of_host(number, hop.host),
    )


def _problem(running: Running, hop: Hop) -> str:
    if hop.host == running.me:
        return ""
    silent = SILENT if hop.host in running.arrangement.silent else ""
    return hop.why or running.ways.problems.get(hop.host, "") or silent


def names(running: Running) -> dict[str, list[str]]:
    """Of the backends that machines are, or were."""
    found: dict[str, list[str]] = {}
    for service in running.services.values():
        for member in service.all:
            called = found.setdefault(member.host, [])
            if member.name not in called:
                called.append(member.name)
    for history in running.state.histories.values():
        for each in (*history.generations, history.joined):
            for member in each:
                found.setdefault(member.host, [member.name])
    return found
