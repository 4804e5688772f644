"""What nftables is told: ``Rules``, and the transaction from one set of rules to another. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pybalancer.packet.forwarder import NFT_TABLE

TABLE: Final = f"netdev {NFT_TABLE}"
PRIORITY: Final = -500
"""Before what other tables do with packets that come in."""

Device = tuple[str, int]
"""Name and number: an interface that was removed and made again is another one."""


@dataclass(frozen=True, slots=True)
class Rules:
    """All that is in our table. Rules are as ``nft`` reads them, without what chain they are of."""

    devices: frozenset[Device] = frozenset()
    ingress: tuple[str, ...] = ()
    """For what comes by the devices."""
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Chains that others go to."""
    sets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Of hardware addresses."""
    counters: Mapping[str, Hashable] = field(default_factory=dict)
    """Each with what it counts: it begins anew when that is something else."""

    def since(self, before: Rules | None) -> Iterator[str]:
        """The lines that make this of ``before``, and of whatever is there if that is not known.

        What stays is not touched, above all not its counters. First goes what refers to something, then that.
        """
        yield f"add table {TABLE}"
        if before is None:
            yield f"delete table {TABLE}"
            yield f"add table {TABLE}"
            before = Rules()
        hooked = self.devices == before.devices
        ingress = not hooked or self.ingress != before.ingress
        if ingress and before.devices:
            if not hooked:
                # With its last device the kernel may have removed the chain; so it may be added here.
                yield f"add chain {TABLE} ingress"
            yield f"flush chain {TABLE} ingress"
            if not hooked:
                yield f"delete chain {TABLE} ingress"
        # A counter can be removed only when no rule refers to it: those of a chain have its name.
        changed = {
            name
            for name, rules in self.chains.items()
            if (rules, self.counters.get(name)) != (before.chains.get(name), before.counters.get(name))
        }
        gone = before.chains.keys() - self.chains.keys()
        for name in sorted(changed & before.chains.keys() | gone):
            yield f"flush chain {TABLE} {name}"
        for name in sorted(gone):
            yield f"delete chain {TABLE} {name}"
        yield from self._sets(before)
        for name in sorted(before.counters):
            if self.counters.get(name) != before.counters[name]:
                yield f"delete counter {TABLE} {name}"
        for name in sorted(self.counters):
            if self.counters[name] != before.counters.get(name):
                yield f"add counter {TABLE} {name}"
        for name in sorted(changed - before.chains.keys()):
            yield f"add chain {TABLE} {name}"
        for name in sorted(changed):
            yield from (f"add rule {TABLE} {name} {rule}" for rule in self.chains[name])
        if ingress and self.devices:
            yield from self._ingress(hooked)

    def _sets(self, before: Rules) -> Iterator[str]:
        for name in sorted(before.sets.keys() - self.sets.keys()):
            yield f"delete set {TABLE} {name}"
        for name, macs in sorted(self.sets.items()):
            known = before.sets.get(name)
            if known is None:
                yield f"add set {TABLE} {name} {{ type ether_addr; }}"
            elif known - macs:
                yield f"delete element {TABLE} {name} {{ {', '.join(sorted(known - macs))} }}"
            if new := macs - (known or frozenset()):
                yield f"add element {TABLE} {name} {{ {', '.join(sorted(new))} }}"

    def _ingress(self, hooked: bool) -> Iterator[str]:
        if not hooked:
            devices = ", ".join(f'"{name}"' for name, _ in sorted(self.devices))
            hook = f"type filter hook ingress devices = {{ {devices} }} priority {PRIORITY};"
            yield f"add chain {TABLE} ingress {{ {hook} }}"
        yield from (f"add rule {TABLE} ingress {rule}" for rule in self.ingress)
