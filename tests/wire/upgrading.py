"""What the tests of upgrades share: a serving process whose successor is watched, or made to fail."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .net import until
from .serving import Serving

SUCCESSOR = '''
"""Imported by every interpreter of the test; does something in the new process of an upgrade only."""
import os
import signal
import time

if "PYBALANCER_UPGRADE" in os.environ and "STEP" in os.environ:
    from pybalancer.upgrade import line

    step = os.environ["STEP"]
    if os.path.exists(step):
        with open(step) as file:
            step = file.read()
    number = getattr(signal, os.environ.get("STEP_SIGNAL", "SIGKILL"))
    send, receive = line.Line.send, line.Line.receive

    # A moment later this process has another parent.
    target = os.getppid() if "STEP_OLD" in os.environ else os.getpid()

    def reached(name):
        if name == step:
            os.kill(target, number)
            # Whatever is said next meets an old process that is dead, not one that dies.
            while "STEP_OLD" in os.environ and os.getppid() == target:
                time.sleep(0.001)

    async def watched_send(self, word, body, descriptors=()):
        reached(f"before {word}")
        if word == "hello" and "STEP_FORMAT" in os.environ:
            body = {**body, "format": int(os.environ["STEP_FORMAT"]), "version": "9.9"}
        if word == "received" and step == "lies":
            body = {"tunnels": body["tunnels"] - 1}
        if word == "prepared" and step == "nonsense":
            word = "serving"
        await send(self, word, body, descriptors)
        reached(f"after {word}")

    async def watched_receive(self):
        message = await receive(self)
        if message is not None:
            reached(f"on {message.word}")
        return message

    line.Line.send, line.Line.receive = watched_send, watched_receive
'''
PREDECESSOR = """
if "BUSY" in os.environ:
    from pybalancer.balancer import Balancer
    Balancer.hindrance = lambda balancer: os.environ["BUSY"]
if "BUSY_LATER" in os.environ:
    from pybalancer.balancer import Balancer
    answers = iter([None])
    Balancer.hindrance = lambda balancer: next(answers, os.environ["BUSY_LATER"])
if "FREEZE_SECONDS" in os.environ:
    from pybalancer.upgrade import handing
    handing.FREEZE_SECONDS = handing.COMMIT_SECONDS = float(os.environ["FREEZE_SECONDS"])
"""


def tampered(environment: dict[str, str], directory: Path, **settings: str) -> dict[str, str]:
    """An environment in which the new process of an upgrade does what ``settings`` say."""
    folder = directory / "site"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SUCCESSOR + PREDECESSOR)
    path = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
    return {**environment, "PYTHONPATH": path, **settings}


def alive(pid: int) -> bool:
    """Whether a process runs. One that has ended and waits for its parent to notice does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def children(pid: int) -> list[int]:
    """Its children that run."""
    with contextlib.suppress(OSError):
        texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        return [child for text in texts for child in map(int, text.split()) if alive(child)]
    return []


def processes(mark: str) -> list[int]:
    """Those that were started with this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes().split(b"\0") and alive(int(path.name)):
                found.append(int(path.name))
    return found


class Upgrading:
    """A serving process, and those that take over from it."""

    def __init__(self, serving: Serving, mark: str) -> None:
        self.serving = serving
        self.mark = mark
        self.address = serving.address
        self.pid = serving.process.pid
        serving.line("admin interface at")

    def upgrade(self, *arguments: object) -> dict[str, Any]:
        """Ask for an upgrade that has to succeed; what came of it."""
        import json

        asked = self.serving.ask("upgrade", "--json", *arguments)
        assert asked.returncode == 0, (asked.stdout, asked.stderr, self.serving.lines[-20:])
        result: dict[str, Any] = json.loads(asked.stdout)
        assert result["old_pid"] == self.pid
        old, self.pid = self.pid, result["new_pid"]
        until(lambda: not alive(old), f"the end of process {old}")
        return result

    def status(self) -> dict[str, Any]:
        found = self.serving.status()
        assert found["pid"] == self.pid
        return found

    @property
    def running(self) -> list[int]:
        return processes(self.mark)

    def close(self) -> None:
        for pid in self.running:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.serving.close()


@contextlib.contextmanager
def upgrading(environment: dict[str, str], directory: Path, *arguments: object) -> Iterator[Upgrading]:
    mark = f"UPGRADE_TEST={directory}"
    running = Upgrading(Serving({**environment, "UPGRADE_TEST": str(directory)}, *arguments), mark)
    try:
        yield running
    finally:
        running.close()
