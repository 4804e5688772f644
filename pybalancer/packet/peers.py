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

        One that hears of nobody is cut off itself, or they may not ask each other: then nobody is silent.
        """
        found = dict.fromkeys((host for host, _ in peers), False)
        self._misses = {host: self._misses.get(host, 0) for host in found}
        async with trio.open_nursery() as nursery:
            for host, port in sorted(peers):
                nursery.start_soon(partial(self._ask, host, port))
                await trio.sleep(1 / RATE)
            await trio.sleep(PATIENCE)
        for host, misses in self._misses.items():
            found[host] = misses >= MISSES or (misses > 0 and host in silent)
        return frozenset(host for host, is_silent in found.items() if is_silent and not all(found.values()))

    async def _ask(self, host: str, port: int) -> None:
        result = await probe(QUESTION, join(host, port))
        if result.ok:
            self._misses[host] = 0
        elif not result.ours:
            self._misses[host] += 1
