"""Which of the other machines are there, as a backend sees it: ``Peers``.

Packets of others' connections go by them, and one that has died, or was switched off after it had left,
swallows what gets to it. So backends ask each other, and those that have left, whatever checks a pool has: a
server that is being restarted has a machine that sends packets on.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Final

import trio

from pybalancer.config.values import join
from pybalancer.policy.settings import Check
from pybalancer.tasks.probes import probe

PATIENCE: Final = 1.0
"""Seconds that one has to answer."""
MISSES: Final = 3
"""In a row, and it is silent. One answer makes up for all."""
RATE: Final = 25
"""Questions a second at most, over a round of them."""
SILENT: Final = "it does not answer, so others are asked before it for connections"
QUESTION: Final = Check(kind="tcp", timeout=PATIENCE, refused=True)

Peer = tuple[str, int]
"""Address and port."""


class Peers:
    """Asks them, round by round."""

    def __init__(self) -> None:
        self._misses: dict[str, int] = {}

    async def ask(self, peers: Collection[Peer], silent: Collection[str]) -> frozenset[str]:
        """Who is silent now, by address, if ``silent`` were. Takes as long as there may not be another round.

        A round in which nobody answers says nothing: this machine is cut off itself, or they may not ask each
        other.
        """
        hosts = {host for host, _ in peers}
        before = {host: self._misses.get(host, MISSES if host in silent else 0) for host in hosts}
        self._misses = dict(before)
        async with trio.open_nursery() as nursery:
            for host, port in sorted(peers):
                nursery.start_soon(partial(self._ask, host, port))
                await trio.sleep(1 / RATE)
            await trio.sleep(PATIENCE)
        if all(self._misses[host] > before[host] for host in hosts):
            self._misses = before
            return frozenset(hosts & set(silent))
        return frozenset(
            host for host, misses in self._misses.items() if misses >= MISSES or (misses and host in silent)
        )

    async def _ask(self, host: str, port: int) -> None:
        try:
            result = await probe(QUESTION, join(host, port))
        except ValueError:
            return  # What has been written down of it is no address.
        if result.ok:
            self._misses[host] = 0
        elif not result.ours:
            self._misses[host] += 1
