"""``pybalancer demo`` as people run it: it shows something, ends by itself, and leaves nothing behind."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wire.net import PATIENCE, until

DEMO = [sys.executable, "-m", "pybalancer", "demo", "--backends", "2", "--clients", "20"]


def children(pid: int) -> set[int]:
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def test_it_ends_and_says_what_was_seen() -> None:
    result = subprocess.run([*DEMO, "--for", "3s", "--json"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["messages"] > 0
    assert seen["wrong_echoes"] == 0
    assert seen["connections"] >= 20
    assert seen["kills"] >= 1
    assert seen["returns"] >= 1
    assert seen["tunnels_by_backend"].keys() == {"app-1", "app-2"}
    assert sum(seen["tunnels_by_backend"].values()) >= seen["connections"]
    assert result.stderr == ""


def test_without_a_terminal_it_prints_lines() -> None:
    result = subprocess.run([*DEMO, "--for", "3s"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "messages/s  tunnels: app-1 " in result.stdout
    assert "killed app-1" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("spread of new tunnels: app-1 ")


def test_in_a_terminal_it_draws_a_table() -> None:
    terminal, screen = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([*DEMO, "--for", "3s"], stdout=screen, env=environment)
    os.close(screen)
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:
        pass  # a terminal whose other end is closed reads EIO
    finally:
        os.close(terminal)
    assert process.wait(PATIENCE) == 0
    for word in ("pybalancer demo", "health", "app-2", "messages/s", "█"):
        assert word in shown.decode()


def test_115_ctrl_c_ends_it_with_all_its_processes() -> None:
    process = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "tunnels: " in process.stdout.readline()
    backends = children(process.pid)
    assert backends
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "spread of new tunnels" in output
    assert "Traceback" not in errors
    assert not alive(backends)


def test_a_demo_that_is_killed_takes_its_processes_along() -> None:
    process = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert "tunnels: " in process.stdout.readline()
    backends = children(process.pid)
    assert backends
    process.kill()
    process.communicate(timeout=PATIENCE)
    until(lambda: not alive(backends), "the end of the backends")


def test_the_ripple_keeps_its_promises() -> None:
    result = subprocess.run(
        [*DEMO, "--ripple", "--json"], capture_output=True, text=True, check=False, timeout=110
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    acts = {act["way"]: act for act in json.loads(result.stdout)}
    assert list(acts) == ["restart", "roll", "reattach"]
    for act in acts.values():
        assert act["broken_promises"] == []
        assert act["messages"] > 0
        assert sum(act["tunnels_by_backend"].values()) == 20
    # The ruins that it is compared with are real: killed backends tell nobody anything.
    assert acts["restart"]["clients_cut"] == 20
    assert acts["restart"]["close_codes"].keys() == {"1006"}
    assert acts["roll"]["clients_cut"] == 20
    assert acts["roll"]["close_codes"].keys() == {"1012"}
    assert acts["reattach"]["close_codes"] == {}
    assert acts["reattach"]["lost"] == acts["reattach"]["doubled"] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--for", "3s"], "takes no --for"), (["--backends", "1"], "goes from 2 with")],
)
def test_the_ripple_ends_by_itself_and_needs_somewhere_to_go(arguments: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "pybalancer", "demo", "--ripple", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert complaint in result.stderr
