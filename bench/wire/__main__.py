"""Side by side: a floor relay, pybalancer, HAProxy and nginx, one worker each, in interleaved rounds.

What is compared is the processor time of the proxy itself (nanoseconds on a core, from
/proc/PID/task/*/schedstat; with loopback that includes its share of the kernel's work), since it is
what a machine runs out of, and since it is far steadier on a shared machine than rates are.

    python -m bench.wire                  all cases, results into bench/RESULTS.md
    python -m bench.wire --only small     one case, printed only
    python -m bench.wire --rounds 3 --scale 0.2
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "target" / "release"
RESULTS = ROOT / "bench" / "RESULTS.md"


@dataclass
class Proxy:
    """A running proxy: its name, its processes, where it listens."""

    name: str
    process: subprocess.Popen[str]
    address: str

    def pids(self) -> list[int]:
        """The process and its children."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += [int(child) for child in task.read_text().split()]
        return found

    def cpu_ns(self) -> int:
        """Time on a core of all its threads so far."""
        total = 0
        for pid in self.pids():
            for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    total += int(stat.read_text().split()[0])
        return total

    def memory(self) -> int:
        """Bytes of anonymous memory, shared parts by proportion."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    total += int(line.split()[1]) * 1024
        return total


def first_line(command: list[str], **options: object) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    return process, process.stdout.readline().strip()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_open(address: str) -> None:
    import socket

    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def start_floor(backend: str, _folder: Path) -> Proxy:
    process, at = first_line([str(PROGRAMS / "floor"), "--listen", "127.0.0.1:0", "--to", backend])
    return Proxy("floor", process, at)


def start_pybalancer(backend: str, _folder: Path) -> Proxy:
    at = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "pybalancer", "serve", "--listen", at, "--to", backend]
    command += ["--workers", "1", "--admin", "none", "--no-log-connections"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    wait_open(at)
    return Proxy("pybalancer", process, at)


def start_haproxy(backend: str, folder: Path, *, splice: bool = False) -> Proxy:
    at = f"127.0.0.1:{free_port()}"
    config = folder / f"haproxy-{splice}.cfg"
    config.write_text(
        f"""global
  nbthread 1
  maxconn 9000
  maxpipes 200
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  {"option splice-auto" if splice else ""}
listen all
  bind {at} backlog 4096
  server one {backend}
"""
    )
    process = subprocess.Popen(
        ["haproxy", "-db", "-f", str(config)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True
    )
    wait_open(at)
    return Proxy("haproxy-splice" if splice else "haproxy", process, at)


def start_haproxy_splice(backend: str, folder: Path) -> Proxy:
    return start_haproxy(backend, folder, splice=True)


def start_nginx(backend: str, folder: Path) -> Proxy:
    at = f"127.0.0.1:{free_port()}"
    module = next(Path("/usr/lib/nginx/modules").glob("ngx_stream_module.so"), None)
    config = folder / "nginx.conf"
    config.write_text(
        f"""{f"load_module {module};" if module else ""}
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 19000; }}
stream {{
  server {{ listen {at} backlog=4096 so_keepalive=on; proxy_pass {backend}; proxy_timeout 1h;
           proxy_socket_keepalive on; tcp_nodelay on; }}
}}
"""
    )
    process = subprocess.Popen(["nginx", "-c", str(config)], stderr=subprocess.DEVNULL, text=True)
    wait_open(at)
    return Proxy("nginx", process, at)


Start = Callable[[str, Path], Proxy]


def contestants() -> list[Start]:
    found: list[Start] = [start_floor, start_pybalancer]
    missing = []
    if shutil.which("haproxy"):
        found += [start_haproxy, start_haproxy_splice]
    else:
        missing.append("haproxy")
    if shutil.which("nginx"):
        found.append(start_nginx)
    else:
        missing += ["nginx-light", "libnginx-mod-stream"]
    if missing:
        print(f"not installed, left out: apt-get install {' '.join(missing)}", file=sys.stderr)
    return found


@dataclass
class Case:
    """One measurement. ``per`` is the unit that processor time is divided by."""

    name: str
    title: str
    arguments: list[str]
    messages: int
    unit: str
    divisor: Callable[[int], float]
    targets: dict[str, float] = field(default_factory=dict)
    """Peer to the highest allowed ratio of pybalancer's cost to that peer's."""
    memory: bool = False


def small(
    name: str, title: str, connections: int, busy: int, messages: int, targets: dict[str, float]
) -> Case:
    arguments = ["--mode", "echo", "--size", "64"]
    arguments += ["--connections", str(connections), "--busy", str(busy)]
    return Case(name, title, arguments, messages, "µs of CPU per message", lambda n: n * 1000.0, targets)


CASES = [
    small("small", "64 B echo, 100 busy of 200", 200, 100, 300_000, {"floor": 1.05}),
    small(
        "crowd",
        "64 B echo, 4,000 busy of 8,000",
        8000,
        4000,
        300_000,
        {"floor": 1.05, "haproxy": 1.0, "nginx": 1.0},
    ),
    Case(
        "medium",
        "4 KiB echo, 100 busy of 200",
        ["--mode", "echo", "--size", "4096", "--connections", "200", "--busy", "100"],
        200_000,
        "µs of CPU per message",
        lambda n: n * 1000.0,
    ),
    Case(
        "large",
        "1 MB echo, 10 busy of 10",
        ["--mode", "echo", "--size", "1000000", "--connections", "10", "--busy", "10"],
        3000,
        "s of CPU per GB",
        lambda n: 2 * n * 1e6,
        {"floor": 0.8, "haproxy-splice": 1.0},
    ),
    Case(
        "churn",
        "open, handshake, one echo, close; 100 at a time",
        ["--mode", "churn", "--size", "64", "--busy", "100"],
        20_000,
        "µs of CPU per connection",
        lambda n: n * 1000.0,
        {"haproxy": 1.0, "nginx": 1.0},
    ),
    Case(
        "idle",
        "8,000 idle tunnels, each of which has echoed once",
        ["--mode", "hold", "--connections", "8000", "--size", "64"],
        8000,
        "bytes of user-space memory per tunnel",
        lambda n: n,
        {},
        True,
    ),
]


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def round_of(case: Case, proxy: Proxy, scale: float) -> float:
    """One round: the cost in the case's unit."""
    messages = case.messages if case.memory else max(100, int(case.messages * scale))
    command = [str(PROGRAMS / "load"), "--to", proxy.address, "--messages", str(messages), *case.arguments]
    memory = proxy.memory() if case.memory else 0
    process, ready = first_line(command)
    with running(process):
        assert process.stdin and process.stdout
        if ready != "ready":
            raise RuntimeError(f"load did not get ready against {proxy.name}")
        before = proxy.cpu_ns()
        process.stdin.write("go\n")
        process.stdin.flush()
        line = process.stdout.readline()
        spent = proxy.cpu_ns() - before
        if not line:
            raise RuntimeError(f"load failed against {proxy.name}")
        done = int(json.loads(line)["messages"])
        if case.memory:
            return (proxy.memory() - memory) / messages
        assert done >= messages
        return spent / case.divisor(done)


