"""What the wire tests share: processes that are gone when their test is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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
