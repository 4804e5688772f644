"""What mode "packet" remembers over restarts."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pybalancer.packet.generations import History, Member, Numbers
from pybalancer.packet.state import NAME, State, load, save

STATE = State(
    {
        "told": History(((Member("a", 1, "10.0.0.1"),), (Member("b", 2, "fd00::1"),))),
        "vip": History(((Member("a", 1, "10.0.0.1"),),), (Member("a", 1, "10.0.0.1"), Member("c", 0, "::1"))),
    },
    Numbers({"10.0.0.1": 1, "fd00::1": 7}),
    ("203.0.113.10",),
    frozenset({"fd00::1"}),
    {"ipv4/conf/all/arp_ignore": "0"},
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(STATE, tmp_path / "new" / "folder")
    assert load(tmp_path / "new" / "folder") == STATE
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [NAME]


def test_nothing_saved_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(tmp_path) == State()
    assert caplog.records == []


def test_a_file_of_before_there_were_joined_ones_is_used(tmp_path: Path) -> None:
    old = STATE.to_json()
    del old["joined"]
    (tmp_path / NAME).write_text(json.dumps(old))
    assert load(tmp_path).histories == {
        name: History(history.generations) for name, history in STATE.histories.items()
    }


def spoiled(**changes: Any) -> str:
    return json.dumps({**STATE.to_json(), **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        "\x00",
        spoiled(version=1),
        spoiled(numbers={"10.0.0.1": 1, "10.0.0.2": 1}),
        spoiled(numbers={"10.0.0.1": 0}),
        spoiled(numbers={"10.0.0.1": 1024}),
        spoiled(numbers=[1]),
        spoiled(histories={"vip": [[1]]}),
        spoiled(joined={"vip": [1]}),
        spoiled(joined=[]),
        spoiled(added=None),
        spoiled(silent=None),
        spoiled(settings=[]),
    ],
)
def test_a_spoiled_file_is_reported_and_not_used(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path) == State()
    assert "is not used" in caplog.text
