"""What ``pybalancer roll`` shows: who is where, what the commands say, and how it was left."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pybalancer.cli.options import option, to_type
from pybalancer.cli.progress import Progress, count, left

if TYPE_CHECKING:
    from pybalancer.admin.pool import RemotePool
    from pybalancer.policy.roll import Roll

_MOVED = {
    "draining": "draining",
    "acting": "running the command",
    "checking": "waiting until it is up",
    "done": "up, and taken back",
    "waiting": "taken back as it was",
}


class View:
    """Gets the events of a roll. It goes on, too, if whoever read them is gone, as by an ended ssh."""

    def __init__(self, pool: RemotePool, roll: Roll, *, quiet: bool) -> None:
        self._pool = pool
        self._roll = roll
        self._quiet = quiet
        self._progress = Progress(quiet=quiet)

    def tell(self, event: dict[str, Any]) -> None:
        """One of them."""
        try:
            self._show(event)
        except OSError:
            self._quiet = True

    def say(self, text: str) -> None:
        """A line."""
        if self._quiet:
            return
        try:
            self._progress.end()
            print(text, flush=True)
        except OSError:
            self._quiet = True

    def end(self) -> None:
        """Nothing more comes."""
        if not self._quiet:
            self._progress.end()

    def _show(self, event: dict[str, Any]) -> None:
        kind, name = event["event"], event.get("backend", "")
        if kind == "moved":
            self.say(f"{name}: {self._moved(event)}")
        elif kind == "output":
            for line in shown(event["output"]):
                self.say(f"{name} | {line}")
        elif kind == "away":
            self.say(f"the balancer does not answer ({event['why']}): waiting for it")
        elif kind == "back":
            self.say("the balancer answers again")
        elif kind == "progress" and not self._quiet:
            self._progress.show(f"{name}: {self._doing(event)}")

    def _moved(self, event: dict[str, Any]) -> str:
        new = event["to"]
        if new in ("failed", "skipped"):
            return f"{new}: {event['why']}"
        steps = list(self._roll.steps.values())
        done = f" ({steps.count('done')} of {len(steps)})" if new == "done" else ""
        return _MOVED[new] + done

    def _doing(self, event: dict[str, Any]) -> str:
        drain = self._pool.drains.get(event["backend"])
        if event["step"] == "draining":
            return left(drain) if drain is not None else f"{count(event['tunnels'], 'tunnel')} left"
        if event["step"] == "acting":
            return "its command runs"
        return "not up yet" + (f": {event['reason']}" if event["reason"] else "")


def shown(output: str) -> list[str]:
    """The lines of a command's output, safe on a terminal."""
    return [
        "".join(one if one.isprintable() or one == "\t" else "\N{REPLACEMENT CHARACTER}" for one in line)
        for line in output.splitlines()
    ]


def drained(roll: Roll, pool: RemotePool) -> list[str]:
    """Who takes no tunnels, though the roll has ended: by us, or by who drained it before."""
    seen = pool.seen.backends if pool.seen is not None else {}
    # Those that are done or were taken back have been undrained since they were seen.
    return [
        each
        for each, step in roll.steps.items()
        if step not in ("done", "waiting") and each in seen and seen[each].draining
    ]


def state(roll: Roll, pool: RemotePool, name: str, admin: str | None, config: str | None) -> list[str]:
    """How a roll has left the pool, where not all of it was rolled, and what can be done about it."""
    steps = roll.steps
    still = drained(roll, pool)
    untouched = [each for each, step in steps.items() if step == "waiting"]
    over = roll.outcome == "done"
    lines = [] if over else [f"{sum(step == 'done' for step in steps.values())} of {len(steps)} done"]
    if still:
        since = "" if not pool.away else " (a balancer that was started meanwhile does not know of it)"
        lines.append(f"still drained: {', '.join(still)}{since}")
    if untouched:
        lines.append(f"untouched: {', '.join(untouched)}")
    if (still or untouched) and not over:
        lines.append(f"go on with: {to_type('roll', name, ['--resume'], admin, config)}")
    for each in still:
        given = [*option("--pool", name), *option("--backend", each)]
        lines.append(
            f"{'' if over else 'or '}take it back with: {to_type('undrain', None, given, admin, config)}"
        )
    return lines


def complain(lines: list[str]) -> None:
    """To standard error, if anybody reads it."""
    try:
        for line in lines:
            print(f"pybalancer: {line}", file=sys.stderr, flush=True)
    except OSError:
        pass


def planned(order: list[str], backends: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a dry run: backend, state, tunnels."""
    rows = []
    for name in order:
        seen = backends[name]
        health = "up" if seen.up else f"down: {seen.reason}"
        rows.append([name, health + (", drained: skipped" if seen.draining else ""), f"{seen.tunnels:,}"])
    return rows
