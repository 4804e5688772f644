"""``pybalancer diff``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pybalancer.cli import exits
from pybalancer.cli.options import Admin, ConfigFile, Json, make_console, print_json
from pybalancer.errors import ConfigError, Problem

if TYPE_CHECKING:
    from rich.console import Console

    from pybalancer.config.model import Config

STAND_INS: Final = {"secret": "0" * 32, "admin_token": "0" * 32}
"""What goes to the balancer in the place of secrets: it knows its own, and needs no others."""


def diff(file: Path, /, *, admin: Admin = None, config: ConfigFile = None, json: Json = False) -> int:
    """Say what a reload with another configuration would change, and do nothing.

    Listeners, routes and backends that come, go or change; the share of keys that would be served
    elsewhere; live tunnels of backends that go, and what becomes of them. Flags and environment of the
    running balancer count, as at a reload.

    For example:

    * `pybalancer diff new.toml`
    * `pybalancer diff new.toml --json | jq .tunnels`

    Parameters
    ----------
    file
        The configuration that it may get.
    """
    from pybalancer.admin.client import Refused, find

    values, digest, warnings = _read(file)
    try:
        answer = find(admin, config).post("/diff", {"config": values, "secret": digest})
    except Refused as error:
        if json:
            print_json(error.content)
            return exits.FAILED
        if problems := error.content.get("problems"):
            raise ConfigError([Problem(**{**one, "file": str(file)}) for one in problems]) from None
        raise
    # Those found here know where in the file.
    answer["warnings"] = warnings
    if json:
        print_json(answer)
        return exits.FINE
    print(*warnings, sep="\n", end="\n" if warnings else "", file=sys.stderr)
    _show(make_console(), answer)
    return exits.FINE


def _read(file: Path) -> tuple[dict[str, Any], str | None, list[str]]:
    """What is in the file, without secrets; the digest of its secret if it has one that we may read; doubts.

    Raises ConfigError, which knows lines and columns: the balancer only gets what is in it.
    """
    import tomllib

    from pybalancer.config.load import load_file
    from pybalancer.config.secret import ticket_digest

    config = load_file(file, env={})
    values = tomllib.loads(file.read_text(encoding="utf-8"))
    section = values.get("balancer", {})
    section.update({key: stand_in for key, stand_in in STAND_INS.items() if key in section})
    for name, pool in config.pools.items():
        if pool.direct.ticket_secret is not None:
            digest = ticket_digest(pool.direct.ticket_secret.get_secret_value())
            values["pools"][name]["direct"]["ticket_secret"] = digest
    return values, _digest(config), [str(problem) for problem in config.warnings]


def _digest(config: Config) -> str | None:
    from pybalancer.config.secret import read_secret, secret_digest

    section = config.balancer
    if section.secret is None and section.secret_file is None:
        return None  # The balancer keeps the one that it has made.
    try:
        return secret_digest(read_secret(config))
    except ConfigError as error:
        print(f"the secret is taken to be the same: {error}", file=sys.stderr)
        return None


def _show(console: Console, answer: dict[str, Any]) -> None:
    if answer["nothing"]:
        console.print("nothing changes")
        return
    for change in answer["changes"]:
        console.print(change)
    for key in answer["ignored"]:
        console.print(f"not changed before a restart: {key}")
    _show_pools(console, answer["pools"])
    told = [f"{number:,} {fate}" for fate, number in answer["tunnels"].items() if number]
    console.print(f"live tunnels of backends that go: {', '.join(told) or 'none'}")


def _show_pools(console: Console, pools: list[dict[str, Any]]) -> None:
    from rich.table import Table

    for pool in pools:
        if pool["moved"] is not None:
            console.print(f"pool {pool['name']}: {pool['moved']:.1%} of the keys move")
        if not pool["backends"]:
            continue
        table = Table()
        for column in ("backend", "change"):
            table.add_column(column)
        table.add_column("tunnels", justify="right")
        table.add_column("become")
        for backend in pool["backends"]:
            what = f": {', '.join(backend['what'])}" if backend["what"] else ""
            fate = "" if backend["change"] == "added" else backend["fate"]
            tunnels = "" if backend["change"] == "added" else f"{backend['tunnels']:,}"
            table.add_row(f"{pool['name']}/{backend['name']}", backend["change"] + what, tunnels, fate)
        console.print(table)
