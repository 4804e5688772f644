"""``pybalancer roll``."""

import dataclasses
import os
import shlex
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from pybalancer.cli import exits
from pybalancer.cli.options import (
    Admin,
    Code,
    ConfigFile,
    Flag,
    Json,
    make_console,
    per_second,
    print_json,
    seconds,
)

if TYPE_CHECKING:
    import trio

    from pybalancer.admin.address import TcpAddress, UnixAddress
    from pybalancer.admin.client import Client
    from pybalancer.admin.pool import RemotePool
    from pybalancer.cli.journal import Journal, Page
    from pybalancer.cli.roll_view import View
    from pybalancer.policy.roll import Roll, Step
    from pybalancer.status import RollResult

ANSWER_SECONDS: Final = 10.0
"""For each answer of the balancer."""


def roll(
    pool: str,
    /,
    *,
    command: Annotated[str | None, Parameter(name="--exec")] = None,
    shell: Flag = False,
    backend: Annotated[list[str] | None, Parameter(negative=())] = None,
    max_down: int | None = None,
    timeout: str | None = None,
    over: str | None = None,
    deadline: str | None = None,
    code: Code = None,
    rate: str | None = None,
    slow_start: str | None = None,
    force: Flag = False,
    dry_run: Flag = False,
    resume: Flag = False,
    anew: Flag = False,
    admin: Admin = None,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Restart the backends of a pool, one after the other, without a ripple.

    Each is drained; when it has no tunnels left, or the deadline has passed, the command runs here; when its
    check finds it up again, it is taken back, with slow start, and the next one follows. Who is down comes
    first, who is drained already is left alone. A command that fails stops the roll: that backend stays
    drained, the rest is untouched.

    Ctrl-C begins nothing more: who was being drained is taken back, a command that runs is seen through. A
    second one ends it. What was broken off goes on with --resume, also if the balancer or this command died.

    For example:

    * `pybalancer roll chat --exec 'systemctl restart app@{name}' --dry-run`
    * `pybalancer roll chat --exec 'ssh {name} systemctl restart app' --max-down 2`
    * `pybalancer roll chat --resume`

    Parameters
    ----------
    pool
        The pool.
    command
        Run for each backend; {name}, {pool} and {address} are filled in, and are in its environment as
        PYBALANCER_NAME and so on. No shell reads it.
    shell
        Let /bin/sh read the command.
    backend
        Roll this one only. May be given several times.
    max_down
        How many may be away at once; 1 by default.
    timeout
        Time that the command has, and the backend to come up after it, such as 2m; 60s by default.
    over
        Time over which tunnels are told to go, such as 30s; by default as the pool's [drain] says.
    deadline
        Time after which those that are left are cut; likewise.
    rate
        How many are told at most, such as 100/s; 0: any number. Likewise.
    slow_start
        Time in which each is brought to its full share; by default as the pool says, else 10s.
    force
        Also if no other backend takes new tunnels: clients get 503 then.
    dry_run
        Say what would be done, in which order.
    resume
        Go on with a roll that was broken off. What is given besides counts from here on.
    anew
        Begin from the start, whatever an earlier roll has left behind.
    """
    from pybalancer.admin.client import find
    from pybalancer.cli.journal import Journal, Page

    if resume and (anew or dry_run or backend):
        raise exits.UsageError(
            "--resume goes on with a roll as it is: not with --anew, --dry-run or --backend"
        )
    if command is None and not resume:
        raise exits.UsageError(
            "with which command? for example: pybalancer roll chat --exec 'systemctl restart app@{name}'"
        )
    given = {
        "command": command,
        "shell": shell or None,
        "max_down": max_down,
        "timeout": seconds("--timeout", timeout),
        "over": seconds("--over", over),
        "deadline": seconds("--deadline", deadline),
        "code": code,
        "rate": per_second("--rate", rate),
        "slow_start": seconds("--slow-start", slow_start),
        "force": force or None,
    }
    changed: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    client = find(admin, config, timeout=ANSWER_SECONDS)
    if dry_run:
        return _plan(client, pool, Page(**changed), backend or [], json=json)
    with Journal.of(_whole(client.address), pool) as journal:
        page = _page(journal, pool, changed, resume=resume, anew=anew)
        prepared = _Prepared(client, pool, page)
        page = dataclasses.replace(page, steps=prepared.steps(page, backend or [], anew=anew))
        ended = _roll(client, pool, page, prepared, backend or [], journal, quiet=json)
    return ended.tell(pool, admin, config, json=json)


def _whole(address: "TcpAddress | UnixAddress") -> str:
    """The same from whichever directory: it says which roll is gone on with, and which one runs."""
    from pybalancer.admin.address import TcpAddress

    return str(address) if isinstance(address, TcpAddress) else f"unix:{os.path.realpath(address.path)}"


def _page(journal: "Journal", pool: str, changed: dict[str, Any], *, resume: bool, anew: bool) -> "Page":
    """What to roll: what was broken off, or something new."""
    from pybalancer.cli.journal import Page
    from pybalancer.errors import RollError

    if anew:
        try:
            earlier = journal.read()
        except RollError:
            earlier = None  # What it was nobody can tell any more.
        # Whom it has left drained is ours to roll, and to take back.
        return Page(**changed, steps=earlier.steps if earlier is not None else {})
    page = journal.read()
    if resume:
        if page is None:
            raise RollError(f"there is no roll of pool {pool} to go on with")
        return dataclasses.replace(page, **changed)
    if page is not None:
        raise RollError(
            f"an earlier roll of pool {pool} was broken off, {page.told}: go on with --resume, "
            "or begin from the start with --anew"
        )
    return Page(**changed)


class _Prepared:
    """A roll before its first step. Raises RollError, TargetError, UsageError."""

    def __init__(self, client: "Client", pool: str, page: "Page") -> None:
        from pybalancer.operations import COLD_START
        from pybalancer.policy.draining import Terms, terms_of
        from pybalancer.tasks.commands import Command
        from pybalancer.tasks.rolls import picture_of

        status = client.get("/status")
        self.picture = picture_of(status, pool)
        (found,) = (one for one in status["pools"] if one["name"] == pool)
        said = found["drain"]
        default = Terms(said["over_seconds"], said["deadline_seconds"], said["code"], said["rate"])
        try:
            self.terms: Terms = terms_of(
                default, over=page.over, deadline=page.deadline, code=page.code, rate=page.rate
            )
            self.command = Command(page.command, page.shell)
        except ValueError as error:
            raise exits.UsageError(str(error)) from None
        self.slow_start = page.slow_start
        if self.slow_start is None:
            self.slow_start = found["slow_start_seconds"] or COLD_START
        self.addresses = {one["name"]: one["address"] for one in found["backends"]}

    def steps(self, page: "Page", backends: list[str], *, anew: bool = False) -> "dict[str, Step]":
        """Where each is that is to be rolled, in this order."""
        from pybalancer.policy.roll import turns

        if page.steps and not anew:
            return dict(page.steps)
        seen = self.picture.backends
        order = turns(seen, backends)
        left = {name: step for name, step in page.steps.items() if name in order and seen[name].draining}
        return {name: _LEFT.get(left.get(name, "waiting"), "waiting") for name in order}

    def roll(self, pool: str, page: "Page", backends: list[str], now: float) -> "Roll":
        """The machine."""
        from pybalancer.policy.roll import Roll
        from pybalancer.rolling import check

        order = list(page.steps)
        try:
            settings = check(pool, order, backends, page.max_down, page.timeout, self.terms, force=page.force)
        except ValueError as error:
            raise exits.UsageError(str(error)) from None
        for name in order:
            if page.steps[name] != "done" and (why := self.command.missing(self.values(pool, name))):
                raise exits.UsageError(f"the command for {name} cannot be run: {why}")
        return Roll(order, settings, now, page.steps)

    def values(self, pool: str, name: str) -> dict[str, str]:
        """What is filled into the command."""
        return {"name": name, "pool": pool, "address": self.addresses.get(name, "")}


_LEFT: Final["dict[Step, Step]"] = {
    "draining": "draining",
    "acting": "failed",
    "checking": "failed",
    "failed": "failed",
}
"""How a backend that an earlier roll has left drained goes into a new one. Only one whose command had not
begun is taken back as it was, should that be broken off, too."""


def _plan(client: "Client", pool: str, page: "Page", backends: list[str], *, json: bool) -> int:
    from rich.table import Table

    from pybalancer.cli.progress import warn
    from pybalancer.cli.roll_view import planned
    from pybalancer.policy.draining import shortfall
    from pybalancer.status import RollResult, RollStep

    prepared = _Prepared(client, pool, page)
    page = dataclasses.replace(page, steps=prepared.steps(page, backends))
    order = list(prepared.roll(pool, page, backends, 0.0).steps)
    seen, terms = prepared.picture.backends, prepared.terms
    commands = {name: shlex.join(prepared.command.arguments(prepared.values(pool, name))) for name in order}
    if json:
        steps = [
            RollStep(name, "skipped", "it is drained already, so it is left alone", "")
            if seen[name].draining
            else RollStep(name, "waiting", commands[name], "")
            for name in order
        ]
        print_json(RollResult(pool, "planned", steps).to_dict())
        return exits.FINE
    rate = f", at most {terms.rate:g}/s" if terms.rate else ""
    console = make_console()
    console.print(
        f"pool {pool}: {page.max_down} at a time, drained over {terms.over:g} s{rate}, "
        f"cut after {terms.deadline:g} s, with slow start over {prepared.slow_start:g} s"
    )
    table = Table()
    for column in ("backend", "now"):
        table.add_column(column)
    table.add_column("tunnels", justify="right")
    for row in planned(order, seen):
        table.add_row(*row)
    console.print(table)
    for name in order:
        if not seen[name].draining:
            print(f"{name}: {commands[name]}")
    for name in order:
        short = shortfall(seen[name].tunnels, over=terms.over, deadline=terms.deadline, rate=terms.rate)
        warn([f"{name}: {short}"] if short and not seen[name].draining else [])
    return exits.FINE


def _roll(
    client: "Client",
    pool: str,
    page: "Page",
    prepared: _Prepared,
    backends: list[str],
    journal: "Journal",
    *,
    quiet: bool,
) -> "_Ended":
    import trio

    from pybalancer.admin.pool import RemotePool
    from pybalancer.cli.roll_view import View
    from pybalancer.rolling import RollLog, acting

    assert prepared.slow_start is not None
    remote = RemotePool(client, pool, prepared.terms, prepared.slow_start, force=page.force)

    async def main() -> "_Ended":
        began = trio.current_time()
        machine = prepared.roll(pool, page, backends, began)
        view = View(remote, machine, quiet=quiet)
        log = RollLog(view.tell)
        run = _Run(machine, remote, view)
        problem = await run.conduct(
            acting(prepared.command, pool, prepared.addresses, page.timeout),
            log.tell,
            lambda steps: journal.write(dataclasses.replace(page, steps=dict(steps))),
        )
        view.end()
        result = log.result(pool, machine, "interrupted" if run.ended else "failed")
        seconds = trio.current_time() - began
        return _Ended(machine, remote, view, result, problem, run.ended, seconds)

    ended = trio.run(main)
    if ended.result.outcome == "done":
        journal.remove()
    return ended


@dataclasses.dataclass
class _Ended:
    """A roll that goes on no more, whichever way it ended."""

    machine: "Roll"
    remote: "RemotePool"
    view: "View"
    result: "RollResult"
    problem: str | None
    by_force: bool
    """Whether a second signal has ended it."""
    seconds: float

    def tell(self, pool: str, admin: str | None, config: str | None, *, json: bool) -> int:
        """Say how; the exit code."""
        from pybalancer.cli.progress import count
        from pybalancer.cli.roll_view import complain, drained, state

        steps = list(self.machine.steps.values())
        outcome, done = self.result.outcome, steps.count("done")
        left = state(self.machine, self.remote, pool, admin, config)
        if json:
            still = drained(self.machine, self.remote)
            print_json({**self.result.to_dict(), "problem": self.problem, "drained": still})
        elif outcome == "done":
            of = "" if done == len(steps) else f"{done:,} of "
            self.view.say(f"rolled pool {pool}: {of}{count(len(steps), 'backend')} in {self.seconds:.1f} s")
            complain(left)
        else:
            why = f": {self.problem}" if self.problem else ""
            complain([f"the roll of pool {pool} has stopped{why}", *left])
        if outcome == "done":
            return exits.FINE
        return exits.INTERRUPTED if self.by_force or outcome == "interrupted" else exits.FAILED


class _Run:
    """Carries a roll out, and does what signals ask for."""

    def __init__(self, machine: "Roll", remote: "RemotePool", view: "View") -> None:
        self._machine = machine
        self._remote = remote
        self._view = view
        self.ended = False
        """Whether a second signal has ended it."""

    async def conduct(self, act: Any, tell: Any, keep: Any) -> str | None:
        """Until it has ended, whichever way; why it has failed, if so."""
        import trio

        from pybalancer.errors import PybalancerError, plain
        from pybalancer.tasks.rolls import conduct

        problem: str | None = None
        # Before anything is done: what cannot be kept is not begun.
        keep(self._machine.steps)
        with trio.open_signal_receiver(*_signals()) as signals:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._obey, signals, nursery.cancel_scope)
                    await conduct(self._machine, self._remote, act, tell, keep=keep)
                    nursery.cancel_scope.cancel()
            except* PybalancerError as group:
                problem = str(plain(group))
        return problem or self._machine.problem

    async def _obey(self, signals: AsyncIterator[int], scope: "trio.CancelScope") -> None:
        asked = False
        async for _number in signals:
            if asked:
                self._view.say("ending it at once")
                self.ended = True
                scope.cancel()
                return
            asked = True
            self._machine.interrupt()
            acting = [name for name, step in self._machine.steps.items() if step in ("acting", "checking")]
            through = f"; {', '.join(acting)} is seen through, once more ends it" if acting else ""
            self._view.say(f"stopping: who is being drained is taken back{through}")


def _signals() -> list[signal.Signals]:
    """Those that end us, but for a hang-up that nohup has switched off."""
    there = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [one for one in there if signal.getsignal(one) is not signal.SIG_IGN]
