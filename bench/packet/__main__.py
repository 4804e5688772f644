"""What packet mode costs: a packet, a change of the table, and what a change does to connections.

    python -m bench.packet                       everything, printed
    python -m bench.packet --write               and into bench/RESULTS.md
    python -m bench.packet --rounds 3 --repeat 10000 --connections 1200
    python -m bench.packet --simulation          connections that break, only

Needs root (programs for the kernel, a network namespace), but for the simulation. Nothing is gated: figures
are told as they are.
"""

from __future__ import annotations

import argparse
import sys

from bench.packet import broken, costs, tables
from bench.packet.report import HEADING, broken_section, report
from bench.sections import RESULTS, part_replaced, write
from bench.wire.__main__ import versions
from pybalancer._core import packet_support


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--repeat", type=int, default=100_000, help="runs of a program in a round")
    parser.add_argument("--connections", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the tables into bench/RESULTS.md")
    parser.add_argument("--simulation", action="store_true", help="only connections that break")
    options = parser.parse_args()
    if options.simulation:
        lost = broken.simulate(options.connections, options.seed)
        section = "\n".join([*broken_section(lost), *versions()[:1]])
        print(section)
        if options.write:
            RESULTS.write_text(part_replaced(RESULTS.read_text(), HEADING, section))
        return
    if missing := packet_support():
        sys.exit("\n".join(missing))
    text = report(
        costs.measure(options.rounds, options.repeat),
        tables.measure(max(2, options.rounds)),
        broken.simulate(options.connections, options.seed),
        options.rounds,
        options.repeat,
    )
    print(text)
    if options.write:
        write(text)


if __name__ == "__main__":
    main()
