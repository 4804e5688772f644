"""A pool of a running balancer as ``tasks.rolls`` wants it, by the admin interface: ``RemotePool``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from pybalancer.admin.client import Client, Refused
from pybalancer.errors import AdminError
from pybalancer.policy.draining import Terms
from pybalancer.policy.roll import Picture
from pybalancer.tasks.rolls import Away, picture_of

NOT_NOW: Final = 503
"""The status of a balancer that is ending, or does not get to an answer."""


class RemotePool:
    """Drains go by ``terms``, and who begins anew is brought to its share over ``slow_start`` seconds.

    Who does not answer is away; all else that goes wrong is Refused.
    """

    def __init__(self, client: Client, name: str, terms: Terms, slow_start: float, *, force: bool) -> None:
        self._client = client
        self._name = name
        self._terms = terms
        self._slow_start = slow_start
        self._force = force
        self.seen: Picture | None = None
        """The last picture."""
        self.away = False
        """Whether the balancer did not answer the last question."""
        self.drains: dict[str, dict[str, Any]] = {}
        """How far the drain of each backend was then, as the status has it."""

    async def picture(self) -> Picture:
        """How the pool is now. Raises RollError if the balancer has none of this name."""
        status = await self._ask(lambda: self._client.get("/status"))
        self.seen = picture_of(status, self._name)
        self.drains = _drains(status, self._name)
        return self.seen

    async def drain(self, backend: str) -> None:
        """Begin, or go on."""
        terms = self._terms
        await self._post(
            "/drain",
            backend,
            over=terms.over,
            deadline=terms.deadline,
            code=terms.code,
            rate=terms.rate,
            force=self._force,
        )

    async def undrain(self, backend: str, *, warm: bool) -> None:
        """Take it back."""
        await self._post("/undrain", backend, slow_start=self._slow_start if warm else None)

    async def recheck(self, backend: str) -> None:
        """It is another process now."""
        await self._post("/recheck", backend)

    async def _post(self, path: str, backend: str, **query: float | None) -> None:
        await self._ask(lambda: self._client.post(path, pool=self._name, backend=backend, **query))

    async def _ask(self, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            answer = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
        except Refused as error:
            if error.status == NOT_NOW:
                raise Away(str(error)) from error
            raise
        except AdminError as error:
            self.away = True
            raise Away(str(error)) from error
        self.away = False
        return answer


def _drains(status: Mapping[str, Any], pool: str) -> dict[str, dict[str, Any]]:
    return {
        part["backend"]: {**drain, **part}
        for drain in status["drains"]
        if drain["pool"] == pool and drain["kind"] == "drain"
        for part in drain["parts"]
    }
