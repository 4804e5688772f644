"""The command line through its own process: exit codes, messages, and what help costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pybalancer.cli import app, help_page
from pybalancer.cli.status import size, span

SECRET = "00112233445566778899aabbccddeeff"
GOOD = f"""
[balancer]
secret = "{SECRET}"
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
pool = "chat"
[pools.chat]
backends = [
    {{ name = "app-1", address = "app-1.invalid:9001" }},
    {{ name = "app-2", address = "127.0.0.1:9002" }},
]
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Without what the developer's own environment says of pybalancer, and with its files in a corner."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYBALANCER_")}
    return {**kept, "RUNTIME_DIRECTORY": str(tmp_path / "run"), "STATE_DIRECTORY": str(tmp_path / "state")}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "pybalancer.toml"
    path.write_text(GOOD)
    return path


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pybalancer", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_the_first_page_of_help_is_current() -> None:
    assert help_page.PAGE.read_text(encoding="utf-8") == help_page.generate()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(environment: dict[str, str], arguments: tuple[str, ...]) -> None:
    result = run(environment, *arguments)
    assert result.returncode == 0
    for command in app.COMMANDS:
        assert f" {command} " in result.stdout


def test_help_imports_nothing_that_takes_time(environment: dict[str, str]) -> None:
    """What keeps ``pybalancer --help`` fast, on a busy machine too: a clock would not say."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pybalancer", "--help"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert not imported & {"cyclopts", "rich", "pydantic", "trio", "starlette", "hypercorn", "cffi", "attr"}


@pytest.mark.parametrize("command", app.COMMANDS)
def test_every_command_explains_itself(environment: dict[str, str], command: str) -> None:
    result = run(environment, command, "--help")
    assert result.returncode == 0
    assert f"pybalancer {command}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("serv",), 'Did you mean "serve"?'),
        (("serve", "--lsten", ":80"), "Did you mean --listen?"),
        (("serve",), "for example: pybalancer serve"),
        (("serve", "x.toml", "--to", "a:1"), "either a file, or --listen and --to"),
        (("serve", "x.toml", "--policy", "maglev"), "--policy goes with --listen"),
        (("serve", "--listen", ":1", "--to", "a:1", "--workers", "many"), "--workers"),
        (("serve", "--listen", ":1", "--to", "a:1", "--max-connections", "-1"), "--max-connections"),
        (("check",), "check what?"),
        (("explain",), "SOURCE"),
        (("explain", "--header", "X-User 5", "192.0.2.1:7"), "write it as in --header 'X-User: 5'"),
        (("explain", "--cookie", "user", "192.0.2.1:7"), "write it as in --cookie 'user=5'"),
        (("explain", "--pth", "/", "192.0.2.1:7"), "Did you mean --path?"),
        (("demo", "--for", "soon"), "--for: 'soon' is not a time"),
        (("demo", "--backends", "0"), "--backends goes from 1"),
        (("table", "x.toml", "--admin", "y"), "either a file, or --admin"),
        (("drain",), "say one of: NAME"),
        (("drain", "app-1", "--all"), "say one of: NAME"),
        (("drain", "app-1", "--over", "30"), "--over: '30' is not a time"),
        (("drain", "app-1", "--deadline", "soon"), "--deadline: 'soon' is not a time"),
        (("drain", "app-1", "--rate", "100"), "--rate: '100' is not a rate"),
        (("drain", "app-1", "--code", "restart"), "--code"),
        (("drain", "app-1", "--nowait"), "Did you mean --no-wait?"),
        (("undrain", "--pool", "chat", "--listener", "public"), "say one of: NAME"),
        (("undrain", "app-1", "--slow-start", "5"), "--slow-start: '5' is not a time"),
        (("shed",), "POOL"),
        (("shed", "chat", "--to-skew", "0.9"), "--to-skew: a number from 1"),
        (("shed", "chat", "--to-skew", "nan"), "--to-skew: a number from 1"),
        (("diff",), "FILE"),
        (("roll",), "POOL"),
        (("roll", "chat"), "for example: pybalancer roll chat --exec"),
        (("roll", "chat", "--exec", "x", "--timeout", "9"), "--timeout: '9' is not a time"),
        (("roll", "chat", "--resume", "--anew"), "--resume goes on with a roll as it is"),
        (("roll", "chat", "--resume", "--dry-run"), "--resume goes on with a roll as it is"),
        (("roll", "chat", "--resume", "--backend", "app-1"), "--resume goes on with a roll as it is"),
    ],
)
def test_usage_errors_exit_with_2_and_suggest(
    environment: dict[str, str], arguments: tuple[str, ...], says: str
) -> None:
    result = run(environment, *arguments)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_explain_shows_how_to_ask_for_a_request(environment: dict[str, str]) -> None:
    text = " ".join(run(environment, "explain", "--help").stdout.split())
    assert "explain --host chat.example.com --path '/rooms/7?v=2' 203.0.113.7:51234" in text
    for option in ("--listener", "--host", "--path", "--header", "--cookie", "--pool"):
        assert option in text


def test_version(environment: dict[str, str]) -> None:
    from pybalancer import _core

    assert run(environment, "version").stdout.startswith(f"pybalancer {_core.__version__} ")
    assert run(environment, "--version").stdout.startswith(f"pybalancer {_core.__version__} ")
    assert json.loads(run(environment, "version", "--json").stdout)["version"] == _core.__version__


def test_check_says_what_is_there(environment: dict[str, str], good: Path) -> None:
    result = run(environment, "check", good)
    assert (result.returncode, result.stdout) == (0, f"{good}: fine: 1 listener, 1 pool, 2 backends\n")


def test_check_says_all_that_is_wrong(environment: dict[str, str], good: Path) -> None:
    good.write_text(GOOD.replace("bind", "bnd").replace('pool = "chat"', 'pool = "chta"'))
    result = run(environment, "check", good)
    assert result.returncode == 1
    assert f"{good}:6:1: " in result.stderr
    assert 'unknown key; did you mean "bind"?' in result.stderr
    assert "chta" in result.stderr
    found = json.loads(run(environment, "check", good, "--json").stdout)
    assert not found["ok"]
    assert {problem["line"] for problem in found["problems"]} >= {6, 7}


def test_check_wants_the_secret_file_private(environment: dict[str, str], good: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    good.write_text(GOOD.replace(f'secret = "{SECRET}"', f'secret_file = "{secret}"'))
    result = run(environment, "check", good)
    assert result.returncode == 1
    assert f"chmod 600 {secret}" in result.stderr


def test_check_prints_schema_and_reference(environment: dict[str, str]) -> None:
    assert "properties" in json.loads(run(environment, "check", "--schema").stdout)
    assert run(environment, "check", "--reference").stdout.startswith("# ")


def test_check_and_table_know_mode_websocket(environment: dict[str, str], tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "config" / "valid" / "websocket-routes.toml"
    result = run(environment, "check", file)
    assert (result.returncode, result.stdout) == (0, f"{file}: fine: 1 listener, 1 pool, 1 backend\n")
    assert run(environment, "table", file, "--digest").stdout.endswith("  chat\n")
    doubtful = file.with_name("doubtful-routes.toml")
    result = run(environment, "check", doubtful)
    assert result.returncode == 0
    assert "routes[5]: no request comes this far: routes[4] takes them all; move it up" in result.stderr


def test_serve_with_a_bad_file_exits_with_1(environment: dict[str, str], good: Path) -> None:
    good.write_text("listeners = 3")
    result = run(environment, "serve", good)
    assert result.returncode == 1
    assert f"{good}:1:1: listeners" in result.stderr


def test_102_serve_never_shows_a_secret(environment: dict[str, str], good: Path) -> None:
    good.write_text(GOOD.replace(SECRET, SECRET + "0") + "\nworkers = 'x'\n")
    result = run(environment, "serve", good)
    assert result.returncode == 1
    assert SECRET not in result.stdout + result.stderr


def test_table_needs_no_running_balancer_and_no_names(environment: dict[str, str], good: Path) -> None:
    digest = run(environment, "table", good, "--digest")
    assert digest.returncode == 0, digest.stderr
    assert digest.stdout.split()[1] == "chat"
    content = json.loads(run(environment, "table", good, "--json").stdout)["chat"]
    assert content["digest"] == digest.stdout.split()[0]
    assert sum(content["shares"].values()) == pytest.approx(1.0)


def test_table_depends_on_names_and_secret_and_not_on_addresses(
    environment: dict[str, str], good: Path
) -> None:
    def digest() -> str:
        return run(environment, "table", good, "--digest", "--pool", "chat").stdout

    first = digest()
    good.write_text(GOOD.replace("app-1.invalid:9001", "127.0.0.1:1"))
    assert digest() == first
    good.write_text(GOOD.replace(SECRET, SECRET[::-1]))
    assert digest() != first


def test_table_of_a_pool_that_is_not_there(environment: dict[str, str], good: Path) -> None:
    result = run(environment, "table", good, "--pool", "rooms")
    assert result.returncode == 1
    assert "there are: chat" in result.stderr


COMMANDS_THAT_ASK = [
    ("status",),
    ("reload",),
    ("explain", "127.0.0.1:1"),
    ("table",),
    ("drain", "app-1"),
    ("undrain", "--all"),
    ("shed", "chat"),
    ("roll", "chat", "--exec", "true"),
    ("roll", "chat", "--exec", "true", "--dry-run"),
]


@pytest.mark.parametrize("arguments", COMMANDS_THAT_ASK)
def test_without_a_running_balancer_commands_say_where_they_looked(
    environment: dict[str, str], arguments: tuple[str, ...]
) -> None:
    result = run(environment, *arguments)
    assert result.returncode == 1
    assert f"unix:{environment['RUNTIME_DIRECTORY']}/admin.sock: is it running?" in result.stderr


def test_where_commands_look_flag_then_environment_then_file(
    environment: dict[str, str], good: Path, tmp_path: Path
) -> None:
    good.write_text(GOOD.replace("[balancer]", f'[balancer]\nadmin = "unix:{tmp_path}/file.sock"'))
    assert "/file.sock" in run(environment, "status", "--config", good).stderr
    environment["PYBALANCER_ADMIN"] = f"unix:{tmp_path}/environment.sock"
    assert "/environment.sock" in run(environment, "status", "--config", good).stderr
    flag = run(environment, "status", "--config", good, "--admin", f"{tmp_path}/flag.sock")
    assert "/flag.sock" in flag.stderr


def test_a_reader_that_has_seen_enough_is_no_error_worth_a_traceback(environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "pybalancer", "check", "--reference"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
        )
    finally:
        os.close(writer)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_000_000, "2.0 MB"), (3e15, "3000.0 TB")],
)
def test_sizes_for_people(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0s"), (42, "42s"), (200, "3m 20s"), (18420, "5h 7m"), (1_047_600, "12d 3h")]
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text
