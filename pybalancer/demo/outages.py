"""Kills a backend now and then, and brings it back."""

import itertools
from collections.abc import Callable, Sequence

import trio

from pybalancer.demo.backends import DemoBackend
from pybalancer.demo.tally import Tally

UP_SECONDS = 4.0
DOWN_SECONDS = 3.0


async def run_outages(
    backends: Sequence[DemoBackend], tally: Tally, tell: Callable[[str], None], duration: float | None
) -> None:
    """One backend after the other, until cancelled. A short demo has shorter outages, so that each
    shows at least one whole."""
    pace = 1.0 if duration is None else min(1.0, duration / 10.0)
    for backend in itertools.cycle(backends):
        await trio.sleep(UP_SECONDS * pace)
        await backend.kill()
        tally.kills += 1
        tell(f"killed {backend.name}")
        await trio.sleep(DOWN_SECONDS * pace)
        await backend.start()
        tally.returns += 1
        tell(f"brought {backend.name} back")
