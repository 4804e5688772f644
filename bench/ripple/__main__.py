"""A ripple restart, side by side: pybalancer, HAProxy and nginx before the same backends and clients.

    python -m bench.ripple                               every way, printed
    python -m bench.ripple --write                       and into bench/RESULTS.md
    python -m bench.ripple --only haproxy --only nginx/down
    python -m bench.ripple --clients 200 --drain 3 --settle 3 --wait 5
    python -m bench.ripple --app abrupt --json

Nothing is gated: figures are told as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys

import trio

from bench.ripple.report import report
from bench.ripple.run import Settings, run
from bench.ripple.ways import WAYS, Terms, Way
from bench.sections import write


def chosen(only: list[str] | None) -> list[Way]:
    ways = [way for way in WAYS if not only or way.proxy in only or f"{way.proxy}/{way.name}" in only]
    if not ways:
        known = ", ".join(f"{way.proxy}/{way.name}" for way in WAYS)
        raise SystemExit(f"there is no such way; there are {known}")
    missing = {way.proxy for way in ways if way.proxy != "pybalancer" and not shutil.which(way.proxy)}
    for name in sorted(missing):
        print(f"{name} is not installed, left out", file=sys.stderr)
    return [way for way in ways if way.proxy not in missing]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", action="append", metavar="PROXY[/WAY]")
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two messages of a client")
    parser.add_argument("--drain", type=float, default=10.0, help="seconds a backend's clients get to go")
    parser.add_argument("--settle", type=float, default=15.0, help="seconds until the skew is measured")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds after the reload")
    parser.add_argument("--app", choices=["polite", "abrupt"], default="polite", help="how backends end")
    parser.add_argument("--boot", type=float, default=1.0, help="seconds that a backend takes to start")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--write", action="store_true", help="put the tables into bench/RESULTS.md")
    options = parser.parse_args()
    settings = Settings(
        Terms(options.clients, options.drain),
        options.every,
        options.settle,
        options.wait,
        options.app,
        options.boot,
        options.seed,
    )
    results = [trio.run(run, way, settings) for way in chosen(options.only)]
    lines = report(results, settings)
    if options.json:
        print(json.dumps([result.to_dict() for result in results], indent=2))
    else:
        print("\n".join(lines))
    if options.write:
        write("\n".join(lines))


if __name__ == "__main__":
    main()
