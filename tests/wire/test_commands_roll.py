"""``pybalancer roll`` against a daemon: real commands restart real processes, and whatever can die dies."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .net import PATIENCE, until
from .services import Services, Visitor, leaving, services, visit
from .serving import Serve, Serving

NAMES = ("app-1", "app-2", "app-3")
ONE_BY_ONE = [
    line
    for number, name in enumerate(NAMES, 1)
    for line in (
        f"{name}: draining",
        f"{name}: running the command",
        f"{name} | {name} restarted",
        f"{name}: waiting until it is up",
        f"{name}: up, and taken back ({number} of 3)",
    )
]
STEADY = ("--slow-start", "0")
"""Who comes back gets its whole share at once: most tests do not care."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Services]:
    with services(tmp_path / "services", NAMES) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path, fleet: Services) -> Path:
    path = tmp_path / "pybalancer.toml"
    path.write_text(f"""
[log]
connections = false
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
[pools.chat]
policy = "least-connections"
[pools.chat.drain]
over = "0"
deadline = "0"
[pools.chat.health]
interval = "50ms"
timeout = "5s"
rise = 1
{fleet.toml()}""")
    return path


@pytest.fixture
def serving(serve: Serve, file: Path) -> Serving:
    running = serve(file)
    running.line("admin interface at")
    return running


