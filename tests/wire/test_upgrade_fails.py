"""Upgrades that fail: whatever becomes of the new process, the old one goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .load import Load, Talk
from .net import connect, echoes, served, server, until
from .streams import Streams
from .upgrading import Upgrading, alive, children, tampered, upgrading

BEFORE_THE_WORD = [
    "on hello",
    "before hello",
    "after hello",
    "on offer",
    "before prepared",
    "after prepared",
    "on sent",
    "before received",
    "after received",
    "on commit",
    "before committed",
]
"""Where the new process can be while its tunnels are the old one's."""


def file_of(directory: Path, backend: str, more: str = "") -> Path:
    file = directory / "pybalancer.toml"
    file.write_text(f"""
[balancer]
stats = "{directory}/stats"
pid_file = "{directory}/pid"
{more}
[log]
connections = false
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
[[listeners]]
name = "local"
bind = "unix:{directory}/front.sock"
pool = "chat"
[[pools.chat.backends]]
name = "app-1"
address = "{backend}"
""")
    return file


@contextlib.contextmanager
def undisturbed(running: Upgrading) -> Iterator[None]:
    """In the block an upgrade fails. Tunnels go on, nobody is refused, nothing is left behind."""
    directory = Path(running.mark.partition("=")[2])
    front = f"unix:{directory}/front.sock"

    def files() -> list[tuple[str, int]]:
        found = [path for path in directory.rglob("*") if "site" not in path.parts]
        return sorted((str(path), path.stat().st_ino) for path in found)

    until((directory / "pid").exists)
    before = files()
    with contextlib.ExitStack() as stack:
        clients = [connect(address) for address in (running.address, front) for _ in range(20)]
        for client in clients:
            stack.enter_context(client)
        load = stack.enter_context(Load(running.address))
        talk = stack.enter_context(Talk(clients))
        load.pass_by(10)
        yield
        load.pass_by(10)
        rounds = talk.rounds
        until(lambda: talk.rounds > rounds + 1 or talk.failures)
        assert alive(running.pid)
        until(lambda: running.running == [running.pid], "one process left")
        talk.__exit__()
        load.__exit__()
        assert talk.failures == []
        assert load.failures == []
        assert running.status()["pid"] == running.pid
    assert served(front)
    assert files() == before


def test_98_the_new_process_is_killed_at_every_step(environment: dict[str, str], tmp_path: Path) -> None:
    step = tmp_path / "step"
    step.touch()
    killing = tampered(environment, tmp_path, STEP=str(step))
    with server() as backend, upgrading(killing, tmp_path, file_of(tmp_path, backend.address)) as running:
        with undisturbed(running):
            for each in BEFORE_THE_WORD:
                step.write_text(each)
                asked = running.serving.ask("upgrade")
                assert asked.returncode == 1, each
                told = "the new process was killed by SIGKILL", "the new process is gone"
                assert any(words in asked.stderr for words in told), (each, asked.stderr)
                assert served(running.address), each
        running.serving.line("not upgraded, this process goes on: the new process")
        assert running.status()["active"] == 0
        # And then it works.
        step.write_text("none")
        running.upgrade()
        assert served(running.address)


def test_98_bytes_under_way_are_there_when_the_old_process_goes_on(
    environment: dict[str, str], tmp_path: Path
) -> None:
    killing = tampered(environment, tmp_path, STEP="on commit")
    with contextlib.ExitStack() as stack:
        streams = Streams()
        stack.callback(streams.close)
        file = file_of(tmp_path, streams.backend)
        running = stack.enter_context(upgrading(killing, tmp_path, file))
        streams.open(running.address, 200)
        streams.open(running.address, 3, bulk=True)
        streams.open(running.address, 10, deaf=True)
        streams.talk()
        for _ in range(5):
            streams.pass_by(5)
            assert running.serving.ask("upgrade").returncode == 1
        streams.pass_by(5)
        streams.finish()
        assert streams.differences() == []


def test_no_descriptor_stays_behind(environment: dict[str, str], tmp_path: Path) -> None:
    killing = tampered(environment, tmp_path, STEP="before committed")
    with server() as backend, upgrading(killing, tmp_path, file_of(tmp_path, backend.address)) as running:
        before = len(os.listdir(f"/proc/{running.pid}/fd"))
        for _ in range(3):
            assert running.serving.ask("upgrade").returncode == 1
        # The admin interface keeps its connections for a moment.
        until(lambda: len(os.listdir(f"/proc/{running.pid}/fd")) <= before)


