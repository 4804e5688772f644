"""A run of the suite in each direction, directly and through pybalancer, and what the two reports say."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..wire.backends import ROOT, Backend
from ..wire.serving import Serving, environment_in

KOSOKU = str(Path(sys.executable).with_name("kosoku"))
LARGEST = 1 << 25
"""Bytes of the largest message that Autobahn's cases send, twice over."""
LONG = ("9.*", "12.*", "13.*")
"""Limits and compression: minutes of large and many messages."""

BY_CHANCE = {"started", "duration", "wirelog", "rxOctetStats", "txOctetStats"}
"""What differs from run to run: times, masks, and where TCP cut the stream."""
OWN_TO_EACH = re.compile(r"(date|host|sec-websocket-key|sec-websocket-accept|x-[\w-]+|forwarded):", re.I)
WORDS = ("behavior", "behaviorClose")
OPEN = "INFORMATIONAL"
"""The verdict where the standard leaves open what happens, as when data and Close race."""
RACE = {"OK", "NON-STRICT"}
"""Verdicts of one case that hang on which comes first at the server, its answer to a message or the violation
behind it: the same server gives now this one, now that one."""
ROUNDS = 6
"""How often a race is run again until both ways end alike. What pybalancer caused would differ each time."""


def _field_lines(head: str) -> list[str]:
    """A head as far as a peer may rely on it: fields in any order; no time, place or random key."""
    return sorted(line for line in head.split("\r\n") if not OWN_TO_EACH.match(line))


@dataclass
class Report:
    """Autobahn's report, as kosoku wrote it."""

    cases: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, directory: Path) -> Report:
        cases = {}
        for listed in json.loads((directory / "index.json").read_text()).values():
            for case, entry in listed.items():
                cases[case] = json.loads((directory / entry["reportfile"]).read_text())
        return cls(cases)

    def judged(self, case: str) -> dict[str, Any]:
        """All of it that does not hang on chance."""
        found = self.cases[case]
        if OPEN in (found["behavior"], found["behaviorClose"]):
            return {word: found[word] for word in WORDS}
        kept = {key: value for key, value in found.items() if key not in BY_CHANCE}
        for head in ("httpRequest", "httpResponse"):
            kept[head] = _field_lines(kept[head])
        return kept

    def verdicts(self) -> dict[str, str]:
        return {case: " / ".join(found[word] for word in WORDS) for case, found in self.cases.items()}


@dataclass
class Comparison:
    direct: Report
    through: Report

    @property
    def differences(self) -> list[str]:
        """A line for each thing that the reports do not agree on."""
        lines = []
        for case in sorted(self.direct.cases.keys() | self.through.cases.keys()):
            if case not in self.direct.cases or case not in self.through.cases:
                lines.append(f"{case}: only in one of the reports")
                continue
            one, other = self.direct.judged(case), self.through.judged(case)
            lines += [
                f"{case}: {key}: directly {one.get(key)!r}, through pybalancer {other.get(key)!r}"
                for key in sorted(one.keys() | other.keys())
                if one.get(key) != other.get(key)
            ]
        return lines

    def races(self) -> list[str]:
        """Cases that ended differently, but each in a way that the same case allows."""
        both = self.direct.cases.keys() & self.through.cases.keys()
        verdicts = {
            case: {run.cases[case]["behavior"] for run in (self.direct, self.through)} for case in both
        }
        return [case for case in sorted(both) if verdicts[case] == RACE]

    def replace(self, cases: Comparison) -> None:
        self.direct.cases |= cases.direct.cases
        self.through.cases |= cases.through.cases


def _settled(
    run: Callable[[str, Sequence[str], Sequence[str]], Comparison], *chosen: Sequence[str]
) -> Comparison:
    """A run, and those of its races again that came out differently."""
    found = run("", *chosen)
    for number in range(ROUNDS):
        if not (races := found.races()):
            break
        found.replace(run(f"-again-{number}", races, ()))
    return found


