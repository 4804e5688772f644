"""The programs and the file in examples/, run as their first lines say."""

import os
import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = 100


def run(*arguments: str, directory: Path) -> str:
    """Run Python as a user would; what it printed. It has to end by itself, and without complaint."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYBALANCER_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**environment, "STATE_DIRECTORY": str(directory), "RUNTIME_DIRECTORY": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(directory.iterdir()), "an example leaves files behind"
    return done.stdout


def spreads(printed: str) -> list[dict[str, int]]:
    """The counts by backend that are in the text."""
    return [literal_eval(found) for found in re.findall(r"\{.*\}", printed)]


def test_embed_trio(tmp_path: Path) -> None:
    printed = run("examples/embed_trio.py", directory=tmp_path)
    both, one = spreads(printed)
    assert sum(both.values()) == CLIENTS
    assert min(both["app-1"], both["app-2"]) > CLIENTS // 5
    assert one == {"app-2": CLIENTS}
    assert re.search("would get app-[12], and without it app-[12]$", printed, re.MULTILINE)
    assert "backend chat/app-1 removed" in printed
    (served,) = re.findall(r"app-2 is up, and has served (\d+) connections", printed)
    assert int(served) >= both["app-2"] + CLIENTS


def test_embed_asyncio(tmp_path: Path) -> None:
    printed = run("examples/embed_asyncio.py", directory=tmp_path)
    live, served = spreads(printed)
    assert live == served
    assert sum(served.values()) == CLIENTS
    assert min(served["app-1"], served["app-2"]) > CLIENTS // 5
    assert printed.endswith("closed\n")


def test_reattach(tmp_path: Path) -> None:
    printed = run("examples/reattach.py", directory=tmp_path)
    before, after = spreads(printed)
    assert sum(before.values()) == sum(after.values()) == CLIENTS
    assert before["app-1"] > CLIENTS // 5
    assert after == {"app-2": CLIENTS}
    assert printed.endswith(f"{before['app-1']} went on at another server, and every sum is right\n")


FILES = {
    "pybalancer.toml": "1 listener, 1 pool, 3 backends",
    "websocket.toml": "1 listener, 3 pools, 5 backends",
    "socketio.toml": "1 listener, 1 pool, 3 backends",
    "packet.toml": "2 listeners, 1 pool, 3 backends",
}


def test_every_file_is_looked_at() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.toml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_a_good_one(name: str, tmp_path: Path) -> None:
    printed = run("-m", "pybalancer", "check", f"examples/{name}", directory=tmp_path)
    assert f"fine: {FILES[name]}" in printed


@pytest.mark.parametrize("name", FILES)
def test_what_is_commented_out_in_the_file_is_good_too(name: str, tmp_path: Path) -> None:
    """A key that somebody uncomments must not be one that has long been renamed."""
    text = (ROOT / "examples" / name).read_text()
    whole = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert whole != text
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text("00112233445566778899aabbccddeeff\n")
    file = tmp_path / "pybalancer.toml"
    file.write_text(whole.replace("/etc/pybalancer/secret", str(secret)))
    state = tmp_path / "state"
    state.mkdir()
    assert "fine" in run("-m", "pybalancer", "check", str(file), directory=state)
