"""Options that several commands have, and how all of them print."""

import json as json_module
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pybalancer.cli import exits

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

Admin = Annotated[
    str | None, Parameter(help="Admin address of the running balancer: unix:/path or host:port.")
]
ConfigFile = Annotated[str | None, Parameter(help="Configuration file whose admin address to use.")]
Json = Annotated[bool, Parameter(negative=(), help="Print JSON for programs.")]
Pool = Annotated[str | None, Parameter(help="The pool, where there are several.")]
Flag = Annotated[bool, Parameter(negative=())]
OfPool = Annotated[str | None, Parameter(help="All of this pool; with --backend, one of it.")]
OfBackend = Annotated[str | None, Parameter(help="This backend.")]
OfListener = Annotated[str | None, Parameter(help="This listener.")]
OfAll = Annotated[bool, Parameter(name="--all", negative=(), help="Everything.")]
Code = Annotated[
    int | None, Parameter(help="Code of the Close that WebSockets get; 1012 unless the file says otherwise.")
]

NAME_ONE = "say one of: NAME, --pool with or without --backend, --backend, --listener, --all"


def whom(
    name: str | None, pool: str | None, backend: str | None, listener: str | None, everything: bool
) -> dict[str, str | bool | None]:
    """What a command is about, as the admin interface wants it. Raises UsageError unless it is one thing."""
    named = pool is not None or backend is not None
    if (name is not None) + named + (listener is not None) + everything != 1:
        raise exits.UsageError(NAME_ONE)
    return {"name": name, "pool": pool, "backend": backend, "listener": listener, "all": everything}


def seconds(option: str, text: str | None) -> float | None:
    """Of a time such as 30s. Raises UsageError."""
    from pybalancer.config.values import duration

    return None if text is None else _read(option, text, duration)


def per_second(option: str, text: str | None) -> float | None:
    """Of a rate such as 100/s; 0 is no bound. Raises UsageError."""
    from pybalancer.config.values import rate

    if text is None or text == "0":
        return None if text is None else 0.0
    return _read(option, text, rate)


def _read(option: str, text: str, read: "Callable[[str], float]") -> float:
    try:
        return read(text)
    except ValueError as error:
        raise exits.UsageError(f"{option}: {error}") from None


PIPE_WIDTH = 200
"""Columns of a table that no terminal cuts."""


def print_json(content: Any) -> None:
    """Write it to standard output, indented."""
    print(json_module.dumps(content, indent=2))


def make_console() -> "Console":
    """For tables: names come from configurations, so nothing in them is markup."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console
