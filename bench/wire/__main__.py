"""Side by side: a floor relay, pybalancer, HAProxy and nginx, one worker each, in interleaved rounds.

What is compared is the processor time of the proxy itself (nanoseconds on a core, from
/proc/PID/task/*/schedstat; with loopback that includes its share of the kernel's work), since it is
what a machine runs out of, and since it is far steadier on a shared machine than rates are.

    python -m bench.wire                       all cases in both modes, results into bench/RESULTS.md
    python -m bench.wire --mode websocket      one mode, printed only
    python -m bench.wire --only small          one case, printed only
    python -m bench.wire --rounds 3 --scale 0.2
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.sections import RESULTS, behind
from bench.wire.cases import CASES, Case
from bench.wire.proxies import CONTESTANTS, PROGRAMS, ROOT, Proxy, Start, contestants, first_line

PEERS = ("haproxy", "haproxy-splice", "nginx")


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


def report(case: Case, mode: str, costs: dict[str, list[float]]) -> list[str]:
    medians = {name: statistics.median(values) for name, values in costs.items()}
    ours = costs["pybalancer"]
    # Ratios within each round, so that what slows a round slows both sides of it.
    ratios = {
        name: statistics.median(a / b for a, b in zip(ours, values, strict=True))
        for name, values in costs.items()
        if min(values) > 0
    }
    lines = [f"### {case.title}", "", f"| proxy | {case.unit} | pybalancer costs |", "|---|---|---|"]
    for name, median in medians.items():
        ratio = "" if name == "pybalancer" or name not in ratios else f"{ratios[name]:.2f} × that"
        spread = f" ({min(costs[name]):.4g}–{max(costs[name]):.4g})" if len(costs[name]) > 1 else ""
        lines.append(f"| {name} | {median:.4g}{spread} | {ratio} |")
    lines.append("")
    there = [name for name in PEERS if name in ratios]
    if there:
        ratios["peer"] = ratios[min(there, key=medians.__getitem__)]
    names = {"peer": "the cheaper peer"}
    for peer, most in case.targets.get(mode, {}).items():
        if peer in ratios:
            reached = ratios[peer] <= most
            verdict = "reached" if reached else f"missed by {100 * (ratios[peer] / most - 1):.0f} %"
            told = names.get(peer, peer)
            lines.append(f"- target: at most {most:g} × {told}: {ratios[peer]:.2f}, **{verdict}**")
    if case.memory:
        used = medians["pybalancer"]
        verdict = "reached" if used <= 256 else f"missed by {used - 256:.0f} bytes"
        lines.append(f"- target: at most 256 bytes: {used:.0f}, **{verdict}**")
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
    parser.add_argument("--mode", choices=list(CONTESTANTS), action="append")
    parser.add_argument("--only", choices=[case.name for case in CASES], action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the messages of a full run")
    options = parser.parse_args()
    text = ["# Measured costs", "", "Made by `make bench`. Medians of interleaved rounds, one worker each,"]
    text += ["echo server and load generator on the same machine. Lower is better.", "", *versions()]
    text += [f"- {options.rounds} rounds, {options.scale:g} of the messages of a full run", ""]
    for mode in options.mode or CONTESTANTS:
        starts = contestants(mode)
        heading = [f'## mode = "{mode}"', ""]
        print("\n".join(heading))
        text += heading
        for case in CASES:
            if options.only and case.name not in options.only:
                continue
            lines = report(case, mode, measure(case, starts, options.rounds, options.scale))
            print("\n".join(lines), flush=True)
            text += lines
    if not options.only and not options.mode:
        # What others wrote stands behind, and stays.
        before = RESULTS.read_text() if RESULTS.exists() else ""
        RESULTS.write_text("\n".join([*text, behind(before, "## mode = ")]))


if __name__ == "__main__":
    main()
