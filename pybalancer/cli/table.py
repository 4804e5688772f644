"""``pybalancer table``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pybalancer.cli import exits
from pybalancer.cli.options import Admin, ConfigFile, Json, Pool, make_console, print_json
from pybalancer.errors import AdminError

if TYPE_CHECKING:
    from pybalancer.config.model import Config


def table(
    file: Path | None = None,
    /,
    *,
    pool: Pool = None,
    digest: Annotated[bool, Parameter(negative=())] = False,
    compare: Annotated[list[str] | None, Parameter(negative=())] = None,
    admin: Admin = None,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Show how the hash table of each pool is shared out, or its fingerprint.

    Balancers with the same secret and backends have the same table. With a file, no running balancer
    is asked.

    For example:

    * `pybalancer table pybalancer.toml --digest`
    * `pybalancer table --digest --compare 10.0.0.2:9090 --compare 10.0.0.3:9090`

    Parameters
    ----------
    file
        Compute from this configuration file; by default the running balancer is asked.
    digest
        Print only the fingerprint of each table.
    compare
        Admin address of another balancer; exit code 1 if its tables are others. Can be repeated.
    """
    if file is not None and (admin or config):
        raise exits.UsageError("either a file, or --admin or --config for a running balancer, not both")
    pools = _from_file(file) if file is not None else _from_running(admin, config)
    if pool is not None:
        if pool not in pools:
            raise AdminError(f"there is no pool {pool!r}; there are: {', '.join(pools) or 'none'}")
        pools = {pool: pools[pool]}
    others = {address: _differences(pools, _from_running(address, None), pool) for address in compare or ()}
    if digest:
        pools = {name: {"digest": table["digest"]} for name, table in pools.items()}
    if json:
        print_json({"pools": pools, "differences": others} if compare else pools)
    elif digest:
        for name, content in pools.items():
            print(f"{content['digest']}  {name}")
    else:
        _show(pools)
    if not json:
        for address, found in others.items():
            print(f"{address}: {'; '.join(found) or 'the same'}")
    return exits.FAILED if any(others.values()) else exits.FINE


def _differences(
    mine: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]], only: str | None
) -> list[str]:
    """Of another balancer's tables, each in words."""
    found = []
    for name in [only] if only is not None else [*mine, *(name for name in theirs if name not in mine)]:
        here, there = mine.get(name), theirs.get(name)
        if here is None or there is None:
            found.append(f"pool {name} is there only" if here is None else f"there is no pool {name}")
        elif here["digest"] != there["digest"]:
            shares = here["shares"].keys() ^ there["shares"].keys()
            why = (
                f"backends differ: {', '.join(sorted(shares))}"
                if shares
                else "secret, weights or health differ"
            )
            found.append(f"pool {name} has {there['digest']} ({why})")
    return found


def _from_file(file: Path) -> dict[str, dict[str, Any]]:
    from pybalancer.config import packet
    from pybalancer.config.compile import compile_plan
    from pybalancer.config.load import load_file
    from pybalancer.config.secret import read_secret
    from pybalancer.packet.services import digest_of

    config = load_file(file, os.environ)
    secret = read_secret(config)
    plan = compile_plan(config, _addresses(config), {}, secret)
    tables: dict[str, dict[str, Any]] = {}
    for name, pool in config.pools.items():
        shares = plan.shares(name)
        # As the file has them: the core's mapping comes in another order each time.
        in_order = {backend.name: shares[backend.name] for backend in pool.backends}
        led = name in packet.only_packets(config) and any(in_order.values())
        digest = digest_of(config, name, secret) if led else plan.digest(name)
        tables[name] = {"digest": digest, "shares": in_order}
    return tables


def _addresses(config: "Config") -> dict[tuple[str, str], str]:
    """An address for each backend without a look-up: tables are made from names and weights only."""
    from pybalancer.config.compile import is_literal

    def stand_in(sources: tuple[str, ...]) -> str:
        return "[2001:db8::1]:1" if any(":" in source for source in sources) else "192.0.2.1:1"

    return {
        (name, backend.name): backend.address if is_literal(backend.address) else stand_in(pool.sources)
        for name, pool in config.pools.items()
        for backend in pool.backends
    }


def _from_running(admin: str | None, config: str | None) -> dict[str, dict[str, Any]]:
    from pybalancer.admin.client import find

    status = find(admin, config).get("/status")
    return {
        pool["name"]: {
            "digest": pool["digest"],
            "shares": {backend["name"]: backend["share"] for backend in pool["backends"]},
        }
        for pool in status["pools"]
    }


def _show(pools: dict[str, dict[str, Any]]) -> None:
    from rich.table import Table

    console = make_console()
    for name, content in pools.items():
        console.print(f"pool {name} · digest {content['digest']}")
        shown = Table()
        shown.add_column("backend")
        shown.add_column("share", justify="right")
        for backend, share in content["shares"].items():
            shown.add_row(backend, f"{share:.2%}")
        console.print(shown)
