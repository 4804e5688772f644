"""What mode "packet" answers: status, and where a client's packets go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pybalancer.config.values import join
from pybalancer.packet.report import MachineStatus, PacketStatus, ServiceStatus, Speed

if TYPE_CHECKING:
    from pybalancer.packet.hops import Hop
    from pybalancer.packet.running import Running
    from pybalancer.packet.services import Service


def row(running: Running, pool: str, listener: str | None, client: str, port: int) -> dict[str, Any] | None:
    """The slot of a client and who is in its row; None if no service of this pool and listener is there.

    Raises ``_core.PacketError`` where the kernel refuses to say.
    """
    for service in running.services.values():
        if service.pool != pool or listener not in (None, service.name):
            continue
        if (":" in client) != (":" in service.where[0]) and listener is None:
            continue
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


def status(running: Running, speed: Speed) -> PacketStatus:
    """A picture of this moment."""
    section, called = running.section, names(running)
    owners = {member.host for one in running.services.values() for member in one.newest}
    return PacketStatus(
        role=section.role,
        engine=section.engine,
        forward=section.forward,
        interfaces=dict(running.modes),
        me=running.me,
        services=[_service(running, service, speed) for service in running.services.values()],
        machines=[
            _machine(running, number, hop, called.get(hop.host, []), hop.host in owners, speed)
            for number, hop in sorted(running.set_hops.items())
        ],
        reasons={reason: count for reason, count in running.forwarder.reasons().items() if count},
    )


def _service(running: Running, service: Service, speed: Speed) -> ServiceStatus:
    number = running.numbers[service.name]
    digests = running.digests[number]
    return ServiceStatus(
        name=service.name,
        address=join(service.where[0], service.where[1]),
        protocol=service.where[2],
        pool=service.pool,
        digest=digests.owners,
        history_digest=digests.rows,
        generations=len(running.tables[number].known.generations),
        moved_slots=digests.moved,
        packets_per_second=speed.of(f"service {service.name}"),
        **_some(running.forwarder.service_counts(number), "packets", "bytes", "flows", "errors"),
    )


def _machine(
    running: Running, number: int, hop: Hop, called: list[str], takes_new: bool, speed: Speed
) -> MachineStatus:
    return MachineStatus(
        address=hop.host,
        number=number,
        names=called,
        takes_new=takes_new,
        interface=hop.interface,
        mac=hop.mac.hex(":") if hop.mac is not None else None,
        problem="" if hop.host == running.me else hop.why,
        packets_per_second=speed.of(f"machine {number}"),
        **_some(running.forwarder.host_counts(number), "packets", "bytes", "flows", "second_hops"),
    )


def observe(running: Running, speed: Speed, now: float) -> None:
    """Look at the counts, for packets per second."""
    forwarder = running.forwarder
    counts = {
        f"service {name}": forwarder.service_counts(number)["packets"]
        for name, number in running.numbers.items()
    }
    counts |= {f"machine {number}": forwarder.host_counts(number)["packets"] for number in running.set_hops}
    speed.observe(now, counts)


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


def _some(counts: Mapping[str, int], *wanted: str) -> dict[str, int]:
    return {name: counts.get(name, 0) for name in wanted}
