"""``pybalancer serve`` as a process: its log, line by line, and the commands that ask it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .net import PATIENCE, until

SECRET = "00112233445566778899aabbccddeeff"


def environment_in(directory: Path) -> dict[str, str]:
    """The environment of a process that keeps its files under ``directory``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYBALANCER_", "NOTIFY_"))}
    return {
        **kept,
        "RUNTIME_DIRECTORY": str(directory / "run"),
        "STATE_DIRECTORY": str(directory / "state"),
        "PYBALANCER_SECRET": SECRET,
        "PYBALANCER_WORKERS": "1",
    }


class Serving:
    """A serving process, and the lines that it has logged."""

    BEFORE: tuple[str, ...] = ()
    """A command that runs the process."""

    def __init__(self, environment: dict[str, str], *arguments: object) -> None:
        self.environment = environment
        self.process = subprocess.Popen(
            [*self.BEFORE, sys.executable, "-m", "pybalancer", "serve", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def line(self, pattern: str) -> re.Match[str]:
        """Wait for a line, and return its match."""

        def found() -> re.Match[str] | None:
            over = not self._reader.is_alive()
            for line in list(self.lines):
                if match := re.search(pattern, line):
                    return match
            assert not over, f"ended with {self.process.wait(PATIENCE)}, without {pattern!r} in {self.lines}"
            return None

        match: re.Match[str] = until(found, f"{pattern!r} in the log {self.lines}")
        return match

    @property
    def address(self) -> str:
        return self.line(r"listening on (\S+)")[1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def ask(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pybalancer", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("status", "--json").stdout)
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()


Serve = Callable[..., Serving]
