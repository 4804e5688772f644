"""Options that several commands have, and how all of them print."""

import contextlib
import json as json_module
import shlex
from collections.abc import Iterator, Sequence
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


def to_type(verb: str, name: str | None, given: Sequence[str], admin: str | None, config: str | None) -> str:
    """A command that people may copy: it asks the same balancer, whatever the names are.

    ``given`` are its options, ``admin`` and ``config`` those that this command had.
    """
    options = [*given, *(option("--admin", admin) or option("--config", config))]
    if name is not None and name.startswith("-"):
        words = [*options, "--", name]
    else:
        words = [*([] if name is None else [name]), *options]
    return shlex.join(["pybalancer", verb, *words])


def option(name: str, value: str | None) -> list[str]:
    """It and its value as words of a command; none if it is not given."""
    if value is None:
        return []
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """What the balancer says makes no sense as a question makes none as a command line: UsageError."""
    from pybalancer.admin.client import Refused

    try:
        yield
    except Refused as error:
        if error.status == BAD_QUESTION:
            raise exits.UsageError(str(error)) from None
        raise


BAD_QUESTION = 400
"""The status of an answer to it."""

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
