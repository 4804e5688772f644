"""The commands that drain, undrain, shed and compare, against a daemon with real servers."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pybalancer.config.secret import ticket_digest

from .net import PATIENCE, until
from .services import Services, Visitor, services, visit
from .serving import Serve, Serving, environment_in

NAMES = ("app-1", "app-2", "app-3")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Services]:
    with services(tmp_path / "services", NAMES) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path, fleet: Services) -> Path:
    path = tmp_path / "pybalancer.toml"
    path.write_text(f"""
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
[pools.chat]
policy = "least-connections"
[pools.chat.drain]
over = "100ms"
deadline = "200ms"
{fleet.toml()}""")
    return path


@pytest.fixture
def serving(serve: Serve, file: Path) -> Serving:
    running = serve(file)
    running.line("admin interface at")
    return running


def fine(serving: Serving, *arguments: object) -> str:
    done = serving.ask(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def backends(serving: Serving) -> dict[str, dict[str, Any]]:
    return {backend["name"]: backend for backend in serving.status()["pools"][0]["backends"]}


def close(visitors: list[Visitor]) -> None:
    for visitor in visitors:
        visitor.socket.close()


def test_drain_waits_for_its_end_and_undrain_takes_it_back(serving: Serving) -> None:
    visitors = visit(serving.address, 12, NAMES)
    mine = [visitor for visitor in visitors if visitor.backend == "app-1"]
    said = fine(serving, "drain", "app-1")
    assert said.startswith(f"drained chat/app-1: closed {len(mine)}")
    assert f"of {len(mine)} tunnels in " in said
    assert all(visitor.ended() for visitor in mine)
    assert all(visitor.echoes() for visitor in visitors if visitor.backend != "app-1")
    assert "app-1" not in {visitor.backend for visitor in visit(serving.address, 12)}

    assert fine(serving, "undrain", "app-1") == "undrained chat/app-1: it takes new tunnels\n"
    visit(serving.address, 1, ["app-1"])
    again = serving.ask("undrain", "app-1")
    assert (again.returncode, again.stderr) == (0, "pybalancer: warning: chat/app-1 was not drained\n")


def test_undrain_of_one_that_is_down_says_so(serve: Serve, file: Path, fleet: Services) -> None:
    file.write_text(file.read_text() + '[pools.chat.health]\ninterval = "50ms"\ntimeout = "50ms"\nfall = 1\n')
    serving = serve(file)
    serving.line("admin interface at")
    fine(serving, "drain", "app-1")
    os.kill(fleet.pids["app-1"], signal.SIGKILL)
    until(lambda: backends(serving)["app-1"]["state"] == "down", "its check finds it down")
    answer = serving.ask("undrain", "app-1")
    assert (answer.returncode, answer.stdout) == (0, "undrained chat/app-1\n")
    assert answer.stderr == "pybalancer: warning: down, so it takes no tunnels yet: app-1\n"


def test_drain_says_what_it_has_begun(serving: Serving) -> None:
    visitors = visit(serving.address, 12, NAMES)
    count = sum(visitor.backend == "app-2" for visitor in visitors)
    given = ("--over", "5m", "--deadline", "1h", "--rate", "100/m", "--code", "4000", "--no-wait")
    said = fine(serving, "drain", "--pool", "chat", "--backend", "app-2", *given)
    assert said == f"draining chat/app-2: {count} tunnels over 300 s, at most 1.66667/s, cut after 3600 s\n"
    (drain,) = serving.status()["drains"]
    assert (drain["state"], drain["code"]) == ("running", 4000)
    shown = fine(serving, "status")
    assert f"\ndraining chat/app-2: left {drain['left']} of {count}, " in shown
    assert "app-2" in next(line for line in shown.splitlines() if "up, drained" in line)
    assert shown.count("up, drained") == 1
    said = fine(serving, "undrain", "--backend", "app-2")
    assert "stopped: closed " in said
    assert all(visitor.echoes() for visitor in visitors if visitor.backend != "app-2")


def test_drain_as_json(serving: Serving) -> None:
    visitors = visit(serving.address, 3, NAMES)
    found = json.loads(fine(serving, "drain", "chat/app-1", "--json"))
    assert found["what"] == "chat/app-1"
    (drain,) = found["drains"]
    assert (drain["state"], drain["closed"] + drain["cut"]) == ("done", drain["total"])
    assert json.loads(fine(serving, "undrain", "chat/app-1", "--json"))["drains"] == []
    close(visitors)


def test_drain_of_the_last_one_wants_force(serving: Serving) -> None:
    fine(serving, "drain", "app-1")
    fine(serving, "drain", "app-2")
    done = serving.ask("drain", "app-3")
    assert done.returncode == 1
    assert "chat/app-3 is not drained: no other backend of pool chat takes new tunnels" in done.stderr
    assert not backends(serving)["app-3"]["draining"]
    done = serving.ask("drain", "app-3", "--force")
    assert (done.returncode, "warning: no other backend" in done.stderr) == (0, True)
    fine(serving, "undrain", "--all")
    assert not any(backend["draining"] for backend in backends(serving).values())


def test_names_that_are_not_there_get_a_suggestion(serving: Serving) -> None:
    for command in ("drain", "undrain"):
        done = serving.ask(command, "ap-1")
        assert done.returncode == 1
        assert done.stderr.startswith(
            "pybalancer: there is no backend, pool or listener 'ap-1'; did you mean"
        )
    done = serving.ask("shed", "caht")
    assert (done.returncode, 'did you mean "chat"?' in done.stderr) == (1, True)


def interruptible(serving: Serving, *arguments: str, **given: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pybalancer", *arguments],
        env={**serving.environment, "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
        **given,
    )


def test_ctrl_c_ends_the_waiting_not_the_drain(serving: Serving) -> None:
    visitors = visit(serving.address, 12, NAMES)
    waiting = interruptible(
        serving, "drain", "app-1", "--over", "1h", "--deadline", "2h", stdout=subprocess.PIPE
    )
    until(lambda: serving.status()["drains"], "a drain")
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 130
    if said:  # It may not have come to the waiting yet.
        assert said == "it goes on by itself: `pybalancer undrain app-1` stops it\n"
    (drain,) = serving.status()["drains"]
    assert drain["state"] == "running"
    close(visitors)


def test_who_waits_is_told_that_somebody_has_stopped_it(serving: Serving) -> None:
    visitors = visit(serving.address, 12, NAMES)
    waiting = interruptible(
        serving, "drain", "app-1", "--over", "1h", "--deadline", "2h", stdout=subprocess.PIPE
    )
    until(lambda: serving.status()["drains"], "a drain")
    fine(serving, "undrain", "app-1")
    said, _ = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 1
    assert said.startswith("the drain of chat/app-1 was stopped by somebody: closed ")
    assert "still there" in said
    close(visitors)


def test_who_waits_is_told_what_was_left_when_the_balancer_ended(serving: Serving) -> None:
    visitors = visit(serving.address, 12, NAMES)
    count = sum(visitor.backend == "app-1" for visitor in visitors)
    # It looks more than once before it ends: what it shows on a terminal says that it waits.
    ours, theirs = pty.openpty()
    given = ("drain", "app-1", "--over", "1h", "--deadline", "2h")
    waiting = interruptible(serving, *given, stdin=theirs, stdout=theirs)
    os.close(theirs)
    assert b"left" in os.read(ours, 4096)
    serving.process.kill()
    serving.wait()
    _, said = waiting.communicate(timeout=PATIENCE)
    os.close(ours)
    assert waiting.returncode == 1
    told = rf"pybalancer: \d+ of {count} tunnels were left when the balancer last answered: "
    assert re.match(told, said)
    close(visitors)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("drain", "app-1", "--over", "2s", "--deadline", "1s"), "the deadline of a drain (1 s) comes after"),
        (("drain", "app-1", "--code", "1006"), "1006 may not be sent in a Close"),
        (("undrain", "app-1", "--slow-start", "401d"), "longer than 400 days"),
    ],
)
def test_what_the_balancer_finds_wrong_with_a_question_is_usage(
    serving: Serving, arguments: tuple[str, ...], says: str
) -> None:
    answer = serving.ask(*arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert says in answer.stderr
    assert not any(backend["draining"] for backend in backends(serving).values())


def test_a_terminal_sees_how_far_it_is(serving: Serving) -> None:
    visitors = visit(serving.address, 12, NAMES)
    count = sum(visitor.backend == "app-1" for visitor in visitors)
    ours, theirs = pty.openpty()
    waiting = interruptible(
        serving, "drain", "app-1", "--over", "1h", "--deadline", "2h", stdin=theirs, stdout=theirs
    )
    os.close(theirs)
    shown = b""

    def seen() -> bool:
        nonlocal shown
        shown += os.read(ours, 4096)
        return f"of {count}, 3".encode() in shown

    until(seen, "progress")
    assert f"\rleft {count} of {count}, 3".encode() in shown or f"\rleft {count - 1} of".encode() in shown
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(PATIENCE) == 130
    assert waiting.stderr is not None
    waiting.stderr.close()
    os.close(ours)
    close(visitors)


def test_shed_closes_what_the_fullest_have_too_many(serving: Serving) -> None:
    fine(serving, "drain", "app-1")
    visitors = visit(serving.address, 30, ["app-2", "app-3"])
    fine(serving, "undrain", "app-1")
    counted = fine(serving, "shed", "chat", "--to-skew", "1.05", "--dry-run")
    assert counted.startswith("pool chat: the fullest has 1.5 times its fair share\n")
    assert counted.endswith("it would close 8 tunnels\n")
    assert all(visitor.echoes() for visitor in visitors)
    shedding = interruptible(serving, "shed", "chat", "--rate", "1000/s", stdout=subprocess.PIPE)
    until(lambda: [drain["closed"] for drain in serving.status()["drains"]].count(8), "eight that are told")
    # Until they answer that, it waits.
    kept = [visitor for visitor in visitors if not visitor.told_to_go()]
    assert len(kept) == 22
    close([visitor for visitor in visitors if visitor not in kept])
    said, _ = shedding.communicate(timeout=PATIENCE)
    assert shedding.returncode == 0
    assert "shed: closed 8 of 8 tunnels in " in said
    assert all(visitor.echoes() for visitor in kept)
    again = fine(serving, "shed", "chat", "--to-skew", "1.6")
    assert "that is within 1.6: nothing to shed" in again
    close(visitors)


def test_shed_as_json(serving: Serving) -> None:
    fine(serving, "drain", "app-1")
    visitors = visit(serving.address, 30, ["app-2", "app-3"])
    fine(serving, "undrain", "app-1")
    found = json.loads(fine(serving, "shed", "chat", "--dry-run", "--json"))
    assert (found["dry_run"], found["surplus"], found["drain"]["total"]) == (
        True,
        {"app-2": 4, "app-3": 4},
        8,
    )
    close(visitors)


def test_diff_says_what_a_reload_would_change_and_changes_nothing(
    serving: Serving, file: Path, tmp_path: Path
) -> None:
    visitors = visit(serving.address, 12, NAMES)
    count = sum(visitor.backend == "app-2" for visitor in visitors)
    text = file.read_text()
    new = tmp_path / "new.toml"
    new.write_text(text.replace('name = "app-2"', 'name = "app-4"').replace("least-connections", "maglev"))
    said = fine(serving, "diff", new)
    for line in ("pool chat changed", "backend chat/app-4 added", "backend chat/app-2 removed"):
        assert f"{line}\n" in said
    assert "% of the keys move" in said
    assert said.endswith(f"live tunnels of backends that go: {count} kept\n")
    new.write_text(
        text.replace(
            'policy = "least-connections"', 'policy = "least-connections"\non_remove = "drain"'
        ).replace('name = "app-2"', 'name = "app-4"')
    )
    found = json.loads(fine(serving, "diff", new, "--json"))
    assert found["tunnels"] == {"kept": 0, "drained": count, "closed": 0}
    assert fine(serving, "diff", file) == "nothing changes\n"
    assert serving.status()["generation"] == 1
    assert all(visitor.echoes() for visitor in visitors)


def test_diff_goes_by_flags_and_environment_of_the_balancer(
    serve: Serve, file: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    serving = serve(file, "--grace", "5s")
    serving.line("admin interface at")
    new = tmp_path / "new.toml"
    new.write_text(f'balancer = {{ workers = 4, grace = "7s", secret = "{"ab" * 16}" }}\n' + file.read_text())
    environment["PYBALANCER_WORKERS"] = "3"
    # What is there now has gone before the file since the start: it would again.
    assert fine(serving, "diff", new) == "nothing changes\n"


def test_diff_knows_whether_the_secret_is_another(serve: Serve, file: Path, tmp_path: Path) -> None:
    environment = environment_in(tmp_path)
    del environment["PYBALANCER_SECRET"]
    text = file.read_text()
    file.write_text(f'balancer = {{ secret = "{"ab" * 16}" }}\n' + text)
    serving = Serving(environment, file)
    try:
        serving.line("admin interface")
        new = tmp_path / "new.toml"
        secret = tmp_path / "secret"
        secret.write_text("AB" * 16)
        secret.chmod(0o600)
        new.write_text(f'balancer = {{ secret_file = "{secret}" }}\n' + text)
        assert fine(serving, "diff", new) == "nothing changes\n"
        secret.write_text("cd" * 16)
        assert "secret changed" in fine(serving, "diff", new)
        secret.chmod(0o644)
        done = serving.ask("diff", new)
        assert (done.returncode, done.stdout) == (0, "nothing changes\n")
        assert "the secret is taken to be the same" in done.stderr
    finally:
        serving.close()


def direct(text: str, **keys: str) -> str:
    """That file with tickets, for clients that are sent to a backend."""
    given = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    first, *rest = text.split("[[pools.chat.backends]]\n")
    url = 'public_url = "ws://node.example"\n'
    section = f"[pools.chat.direct]\nticket = true\n{given}"
    return "".join([first, section, *(f"[[pools.chat.backends]]\n{url}{each}" for each in rest)])


def test_diff_knows_whether_the_secret_of_tickets_is_another(
    serve: Serve, file: Path, tmp_path: Path
) -> None:
    text = file.read_text()
    file.write_text(direct(text, ticket_secret="ab" * 32))
    serving = serve(file)
    serving.line("admin interface")
    new = tmp_path / "new.toml"
    new.write_text(direct(text, ticket_secret="AB" * 32))
    assert fine(serving, "diff", new) == "nothing changes\n"
    new.write_text(direct(text, ticket_secret="cd" * 32))
    assert fine(serving, "diff", new).startswith("pool chat changed\n")
    new.write_text(direct(text, ticket_secret=ticket_digest("ab" * 32)))
    assert fine(serving, "diff", new).startswith("pool chat changed\n")


def test_102_diff_of_a_file_that_is_wrong(serving: Serving, tmp_path: Path, file: Path) -> None:
    new = tmp_path / "new.toml"
    new.write_text(file.read_text().replace("policy", "polcy"))
    done = serving.ask("diff", new)
    assert done.returncode == 1
    assert f"{new}:7:1: pools.chat.polcy: unknown key" in done.stderr
    done = serving.ask("diff", tmp_path / "nowhere.toml")
    assert (done.returncode, "No such file" in done.stderr) == (1, True)
    new.write_text(file.read_text().replace('"127.0.0.1:0"', '"127.0.0.1:0"\naccept_rate = "1/s"'))
    assert "listener public changed" in fine(serving, "diff", new)


def test_102_diff_does_not_send_secrets(serving: Serving, tmp_path: Path, file: Path) -> None:
    secret, token, tickets = "1234567890abcdef" * 2, "a-token-of-some-length", "fedcba0987654321" * 4
    new = tmp_path / "new.toml"
    new.write_text(
        f'balancer = {{ secret = "{secret}", admin_token = "{token}" }}\n'
        + direct(file.read_text(), ticket_secret=tickets)
    )
    trace = tmp_path / "sitecustomize.py"
    trace.write_text(
        "import json, os\n"
        "from pybalancer.admin import client\n"
        "def ask(self, method, target, body=None):\n"
        "    os.write(2, body)\n"
        "    raise client.AdminError('seen')\n"
        "client.Client._ask = ask\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    serving.environment["PYTHONPATH"] = path
    done = serving.ask("diff", new)
    assert '"config"' in done.stderr
    assert secret not in done.stderr
    assert token not in done.stderr
    assert tickets not in done.stderr
