"""Re-attach after a hand-over: it is the new process's file that says whether, and how."""

from __future__ import annotations

import select
from typing import Any

import pytest

from ..test_handover import Successor
from .ends import WebProxy
from .movers import REPLAY, Mover, two


class WebSuccessor(Successor):
    def __init__(self, old: WebProxy, route: dict[str, Any]) -> None:
        self.web, self.route = old.web, route
        super().__init__(old)

    plan = WebProxy.plan


@pytest.mark.parametrize("on", [True, False])
def test_whether_a_tunnel_goes_on_elsewhere_is_for_the_new_process_to_say(on: bool) -> None:
    with two() as (balancer, backends), Mover(balancer, backends) as mover:
        mover.works()
        new = WebSuccessor(balancer, REPLAY if on else {})
        try:
            assert new.take_over() == 1
            mover.works()
            mover.backend.socket.close()
            if on:
                mover.moves()
                mover.works()
            else:
                assert mover.client.rest() == b""
                assert not select.select([held.socket for held in backends], [], [], 0)[0], (
                    "another was asked"
                )
        finally:
            mover.client.socket.close()
            new.close()
