"""Reload when the file changes, in all the ways in which files change; and by SIGHUP."""

# ruff: noqa: ASYNC240  # A small file on a local disk keeps nobody waiting.

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from pybalancer import Balancer
from pybalancer.tasks import reload
from pybalancer.tasks.reload import mark, watch_file

from .balancing import SECRET, Named, Tunnel, backends_of, until
from .net import connect, echoes, server
from .net import until as until_true
from .serving import Serve

Write = Callable[[Path, str], None]


@pytest.fixture
def address() -> Iterator[str]:
    backend = Named("app")
    yield backend.address
    backend.close()


def text(address: str, *names: str, watch: bool = True) -> str:
    backends = "".join(
        f'[[pools.chat.backends]]\nname = "{name}"\naddress = "{address}"\n' for name in names or ("app-1",)
    )
    return f"""[balancer]
workers = 1
secret = "{SECRET}"
watch = {str(watch).lower()}
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
{backends}"""


def names(balancer: Balancer) -> list[str]:
    return list(backends_of(balancer))


# The ways in which a file changes.


def in_place(file: Path, content: str) -> None:
    file.write_text(content)


def by_rename(file: Path, content: str) -> None:
    """As editors and configuration management do."""
    new = file.with_name(".new")
    new.write_text(content)
    new.replace(file)


def gone_for_a_moment(file: Path, content: str) -> None:
    file.unlink(missing_ok=True)
    file.write_text(content)


def as_kubernetes(file: Path, content: str) -> None:
    """The file is a link through ``..data``, a link to a directory, which is swapped in one step."""
    directory = file.parent
    versions = len([each for each in directory.iterdir() if each.name.startswith("..20")])
    version = directory / f"..2026_{versions}"
    version.mkdir()
    (version / file.name).write_text(content)
    (directory / "..data_tmp").symlink_to(version.name)
    (directory / "..data_tmp").replace(directory / "..data")
    if not file.is_symlink():
        file.unlink(missing_ok=True)
        file.symlink_to(f"..data/{file.name}")


def by_a_link_elsewhere(file: Path, content: str) -> None:
    """The file is a link, and what it leads to is changed: its own directory sees nothing."""
    target = file.parent.parent / "elsewhere.toml"
    target.write_text(content)
    if not file.is_symlink():
        file.unlink(missing_ok=True)
        file.symlink_to(target)


def with_its_directory(file: Path, content: str) -> None:
    """The whole directory is replaced, as a deployment or a mount does."""
    new, old = file.parent.with_name("new"), file.parent.with_name("old")
    new.mkdir()
    (new / file.name).write_text(content)
    file.parent.rename(old)
    new.rename(file.parent)
    shutil.rmtree(old)


