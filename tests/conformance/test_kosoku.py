"""The quick part of the suite: all but 9.*, 12.* and 13.*, which `make conformance` adds."""

from __future__ import annotations

from pathlib import Path

import pytest

from .suite import LONG, Report, of_clients, of_servers

FEWEST = 240
"""Autobahn has 247 such cases; a suite that finds none must not pass."""
WATCHED = 'max_message = 67_108_864\nping = "60s"'
"""Limits that no case meets: frames are looked at all the same."""
GOOD = {"OK / OK", "NON-STRICT / OK", "INFORMATIONAL / INFORMATIONAL"}


def bad(report: Report) -> dict[str, str]:
    return {case: verdict for case, verdict in report.verdicts().items() if verdict not in GOOD}


@pytest.mark.parametrize("options", ["", WATCHED], ids=["plain", "watched"])
def test_a_server_is_the_same_through_pybalancer(tmp_path: Path, options: str) -> None:
    found = of_clients(tmp_path, exclude=LONG, options=options)
    assert found.differences == []
    assert len(found.through.cases) >= FEWEST
    # What websockets gets wrong itself, it gets wrong in both.
    assert bad(found.through) == bad(found.direct)
    assert len(bad(found.through)) < 5


def test_a_client_is_the_same_through_pybalancer(tmp_path: Path) -> None:
    found = of_servers(tmp_path, exclude=LONG)
    assert found.differences == []
    assert len(found.through.cases) >= FEWEST
    assert len(bad(found.through)) < 5


def test_compression_is_the_same_through_pybalancer(tmp_path: Path) -> None:
    """A few of those that `make conformance` runs all of."""
    found = of_clients(tmp_path, include=["12.1.1", "12.4.8", "13.3.4", "13.7.3", "9.1.4", "9.5.2"])
    assert found.differences == []
    assert bad(found.through) == {}


def test_a_balancer_that_interferes_is_found_out(tmp_path: Path) -> None:
    """The control: with a limit on messages the larger ones end in Close 1009, and only these differ."""
    found = of_clients(tmp_path, include=["1.1.*"], options="max_message = 1000")
    assert {line.split(":")[0] for line in found.differences} == {"1.1.6", "1.1.7", "1.1.8"}
    assert any(
        "remoteCloseCode: directly 1000, through pybalancer 1009" in line for line in found.differences
    )
