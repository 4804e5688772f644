"""What the wire tests share: processes, servers and clients that are gone when their test is."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pybalancer import Balancer

from .balancing import Named, Open, Run, S, Tunnel
from .serving import Serve, Serving, environment_in


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return environment_in(tmp_path)


@pytest.fixture
def serve(environment: dict[str, str]) -> Iterator[Serve]:
    running: list[Serving] = []

    def start(*arguments: object) -> Serving:
        running.append(Serving(environment, *arguments))
        return running[-1]

    yield start
    for serving in running:
        serving.close()


@pytest.fixture
def run() -> Iterator[Run]:
    with ExitStack() as stack:

        def run(made: S) -> S:
            stack.callback(made.close)
            return made

        yield run


@pytest.fixture
def tunnels() -> Iterator[Open]:
    with ExitStack() as stack:

        def opened(balancer: Balancer, count: int = 24, listener: str = "public") -> list[Tunnel]:
            made = [Tunnel(balancer.bound[listener]) for _ in range(count)]
            for tunnel in made:
                stack.callback(tunnel.close)
            return made

        yield opened


@pytest.fixture
def three(run: Run) -> dict[str, str]:
    """Three servers that say their names, name to address."""
    return {name: run(Named(name)).address for name in ("app-1", "app-2", "app-3")}