class Rolling:
    """``pybalancer roll`` as a process, and what it has said."""

    def __init__(self, serving: Serving, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pybalancer", "roll", "chat", *map(str, arguments)],
            env={**serving.environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def says(self, line: str) -> None:
        """Read on until it does."""
        assert self.process.stdout is not None
        while line not in self.lines[-1:]:
            read = self.process.stdout.readline()
            assert read, f"ended without {line!r} in {self.lines}: {self.process.communicate()}"
            self.lines.append(read.rstrip("\n"))

    def end(self) -> tuple[int, list[str], list[str]]:
        """Exit code, and the lines on each output."""
        said, complained = self.process.communicate(timeout=PATIENCE)
        self.lines += said.splitlines()
        return self.process.returncode, self.lines, complained.splitlines()


Start = Callable[..., Rolling]


@pytest.fixture
def roll(serving: Serving, fleet: Services) -> Iterator[Start]:
    started: list[Rolling] = []

    def start(*arguments: object, command: str | None = None) -> Rolling:
        given = (
            ("--exec", fleet.command if command is None else command) if "--resume" not in arguments else ()
        )
        started.append(Rolling(serving, *given, *STEADY, *arguments))
        return started[-1]

    yield start
    for rolling in started:
        if rolling.process.poll() is None:
            rolling.process.kill()
            rolling.process.communicate()


def done(rolling: Rolling) -> list[str]:
    code, lines, complained = rolling.end()
    assert (code, complained) == (0, []), lines
    return lines


def backends(serving: Serving) -> dict[str, dict[str, Any]]:
    return {backend["name"]: backend for backend in serving.status()["pools"][0]["backends"]}


def drained(serving: Serving) -> set[str]:
    return {name for name, backend in backends(serving).items() if backend["draining"]}


def journals(serving: Serving) -> list[Path]:
    return list(Path(serving.environment["STATE_DIRECTORY"]).glob("rolls/*.json"))


def test_one_after_the_other(serving: Serving, fleet: Services, roll: Start) -> None:
    before = fleet.pids
    visitors = visit(serving.address, 12, NAMES)
    with leaving(visitors) as ends:
        *lines, last = done(roll("--over", "100ms", "--deadline", "1h"))
    # Nobody's backend was restarted under them: all were told before, and left by themselves.
    assert ends == [True] * len(visitors)
    assert lines == ONE_BY_ONE
    assert last.startswith("rolled pool chat: 3 backends in ")
    assert fleet.restarts == list(NAMES)
    assert not set(before.values()) & set(fleet.pids.values())
    assert drained(serving) == set()
    assert {backend["state"] for backend in backends(serving).values()} == {"up"}
    assert journals(serving) == []
    back = visit(serving.address, 3, NAMES)
    assert {int(visitor.pid) for visitor in back} == set(fleet.pids.values())


def test_one_is_restarted_when_its_tunnels_have_gone_and_others_serve_meanwhile(
    serving: Serving, fleet: Services, roll: Start
) -> None:
    visitors = visit(serving.address, 12, NAMES)
    fleet.hold("app-1")
    rolling = roll()
    fleet.reached("app-1")
    found = backends(serving)
    assert (drained(serving), found["app-1"]["active"]) == ({"app-1"}, 0)
    assert all(visitor.told_to_go() for visitor in visitors if visitor.backend == "app-1")
    assert all(visitor.echoes() for visitor in visitors if visitor.backend != "app-1")
    assert {visitor.backend for visitor in visit(serving.address, 6)} == {"app-2", "app-3"}
    fleet.release("app-1")
    done(rolling)


def test_two_at_a_time(serving: Serving, fleet: Services, roll: Start) -> None:
    fleet.hold(*NAMES)
    rolling = roll("--max-down", "2")
    fleet.reached("app-1", "app-2")
    assert drained(serving) == {"app-1", "app-2"}
    fleet.release("app-2")
    fleet.reached("app-3")
    assert drained(serving) == {"app-1", "app-3"}
    fleet.release("app-1")
    fleet.release("app-3")
    done(rolling)
    assert sorted(fleet.restarts) == list(NAMES)


def test_some_only(serving: Serving, fleet: Services, roll: Start) -> None:
    done(roll("--backend", "app-3", "--backend", "app-1"))
    assert sorted(fleet.restarts) == ["app-1", "app-3"]
    code, _, complained = roll("--backend", "app-9").end()
    assert (code, complained) == (1, ["pybalancer: there is no backend 'app-9' in pool chat"])


def test_who_is_drained_already_is_left_alone(serving: Serving, fleet: Services, roll: Start) -> None:
    assert serving.ask("drain", "app-2").returncode == 0
    code, lines, complained = roll().end()
    assert code == 0
    assert "app-2: skipped: it is drained already, so it is left alone" in lines
    assert lines[-1].startswith("rolled pool chat: 2 of 3 backends in ")
    assert complained == [
        "pybalancer: still drained: app-2",
        "pybalancer: take it back with: pybalancer undrain --pool chat --backend app-2",
    ]
    assert fleet.restarts == ["app-1", "app-3"]
    assert drained(serving) == {"app-2"}


def test_a_dry_run_does_nothing(serving: Serving, fleet: Services, roll: Start) -> None:
    visitors = visit(serving.address, 3, NAMES)
    assert serving.ask("drain", "app-2").returncode == 0
    said = "\n".join(done(roll("--dry-run", "--over", "7s", "--deadline", "9s", "--rate", "5/s")))
    assert "1 at a time, drained over 7 s, at most 5/s, cut after 9 s, with slow start over 0 s" in said
    # A table folds what is long.
    unfolded = re.sub(r"[\s│]+", "", said)
    for name in ("app-1", "app-3"):
        assert re.sub(r"\s+", "", fleet.command.replace("{name}", name)) in unfolded
    assert "drained: skipped" in said
    found = json.loads("\n".join(done(roll("--dry-run", "--json"))))
    assert found["outcome"] == "planned"
    assert [step["step"] for step in found["steps"]] == ["waiting", "skipped", "waiting"]
    assert fleet.restarts == []
    assert drained(serving) == {"app-2"}
    assert all(visitor.echoes() for visitor in visitors if visitor.backend != "app-2")
    assert journals(serving) == []


def test_a_command_that_fails_stops_it_and_the_rest_is_untouched(
    serving: Serving, fleet: Services, roll: Start
) -> None:
    failing = f"echo no luck; test {{name}} != app-2 && {fleet.command}"
    code, lines, complained = roll("--shell", command=failing).end()
    assert code == 1
    assert lines[-2:] == ["app-2 | no luck", lines[-1]]
    assert lines[-1].startswith("app-2: failed: /bin/sh -c ")
    assert complained[0].startswith("pybalancer: the roll of pool chat has stopped: app-2: /bin/sh -c ")
    assert complained[0].endswith(": exit code 1")
    assert complained[1:] == [
        "pybalancer: 1 of 3 done",
        "pybalancer: still drained: app-2",
        "pybalancer: untouched: app-3",
        "pybalancer: go on with: pybalancer roll chat --resume",
        "pybalancer: or take it back with: pybalancer undrain --pool chat --backend app-2",
    ]
    assert (fleet.restarts, drained(serving)) == (["app-1"], {"app-2"})

    code, _, complained = roll().end()
    assert code == 1
    assert complained == [
        "pybalancer: an earlier roll of pool chat was broken off, 1 of 3 done: "
        "go on with --resume, or begin from the start with --anew"
    ]
    # As it was, and so it fails again; then with a command that is mended.
    assert roll("--resume").end()[0] == 1
    done(roll("--resume", "--exec", fleet.command))
    assert (fleet.restarts, drained(serving)) == (list(NAMES), set())
    code, _, complained = roll("--resume").end()
    assert (code, complained) == (1, ["pybalancer: there is no roll of pool chat to go on with"])


@pytest.mark.parametrize("meanwhile", ["undrained", "left"])
def test_what_was_broken_off_can_be_begun_anew(
    serving: Serving, fleet: Services, roll: Start, meanwhile: str
) -> None:
    """Whom it has left drained was not drained by somebody else: it is restarted, and taken back."""
    assert roll(command="/bin/false {name}").end()[0] == 1
    assert drained(serving) == {"app-1"}
    if meanwhile == "undrained":
        assert serving.ask("undrain", "app-1").returncode == 0
    done(roll("--anew"))
    assert (fleet.restarts, drained(serving)) == (list(NAMES), set())


def test_a_command_that_cannot_be_run_costs_nobody_a_drain(
    serving: Serving, fleet: Services, roll: Start
) -> None:
    for arguments in ((), ("--dry-run",)):
        code, lines, complained = roll(*arguments, command="/nowhere/at-all {name}").end()
        assert (code, lines) == (2, [])
        why = "the command for app-1 cannot be run: '/nowhere/at-all' is not there"
        assert complained == [f"pybalancer: {why}"]
    assert drained(serving) == set()
    assert journals(serving) == []


def test_what_is_told_to_type_asks_the_same_balancer(
    serving: Serving, fleet: Services, roll: Start, file: Path
) -> None:
    del serving.environment["RUNTIME_DIRECTORY"]
    socket = f"unix:{file.parent}/run/admin.sock"
    code, _, complained = roll("--admin", socket, command="/bin/false").end()
    assert code == 1
    assert complained[-2:] == [
        f"pybalancer: go on with: pybalancer roll chat --resume --admin {socket}",
        f"pybalancer: or take it back with: pybalancer undrain --pool chat --backend app-1 --admin {socket}",
    ]
    # However its address is written.
    other = f"{file.parent}/run/../run/admin.sock"
    done(roll("--resume", "--exec", fleet.command, "--admin", other))
    assert fleet.restarts == list(NAMES)


def test_a_backend_that_does_not_come_up_stops_it(serving: Serving, fleet: Services, roll: Start) -> None:
    killing = f"kill -9 $(cat {shlex.quote(str(fleet.folder))}/{{name}}.pid)"
    code, lines, _ = roll("--shell", "--timeout", "300ms", command=killing).end()
    assert code == 1
    assert lines[-1].startswith("app-1: failed: it did not come up within 0.3 s: ")
    found = backends(serving)
    assert [found[name]["state"] for name in NAMES] == ["down", "up", "up"]
    assert drained(serving) == {"app-1"}
    lines = done(roll("--resume", "--exec", fleet.command, "--timeout", "60s"))
    assert lines[:-1] == ONE_BY_ONE[1:]


def test_as_json(serving: Serving, fleet: Services, roll: Start) -> None:
    found = json.loads("\n".join(done(roll("--json"))))
    assert (found["pool"], found["outcome"], found["problem"]) == ("chat", "done", None)
    assert [(step["backend"], step["step"], step["output"]) for step in found["steps"]] == [
        (name, "done", f"{name} restarted\n") for name in NAMES
    ]
    code, lines, complained = roll("--json", command="/bin/false").end()
    found = json.loads("\n".join(lines))
    assert (code, complained, found["outcome"]) == (1, [], "failed")
    assert found["problem"] == "app-1: /bin/false: exit code 1"
    assert [step["step"] for step in found["steps"]] == ["failed", "waiting", "waiting"]
    assert found["drained"] == ["app-1"]


def test_one_roll_of_a_pool_at_a_time(fleet: Services, roll: Start) -> None:
    fleet.hold("app-1")
    rolling = roll()
    fleet.reached("app-1")
    code, _, complained = roll().end()
    assert (code, complained) == (1, ["pybalancer: pool chat is being rolled already, by another process"])
    fleet.release("app-1")
    done(rolling)


# Broken off.


def close(visitors: list[Visitor]) -> None:
    for visitor in visitors:
        visitor.socket.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_takes_back_who_is_being_drained(
    serving: Serving, fleet: Services, roll: Start, number: int
) -> None:
    visitors = visit(serving.address, 12, NAMES)
    rolling = roll("--over", "1h", "--deadline", "2h")
    rolling.says("app-1: draining")
    rolling.process.send_signal(number)
    code, lines, complained = rolling.end()
    assert code == 130
    assert lines[1:] == ["stopping: who is being drained is taken back", "app-1: taken back as it was"]
    assert complained == [
        "pybalancer: the roll of pool chat has stopped",
        "pybalancer: 0 of 3 done",
        "pybalancer: untouched: app-1, app-2, app-3",
        "pybalancer: go on with: pybalancer roll chat --resume",
    ]
    assert (fleet.restarts, drained(serving)) == ([], set())
    assert [drain["state"] for drain in serving.status()["drains"]] == ["cancelled"]
    assert all(visitor.echoes() for visitor in visitors if visitor.backend != "app-1")
    close(visitors)
    done(roll("--resume", "--over", "0s", "--deadline", "0s"))
    assert fleet.restarts == list(NAMES)


def test_ctrl_c_sees_a_command_through(serving: Serving, fleet: Services, roll: Start) -> None:
    fleet.hold("app-2")
    rolling = roll()
    fleet.reached("app-2")
    rolling.process.send_signal(signal.SIGINT)
    rolling.says("stopping: who is being drained is taken back; app-2 is seen through, once more ends it")
    assert drained(serving) == {"app-2"}
    fleet.release("app-2")
    code, lines, complained = rolling.end()
    assert (code, lines[-1]) == (130, "app-2: up, and taken back (2 of 3)")
    assert "pybalancer: untouched: app-3" in complained
    assert (fleet.restarts, drained(serving)) == (["app-1", "app-2"], set())
    done(roll("--resume"))
    assert fleet.restarts == list(NAMES)


def test_ctrl_c_twice_ends_the_command(serving: Serving, fleet: Services, roll: Start) -> None:
    fleet.hold("app-2")
    rolling = roll()
    fleet.reached("app-2")
    rolling.process.send_signal(signal.SIGINT)
    rolling.says("stopping: who is being drained is taken back; app-2 is seen through, once more ends it")
    rolling.process.send_signal(signal.SIGINT)
    code, lines, complained = rolling.end()
    assert (code, lines[-1]) == (130, "ending it at once")
    assert "pybalancer: still drained: app-2" in complained
    # Whoever opens the pipe to write would find nobody that reads.
    with pytest.raises(OSError, match="No such device"):
        os.open(fleet.folder / "app-2.gate", os.O_WRONLY | os.O_NONBLOCK)
    (fleet.folder / "app-2.gate").unlink()
    assert (fleet.restarts, drained(serving)) == (["app-1"], {"app-2"})
    done(roll("--resume"))
    assert (fleet.restarts, drained(serving)) == (list(NAMES), set())


def test_a_roll_that_was_killed_goes_on_where_it_was(serving: Serving, fleet: Services, roll: Start) -> None:
    fleet.hold("app-2")
    rolling = roll()
    fleet.reached("app-2")
    rolling.process.kill()
    rolling.end()
    assert drained(serving) == {"app-2"}
    # Its command runs on, and is run once more: whether it had come to its end nobody knows.
    fleet.release("app-2")
    until(lambda: "app-2" in fleet.restarts, "the end of the command")
    lines = done(roll("--resume"))
    assert lines[0] == "app-2: running the command"
    assert fleet.restarts == ["app-1", "app-2", "app-2", "app-3"]
    assert drained(serving) == set()


def test_it_goes_on_when_nobody_reads_what_it_says(serving: Serving, fleet: Services, roll: Start) -> None:
    fleet.hold("app-1")
    rolling = roll()
    fleet.reached("app-1")
    assert rolling.process.stdout is not None
    assert rolling.process.stderr is not None
    rolling.process.stdout.close()
    fleet.release("app-1")
    assert rolling.process.wait(PATIENCE) == 0
    assert fleet.restarts == list(NAMES)
    assert rolling.process.stderr.read() == ""


def test_the_balancer_is_killed_and_another_started(
    serving: Serving, serve: Serve, file: Path, fleet: Services, roll: Start
) -> None:
    fleet.hold("app-2")
    rolling = roll()
    fleet.reached("app-2")
    serving.process.kill()
    serving.wait()
    rolling.says(next(line for line in iter(lambda: _line(rolling), "") if "waiting for it" in line))
    another = serve(file)
    rolling.says("the balancer answers again")
    # It knew of nothing, and is told before anything else happens.
    until(lambda: drained(another) == {"app-2"}, "a drain at the new process")
    fleet.release("app-2")
    lines = done(rolling)
    assert lines[-2] == "app-3: up, and taken back (3 of 3)"
    assert (fleet.restarts, drained(another)) == (list(NAMES), set())


def test_what_a_balancer_that_is_away_has_drained_is_told_with_a_doubt(
    serving: Serving, fleet: Services, roll: Start
) -> None:
    fleet.hold("app-1")
    rolling = roll()
    fleet.reached("app-1")
    serving.process.kill()
    serving.wait()
    rolling.says(next(line for line in iter(lambda: _line(rolling), "") if "waiting for it" in line))
    rolling.process.send_signal(signal.SIGINT)
    rolling.says("stopping: who is being drained is taken back; app-1 is seen through, once more ends it")
    rolling.process.send_signal(signal.SIGINT)
    code, _, complained = rolling.end()
    doubt = "pybalancer: still drained: app-1 (a balancer that was started meanwhile does not know of it)"
    assert (code, complained[2]) == (130, doubt)
    # Its pipe has no reader any more, and holds nothing up.
    (fleet.folder / "app-1.gate").unlink()


def test_a_balancer_that_is_ending_is_waited_for(
    serving: Serving, serve: Serve, file: Path, fleet: Services, roll: Start
) -> None:
    """It answers to the last moment, and takes no orders: that is no failure of the backend's."""
    visitors = visit(serving.address, 3)
    fleet.hold("app-1")
    rolling = roll("--deadline", "0")
    fleet.reached("app-1")
    serving.signal(signal.SIGTERM)
    serving.line("draining everything")
    fleet.release("app-1")
    rolling.says("app-1: waiting until it is up")
    rolling.says(next(line for line in iter(lambda: _line(rolling), "") if "is ending" in line))
    asked = {command: serving.ask(*command.split()) for command in ("drain app-2", "undrain app-2", "reload")}
    for command, answer in asked.items():
        ending = "pybalancer: this balancer is ending: nothing can be changed any more\n"
        assert (answer.returncode, answer.stderr) == (1, ending), command
    for visitor in visitors:
        visitor.socket.close()
    assert serving.wait() == 0
    another = serve(file)
    lines = done(rolling)
    assert lines[-1].startswith("rolled pool chat: 3 backends")
    assert (fleet.restarts, drained(another)) == (list(NAMES), set())


def _line(rolling: Rolling) -> str:
    assert rolling.process.stdout is not None
    line = rolling.process.stdout.readline().rstrip("\n")
    rolling.lines.append(line)
    return line


def test_the_balancer_is_upgraded_meanwhile(serving: Serving, fleet: Services, roll: Start) -> None:
    fleet.hold("app-2")
    rolling = roll()
    fleet.reached("app-2")
    asked = serving.ask("upgrade", "--json")
    assert asked.returncode == 0, asked.stderr
    pid = json.loads(asked.stdout)["new_pid"]
    try:
        until(lambda: drained(serving) == {"app-2"}, "a drain at the new process")
        fleet.release("app-2")
        done(rolling)
        assert (fleet.restarts, drained(serving)) == (list(NAMES), set())
        assert serving.status()["pid"] == pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_without_a_place_for_its_journal_nothing_is_begun(
    serving: Serving, fleet: Services, roll: Start, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    serving.environment["STATE_DIRECTORY"] = str(tmp_path / "taken")
    code, _, complained = roll().end()
    assert code == 1
    assert complained[0].startswith("pybalancer: cannot keep a journal: ")
    assert complained[0].endswith("STATE_DIRECTORY names another place")
    assert (fleet.restarts, drained(serving)) == ([], set())