@pytest.mark.parametrize("step", ["after committed", "before serving"])
def test_a_new_process_that_dies_with_its_tunnels_leaves_an_old_one_that_accepts(
    environment: dict[str, str], tmp_path: Path, step: str
) -> None:
    killing = tampered(environment, tmp_path, STEP=step)
    with server() as backend, upgrading(killing, tmp_path, file_of(tmp_path, backend.address)) as running:
        with connect(running.address) as client:
            assert echoes(client)
            assert running.serving.ask("upgrade").returncode == 1
            running.serving.line("died with 1 tunnels that were its own; accepting again")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert all(served(running.address) for _ in range(10))
        assert served(f"unix:{tmp_path}/front.sock")
        assert running.running == [running.pid]
        assert running.status()["active"] == 0


@pytest.mark.parametrize("step", ["before received", "on commit"])
def test_a_new_process_that_hangs_is_given_up(environment: dict[str, str], tmp_path: Path, step: str) -> None:
    hanging = tampered(environment, tmp_path, STEP=step, STEP_SIGNAL="SIGSTOP", FREEZE_SECONDS="0.5")
    with server() as backend, upgrading(hanging, tmp_path, file_of(tmp_path, backend.address)) as running:
        with undisturbed(running):
            asked = running.serving.ask("upgrade")
            assert asked.returncode == 1
            assert "does not answer in time" in asked.stderr


def test_98_a_new_process_that_is_not_ready_in_time_is_given_up(
    environment: dict[str, str], tmp_path: Path
) -> None:
    hanging = tampered(environment, tmp_path, STEP="on offer", STEP_SIGNAL="SIGSTOP")
    with server() as backend, upgrading(hanging, tmp_path, file_of(tmp_path, backend.address)) as running:
        with undisturbed(running):
            asked = running.serving.ask("upgrade", "--timeout", "2")
            assert asked.returncode == 1
            assert "was not ready within 2 s" in asked.stderr


def test_another_format_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    other = tampered(environment, tmp_path, STEP="none", STEP_FORMAT="99")
    with server() as backend, upgrading(other, tmp_path, file_of(tmp_path, backend.address)) as running:
        with undisturbed(running):
            asked = running.serving.ask("upgrade")
            assert asked.returncode == 1
            assert "hand over in different ways" in asked.stderr
            assert "restart it instead" in asked.stderr


@pytest.mark.parametrize(
    ("step", "why"), [("lies", "tunnels were sent, and"), ("nonsense", "said 'serving' when it was offered")]
)
def test_a_new_process_that_makes_no_sense_is_not_believed(
    environment: dict[str, str], tmp_path: Path, step: str, why: str
) -> None:
    lying = tampered(environment, tmp_path, STEP=step)
    with server() as backend, upgrading(lying, tmp_path, file_of(tmp_path, backend.address)) as running:
        with undisturbed(running):
            asked = running.serving.ask("upgrade")
            assert asked.returncode == 1
            assert why in asked.stderr


def test_102_a_bad_file_is_refused_with_every_problem(environment: dict[str, str], tmp_path: Path) -> None:
    with server() as backend:
        file = file_of(tmp_path, backend.address)
        with upgrading(environment, tmp_path, file) as running, undisturbed(running):
            good = file.read_text()
            file.write_text(good.replace("address", "adress").replace("pool = ", "pol = ", 1))
            asked = running.serving.ask("upgrade", "--admin", f"unix:{tmp_path}/run/admin.sock")
            assert asked.returncode == 1
            assert 'did you mean "address"?' in asked.stderr
            assert 'did you mean "pool"?' in asked.stderr
            file.write_text(good)
        running.serving.line("not upgraded, this process goes on: .*adress")


def test_an_address_that_is_taken_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    with server() as backend, server() as other:
        file = file_of(tmp_path, backend.address)
        with upgrading(environment, tmp_path, file) as running, undisturbed(running):
            good = file.read_text()
            more = f'[[listeners]]\nname = "new"\nbind = "{other.address}"\npool = "chat"\n'
            file.write_text(good.replace("[[pools", more + "[[pools"))
            asked = running.serving.ask("upgrade")
            assert asked.returncode == 1
            assert "in use" in asked.stderr
            assert other.address in asked.stderr
            file.write_text(good)


