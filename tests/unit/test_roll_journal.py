"""The journal of a roll: kept whole, for one process at a time, and believed only if it is one."""

from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybalancer.cli.journal import Journal, Page
from pybalancer.errors import RollError

ADMIN = "unix:/run/pybalancer/admin.sock"
PAGE = Page(
    "restart {name}",
    shell=True,
    max_down=2,
    timeout=7.5,
    over=1.0,
    rate=0.0,
    force=True,
    steps={"app-2": "done", "app-1": "acting", "app-3": "waiting"},
)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def journal() -> Iterator[Journal]:
    with Journal.of(ADMIN, "chat") as journal:
        yield journal


def test_what_is_written_is_read_in_order(journal: Journal) -> None:
    assert journal.read() is None
    journal.write(PAGE)
    found = journal.read()
    assert found == PAGE
    assert list(found.steps) == ["app-2", "app-1", "app-3"]
    assert found.told == "1 of 3 done"
    journal.remove()
    journal.remove()
    assert journal.read() is None


def test_nobody_else_may_touch_it(journal: Journal, state: Path) -> None:
    journal.write(PAGE)
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700
    # And nothing else is left there.
    assert sorted(path.suffix for path in (state / "rolls").iterdir()) == [".json", ".lock"]


def test_it_is_of_one_pool_of_one_balancer() -> None:
    places = []
    for admin in (ADMIN, "127.0.0.1:9090"):
        for pool in ("chat", "chat/one", "chat_one", "../../chat", "x" * 300, "\N{SNOWMAN}"):
            with Journal.of(admin, pool) as journal:
                places.append(journal.path)
    assert len(set(places)) == len(places)
    assert len({path.parent for path in places}) == 1


def test_it_is_held_by_one_at_a_time(journal: Journal) -> None:
    with pytest.raises(RollError, match="pool chat is being rolled already"), Journal.of(ADMIN, "chat"):
        pass
    with Journal.of(ADMIN, "rooms"):
        pass


def test_it_is_free_again_afterwards() -> None:
    for _ in range(2):
        with Journal.of(ADMIN, "chat") as journal:
            journal.write(PAGE)


def damaged() -> Iterator[bytes]:
    whole = json.dumps(dataclasses.asdict(PAGE))
    yield b""
    yield whole[:-10].encode()
    yield b"[" * 100_000
    yield b"null"
    yield b"\xff"
    yield whole.replace('"version": 1', '"version": 2').encode()
    yield whole.replace('"shell"', '"shel"').encode()
    yield whole.replace('"acting"', '"flying"').encode()
    yield whole.replace('"restart {name}"', "7").encode()
    yield whole.replace('"max_down": 2', '"max_down": "2"').encode()
    yield whole.replace('"timeout": 7.5', '"timeout": null').encode()


@pytest.mark.parametrize("content", list(damaged()))
def test_102_what_is_no_journal_is_not_believed(journal: Journal, content: bytes) -> None:
    journal.path.write_bytes(content)
    with pytest.raises(RollError, match="is no journal of this version: begin with --anew"):
        journal.read()


def test_where_it_cannot_be_kept(state: Path, journal: Journal) -> None:
    journal.path.mkdir()
    with pytest.raises(RollError, match=r"cannot keep the journal: .*STATE_DIRECTORY names another place"):
        journal.write(PAGE)
    with pytest.raises(RollError, match="cannot read the journal"):
        journal.read()
    # A page that could not be put in its place is not left beside it.
    assert not list((state / "rolls").glob("roll.*"))
