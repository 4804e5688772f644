"""Options that several commands have, and how all of them print."""

import json as json_module
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.console import Console

Admin = Annotated[
    str | None, Parameter(help="Admin address of the running balancer: unix:/path or host:port.")
]
ConfigFile = Annotated[str | None, Parameter(help="Configuration file whose admin address to use.")]
Json = Annotated[bool, Parameter(negative=(), help="Print JSON for programs.")]
Pool = Annotated[str | None, Parameter(help="The pool, where there are several.")]

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
