"""The figures as tables: for a terminal and for bench/RESULTS.md, the same lines."""

from __future__ import annotations

from bench.ripple.run import BACKENDS, Disturbance, Result, Settings
from bench.ripple.ways import PAUSE
from bench.wire.__main__ import versions

HEADING = "## Ripple restart"
MIB = 1 << 20

ENDS = {
    "polite": "tell their clients to go (1001) when they are ended, as `websockets` does",
    "abrupt": "just end, so that their clients are told nothing",
}

PROSE = """\
Made by `make bench-ripple`. {backends} backends (Python, the `websockets` library) are restarted one after
the other under {clients} WebSocket clients, each of which says something every {every:g} s on average; one
worker each. Messages are numbered and counted at both ends.

- Backends {ends}, and take {boot:g} s to start.
- Where nobody waits for anything, there are {pause:g} s between two restarts. Where a backend's clients, or
  an old process, can be given time to go, it is {drain:g} s. Where handshakes can be held to a rate, it is
  {cap} a second.
- Clients come back at once, and after a failure by full jitter: the same code for every proxy. Peaks are the
  most in any one second: what clients tried, and in brackets what the proxy let in.
- A client is cut when its connection ends and it did not wish so; 1006: without a Close. A message is lost
  when the client never got its answer.
- Fullest / mean: tunnels of the backends, {settle:g} s after the roll.
- HAProxy and nginx have no word for their clients: in their ways it is the backend that sends them off when
  it is ended.
- nginx counts a backend as failed until a connection to it has ended well, which a WebSocket does not for
  hours; with its default `max_fails` one connection each `fail_timeout` is let in meanwhile."""


def codes(seen: Disturbance) -> str:
    return ", ".join(f"{code} × {count}" for code, count in seen.codes.items()) or "none"


def cut(seen: Disturbance) -> str:
    more = f" ({seen.cuts} times)" if seen.cuts > seen.clients else ""
    return f"{seen.clients}{more}"


def away(seen: Disturbance) -> str:
    text = f"{seen.away:.2f} ({seen.away_longest:.1f})" if seen.cuts else ""
    return f"{text}; {seen.missing} for good" if seen.missing else text


def refused(seen: Disturbance) -> str:
    return ", ".join(f"{why} × {count}" for why, count in seen.refused.items()) or "none"


def reconnects(seen: Disturbance) -> str:
    return f"{seen.tried} ({seen.returned})"


def table(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body]]


def rolls(results: list[Result]) -> list[str]:
    rows = [
        [
            "proxy",
            "way",
            "clients cut",
            "close codes",
            "messages lost",
            "doubled",
            "peak reconnects/s (let in)",
            "refused",
            "s away, median (longest)",
            "fullest / mean",
            "took",
        ]
    ]
    for result in results:
        seen = result.roll
        rows.append(
            [
                result.way.proxy,
                result.way.title,
                cut(seen),
                codes(seen),
                f"{seen.messages.lost} of {seen.messages.sent}",
                str(seen.messages.doubled),
                reconnects(seen),
                refused(seen),
                away(seen),
                f"{result.skew:.2f}",
                f"{seen.seconds:.0f} s",
            ]
        )
    return table(rows)


def reloads(results: list[Result], settings: Settings) -> list[str]:
    rows = [
        [
            "proxy",
            "way",
            "change",
            "clients cut",
            "close codes",
            "messages lost",
            "doubled",
            "peak reconnects/s (let in)",
            f"processes at the start, before, {settings.wait:g} s after",
            "RSS before, after (MiB)",
            "PSS before, after (MiB)",
        ]
    ]
    for result in results:
        seen = result.reload
        moments = (result.fresh, result.before, result.after)
        rows.append(
            [
                result.way.proxy,
                result.way.title,
                result.way.reload,
                cut(seen),
                codes(seen),
                f"{seen.messages.lost} of {seen.messages.sent}",
                str(seen.messages.doubled),
                reconnects(seen),
                ", ".join(str(moment.processes) for moment in moments),
                ", ".join(f"{moment.rss / MIB:.1f}" for moment in moments[1:]),
                ", ".join(f"{moment.pss / MIB:.1f}" for moment in moments[1:]),
            ]
        )
    return table(rows)


def report(results: list[Result], settings: Settings) -> list[str]:
    terms = settings.terms
    prose = PROSE.format(
        backends=BACKENDS,
        clients=terms.clients,
        every=settings.every,
        ends=ENDS[settings.manner],
        boot=settings.boot,
        pause=PAUSE,
        drain=terms.drain,
        cap=terms.cap,
        settle=settings.settle,
    )
    return [
        HEADING,
        "",
        *prose.splitlines(),
        "",
        *versions(),
        "",
        "### Restarting every backend",
        "",
        *rolls(results),
        "",
        "### After that, a change of the proxy's own",
        "",
        *reloads(results, settings),
        "",
    ]