def measure(case: Case, starts: list[Start], rounds: int, scale: float) -> dict[str, list[float]]:
    costs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        echo, backend = first_line([str(PROGRAMS / "echo"), "--listen", "127.0.0.1:0"])
        stack.enter_context(running(echo))
        for number in range(1 if case.memory else rounds):
            for start in starts:
                # Afresh each round: memory of the last one must not help or hurt.
                proxy = start(backend, folder)
                with running(proxy.process):
                    if not case.memory and number == 0:
                        round_of(case, proxy, scale * 0.1)  # Warm: page cache, allocator.
                    cost = round_of(case, proxy, scale)
                costs.setdefault(proxy.name, []).append(cost)
                print(f"  {case.name} round {number + 1}: {proxy.name} {cost:.4g}", file=sys.stderr)
    return costs


def report(case: Case, costs: dict[str, list[float]]) -> list[str]:
    medians = {name: statistics.median(values) for name, values in costs.items()}
    ours = medians["pybalancer"]
    # Ratios within each round, so that what slows a round slows both sides of it.
    ratios = {
        name: statistics.median(a / b for a, b in zip(costs["pybalancer"], values, strict=True))
        for name, values in costs.items()
        if min(values) > 0
    }
    lines = [f"### {case.title}", "", f"| proxy | {case.unit} | pybalancer costs |", "|---|---|---|"]
    for name, median in medians.items():
        ratio = "" if name == "pybalancer" or name not in ratios else f"{ratios[name]:.2f} × that"
        spread = f" ({min(costs[name]):.4g}–{max(costs[name]):.4g})" if len(costs[name]) > 1 else ""
        lines.append(f"| {name} | {median:.4g}{spread} | {ratio} |")
    lines.append("")
    for peer, most in case.targets.items():
        if peer in ratios:
            verdict = (
                "reached" if ratios[peer] <= most else f"missed by {100 * (ratios[peer] / most - 1):.0f} %"
            )
            lines.append(f"- target: at most {most:g} × {peer}: {ratios[peer]:.2f}, **{verdict}**")
    if case.memory:
        verdict = "reached" if ours <= 256 else f"missed by {ours - 256:.0f} bytes"
        lines.append(f"- target: at most 256 bytes: {ours:.0f}, **{verdict}**")
    return [*lines, ""]


def versions() -> list[str]:
    def said(command: list[str]) -> str:
        with contextlib.suppress(OSError):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            return (done.stdout + done.stderr).strip().splitlines()[0]
        return "not installed"

    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    commit = said(["git", "-C", str(ROOT), "describe", "--always", "--dirty"])
    today = datetime.datetime.now(datetime.UTC)
    return [
        f"- {today:%Y-%m-%d %H:%M} UTC, commit {commit}",
        f"- {model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}",
        f"- {said(['haproxy', '-v'])}; {said(['nginx', '-v'])}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=[case.name for case in CASES], action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the messages of a full run")
    options = parser.parse_args()
    starts = contestants()
    text = ["# Measured costs", "", "Made by `make bench`. Medians of interleaved rounds, one worker each,"]
    text += ["echo server and load generator on the same machine. Lower is better.", "", *versions(), ""]
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
        lines = report(case, measure(case, starts, options.rounds, options.scale))
        print("\n".join(lines))
        text += lines
    if not options.only:
        RESULTS.write_text("\n".join(text))


if __name__ == "__main__":
    main()