WAYS: list[Write] = [
    in_place,
    by_rename,
    gone_for_a_moment,
    as_kubernetes,
    by_a_link_elsewhere,
    with_its_directory,
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc" / "pybalancer.toml"


@pytest.mark.parametrize("write", WAYS, ids=lambda write: write.__name__)
async def test_a_file_that_changes_is_read(
    write: Write, file: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if write in (by_a_link_elsewhere, with_its_directory):
        # What the kernel does not tell is found by looking now and then.
        monkeypatch.setattr(reload, "GLANCE", 0.2)
    write(file, text(address))
    async with Balancer(file) as balancer:
        tunnel = Tunnel(balancer.bound["public"])
        for wanted in (["app-1", "app-2"], ["app-1"], ["app-1", "app-3"]):
            write(file, text(address, *wanted))
            await until(lambda wanted=wanted: names(balancer) == wanted, f"{wanted}, {write.__name__}")
            # What it says of itself comes a moment later.
            await until(lambda: balancer.status().last_reload is not None, "the reload's end")
            last = balancer.status().last_reload
            assert last is not None
            assert last.ok
        assert tunnel.stands()
        tunnel.close()


async def test_a_file_that_nobody_asked_to_watch_is_not_read(file: Path, address: str) -> None:
    file.write_text(text(address, watch=False))
    async with Balancer(file) as balancer:
        file.write_text(text(address, "app-2", watch=False))
        # Another watch sees the change, and would see it before that of the balancer did anything.
        seen = trio.Event()

        async def see() -> None:
            seen.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_file, file, see, None)
            await seen.wait()
            nursery.cancel_scope.cancel()
        assert names(balancer) == ["app-1"]


async def test_102_a_bad_file_changes_nothing_and_says_why(
    file: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = text(address)
    file.write_text(good)
    async with Balancer(file) as balancer:
        tunnel = Tunnel(balancer.bound["public"])
        generation = balancer.status().generation
        for bad, why in (
            (good.replace("address", "adress"), r':11:1: .*did you mean "address"'),
            (good.replace('pool = "chat"', 'pool = "chatt"'), r":8:\d+: .*chatt"),
            (good + good, "twice"),
            (good[: len(good) // 2], ""),
            ("", ""),
            ("x" * (5 << 20), "larger than 4 MiB"),
        ):
            caplog.clear()
            by_rename(file, bad)
            await until(lambda: "not reloaded, the old configuration stays in force" in caplog.text)
            assert re.search(re.escape(str(file)) + ".*" + why, caplog.text), caplog.text
            last = balancer.status().last_reload
            assert last is not None
            assert not last.ok
            assert last.error is not None
            assert str(file) in last.error
        assert balancer.status().generation == generation
        assert names(balancer) == ["app-1"]
        assert tunnel.stands()
        by_rename(file, text(address, "app-1", "app-2"))
        await until(lambda: names(balancer) == ["app-1", "app-2"])
        assert tunnel.stands()
        tunnel.close()


async def test_a_file_that_is_gone_is_no_reason_for_anything(file: Path, address: str) -> None:
    file.write_text(text(address))
    async with Balancer(file) as balancer:
        file.unlink()
        (file.parent / "other").write_text("")
        file.with_name("pybalancer.toml.bak").write_text("")
        file.write_text(text(address, "app-2"))
        await until(lambda: names(balancer) == ["app-2"])
        # One generation for the start, one for this.
        assert balancer.status().generation == 2


async def test_what_happens_beside_the_file_is_no_change(file: Path) -> None:
    file.write_text("one")
    other = file.with_name("other")
    seen = {file: 0, other: 0}

    async def count(path: Path) -> None:
        seen[path] += 1

    async with trio.open_nursery() as nursery:
        for path in seen:
            nursery.start_soon(watch_file, path, partial(count, path), mark(path))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(1, 6):
            by_rename(other, "x" * number)
            await until(lambda number=number: seen[other] == number)
        by_rename(file, "another")
        await until(lambda: seen[file])
        nursery.cancel_scope.cancel()
    assert seen == {file: 1, other: 5}


async def test_each_change_is_one_reload_and_the_start_is_none(file: Path, address: str) -> None:
    by_rename(file, text(address))
    async with Balancer(file) as balancer:
        await trio.testing.wait_all_tasks_blocked()
        # After all that were asked for before it.
        assert (await balancer.reload()).generation == 2
        for number in range(3, 6):
            by_rename(file, text(address, f"app-{number}"))
            await until(lambda number=number: names(balancer) == [f"app-{number}"])
            assert balancer.status().generation == number


async def test_a_change_before_the_watch_began_is_seen(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading the file and watching it there is a gap."""
    monkeypatch.setattr(reload, "GLANCE", 1000.0)
    file.write_text("one")
    before = mark(file)
    file.write_text("another")
    changed = trio.Event()

    async def change() -> None:
        changed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_file, file, change, before)
        await until(changed.is_set)
        nursery.cancel_scope.cancel()


async def test_a_change_during_a_reload_is_not_lost(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "GLANCE", 0.2)
    file.write_text("one")
    read: list[str] = []
    more = trio.Event()

    async def change() -> None:
        read.append(file.read_text())
        await more.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_file, file, change, mark(file))
        file.write_text("number two")
        await until(lambda: read == ["number two"])
        by_rename(file, "the third")
        more.set()
        await until(lambda: read == ["number two", "the third"])
        nursery.cancel_scope.cancel()


async def test_other_permissions_are_a_change(file: Path) -> None:
    """A file that could not be read may have become readable."""
    file.write_text("one")
    changed = trio.Event()

    async def change() -> None:
        changed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_file, file, change, mark(file))
        file.chmod(0o600)
        await until(changed.is_set)
        nursery.cancel_scope.cancel()


async def test_a_directory_that_cannot_be_watched_is_looked_at(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reload, "GLANCE", 0.05)
    shutil.rmtree(file.parent)
    changed, looks = trio.Event(), 0

    def counting(path: Path) -> reload.Mark:
        nonlocal looks
        looks += 1
        return mark(path)

    monkeypatch.setattr(reload, "mark", counting)

    async def change() -> None:
        changed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_file, file, change, None)
        await until(lambda: looks >= 5)
        file.parent.mkdir()
        file.write_text("one")
        await until(changed.is_set)
        # From then on by the kernel's word again.
        changed = trio.Event()
        file.write_text("two and more")
        await until(changed.is_set)
        assert caplog.text.count("is looked at every") == 1
        # And when that fails again, it is said again.
        shutil.rmtree(file.parent)
        await until(lambda: caplog.text.count("is looked at every") == 2)
        nursery.cancel_scope.cancel()


async def test_a_directory_in_the_place_of_another_is_watched(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "GLANCE", 0.05)
    file.write_text("one")
    changes: list[str] = []

    async def change() -> None:
        changes.append(file.read_text())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_file, file, change, mark(file))
        await trio.testing.wait_all_tasks_blocked()
        # From here on only the kernel tells.
        monkeypatch.setattr(reload, "GLANCE", 1000.0)
        with_its_directory(file, "number two")
        await until(lambda: changes == ["number two"])
        by_rename(file, "the third")
        await until(lambda: changes == ["number two", "the third"])
        nursery.cancel_scope.cancel()


async def test_115_a_watch_ends_at_once(file: Path, address: str) -> None:
    """Its thread waits for the kernel, which may have nothing to tell for hours."""
    file.write_text(text(address))
    async with Balancer(file) as balancer:
        by_rename(file, text(address, "app-2"))
        await until(lambda: names(balancer) == ["app-2"])
        await trio.testing.wait_all_tasks_blocked()
        started = time.monotonic()
    # Or else it would have waited for the next glance.
    assert time.monotonic() - started < reload.GLANCE / 2


# SIGHUP.


def test_a_burst_of_hups_ends_with_the_last_file(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "pybalancer.toml"
    with server() as backend, ExitStack() as stack:
        file.write_text(text(backend.address, watch=False))
        serving = serve(file, "--no-log-connections")
        address = serving.address
        client = stack.enter_context(connect(address))
        assert echoes(client)
        for number in range(100):
            by_rename(file, text(backend.address, f"app-{number}", watch=False))
            serving.signal(signal.SIGHUP)
        serving.line("app-99 added")
        # Those that came while one was read are one; and each ends with what it read.
        added = [match[1] for line in serving.lines if (match := re.search(r"(app-\d+) added", line))]
        assert added[-1] == "app-99"
        assert [backend["name"] for backend in serving.status()["pools"][0]["backends"]] == ["app-99"]
        assert echoes(client)


def test_the_log_follows_the_file(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "pybalancer.toml"
    with server() as backend:
        start = text(backend.address, watch=False)
        file.write_text(start + '[log]\nlevel = "error"\n')
        serving = serve(file)
        until_true(lambda: serving.ask("status").returncode == 0, "a status")
        by_rename(file, start + '[log]\nlevel = "info"\nformat = "json"\n')
        assert serving.ask("reload").returncode == 0
        serving.signal(signal.SIGHUP)
        serving.line(r'^\{.*"message": "reloaded')
        assert not any("listening on" in line for line in serving.lines)
