"""``pybalancer check``."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pybalancer.cli import exits
from pybalancer.cli.options import Json, print_json
from pybalancer.errors import ConfigError, Problem

if TYPE_CHECKING:
    from pybalancer.config.model import Config


def check(
    file: Path | None = None,
    /,
    *,
    json: Json = False,
    schema: Annotated[bool, Parameter(negative=())] = False,
    reference: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Check a configuration file, and say everything that is wrong with it.

    Names of hosts are not looked up. Exits with 1 if anything is wrong.

    For example:

    * `pybalancer check pybalancer.toml`

    Parameters
    ----------
    file
        The configuration file.
    schema
        Print the JSON Schema of configurations instead, for editors.
    reference
        Print the reference of all keys instead, as Markdown.
    """
    if schema or reference:
        from pybalancer.config import reference as pages

        if schema:
            print_json(pages.schema())
        else:
            sys.stdout.write(pages.reference())
        return exits.FINE
    if file is None:
        raise exits.UsageError("check what? for example: pybalancer check pybalancer.toml")
    try:
        config = _load(file)
    except ConfigError as error:
        if not json:
            raise
        print_json({"ok": False, "problems": _listed(error.problems), "warnings": []})
        return exits.FAILED
    if json:
        print_json({"ok": True, "problems": [], "warnings": _listed(config.warnings)})
        return exits.FINE
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    backends = sum(len(pool.backends) for pool in config.pools.values())
    print(
        f"{file}: fine: {_count(len(config.listeners), 'listener')}, "
        f"{_count(len(config.pools), 'pool')}, {_count(backends, 'backend')}"
    )
    return exits.FINE


def _load(file: Path) -> "Config":
    from pybalancer.config.load import load_file
    from pybalancer.config.secret import read_secret, read_ticket_keys, read_token

    config = load_file(file, os.environ)
    # Files that it names must be there and private; without a name one would be made, so not here.
    if config.balancer.secret_file is not None:
        read_secret(config)
    read_token(config.balancer)
    read_ticket_keys(config)
    return config


def _listed(problems: "list[Problem] | tuple[Problem, ...]") -> list[dict[str, object]]:
    return [problem.to_dict() for problem in problems]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
