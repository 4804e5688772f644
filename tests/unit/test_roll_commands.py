"""What a roll runs on each backend: commands, as real processes, and functions of a host program."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pybalancer.errors import RollError
from pybalancer.policy.draining import Terms
from pybalancer.policy.roll import Roll, Settings
from pybalancer.rolling import RollLog, acting, check
from pybalancer.tasks import commands
from pybalancer.tasks.commands import MOST_OUTPUT, Command, CommandError
from pybalancer.tasks.rolls import Failed

VALUES = {"name": "app-1", "pool": "chat", "address": "10.0.0.1:9001"}
LONG = 60.0


def python(program: str) -> str:
    """A command line that runs this."""
    return shlex.join([sys.executable, "-c", program])


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("systemctl restart app@{name}", ["systemctl", "restart", "app@app-1"]),
        ("restart '{name}' {pool} \"{address}\"", ["restart", "app-1", "chat", "10.0.0.1:9001"]),
        ("echo {name}{name}", ["echo", "app-1app-1"]),
        ("echo ${HOME} $HOME {} {{name}}", ["echo", "${HOME}", "$HOME", "{}", "{app-1}"]),
    ],
)
def test_a_line_is_split_first_and_filled_in_then(line: str, arguments: list[str]) -> None:
    assert Command(line).arguments(VALUES) == arguments


def test_no_name_adds_an_argument_or_is_filled_in_itself() -> None:
    hostile = {**VALUES, "name": "x; rm -rf / #' {address} \"$(id)"}
    assert Command("restart {name} now").arguments(hostile) == ["restart", hostile["name"], "now"]
    shell = Command("restart {name} now", shell=True).arguments(hostile)
    assert shell[:2] == ["/bin/sh", "-c"]
    assert shlex.split(shell[2]) == ["restart", hostile["name"], "now"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "the command is empty"),
        ("   ", "the command is empty"),
        ("restart '{name}", "cannot be split"),
        ("restart {nmae}", "{nmae} means nothing in a command; there are {name}, {pool}, {address}"),
    ],
)
def test_what_is_no_command_is_said_before_anything_is_drained(line: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Command(line)
    assert says in str(caught.value)


@pytest.mark.parametrize("shell", [False, True])
def test_what_may_mean_a_variable_is_not_guessed(shell: bool) -> None:
    with pytest.raises(ValueError, match=r"\$\{name\} is a variable of the shell: write \{name\} to have it"):
        Command("restart app@${name}", shell)
    assert Command("echo ${HOME}", shell).arguments(VALUES)[-1].endswith("${HOME}")


def test_an_empty_line_for_the_shell_is_none_either() -> None:
    with pytest.raises(ValueError, match="the command is empty"):
        Command("  ", shell=True)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("systemctl-nowhere restart {name}", "no program 'systemctl-nowhere' on the PATH; .* --shell"),
        ("/nowhere/{name}/restart", "'/nowhere/app-1/restart' is not there"),
        ("/etc/passwd", "'/etc/passwd' cannot be run"),
    ],
)
def test_a_program_that_is_missing_is_seen_beforehand(line: str, says: str) -> None:
    assert re.search(says, Command(line).missing(VALUES) or "")
    assert Command(line, shell=True).missing(VALUES) is None
    assert Command(python("pass")).missing(VALUES) is None


async def test_it_returns_what_was_said_on_both_outputs() -> None:
    both = python("import os; os.write(1, b'out '); os.write(2, b'err')")
    assert await Command(both).run(VALUES, LONG) == "out err"


async def test_the_values_are_in_its_environment_too() -> None:
    asked = python("import os; print(*(os.environ['PYBALANCER_' + w] for w in ('NAME', 'POOL', 'ADDRESS')))")
    assert await Command(asked).run(VALUES, LONG) == "app-1 chat 10.0.0.1:9001\n"


async def test_a_shell_is_used_only_if_asked_for() -> None:
    assert await Command("echo {name} | tr a b").run(VALUES, LONG) == "app-1 | tr a b\n"
    assert await Command("echo {name} | tr a b", shell=True).run(VALUES, LONG) == "bpp-1\n"


async def test_nobody_can_be_asked_anything() -> None:
    asks = python("import sys; print(repr(sys.stdin.read()))")
    assert await Command(asks).run(VALUES, LONG) == "''\n"


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("print('no such unit'); raise SystemExit(3)", "exit code 3"),
        ("import os; print('no such unit', flush=True); os.kill(os.getpid(), 9)", "killed by signal 9"),
    ],
)
async def test_a_failure_says_how_and_keeps_the_output(program: str, how: str) -> None:
    with pytest.raises(CommandError, match=how) as caught:
        await Command(python(program)).run(VALUES, LONG)
    assert caught.value.output == "no such unit\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [("/nowhere/restart {name}", "No such file or directory"), ("/etc/passwd", "Permission denied")],
)
async def test_what_cannot_be_run_is_a_failure(line: str, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        await Command(line).run(VALUES, LONG)


async def test_the_last_of_much_output_is_kept() -> None:
    much = python(f"import sys; sys.stdout.write('x' * {3 * MOST_OUTPUT}); print('the end')")
    said = await Command(much).run(VALUES, LONG)
    first, kept = said.split("\n", 1)
    assert first == f"({2 * MOST_OUTPUT + 8:,} bytes before this are not kept)"
    assert len(kept) == MOST_OUTPUT
    assert kept.endswith("the end\n")


async def test_output_that_is_no_text_harms_nobody() -> None:
    assert await Command(python(r"import os; os.write(1, b'\xff\x00')")).run(VALUES, LONG) == "\ufffd\0"


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def _until(condition: Any) -> None:
    """Real time, whatever the test's clock says: another process tells nobody."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await trio.to_thread.run_sync(time.sleep, 0.01)