def _arguments(include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    chosen = [("-i", pattern) for pattern in include] + [("-x", pattern) for pattern in exclude]
    return [argument for pair in chosen for argument in pair]


def _judge(address: str, directory: Path, arguments: list[str], timeout: float) -> Report:
    """kosoku is the client; what listens at ``address`` echoes."""
    # It exits with 1 where a case failed: the server's failures are the server's, if they are the same.
    command = [KOSOKU, f"ws://{address}/echo", "-o", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert "wrote reports" in done.stdout, done.stderr
    return Report.read(directory)


@contextlib.contextmanager
def balancer(directory: Path, backend: str, options: str = "") -> Iterator[str]:
    """The address of a ``pybalancer serve`` in front of one backend."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "pybalancer.toml"
    file.write_text(
        f"""
[balancer]
admin = "none"
[log]
connections = false
[[listeners]]
name = "public"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "peer"
{options}
[pools.peer]
[[pools.peer.backends]]
name = "peer"
address = "{backend}"
"""
    )
    serving = Serving(environment_in(directory), file)
    try:
        yield serving.address
    finally:
        serving.close()


@contextlib.contextmanager
def echo_server() -> Iterator[str]:
    backend = Backend("websockets", "--largest", LARGEST)
    try:
        yield backend.address
    finally:
        backend.close()


def of_clients(
    directory: Path,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    options: str = "",
    timeout: float = 100,
) -> Comparison:
    """Cases in which kosoku is the client, against PyPI's websockets as the server."""
    with contextlib.ExitStack() as stack:
        # One server each, so that the two runs do not wait for each other.
        direct = stack.enter_context(echo_server())
        behind = stack.enter_context(echo_server())
        through = stack.enter_context(balancer(directory, behind, options))

        def run(label: str, include: Sequence[str], exclude: Sequence[str]) -> Comparison:
            arguments = _arguments(include, exclude)
            with ThreadPoolExecutor() as pool:
                runs = [
                    pool.submit(_judge, address, directory / f"{name}{label}", arguments, timeout)
                    for name, address in (("direct", direct), ("through", through))
                ]
            return Comparison(*(run.result() for run in runs))

        return _settled(run, include, exclude)


class _Server:
    """kosoku as the server, which judges the client that connects to it."""

    def __init__(self, directory: Path, arguments: list[str]) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [KOSOKU, "-m", "fuzzingserver", "127.0.0.1:0", "-o", str(directory), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def address(self) -> str:
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        match = re.search(r"listening on ws://(\S+)", line)
        assert match, line
        return match[1]

    def report(self, address: str, timeout: float) -> Report:
        """Let PyPI's websockets be the client of all cases, by this way."""
        command = [sys.executable, "-m", "tests.conformance.echo_client", f"ws://{address}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        told, failures = self.process.communicate(timeout=timeout)
        assert "wrote reports" in told, failures
        return Report.read(self.directory)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def of_servers(
    directory: Path,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    options: str = "",
    timeout: float = 100,
) -> Comparison:
    """Cases in which kosoku is the server, with PyPI's websockets as the client."""

    def run(label: str, include: Sequence[str], exclude: Sequence[str]) -> Comparison:
        arguments = _arguments(include, exclude)
        with contextlib.ExitStack() as stack:
            direct, behind = (
                _Server(directory / f"{name}{label}", arguments) for name in ("direct", "through")
            )
            for server in (direct, behind):
                stack.callback(server.close)
            # A server ends with its report: the next round has another address, and another balancer.
            ways = {direct: direct.address, behind: behind.address}
            ways[behind] = stack.enter_context(
                balancer(directory / f"balancer{label}", ways[behind], options)
            )
            with ThreadPoolExecutor() as pool:
                runs = [pool.submit(server.report, way, timeout) for server, way in ways.items()]
            return Comparison(*(run.result() for run in runs))

    return _settled(run, include, exclude)
