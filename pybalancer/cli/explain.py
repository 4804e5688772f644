"""``pybalancer explain``."""

from pybalancer.cli import exits
from pybalancer.cli.options import Admin, ConfigFile, Json, Pool, make_console, print_json

MEANINGS = {
    "picked": "a connection from there goes here now",
    "next": "would be tried next, if the ones before it refused",
    "down": "passed over: its checks fail",
    "draining": "passed over: takes no new tunnels",
    "weight-0": "passed over: its weight is 0",
    "over-skew": "passed over for now: it has more than max_skew of the mean",
    "slow-start": "passed over by this key: it came back a moment ago and takes only a part of its keys",
}


def explain(
    source: str,
    /,
    *,
    pool: Pool = None,
    admin: Admin = None,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Say which backend a client gets, why, and which it would get next.


    For example:

    * `pybalancer explain 203.0.113.7:51234`

    Parameters
    ----------
    source
        The client's address and port; the port may be left out where only the address is hashed.
    """
    from pybalancer.admin.client import find

    answer = find(admin, config).get("/explain", source=source, pool=pool)
    if json:
        print_json(answer)
        return exits.FINE
    from rich.table import Table

    console = make_console()
    console.print(
        f"{answer['source']} in pool {answer['pool']} ({answer['policy']} by {answer['key']}) → "
        + (answer["backend"] or "nobody: no backend takes new tunnels")
    )
    table = Table()
    table.add_column("", justify="right")
    for column in ("backend", "address", "tunnels", "why"):
        table.add_column(column, justify="right" if column == "tunnels" else "left")
    for number, choice in enumerate(answer["choices"], 1):
        why = MEANINGS.get(choice["verdict"], choice["verdict"])
        table.add_row(str(number), choice["backend"], choice["address"], str(choice["active"]), why)
    console.print(table)
    return exits.FINE