def _written(pids: list[Path]) -> bool:
    return all(path.exists() and path.read_text() for path in pids)


FAMILY = """
import os, signal, sys, time
if {deaf}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
with open({file!r} + ('.child' if child == 0 else ''), 'w') as file:
    file.write(str(os.getpid()))
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize("deaf", [False, True], ids=["obeys TERM", "ignores TERM"])
async def test_one_that_takes_too_long_is_ended_with_all_that_it_has_started(
    tmp_path: Path, deaf: bool, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    monkeypatch.setattr(commands, "MERCY", 0.2)
    pids = [tmp_path / "pid", tmp_path / "pid.child"]
    command = Command(python(FAMILY.format(deaf=deaf, file=str(pids[0]))))
    outcome: list[CommandError] = []

    async def run() -> None:
        try:
            await command.run(VALUES, LONG)
        except CommandError as error:
            outcome.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await _until(lambda: _written(pids))
        mock_clock.jump(LONG)
        mock_clock.rate = 1.0
    assert "ended, for it took over 60 s" in str(outcome[0])
    await _until(lambda: all(_gone(int(path.read_text())) for path in pids))


async def test_cancelled_it_is_ended_too(tmp_path: Path) -> None:
    pids = [tmp_path / "pid", tmp_path / "pid.child"]
    command = Command(python(FAMILY.format(deaf=False, file=str(pids[0]))))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(command.run, VALUES, LONG)
        await _until(lambda: _written(pids))
        nursery.cancel_scope.cancel()
    await _until(lambda: all(_gone(int(path.read_text())) for path in pids))


async def test_a_daemon_that_keeps_the_output_open_does_not_hold_it_up(tmp_path: Path) -> None:
    """As an init script does that starts its server without closing anything."""
    pid = tmp_path / "pid"
    daemon = (
        "import os, time\nprint('started', flush=True)\nif os.fork() == 0:\n    os.setsid()\n"
        f"    open({str(pid)!r}, 'w').write(str(os.getpid()))\n    time.sleep(60)"
    )
    try:
        assert await Command(python(daemon)).run(VALUES, LONG) == "started\n"
        await _until(lambda: _written([pid]))
        assert not _gone(int(pid.read_text())), "it lives on: it is the server"
    finally:
        if pid.exists() and pid.read_text():
            os.kill(int(pid.read_text()), signal.SIGKILL)


async def test_ctrl_c_does_not_reach_it() -> None:
    """It has a session of its own: whether to end it is for the roll to judge."""
    own = await Command(python("import os; print(os.getsid(0) == os.getpid())")).run(VALUES, LONG)
    assert own == "True\n"


# The action of a roll: a command, or a function.


async def test_a_command_is_given_its_backend() -> None:
    act = acting(Command("echo {name} {pool} {address}"), "chat", {"app-1": "10.0.0.1:9001"}, LONG)
    assert await act("app-1") == "app-1 chat 10.0.0.1:9001\n"
    with pytest.raises(Failed, match="exit code 1") as caught:
        await acting(Command("sh -c 'echo broken; exit 1'"), "chat", {}, LONG)("app-1")
    assert caught.value.output == "broken\n"


class Callable:
    def __init__(self) -> None:
        self.names: list[str] = []

    async def __call__(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        self.names.append(name)


async def test_a_function_may_be_async_or_not() -> None:
    names: list[str] = []
    threads: list[bool] = []

    async def asynchronous(name: str) -> None:
        await trio.lowlevel.checkpoint()
        names.append(name)

    def plain(name: str) -> None:
        threads.append(trio.lowlevel.in_trio_task())
        names.append(name)

    instance = Callable()
    for action in (asynchronous, plain, lambda name: asynchronous(f"{name}"), instance):
        assert await acting(action, "chat", {}, LONG)("app-1") == ""
    assert names == ["app-1"] * 3
    assert instance.names == ["app-1"]
    assert threads == [False], "it may block, so it runs in a thread"


async def test_whatever_a_function_raises_is_its_failure() -> None:
    async def breaks(_name: str) -> None:
        raise LookupError("no such host")

    def nameless(_name: str) -> None:
        raise LookupError

    with pytest.raises(Failed, match="the action failed: no such host"):
        await acting(breaks, "chat", {}, LONG)("app-1")
    with pytest.raises(Failed, match="the action failed: LookupError"):
        await acting(nameless, "chat", {}, LONG)("app-1")


async def test_a_function_has_its_time(autojump_clock: MockClock) -> None:
    async def hangs(_name: str) -> None:
        await trio.sleep_forever()

    with pytest.raises(Failed, match="the action took over 30 s"):
        await acting(hangs, "chat", {}, 30.0)("app-1")


# What a roll is asked for, and what it answers.

TERMS = Terms(30.0, 45.0, 1012, 0.0)


def test_what_makes_no_sense_is_said() -> None:
    with pytest.raises(ValueError, match="max_down is at least 1"):
        check("chat", ["a"], [], 0, 60, TERMS, force=False)
    for timeout in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout is a number of seconds above 0"):
            check("chat", ["a"], [], 1, timeout, TERMS, force=False)
    with pytest.raises(RollError, match="there is no backend 'b', 'c' in pool chat"):
        check("chat", ["a"], ["a", "b", "c"], 1, 60, TERMS, force=False)
    settings = check("chat", ["a"], [], 2, 50, TERMS, force=True)
    assert settings == Settings(max_down=2, timeout=50, deadline=45.0, force=True)


def test_the_result_has_why_and_what_was_said_of_each() -> None:
    passed: list[str] = []
    log = RollLog(lambda event: passed.append(event["event"]))
    roll = Roll(["a", "b"], Settings(), 0.0, {"a": "done"})
    log.tell({"event": "moved", "backend": "a", "from": "checking", "to": "done", "why": "it is up"})
    log.tell({"event": "output", "backend": "a", "output": "restarted", "error": None})
    log.tell({"event": "progress", "backend": "b"})
    result = log.result("chat", roll, "interrupted")
    assert passed == ["moved", "output", "progress"]
    assert result.to_dict() == {
        "pool": "chat",
        "outcome": "interrupted",
        "steps": [
            {"backend": "a", "step": "done", "why": "it is up", "output": "restarted"},
            {"backend": "b", "step": "waiting", "why": "", "output": ""},
        ],
    }
