"""The figures as tables: for a terminal and for bench/RESULTS.md, the same lines."""

from __future__ import annotations

import statistics

from bench.packet.broken import DIRECTORS, PUBLISHED, STEPS, Broken
from bench.packet.costs import BACKENDS, Cost
from bench.packet.tables import SLOTS, Change
from bench.ripple.report import table
from bench.wire.__main__ import versions

HEADING = "## Packet mode"

PROSE = """\
Made by `make bench-packet`. Medians of interleaved rounds; in brackets the least and the most.

- A packet: the programs run {repeat:,} times a round by BPF_PROG_TEST_RUN, on one packet without data, with
  {backends:,} backends and tables of {slots} slots. Hash, look-up, counters and headers are in it, the
  network card is not. The baseline passes everything. Both begin with setting the packet back to what it
  was; where an outer header comes or goes, what it takes to undo that is counted as the program's.
- A change: milliseconds on the clock in Python, {slots} slots and {backends:,} backends. A second swap at
  once waits until the kernel is sure that no packet sees the table of before.
- Broken connections: a simulation of {steps} backends and {directors} directors, {connections:,}
  connections, of which a third begins with each number of backends, and all of which last to the end.
  Every machine takes each change in its turn, in any order; after each, every connection is looked for by
  way of every director."""


def verdict(found: float, most: float, unit: str) -> str:
    told = "reached" if found <= most else f"missed by {found - most:.3g} {unit}"
    return f"{found:.3g} {unit}, **{told}**"


def spread(values: list[int] | list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def packets(costs: list[Cost]) -> list[str]:
    rows = [["program and packet", "baseline, ns", "program, ns", "more than the baseline, ns"]]
    rows += [
        [cost.case.name, spread(cost.baseline), spread(cost.program), spread(cost.more)] for cost in costs
    ]
    wanted = [cost for cost in costs if cost.case.most is not None]
    targets = []
    for way in ("L2", "L3"):
        ours = [cost for cost in wanted if cost.case.way == way]
        if ours and ours[0].case.most is not None:
            worst = max(statistics.median(cost.more) for cost in ours)
            most = ours[0].case.most
            told = verdict(worst, most, "ns")
            targets.append(f"- target: director {way} at most {most:g} ns more than the baseline: {told}")
    return [*table(rows), "", *targets, ""]


def changes(found: list[Change]) -> list[str]:
    rows = [["what", "ms"], *([change.name, spread(change.took)] for change in found)]
    targets = [
        f"- target: {change.name} in at most {change.most:g} ms: "
        + verdict(statistics.median(change.took), change.most, "ms")
        for change in found
        if change.most is not None
    ]
    return [*table(rows), "", *targets, ""]


def broken(found: list[Broken]) -> list[str]:
    rows = [["way", "connections", "broken", "per cent"]]
    for one in found:
        share = 100 * one.broken / one.connections
        rows.append([one.way, str(one.connections), str(one.broken), f"{share:.2f}"])
    rows += [[f"{name} (published)", "", "", f"{share:g}"] for name, share in PUBLISHED]
    ours = found[-1]
    told = "reached" if not ours.broken else f"missed by {ours.broken}"
    return [
        *table(rows),
        "",
        "The published figures are of Cheetah's experiments with the same numbers of backends. Connections",
        "there end meanwhile, so only zero compares with zero.",
        "",
        f"- target: no connection broken by second hops and table: {ours.broken}, **{told}**",
        "",
    ]


def broken_section(lost: list[Broken]) -> list[str]:
    return ["### Broken connections", "", *broken(lost)]


def report(costs: list[Cost], found: list[Change], lost: list[Broken], rounds: int, repeat: int) -> str:
    prose = PROSE.format(
        repeat=repeat,
        backends=BACKENDS,
        slots=SLOTS,
        steps="→".join(map(str, STEPS)),
        directors=DIRECTORS,
        connections=lost[0].connections,
    )
    # HAProxy and nginx have no part in this.
    lines = [HEADING, "", *prose.splitlines(), "", *versions()[:2], f"- {rounds} rounds", ""]
    lines += ["### A packet", "", *packets(costs)]
    lines += ["### A change", "", *changes(found)]
    lines += broken_section(lost)
    return "\n".join(lines)
