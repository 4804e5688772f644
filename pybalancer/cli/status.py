"""``pybalancer status``."""

from typing import TYPE_CHECKING, Any

from pybalancer.cli import exits
from pybalancer.cli.options import Admin, ConfigFile, Json, make_console, print_json
from pybalancer.cli.sizes import size

if TYPE_CHECKING:
    from rich.console import Console


def status(*, admin: Admin = None, config: ConfigFile = None, json: Json = False) -> int:
    """Show listeners, pools, backends and workers of the running balancer.


    For example:

    * `pybalancer status`
    * `pybalancer status --json | jq '.pools[].backends[] | {name, state, active}'`
    """
    from pybalancer.admin.client import find

    content = find(admin, config).get("/status")
    if json:
        print_json(content)
    else:
        console = make_console()
        _show_summary(console, content)
        if content["packet"] is not None:
            from pybalancer.cli.packets import show_packets

            show_packets(console, content["packet"])
        _show_drains(console, content["drains"])
        if content["listeners"] or content["packet"] is None:
            _show_listeners(console, content["listeners"])
        _show_requests(console, [one for one in content["listeners"] if one["mode"] != "tcp"])
        _show_sent(console, content["listeners"])
        for pool in content["pools"]:
            _show_pool(console, pool)
        _show_workers(console, content["workers"])
    return exits.FINE


def _show_summary(console: "Console", status: dict[str, Any]) -> None:
    console.print(
        f"pybalancer {status['version']} (pid {status['pid']}) up {span(status['uptime_seconds'])}, "
        f"{status['active']} tunnels, plan {status['generation']}"
        + (f" from {status['config_file']}" if status["config_file"] else "")
    )
    reload = status["last_reload"]
    if reload and not reload["ok"]:
        console.print(f"the last reload failed, the plan before it runs on:\n{reload['error']}", style="red")


def _show_drains(console: "Console", drains: list[dict[str, Any]]) -> None:
    """Those that run: what is drained and has nothing left is said where it stands."""
    from pybalancer.cli.progress import left

    for drain in drains:
        if drain["state"] == "running":
            what = "shedding from" if drain["kind"] == "shed" else "draining"
            console.print(f"{what} {drain['what']}: {left(drain)}", style="yellow")


def _show_listeners(console: "Console", listeners: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table()
    for column in ("name", "address", "pools"):
        table.add_column(column)
    for column in ("tunnels", "accepted", "refused", "in", "out"):
        table.add_column(column, justify="right")
    for listener in listeners:
        refused = {reason: count for reason, count in listener["refused"].items() if count}
        table.add_row(
            listener["name"],
            (listener["bound"] or f"{listener['bind']} (closed)")
            + (", drained" if listener["draining"] else ""),
            ", ".join(_pools(listener)),
            str(listener["active"]),
            str(listener["accepted"]),
            ", ".join(f"{count} {reason}" for reason, count in refused.items()) or "0",
            size(listener["bytes_in"]),
            size(listener["bytes_out"]),
        )
    console.print(table)


def _pools(listener: dict[str, Any]) -> list[str]:
    """Where its connections can go, once each, in the order of its routes."""
    routes = [route["pool"] for route in listener["routes"]]
    return list(dict.fromkeys(routes or [listener["pool"]]))


def _show_requests(console: "Console", listeners: list[dict[str, Any]]) -> None:
    """What only listeners have that read requests."""
    from rich.table import Table

    if not listeners:
        return
    table = Table()
    table.add_column("name")
    for column in ("requests", "handshakes", "messages in", "messages out", "pings", "closes"):
        table.add_column(column, justify="right")
    for listener in listeners:
        counts = ("requests", "handshakes", "messages_in", "messages_out", "pings")
        table.add_row(
            listener["name"],
            *(str(listener[count]) for count in counts),
            ", ".join(f"{count} × {code}" for code, count in listener["closes"].items()) or "0",
        )
    console.print(table)


def _show_sent(console: "Console", listeners: list[dict[str, Any]]) -> None:
    """Of clients that are not relayed, where there may be any."""
    from rich.table import Table

    table = Table()
    table.add_column("name")
    for column in ("directed", "redirected", "put off"):
        table.add_column(column, justify="right")
    for listener in listeners:
        if any(route["action"] != "proxy" for route in listener["routes"]):
            counts = ("directed", "redirected", "put_off")
            table.add_row(listener["name"], *(str(listener[count]) for count in counts))
    if table.row_count:
        console.print(table)


def _show_pool(console: "Console", pool: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(f"\npool {pool['name']} · {pool['policy']} by {pool['key']} · table {pool['digest'][:12]}")
    table = Table()
    for column in ("backend", "address", "health"):
        table.add_column(column)
    # What only backends have that clients are sent to, or that tell of their load.
    sent = any(backend["sent"] for backend in pool["backends"])
    loads = any(backend["load"] is not None for backend in pool["backends"])
    more = [name for name, shown in (("sent", sent), ("load", loads)) if shown]
    for column in ("share", "tunnels", "opened", "failures", "ports", "to", "from", *more):
        table.add_column(column, justify="right")
    for backend in pool["backends"]:
        style = "red" if backend["state"] != "up" else "yellow" if backend["draining"] else "green"
        ports = f"{backend['ports_used']}/{backend['ports_total']}" if backend["ports_total"] else "-"
        table.add_row(
            backend["name"],
            backend["address"],
            Text(_health(backend) + (", drained" if backend["draining"] else ""), style=style),
            f"{backend['share']:.1%}",
            str(backend["active"]),
            str(backend["opened"]),
            str(backend["connect_failures"]),
            ports,
            size(backend["bytes_to_backend"]),
            size(backend["bytes_to_client"]),
            *([str(backend["sent"])] if sent else []),
            *(["-" if backend["load"] is None else f"{backend['load']:g}"] if loads else []),
        )
    console.print(table)


def _health(backend: dict[str, Any]) -> str:
    text = str(backend["state"])
    if backend["state"] != "up":
        since = f" for {span(backend['since_seconds'])}"
        return text + since + (f": {backend['reason']}" if backend["reason"] else "")
    if backend["ramp"] < 1:
        return f"{text}, takes {backend['ramp']:.0%} of its share yet"
    return text


def _show_workers(console: "Console", workers: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table()
    for column in ("worker", "tunnels", "accepted", "descriptors", "copied", "spliced", "restarts"):
        table.add_column(column, justify="right")
    for worker in workers:
        table.add_row(
            str(worker["index"]),
            str(worker["tunnels"]),
            str(worker["accepted"]),
            str(worker["descriptors"]),
            size(worker["bytes_copied"]),
            size(worker["bytes_spliced"]),
            str(worker["restarts"]),
        )
    console.print(table)


def span(seconds: float) -> str:
    """A time for people: ``42s``, ``3m 20s``, ``5h 7m``, ``12d 3h``."""
    whole = int(seconds)
    for large, small, unit in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= large:
            return f"{whole // large}{unit[0]} {whole % large // small}{unit[1]}"
    return f"{whole}s"
