"""``pybalancer explain``."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pybalancer.cli import exits
from pybalancer.cli.options import Admin, ConfigFile, Json, Pool, make_console, print_json

if TYPE_CHECKING:
    from rich.console import Console

MEANINGS = {
    "picked": "a connection from there goes here now",
    "next": "would be tried next, if the ones before it refused",
    "down": "passed over: its checks fail",
    "draining": "passed over: takes no new tunnels",
    "weight-0": "passed over: its weight is 0",
    "over-skew": "passed over for now: it has more than max_skew of the mean",
    "slow-start": "passed over by this key: it came back a moment ago and takes only a part of its keys",
}


LONGEST = 150
"""Characters of host and path that are shown."""

Many = Annotated[list[str] | None, Parameter(negative=())]


def explain(
    source: str,
    /,
    *,
    pool: Pool = None,
    listener: str | None = None,
    host: str | None = None,
    path: str | None = None,
    header: Many = None,
    cookie: Many = None,
    admin: Admin = None,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Say which backend a client gets, why, and which it would get next.

    In mode "websocket" that hangs on what the client asks for. Without --header for Connection or Upgrade
    the request is a WebSocket handshake.

    For example:

    * `pybalancer explain 203.0.113.7:51234`
    * `pybalancer explain --host chat.example.com --path '/rooms/7?v=2' 203.0.113.7:51234`
    * `pybalancer explain --path /rooms/7 --header 'X-User: 5' --cookie beta=1 203.0.113.7:51234`

    Parameters
    ----------
    source
        The client's address and port; the port may be left out where only the address is hashed.
    listener
        The listener that the client asks, where several are of mode "websocket", or one of mode "packet".
    host
        The host that it names.
    path
        The path that it asks for, with its query.
    header
        A header of the request, "NAME: VALUE". May be given several times.
    cookie
        A cookie of the request, "NAME=VALUE". May be given several times.
    """
    from pybalancer.admin.client import find

    for name, texts, sign, example in (
        ("--header", header, ":", "X-User: 5"),
        ("--cookie", cookie, "=", "user=5"),
    ):
        for text in texts or ():
            if sign not in text:
                raise exits.UsageError(f"{name} {text!r}: write it as in {name} {example!r}")
    headers = [*(header or ()), *([f"Cookie: {'; '.join(cookie)}"] if cookie else [])]
    answer = find(admin, config).get(
        "/explain", source=source, pool=pool, listener=listener, host=host, path=path, header=headers
    )
    if json:
        print_json(answer)
        return exits.FINE
    console = make_console()
    _show_way(console, answer)
    if "packet" in answer:
        from pybalancer.cli.packets import show_row

        show_row(console, answer["packet"])
    if answer["choices"]:
        _show_choices(console, answer["choices"])
    return exits.FINE


def _show_way(console: "Console", answer: dict[str, Any]) -> None:
    """Who comes, how far, and by what."""
    key = answer["key"]
    nobody = "nobody: no backend takes new tunnels"
    if "listener" not in answer:
        console.print(
            f"{answer['source']} in pool {answer['pool']} ({answer['policy']} by {key}) → "
            + (answer["backend"] or nobody)
        )
        if not key.startswith("source"):
            console.print("what it asks for decides, and was not given: see --path")
        return
    what, where = "a WebSocket" if answer["handshake"] else "a page", answer["host"] + answer["path"]
    if len(where) > LONGEST:
        where = where[: LONGEST - 1] + "…"
    console.print(f"{answer['source']} asks listener {answer['listener']} for {what} at {where}")
    refused = answer["refused"]
    if answer["route"] is not None:
        why = ", ".join(_conditions(answer["conditions"])) or "takes all"
        console.print(f"→ route {answer['route']} ({why})")
    if refused:
        console.print(f"→ refused with {refused['status']}: {refused['why']}")
        return
    console.print(
        f"→ pool {answer['pool']} ({answer['policy']} by {key}) → " + (answer["backend"] or f"503, {nobody}")
    )
    for number, url in enumerate(answer["urls"]):
        console.print(f"→ {answer['action']}: {url}" if number == 0 else f"  or {url}")
    if key == "sticky":
        console.print("unless it brings the cookie that binds it to one of them")


def _conditions(conditions: dict[str, Any]) -> list[str]:
    found = [f"{part} {conditions[part]}" for part in ("path", "host") if part in conditions]
    for part in ("header", "cookie", "query"):
        for name, value in conditions.get(part, {}).items():
            found.append(f"{part} {name}" + ("" if value is True else f" = {value}"))
    return found


def _show_choices(console: "Console", choices: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("", justify="right")
    for column in ("backend", "address", "tunnels", "why"):
        table.add_column(column, justify="right" if column == "tunnels" else "left")
    for number, choice in enumerate(choices, 1):
        why = MEANINGS.get(choice["verdict"], choice["verdict"])
        table.add_row(str(number), choice["backend"], choice["address"], str(choice["active"]), why)
    console.print(table)
