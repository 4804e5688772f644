"""Sites with fleets, one for each way of forwarding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .fleet import Fleet, Plan, fleet
from .talks import Talks, talks
from .topology import Site, site

Start = Callable[..., tuple[Site, Fleet, Talks]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(
            forward: str = "l2", *, present: int = 4, directors: int = 3, backends: int = 4, **options: Any
        ) -> tuple[Site, Fleet, Talks]:
            """A site, its fleet with the first ``present`` backends, and their servers."""
            secrets = options.pop("secrets", ())
            made = stack.enter_context(site(directors, backends, apart=forward == "ipip"))
            talking = stack.enter_context(talks(made.client))
            for machine in made.backends:
                talking.serve(machine)
            if forward == "ipip":
                # What has an outer header does not fit otherwise.
                made.client.ip(
                    "route replace default via 10.9.0.1 mtu 1400",
                    "-6 route replace default via fd00:9::1 mtu 1400",
                )
            plan = Plan(forward, made.backends[:present], **options)
            return made, stack.enter_context(fleet(made, tmp_path, plan, secrets=secrets)), talking

        yield started
