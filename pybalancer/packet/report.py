"""What mode "packet" says of itself: ``PacketStatus``, and how fast packets come. Goes into JSON as it is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One listener of mode "packet". Counts since the kernel's part was set up."""

    name: str
    address: str
    protocol: str
    pool: str
    digest: str
    """Of who owns which slot: equal on directors that decide equally."""
    history_digest: str
    """The same with the former owners: equal on hosts that have seen the same changes."""
    generations: int
    moved_slots: int
    """Slots that have another owner than in the generation before."""
    packets: int
    bytes: int
    flows: int
    """Begun: SYN."""
    errors: int
    """ICMP, by the packet that it is about."""
    packets_per_second: float


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """One machine that packets go to, or went to before. ``names`` are those of its backends."""

    address: str
    number: int
    """In rows."""
    names: list[str]
    takes_new: bool
    """It owns slots of some service."""
    interface: str | None
    mac: str | None
    problem: str
    """Why packets cannot get there; "" if they can."""
    packets: int
    bytes: int
    flows: int
    second_hops: int
    """Sent to it because this machine had no such connection."""
    packets_per_second: float


@dataclass(frozen=True, slots=True)
class PacketStatus:
    """All of it."""

    role: str
    engine: str
    forward: str
    interfaces: dict[str, str]
    """Each with how it is attached: native, generic, nftables."""
    problems: dict[str, str]
    """Of those interfaces, and addresses of services, that have one."""
    me: str | None
    """Of a backend: the address that rows know it by."""
    services: list[ServiceStatus]
    machines: list[MachineStatus]
    reasons: dict[str, int]
    """Packets by what became of them; those that came up only."""


@dataclass(slots=True)
class Speed:
    """Packets per second, from counts that are looked at now and then."""

    _before: dict[Hashable, tuple[float, int]] = field(default_factory=dict)
    _rates: dict[Hashable, float] = field(default_factory=dict)

    def observe(self, now: float, counts: Mapping[Hashable, int]) -> None:
        for name, count in counts.items():
            then, before = self._before.get(name, (now, count))
            if now > then:
                # Fewer than before: it was dropped and came again, and has counted since.
                self._rates[name] = (count - before if count >= before else count) / (now - then)
            self._before[name] = now, count
        for name in self._before.keys() - counts.keys():
            del self._before[name]
            self._rates.pop(name, None)

    def of(self, name: Hashable) -> float:
        return round(self._rates.get(name, 0.0), 1)
