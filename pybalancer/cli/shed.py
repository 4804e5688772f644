"""``pybalancer shed``."""

import sys
from typing import Annotated, Any

from cyclopts import Parameter

from pybalancer.cli import exits
from pybalancer.cli.options import (
    Admin,
    Code,
    ConfigFile,
    Flag,
    Json,
    make_console,
    option,
    per_second,
    print_json,
    to_type,
    usage,
)

MOST_SKEW = 1e6


def shed(
    pool: str,
    /,
    *,
    to_skew: Annotated[float, Parameter(allow_leading_hyphen=False)] = 1.05,
    rate: str | None = None,
    code: Code = None,
    dry_run: Flag = False,
    no_wait: Flag = False,
    admin: Admin = None,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Close the surplus of the fullest backends, so that clients come back where there is room.

    For after a restart or a scale-out. In a pool that hashes only tunnels are closed that the table would
    place elsewhere now: where its clients come back to is not chance. Ctrl-C ends the waiting, not the shed.

    For example:

    * `pybalancer shed chat --to-skew 1.05 --dry-run`
    * `pybalancer shed chat --rate 100/s`

    Parameters
    ----------
    pool
        The pool.
    to_skew
        What a backend has above so many times its fair share is surplus.
    rate
        How many are closed at most, such as 100/s; by default as the pool's rebalance or [drain] says.
    dry_run
        Say how many it would close, and of whom.
    no_wait
        Do not wait for its end.
    """
    from pybalancer.admin.client import find
    from pybalancer.cli.progress import count, outcome, warn, watch

    if not 1 <= to_skew <= MOST_SKEW:
        raise exits.UsageError("--to-skew: a number from 1, such as 1.05")
    client = find(admin, config)
    pace = per_second("--rate", rate)
    with usage():
        answer = client.post("/shed", pool=pool, to_skew=to_skew, rate=pace, code=code, dry_run=dry_run)
    warn(answer["warnings"])
    if not json:
        _show(answer)
    if answer["drain"] is not None and not dry_run and not no_wait:
        try:
            answer["drain"] = watch(client, answer, quiet=json)
        except KeyboardInterrupt:
            undrain = to_type("undrain", None, option("--pool", pool), admin, config)
            print(f"it goes on by itself: `{undrain}` stops it", file=sys.stderr)
            raise
    drain = answer["drain"]
    result = exits.FINE if drain is None or drain["state"] != "cancelled" else exits.FAILED
    if json:
        print_json({key: value for key, value in answer.items() if key not in ("pid", "started")})
        return result
    if drain is None:
        pass
    elif dry_run:
        print(f"it would close {count(drain['total'], 'tunnel')}")
    elif drain["state"] == "running":
        print(f"shedding, at most {drain['rate']:g}/s")
    else:
        stopped = " (stopped by somebody)" if drain["state"] == "cancelled" else ""
        print(f"shed{stopped}: {outcome(drain)}")
    return result


def _show(answer: dict[str, Any]) -> None:
    """Who has too many, and how many of those may go."""
    from rich.table import Table

    console = make_console()
    console.print(
        f"pool {answer['pool']}: the fullest has {answer['skew']:.3g} times its fair share"
        + ("" if answer["surplus"] else f", that is within {answer['to_skew']:g}: nothing to shed")
    )
    if not answer["surplus"]:
        return
    table = Table()
    table.add_column("backend")
    table.add_column("too many", justify="right")
    # Who begins knows that only when the workers have looked.
    may = {part["backend"]: part["total"] for part in answer["drain"]["parts"]} if answer["dry_run"] else {}
    if may:
        table.add_column("to close", justify="right")
    for backend, surplus in answer["surplus"].items():
        table.add_row(backend, f"{surplus:,}", *([f"{may.get(backend, 0):,}"] if may else []))
    console.print(table)
