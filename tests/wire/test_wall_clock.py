"""Bad input 107: the wall clock is put an hour forward, and back. Nothing times out, and what has to does."""

from __future__ import annotations

import datetime
import json
import mmap
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pybalancer.admin.client import Client

from .balancing import Moody
from .net import Server, connect, echoes, text_of, until
from .serving import Serve

HOUR = 3600


class WallClock:
    """That of a process which is started with ``environment``."""

    def __init__(self, directory: Path) -> None:
        library, file = directory / "wall_clock.so", directory / "wall_clock"
        source = Path(__file__).with_name("wall_clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        file.write_bytes(bytes(mmap.PAGESIZE))
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), mmap.PAGESIZE)
        self.environment = {"LD_PRELOAD": str(library), "WALL_CLOCK": str(file)}

    def put(self, seconds: int) -> None:
        """Away from the true time."""
        self._memory[:8] = struct.pack("q", seconds)


@pytest.fixture
def wall_clock(tmp_path: Path, environment: dict[str, str]) -> WallClock:
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    made = WallClock(tmp_path)
    environment |= made.environment
    return made


def test_the_wall_clock_of_a_child_can_be_put(wall_clock: WallClock, environment: dict[str, str]) -> None:
    """The control: without it the test below would show nothing."""
    program = (
        "import time, datetime; print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"
    )
    for wrong in (HOUR, -HOUR, 0):
        wall_clock.put(wrong)
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
        )
        wall, also, monotonic = map(float, done.stdout.split())
        assert wall - time.time() == pytest.approx(wrong, abs=600)
        assert also - time.time() == pytest.approx(wrong, abs=600)
        assert monotonic - time.monotonic() == pytest.approx(0, abs=600)


def test_107_nothing_times_out_and_what_must_does(
    wall_clock: WallClock, serve: Serve, tmp_path: Path
) -> None:
    steady, moody = Server(), Moody()
    file = tmp_path / "pybalancer.toml"
    file.write_text(f"""
[[listeners]]
name = "steady"
bind = "127.0.0.1:0"
pool = "steady"
[pools.steady]
idle_timeout = "30m"
on_down = "close"
backends = [{{ name = "app", address = "{steady.address}" }}]
health = {{ kind = "tcp", interval = "50ms", timeout = "10s", fall = 1 }}

[[listeners]]
name = "quick"
bind = "127.0.0.1:0"
pool = "quick"
[pools.quick]
idle_timeout = "200ms"
backends = [{{ name = "app", address = "{steady.address}" }}]

[[listeners]]
name = "moody"
bind = "127.0.0.1:0"
pool = "moody"
[pools.moody]
slow_start = "200ms"
backends = [{{ name = "app", address = "{moody.address}" }}]
health = {{ kind = "http", interval = "50ms", timeout = "10s", rise = 1, fall = 1 }}
""")
    serving = serve(file, "--log-format", "json")
    bound = {
        name: serving.line(rf"listening on (\S+) \S+ pool {name}")[1] for name in ("steady", "quick", "moody")
    }
    admin = Client(serving.line(r"admin interface at ([^\s\"]+)")[1])

    def app(pool: str) -> dict[str, object]:
        (found,) = (each for each in admin.get("/status")["pools"] if each["name"] == pool)
        backend: dict[str, object] = found["backends"][0]
        return backend

    with connect(bound["steady"]) as client:
        assert echoes(client)
        for wrong, outage in ((HOUR, True), (-HOUR, True), (HOUR, False), (0, False), (-HOUR, False)):
            wall_clock.put(wrong)
            # Life goes on: probes come, the tunnel stands, nobody is down.
            probed = steady.served
            until(lambda probed=probed: steady.served >= probed + 5, "five more probes")
            assert echoes(client)
            assert app("steady")["state"] == "up"
            assert 0 <= app("steady")["since_seconds"] < 600  # type: ignore[operator]
            assert 0 <= admin.get("/status")["uptime_seconds"] < 600
            # What is quiet for too long ends.
            with connect(bound["quick"]) as quiet:
                assert echoes(quiet)
                with pytest.raises(ConnectionResetError):
                    quiet.recv(1)
                record = json.loads(serving.line(f".*{text_of(quiet.getsockname())}.*")[0])
            # Who fails goes down, and comes back step by step. (Twice: a third time it would be held.)
            if outage:
                moody.status = 503
                until(lambda: app("moody")["state"] == "down", "down")
                moody.status = 200
                until(lambda: app("moody")["state"] == "up" and app("moody")["ramp"] == 1.0, "up")
            # It was really wrong: what is for people says so.
            ended = datetime.datetime.fromisoformat(record["time"]).timestamp()
            assert ended - time.time() == pytest.approx(wrong, abs=600)
        assert echoes(client)
    steady.close()
    moody.close()