def test_two_at_once_is_one_too_many(environment: dict[str, str], tmp_path: Path) -> None:
    hanging = tampered(environment, tmp_path, STEP="on offer", STEP_SIGNAL="SIGSTOP")
    with server() as backend, upgrading(hanging, tmp_path, file_of(tmp_path, backend.address)) as running:
        with undisturbed(running):
            os.kill(running.pid, signal.SIGUSR2)
            until(lambda: children(running.pid))
            asked = running.serving.ask("upgrade")
            assert asked.returncode == 1
            assert "under way already" in asked.stderr
            for pid in children(running.pid):
                os.kill(pid, signal.SIGKILL)
            running.serving.line("not upgraded, this process goes on")


def test_term_during_an_upgrade_ends_both(environment: dict[str, str], tmp_path: Path) -> None:
    hanging = tampered(environment, tmp_path, STEP="on offer", STEP_SIGNAL="SIGSTOP")
    with server() as backend, upgrading(hanging, tmp_path, file_of(tmp_path, backend.address)) as running:
        os.kill(running.pid, signal.SIGUSR2)
        until(lambda: children(running.pid))
        os.kill(running.pid, signal.SIGTERM)
        assert running.serving.process.wait(20) == 0
        until(lambda: running.running == [])
        assert not (tmp_path / "front.sock").exists()
        assert not (tmp_path / "pid").exists()


def test_hup_during_an_upgrade_waits(environment: dict[str, str], tmp_path: Path) -> None:
    hanging = tampered(environment, tmp_path, STEP="on offer", STEP_SIGNAL="SIGSTOP")
    with server() as backend, upgrading(hanging, tmp_path, file_of(tmp_path, backend.address)) as running:
        os.kill(running.pid, signal.SIGUSR2)
        (child,) = until(lambda: children(running.pid))
        os.kill(running.pid, signal.SIGHUP)
        until(lambda: Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        assert running.status()["last_reload"] is None
        os.kill(child, signal.SIGKILL)
        running.serving.line("reloaded \\(generation 2")


@pytest.mark.parametrize("step", ["before received", "after received", "before committed"])
def test_an_old_process_that_dies_when_all_is_handed_over_has_a_successor(
    environment: dict[str, str], tmp_path: Path, step: str
) -> None:
    killing = tampered(environment, tmp_path, STEP=step, STEP_OLD="1")
    with server() as backend, upgrading(killing, tmp_path, file_of(tmp_path, backend.address)) as running:
        clients = [connect(running.address) for _ in range(20)]
        assert all(echoes(client) for client in clients)
        assert running.serving.ask("upgrade").returncode == 1
        assert running.serving.process.wait(20) == -signal.SIGKILL
        (running.pid,) = until(lambda: running.running)
        assert all(echoes(client) for client in clients)
        assert served(running.address)
        until(lambda: (tmp_path / "pid").read_text() == f"{running.pid}\n")
        assert running.status()["active"] == 20


def test_a_new_process_without_an_old_one_does_not_linger(
    environment: dict[str, str], tmp_path: Path
) -> None:
    killing = tampered(environment, tmp_path, STEP="on offer", STEP_OLD="1")
    with server() as backend, upgrading(killing, tmp_path, file_of(tmp_path, backend.address)) as running:
        with connect(running.address) as client:
            assert echoes(client)
            assert running.serving.ask("upgrade").returncode == 1
            assert running.serving.process.wait(20) == -signal.SIGKILL
            until(lambda: running.running == [])
            assert client.recv(1) == b""


def test_what_cannot_be_carried_is_waited_for(environment: dict[str, str], tmp_path: Path) -> None:
    busy = tampered(environment, tmp_path, BUSY="a drain of pool chat is under way")
    with server() as backend, upgrading(busy, tmp_path, file_of(tmp_path, backend.address)) as running:
        asked = running.serving.ask("upgrade")
        assert asked.returncode == 1
        assert "not now: a drain of pool chat is under way" in asked.stderr
